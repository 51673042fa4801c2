"""SAM 2 and 2.1 (Ravi et al. 2024) on single images: prompts to masks.

Names follow ``facebookresearch/sam2``. Images are squares of ``image_size`` pixels, normalised with
ImageNet's mean and deviation; prompts are pixels ``(x, y)`` of that square. What only video needs
is kept in the state and never used.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sightline.models.hiera import Hiera, Neck
from sightline.models.published import pick_options
from sightline.nn.attention import attend
from sightline.nn.norm import LayerNorm2d
from sightline.nn.opaque import hold
from sightline.nn.options import Device, DType, Number
from sightline.nn.tables import TableCache

Labels = Int[Tensor, "b n"]


class ImageFeatures(NamedTuple):
    """What the image encoder gives to the mask decoder, for ``B`` images.

    Attributes:
        embedding: ``[B, C, s, s]`` at stride 16, without the no-memory embedding.
        high_res: ``[B, C/8, 4s, 4s]`` and ``[B, C/4, 2s, 2s]``.
    """

    embedding: Tensor
    high_res: tuple[Tensor, Tensor]


class Masks(NamedTuple):
    """All masks of ``P`` prompts: the single-mask token first, then three alternatives.

    Attributes:
        logits: ``[P, 4, 4s, 4s]``, positive inside.
        ious: ``[P, 4]``, the quality that the network expects.
        object_logits: ``[P, 1]``, positive where there is an object.
    """

    logits: Tensor
    ious: Tensor
    object_logits: Tensor


class MLP(nn.Module):
    """Linear layers with an activation in between (keys ``layers.0``, ``layers.1``, ...)."""

    def __init__(
        self, sizes: Sequence[int], act: nn.Module | None = None, sigmoid: bool = False, **kind: Any
    ) -> None:
        """Create layers between consecutive ``sizes``; ReLU by default."""
        super().__init__()
        pairs = itertools.pairwise(sizes)
        self.layers = nn.ModuleList(nn.Linear(a, b, **kind) for a, b in pairs)
        self.act = act or nn.ReLU()
        self.sigmoid = sigmoid

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch e"]:
        """Apply the layers to the last axis."""
        *first, last = self.layers
        for layer in first:
            x = self.act(layer(x))
        x = last(x)
        return x.sigmoid() if self.sigmoid else x


class PromptEncoder(nn.Module):
    """Points, boxes and masks to tokens."""

    def __init__(
        self,
        embed_dim: int = 256,
        image_size: int = 1024,
        mask_in_chans: int = 16,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the embeddings for square images of ``image_size`` pixels."""
        super().__init__()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.image_size = image_size
        self.pe_layer: Any = nn.Module()
        matrix = torch.randn(2, embed_dim // 2, **kind)
        self.pe_layer.register_buffer("positional_encoding_gaussian_matrix", matrix)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed_dim, **kind) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, embed_dim, **kind)
        quarter = mask_in_chans // 4
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, quarter, 2, stride=2, **kind),
            LayerNorm2d(quarter, **kind),
            nn.GELU(),
            nn.Conv2d(quarter, mask_in_chans, 2, stride=2, **kind),
            LayerNorm2d(mask_in_chans, **kind),
            nn.GELU(),
            nn.Conv2d(mask_in_chans, embed_dim, 1, **kind),
        )
        self.no_mask_embed = nn.Embedding(1, embed_dim, **kind)
        self._grids = TableCache[Tensor]()

    def positions(self, unit: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch c"]:
        """Return the random Fourier features of coordinates ``(x, y)`` in [0, 1]."""
        matrix = self.pe_layer.get_buffer("positional_encoding_gaussian_matrix")
        angle = 2 * math.pi * ((2 * unit.to(matrix.dtype) - 1) @ matrix)
        return torch.cat((angle.sin(), angle.cos()), -1)

    def dense_positions(self, side: int) -> Float[Tensor, "1 c side side"]:
        """Return the features of every cell of a square grid."""
        matrix = self.pe_layer.get_buffer("positional_encoding_gaussian_matrix")

        def make() -> Tensor:
            centre = (torch.arange(side, device=matrix.device, dtype=matrix.dtype) + 0.5) / side
            y, x = torch.meshgrid(centre, centre, indexing="ij")
            return self.positions(torch.stack((x, y), -1)).permute(2, 0, 1).unsqueeze(0)

        return self._grids.get(side, make, buffers=[matrix])

    def embed_points(
        self, points: Float[Tensor, "b n 2"], labels: Labels, pad: bool
    ) -> Float[Tensor, "b m c"]:
        """Return tokens of points.

        Args:
            points: Pixels of the square; the half pixel to the centre is added here.
            labels: 1 inside, 0 outside, 2 and 3 for the corners of a box, -1 for no point.
            pad: Append a "no point", as is done where no box is given.
        """
        points = points + 0.5
        if pad:
            points = torch.cat((points, points.new_zeros(len(points), 1, 2)), 1)
            labels = torch.cat((labels, labels.new_full((len(labels), 1), -1)), 1)
        tokens = self.positions(points / self.image_size)
        tokens = tokens * (labels >= 0).unsqueeze(-1)
        table = torch.cat(
            [e.get_parameter("weight") for e in (self.not_a_point_embed, *self.point_embeddings)]
        )
        return tokens + table[(labels + 1).long()]

    def embed_boxes(self, boxes: Float[Tensor, "b 4"]) -> Float[Tensor, "b 2 c"]:
        """Return two tokens for each box ``(x0, y0, x1, y1)``."""
        labels = torch.tensor([2, 3], device=boxes.device).expand(len(boxes), -1)
        return self.embed_points(boxes.view(-1, 2, 2), labels, pad=False)

    def forward(
        self,
        points: Float[Tensor, "b n 2"] | None = None,
        labels: Labels | None = None,
        boxes: Float[Tensor, "b 4"] | None = None,
        masks: Float[Tensor, "b 1 m m"] | None = None,
    ) -> tuple[Float[Tensor, "b k c"], Float[Tensor, "d c _ _"]]:
        """Return tokens, and a map ``[B, C, s, s]`` of masks or ``[1, C, 1, 1]`` without.

        Args:
            points: Pixels of the square.
            labels: See `embed_points`.
            boxes: Corners in pixels.
            masks: Logits at stride 4.
        """
        tokens = []
        if points is not None:
            assert labels is not None
            tokens.append(self.embed_points(points, labels, pad=boxes is None))
        if boxes is not None:
            tokens.append(self.embed_boxes(boxes))
        if masks is None:
            dense = self.no_mask_embed.weight.view(1, -1, 1, 1)
        else:
            dense = self.mask_downscaling(masks)
        if tokens:
            return torch.cat(tokens, 1), dense
        width = self.no_mask_embed.embedding_dim
        return dense.new_zeros(len(dense), 0, width), dense


class Attention(nn.Module):
    """Attention with separate projections and a narrower inside."""

    def __init__(self, dim: int, num_heads: int, downsample: int = 1, **kind: Any) -> None:
        """Create projections of width ``dim / downsample``."""
        super().__init__()
        inside = dim // downsample
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inside, **kind)
        self.k_proj = nn.Linear(dim, inside, **kind)
        self.v_proj = nn.Linear(dim, inside, **kind)
        self.out_proj = nn.Linear(inside, dim, **kind)

    def forward(
        self,
        query: Float[Tensor, "b n d"],
        key: Float[Tensor, "b2 m d"],
        value: Float[Tensor, "b2 m d"],
    ) -> Float[Tensor, "b3 n d"]:
        """Attend; a batch of one is shared by all of the other's."""
        batch = max(len(query), len(key))
        q, k, v = (
            proj(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2).expand(batch, -1, -1, -1)
            for proj, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        return self.out_proj(attend(q, k, v))


class TwoWayBlock(nn.Module):
    """Tokens look at themselves and at the image, then the image looks at the tokens."""

    def __init__(
        self, dim: int, num_heads: int, mlp_dim: int, first: bool = False, **kind: Any
    ) -> None:
        """Create the block; the ``first`` one starts from its self-attention alone."""
        super().__init__()
        self.first = first
        self.self_attn = Attention(dim, num_heads, **kind)
        self.norm1 = nn.LayerNorm(dim, **kind)
        self.cross_attn_token_to_image = Attention(dim, num_heads, 2, **kind)
        self.norm2 = nn.LayerNorm(dim, **kind)
        self.mlp = MLP((dim, mlp_dim, dim), **kind)
        self.norm3 = nn.LayerNorm(dim, **kind)
        self.norm4 = nn.LayerNorm(dim, **kind)
        self.cross_attn_image_to_token = Attention(dim, num_heads, 2, **kind)

    def forward(
        self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return updated tokens ``[P, N, C]`` and image ``[P, M, C]``."""
        if self.first:
            queries = self.self_attn(queries, queries, queries)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q, q, queries)
        queries = self.norm1(queries)
        k = keys + key_pe
        found = self.cross_attn_token_to_image(queries + query_pe, k, keys)
        queries = self.norm2(queries + found)
        queries = self.norm3(queries + self.mlp(queries))
        found = self.cross_attn_image_to_token(k, queries + query_pe, queries)
        return queries, self.norm4(keys + found)


class TwoWayTransformer(nn.Module):
    """A few blocks and a last look at the image."""

    def __init__(self, depth: int, dim: int, num_heads: int, mlp_dim: int, **kind: Any) -> None:
        """Create the blocks."""
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(dim, num_heads, mlp_dim, first=index == 0, **kind) for index in range(depth)
        )
        self.final_attn_token_to_image = Attention(dim, num_heads, 2, **kind)
        self.norm_final_attn = nn.LayerNorm(dim, **kind)

    def forward(
        self,
        image: Float[Tensor, "b m c"],
        image_pe: Float[Tensor, "1 m c"],
        tokens: Float[Tensor, "p n c"],
    ) -> tuple[Float[Tensor, "p n c"], Float[Tensor, "p m c"]]:
        """Return tokens and image after the exchange; one image serves all prompts."""
        queries, keys = tokens, image
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, image_pe)
        found = self.final_attn_token_to_image(queries + tokens, keys + image_pe, keys)
        return self.norm_final_attn(queries + found), keys


class MaskDecoder(nn.Module):
    """Tokens and image to masks."""

    def __init__(
        self,
        transformer_dim: int = 256,
        depth: int = 2,
        heads: int = 8,
        mlp_dim: int = 2048,
        multimask: int = 3,
        iou_head_hidden_dim: int = 256,
        stability_delta: Number = 0.05,
        stability_thresh: Number = 0.98,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the decoder for ``multimask`` alternatives and one single mask."""
        super().__init__()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        dim, count = transformer_dim, multimask + 1
        self.count = count
        self.stability_delta, self.stability_thresh = stability_delta, stability_thresh
        self.transformer = TwoWayTransformer(depth, dim, heads, mlp_dim, **kind)
        self.iou_token = nn.Embedding(1, dim, **kind)
        self.mask_tokens = nn.Embedding(count, dim, **kind)
        self.obj_score_token = nn.Embedding(1, dim, **kind)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, 2, stride=2, **kind),
            LayerNorm2d(dim // 4, **kind),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, 2, stride=2, **kind),
            nn.GELU(),
        )
        self.conv_s0 = nn.Conv2d(dim, dim // 8, 1, **kind)
        self.conv_s1 = nn.Conv2d(dim, dim // 4, 1, **kind)
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP((dim, dim, dim, dim // 8), **kind) for _ in range(count)
        )
        hidden = iou_head_hidden_dim
        self.iou_prediction_head = MLP((dim, hidden, hidden, count), sigmoid=True, **kind)
        self.pred_obj_score_head = MLP((dim, dim, dim, 1), **kind)

    def forward(
        self,
        embedding: Float[Tensor, "b c s s"],
        high_res: tuple[Float[Tensor, "b c0 _ _"], Float[Tensor, "b c1 _ _"]],
        positions: Float[Tensor, "1 c s s"],
        sparse: Float[Tensor, "p n c"],
        dense: Float[Tensor, "d c _ _"],
    ) -> Masks:
        """Return all masks of every prompt.

        Args:
            embedding: One image for all prompts, or one for each.
            high_res: Its finer maps.
            positions: Position features of the grid.
            sparse: Tokens of the prompts.
            dense: Map of the prompts.
        """
        own = torch.cat(
            (self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight)
        )
        tokens = torch.cat((own.expand(len(sparse), -1, -1), sparse), 1)
        image = (embedding + dense).flatten(2).transpose(1, 2)
        place = positions.flatten(2).transpose(1, 2)
        out, image = self.transformer(image, place, tokens)
        image = image.transpose(1, 2).unflatten(2, embedding.shape[-2:])
        up1, norm, act, up2, act2 = self.output_upscaling
        fine = act(norm(up1(image) + high_res[1]))
        fine = act2(up2(fine) + high_res[0])
        words = out[:, 2 : 2 + self.count].unbind(1)
        nets = self.output_hypernetworks_mlps
        filters = torch.stack([net(word) for net, word in zip(nets, words, strict=True)], 1)
        logits = (filters @ fine.flatten(2)).unflatten(2, fine.shape[-2:])
        return Masks(
            logits, self.iou_prediction_head(out[:, 1]), self.pred_obj_score_head(out[:, 0])
        )

    def single_mask(self, masks: Masks) -> Masks:
        """Return the single mask where it is stable, else the alternative that is expected best.

        Stable is a mask whose area hardly changes between thresholds ``+-stability_delta``.
        """
        flat = masks.logits[:, 0].flatten(1)
        inner = (flat > self.stability_delta).sum(1).to(flat.dtype)
        outer = (flat > -self.stability_delta).sum(1).to(flat.dtype)
        stability = torch.where(outer > 0, inner / outer, 1.0)
        best = masks.ious[:, 1:].argmax(1) + 1
        chosen = torch.where(stability >= self.stability_thresh, 0, best)
        rows = torch.arange(len(flat), device=flat.device)
        logits, ious = masks.logits[rows, chosen], masks.ious[rows, chosen]
        return Masks(logits.unsqueeze(1), ious.unsqueeze(1), masks.object_logits)


class SAM2(nn.Module):
    """The image path of SAM 2.

    ``hiera``, ``neck`` and ``decoder`` are options of the parts that replace those of the tiny
    model. ``video`` tells whose video tensors the state holds.
    """

    def __init__(
        self,
        image_size: int = 1024,
        *,
        hiera: Mapping[str, Any] | None = None,
        neck: Mapping[str, Any] | None = None,
        decoder: Mapping[str, Any] | None = None,
        video: Literal["2", "2.1"] | None = None,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the network for square images of ``image_size`` pixels."""
        super().__init__()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.image_size = image_size
        self.image_encoder: Any = nn.Module()
        trunk = Hiera(**dict(hiera or {}), **kind)
        self.image_encoder.trunk = trunk
        options: dict[str, Any] = {"backbone_channel_list": trunk.channels[::-1], **(neck or {})}
        self.image_encoder.neck = Neck(**options, **kind)
        width = self.image_encoder.neck.d_model
        self.sam_prompt_encoder = PromptEncoder(width, image_size, **kind)
        self.sam_mask_decoder = MaskDecoder(**{"transformer_dim": width, **(decoder or {})}, **kind)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, width, **kind))
        nn.init.trunc_normal_(self.no_mem_embed, std=0.02)
        if video is not None:
            hold(self, video_shapes(video, width), device, dtype)

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> ImageFeatures:
        """Encode normalised images of ``image_size`` pixels; one encoding serves all prompts."""
        maps = self.image_encoder.neck(self.image_encoder.trunk(images))
        decoder = self.sam_mask_decoder
        return ImageFeatures(maps[2], (decoder.conv_s0(maps[0]), decoder.conv_s1(maps[1])))

    def forward(
        self,
        features: ImageFeatures,
        points: Float[Tensor, "p n 2"] | None = None,
        labels: Labels | None = None,
        boxes: Float[Tensor, "p 4"] | None = None,
        masks: Float[Tensor, "p 1 m m"] | None = None,
        *,
        add_no_mem_embed: bool = True,
        chunk: int | None = None,
    ) -> Masks:
        """Return all masks of every prompt.

        Args:
            features: One image for all prompts, or one for each.
            points: Pixels of the square.
            labels: 1 inside, 0 outside, 2 and 3 for the corners of a box, -1 for no point.
            boxes: Corners in pixels, as a prompt of their own.
            masks: Logits at stride 4.
            add_no_mem_embed: What the standard image predictor does, and the training-free
                matching without automatic masks does not.
            chunk: Prompts that are decoded at a time; all by default.
        """
        embedding = features.embedding
        if add_no_mem_embed:
            embedding = embedding + self.no_mem_embed.view(1, -1, 1, 1)
        sparse, dense = self.sam_prompt_encoder(points, labels, boxes, masks)
        positions = self.sam_prompt_encoder.dense_positions(embedding.shape[-1])
        step = max(len(sparse) if chunk is None else chunk, 1)
        parts = []
        for start in range(0, len(sparse), step):
            rows = slice(start, start + step)
            parts.append(
                self.sam_mask_decoder(
                    _rows(embedding, rows),
                    (_rows(features.high_res[0], rows), _rows(features.high_res[1], rows)),
                    positions,
                    sparse[rows],
                    _rows(dense, rows),
                )
            )
        return Masks(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _rows(x: Tensor, rows: slice) -> Tensor:
    """Return the rows of some prompts, or the one row that serves all."""
    return x if len(x) == 1 else x[rows]


def video_shapes(version: Literal["2", "2.1"], width: int = 256) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tensors that only video needs."""
    memory, layers, hidden = width // 4, 4, 2048
    shapes: dict[str, tuple[int, ...]] = {
        "maskmem_tpos_enc": (7, 1, 1, memory),
        "no_mem_pos_enc": (1, 1, width),
        "no_obj_ptr": (1, width),
        "mask_downsample.weight": (1, 1, 4, 4),
        "mask_downsample.bias": (1,),
    }

    def add(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]

    for index in range(layers):
        layer = f"memory_attention.layers.{index}"
        for attention, inside in (("self_attn", width), ("cross_attn_image", memory)):
            add(f"{layer}.{attention}.q_proj", width, width)
            add(f"{layer}.{attention}.k_proj", width, inside)
            add(f"{layer}.{attention}.v_proj", width, inside)
            add(f"{layer}.{attention}.out_proj", width, width)
        add(f"{layer}.linear1", hidden, width)
        add(f"{layer}.linear2", width, hidden)
        for norm in ("norm1", "norm2", "norm3"):
            add(f"{layer}.{norm}", width)
    add("memory_attention.norm", width)
    channels = (1, 4, 16, 64, width)
    for index, (before, after) in enumerate(itertools.pairwise(channels)):
        add(f"memory_encoder.mask_downsampler.encoder.{3 * index}", after, before, 3, 3)
        add(f"memory_encoder.mask_downsampler.encoder.{3 * index + 1}", after)
    add("memory_encoder.mask_downsampler.encoder.12", width, width, 1, 1)
    add("memory_encoder.pix_feat_proj", width, width, 1, 1)
    for index in range(2):
        layer = f"memory_encoder.fuser.layers.{index}"
        shapes[f"{layer}.gamma"] = (width,)
        add(f"{layer}.dwconv", width, 1, 7, 7)
        add(f"{layer}.norm", width)
        add(f"{layer}.pwconv1", 4 * width, width)
        add(f"{layer}.pwconv2", width, 4 * width)
    add("memory_encoder.out_proj", memory, width, 1, 1)
    for index in range(3):
        add(f"obj_ptr_proj.layers.{index}", width, width)
    if version == "2.1":
        shapes["no_obj_embed_spatial"] = (1, memory)
        add("obj_ptr_tpos_proj", memory, width)
    return shapes


def from_config(config: Mapping[str, Any]) -> SAM2:
    """Build a network from a description with the sizes of its parts."""
    parts: dict[str, Any] = {
        "hiera": pick_options(config.get("hiera", {}), Hiera),
        "neck": pick_options(config.get("neck", {}), Neck),
        "decoder": pick_options(config.get("decoder", {}), MaskDecoder),
    }
    return SAM2(**{**pick_options(config, SAM2), **parts})


_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {"stages": (1, 2, 11, 2), "global_att_blocks": (7, 10, 13)},
    "base_plus": {
        "embed_dim": 112,
        "num_heads": 2,
        "stages": (2, 3, 16, 3),
        "global_att_blocks": (12, 16, 20),
        "window_pos_embed_bkg_spatial_size": (14, 14),
    },
    "large": {
        "embed_dim": 144,
        "num_heads": 2,
        "stages": (2, 6, 36, 4),
        "global_att_blocks": (23, 33, 43),
        "window_spec": (8, 4, 16, 8),
    },
}
PUBLISHED: dict[str, dict[str, Any]] = {
    f"sam{version}_hiera_{size}": {"hiera": options, "video": version}
    for version in ("2", "2.1")
    for size, options in _SIZES.items()
}
"""The published checkpoints and their constructor options."""

CONFIG_NAMES = {
    f"sam{version}_hiera_{letter}.yaml": f"sam{version}_hiera_{size}"
    for version in ("2", "2.1")
    for letter, size in (("t", "tiny"), ("s", "small"), ("b+", "base_plus"), ("l", "large"))
}
"""The original's configuration files -> checkpoints."""
