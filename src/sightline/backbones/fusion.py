"""Features of a second backbone inside a pair network (DUSt3R, MASt3R, Splatt3R).

`FusionAdapter` joins two feature maps, under the names of the adapter that was published with
Splatt3R on DINOv2. `FusedPairNetwork` puts adapters into a network, at a site of choice, so that
the fused network starts as the original: the last projection of each adapter is zero.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sightline.backbones.grid import place, placement_of
from sightline.errors import InputError
from sightline.models.croco import Encoded
from sightline.models.dust3r import PairNetwork, Shapes, View, predict_pairs
from sightline.models.dust3r_heads import Result, hooks
from sightline.nn.attention import CrossAttention
from sightline.nn.options import Device, DType
from sightline.protocols import Backbone

Mode = Literal["concat", "add", "weighted_sum", "gated", "cross_attention"]
MapMode = Literal["concat", "add", "weighted_sum", "gated"]
Site = Literal["encoder", "decoder", "head"]
Alignment = Literal["image", "features"]


class FusionAdapter(nn.Module):
    """Two maps of the same grid to one, ``[B, C, h, w]``.

    ``concat``, ``add`` and ``weighted_sum`` (a learned scalar, starting at 0.62 for the second map)
    are those of the published adapter; ``gated`` weighs every channel of every place. Names say
    MASt3R and DINOv2, as published; any two models do.
    """

    def __init__(
        self,
        mode: MapMode,
        mast3r_dim: int,
        dinov2_dim: int,
        output_dim: int = 768,
        *,
        groups: int = 32,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the adapter.

        Args:
            mode: How to join.
            mast3r_dim: Channels of the first map.
            dinov2_dim: Channels of the second map.
            output_dim: Channels of the result, a multiple of ``groups``.
            groups: Groups of the norms; the published adapter has 32.
            device: Where to create it.
            dtype: Its number type.
        """
        super().__init__()
        if mode not in get_args(MapMode):
            msg = f"expected a fusion mode of {', '.join(get_args(MapMode))}, got {mode}"
            raise InputError(msg)
        if output_dim % groups:
            msg = f"expected output_dim to be a multiple of {groups} groups, got {output_dim}"
            raise InputError(msg)
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.mode: MapMode = mode

        def project(width: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(width, output_dim, 1, **kind), nn.GroupNorm(groups, output_dim, **kind)
            )

        plain = mode in {"add", "weighted_sum"}
        first = plain and mast3r_dim == output_dim
        second = plain and dinov2_dim == output_dim
        if mode == "add":  # the published adapter compares the second model with the first here
            second = second and first
        self.mast3r_proj = nn.Identity() if first else project(mast3r_dim)
        self.dinov2_proj = nn.Identity() if second else project(dinov2_dim)
        if mode == "concat":
            self.output_proj = nn.Sequential(*project(2 * output_dim), nn.ReLU())
        elif mode == "gated":
            self.gate = nn.Conv2d(2 * output_dim, output_dim, 1, **kind)
        elif mode == "weighted_sum":
            self.dinov2_weight = nn.Parameter(torch.tensor(0.5, **kind))

    def forward(
        self, mast3r: Float[Tensor, "b c1 h w"], dinov2: Float[Tensor, "b c2 h w"]
    ) -> Float[Tensor, "b d h w"]:
        """Join two maps."""
        first, second = self.mast3r_proj(mast3r), self.dinov2_proj(dinov2)
        if self.mode == "concat":
            return self.output_proj(torch.cat((first, second), 1))
        if self.mode == "add":
            return first + second
        if self.mode == "weighted_sum":
            share = self.dinov2_weight.sigmoid()
        else:
            share = self.gate(torch.cat((first, second), 1)).sigmoid()
        return share * second + (1 - share) * first


class TokenFusion(nn.Module):
    """Add to tokens what an adapter makes of them and of a second model's tokens.

    The projection ``out`` starts at zero, so that at first nothing is added.
    """

    def __init__(
        self,
        mode: Mode,
        dim: int,
        extra_dim: int,
        output_dim: int | None = None,
        *,
        num_heads: int = 8,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the adapter for tokens of width ``dim``; its own is ``output_dim``, or ``dim``."""
        super().__init__()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        width = output_dim or dim
        self.mode: Mode = mode
        if mode == "cross_attention":
            self.query = nn.Sequential(nn.LayerNorm(dim, **kind), nn.Linear(dim, width, **kind))
            self.memory = nn.Sequential(
                nn.LayerNorm(extra_dim, **kind), nn.Linear(extra_dim, width, **kind)
            )
            self.attention = CrossAttention(width, num_heads, **kind)
        else:
            self.adapter = FusionAdapter(mode, dim, extra_dim, width, **kind)
        self.out = nn.Linear(width, dim, **kind)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, tokens: Float[Tensor, "b n c"], extra: Float[Tensor, "b m d"]
    ) -> Float[Tensor, "b n c"]:
        """Return the tokens with the second model's; both on one grid unless by attention."""
        if self.mode == "cross_attention":
            memory = self.memory(extra)
            return tokens + self.out(self.attention(self.query(tokens), memory, memory))
        # The adapter treats places alike, so a row of places serves as well as a grid.
        joined = self.adapter(tokens.mT.unsqueeze(3), extra.mT.unsqueeze(3))
        return tokens + self.out(joined.squeeze(3).mT)


def align_tokens(
    tokens: Float[Tensor, "b n c"], source: tuple[int, int], target: tuple[int, int]
) -> Float[Tensor, "b m c"]:
    """Resize tokens from one patch grid to another, bilinear, corners not aligned."""
    if source == target:
        return tokens
    maps = tokens.mT.unflatten(2, source)
    maps = functional.interpolate(maps, target, mode="bilinear", align_corners=False)
    return maps.flatten(2).mT


def features_on_grid(
    backbone: Backbone,
    images: Float[Tensor, "b 3 h w"],
    grid: tuple[int, int],
    layer: int = -1,
    alignment: Alignment = "image",
) -> Float[Tensor, "b n d"]:
    """Return a backbone's tokens on a patch grid, row by row.

    A backbone that looks at all views together is given each picture alone, since the pictures of
    a batch belong to different pairs.

    Args:
        backbone: Any encoder.
        images: Pictures in [0, 1].
        grid: Rows and columns wanted.
        layer: Which layer of the backbone.
        alignment: ``"image"`` resizes the picture so that patches coincide exactly; where the
            backbone has a grid of its own all the same, its maps are read at the positions of the
            patches. ``"features"`` resizes features of the picture as it is, cut to whole patches,
            which is what the published fusion does.
    """
    patch = backbone.patch_size
    rows, cols = grid
    if alignment == "image":
        size = (rows * patch, cols * patch)
        images = functional.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
    else:
        height, width = (side // patch * patch for side in images.shape[-2:])
        images = images[..., :height, :width]
    batches = images.split(1) if getattr(backbone, "sequence", False) else [images]
    maps = torch.cat([backbone.extract(part, layers=[layer])[0].patches for part in batches])
    own = (maps.shape[-2], maps.shape[-1])
    if alignment == "image":
        size = (images.shape[-2], images.shape[-1])
        wanted = place(size, "stretch", step=patch, stride=patch).positions()
        placement = placement_of(backbone, size, own)
        if own != grid or not torch.allclose(placement.positions(own), wanted):
            maps = placement.sample(maps, wanted.to(maps.device))
        return maps.flatten(2).mT
    return align_tokens(maps.flatten(2).mT, own, grid)


class FusedPairNetwork(nn.Module):
    """A pair network whose tokens get those of a second backbone added.

    It has the stages of `PairNetwork` and takes its place, also inside a `Splatt3R`: its
    ``encoder`` attribute may be set to a `FusedPairNetwork` of the former one.

    Sites: ``encoder``, before the decoder; ``decoder``, the last tokens before the heads;
    ``head``, every entry of the decoder's list that a DPT reads. Each entry has an adapter of its
    own, and beyond the encoder each view.
    """

    def __init__(
        self,
        network: PairNetwork,
        backbone: Backbone,
        mode: Mode = "add",
        site: Site = "encoder",
        alignment: Alignment = "image",
        layer: int = -1,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Wrap a network.

        Args:
            network: The pair network.
            backbone: The second backbone, which normalises its input itself.
            mode: How to join; see `FusionAdapter`, or ``"cross_attention"``.
            site: Where.
            alignment: See `features_on_grid`.
            layer: Which layer of the backbone.
            device: Where to create the adapters.
            dtype: Their number type.
        """
        super().__init__()
        self.network = network
        self.backbone = backbone
        self.site: Site = site
        self.alignment: Alignment = alignment
        self.layer = layer
        enc, dec, depth = network.enc_embed_dim, network.dec_embed_dim, network.dec_depth
        head: Any = network.downstream_head1
        self.entries = {"encoder": (0,), "decoder": (depth,), "head": hooks(head.options)}[site]
        views = 1 if site == "encoder" else 2
        self.fusions = nn.ModuleList(
            nn.ModuleDict(
                {
                    str(entry): TokenFusion(
                        mode,
                        enc if entry == 0 else dec,
                        backbone.embed_dim,
                        device=device,
                        dtype=dtype,
                    )
                    for entry in self.entries
                }
            )
            for _ in range(views)
        )

    def encode_views(
        self, image: Float[Tensor, "b 3 h w"], true_shape: Shapes | None = None
    ) -> Encoded:
        """Encode images with both backbones; see `PairNetwork.encode_views`."""
        encoded = self.network.encode_views(image, true_shape)
        extra = self._extra(image, true_shape)
        if self.site != "encoder":
            return encoded._replace(extra=extra)
        return encoded._replace(tokens=self._fuse(0, 0, encoded.tokens, extra))

    def decode_pair(self, first: Encoded, second: Encoded) -> tuple[list[Tensor], list[Tensor]]:
        """Decode both views; see `PairNetwork.decode_pair`."""
        lists = self.network.decode_pair(first, second)
        if self.site == "encoder":
            return lists
        for view, (tokens, encoded) in enumerate(zip(lists, (first, second), strict=True)):
            assert encoded.extra is not None
            for entry in self.entries:
                tokens[entry] = self._fuse(view, entry, tokens[entry], encoded.extra)
        return lists

    def read_out(
        self,
        view: int,
        tokens: Sequence[Tensor],
        size: tuple[int, int],
        true_shape: Shapes | None = None,
    ) -> Result:
        """Run the head of one view; see `PairNetwork.read_out`."""
        return self.network.read_out(view, tokens, size, true_shape)

    def forward(self, view1: View, view2: View) -> tuple[Result, Result]:
        """Predict points of both views; see `PairNetwork.forward`."""
        return predict_pairs(self, view1, view2)

    def _fuse(self, view: int, entry: int, tokens: Tensor, extra: Tensor) -> Tensor:
        return self.fusions.get_submodule(f"{view}.{entry}")(tokens, extra)

    def _extra(self, image: Tensor, true_shape: Shapes | None) -> Tensor:
        """Return the second backbone's tokens, of upright pictures."""
        picture = image * 0.5 + 0.5
        rows, cols = self.network.patch_embed.grid(*image.shape[-2:])

        def features(pictures: Tensor, grid: tuple[int, int]) -> Tensor:
            return features_on_grid(self.backbone, pictures, grid, self.layer, self.alignment)

        if not self.network.landscape_only or true_shape is None:
            return features(picture, (rows, cols))
        portrait = true_shape[:, 1] < true_shape[:, 0]
        return _by_rows(
            portrait,
            lambda: features(picture[portrait].mT, (cols, rows)),
            lambda: features(picture[~portrait], (rows, cols)),
        )


def _by_rows(mask: Tensor, inside: Callable[[], Tensor], outside: Callable[[], Tensor]) -> Tensor:
    """Return rows made by one function where a mask is true and by another elsewhere."""
    if mask.all():
        return inside()
    rest = outside()
    if not mask.any():
        return rest
    whole = rest.new_empty(len(mask), *rest.shape[1:])
    return whole.index_copy(0, mask.nonzero().flatten(), inside()).index_copy(
        0, (~mask).nonzero().flatten(), rest
    )
