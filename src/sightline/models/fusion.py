"""Features of a second network inside a pair network (DUSt3R, MASt3R, Splatt3R).

`FusionAdapter` joins two feature maps, under the names of the adapter that was published with
Splatt3R on DINOv2. `Fusion` has adapters at a site of choice, so that the fused network starts as
the original: the last projection of each adapter is zero. `FusedSplatt3R` is Splatt3R with one, and
has the names of its checkpoints. Where features come from is not known here:
`sightline.backbones.fusion` brings any backbone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sightline.errors import InputError
from sightline.models.croco import Encoded
from sightline.models.dust3r import PairNetwork, Shapes, View, predict_pairs
from sightline.models.dust3r_heads import Result, hooks
from sightline.models.splatt3r import Splatt3R, add_colors
from sightline.nn.attention import CrossAttention
from sightline.nn.options import Device, DType

Mode = Literal["concat", "add", "weighted_sum", "gated", "cross_attention"]
MapMode = Literal["concat", "add", "weighted_sum", "gated"]
Site = Literal["encoder", "decoder", "head"]
Features = Callable[[Tensor, tuple[int, int]], Tensor]
"""Pictures ``[B, 3, H, W]`` in [0, 1] and a patch grid to tokens ``[B, rows * cols, D]``."""


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


class Fusion(nn.Module):
    """Adapters at one site of a pair network, and the second network where its weights are held.

    Sites: ``encoder``, before the decoder; ``decoder``, the last tokens before the heads;
    ``head``, every entry of the decoder's list that a DPT reads. Each entry has an adapter of its
    own, and beyond the encoder each view.

    Attributes:
        features: Gives the second network's tokens; set by `sightline.backbones.fusion`.
    """

    features: Features | None

    def __init__(
        self,
        network: PairNetwork,
        extra_dim: int,
        mode: Mode = "add",
        site: Site = "encoder",
        *,
        width: int | None = None,
        num_heads: int = 8,
        backbone: nn.Module | None = None,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the adapters.

        Args:
            network: The pair network that they are for; it is not kept.
            extra_dim: Channels of the second network.
            mode: How to join; see `FusionAdapter`, or ``"cross_attention"``.
            site: Where.
            width: Channels of the adapters, by default those of the tokens.
            num_heads: Of ``cross_attention``.
            backbone: The second network, where its weights go with the adapters'.
            device: Where to create the adapters.
            dtype: Their number type.

        Raises:
            InputError: There is no such mode or site.
        """
        super().__init__()
        for name, value, known in (("mode", mode, Mode), ("site", site, Site)):
            if value not in get_args(known):
                msg = f"expected a fusion {name} of {', '.join(get_args(known))}, got {value}"
                raise InputError(msg)
        self.mode: Mode = mode
        self.site: Site = site
        self.features = None
        head: Any = network.downstream_head1
        self.entries: tuple[int, ...] = {
            "encoder": (0,),
            "decoder": (network.dec_depth,),
            "head": hooks(head.options),
        }[site]

        def adapter(entry: int) -> TokenFusion:
            dim = network.dec_embed_dim if entry else network.enc_embed_dim
            kind: dict[str, Any] = {"num_heads": num_heads, "device": device, "dtype": dtype}
            return TokenFusion(mode, dim, extra_dim, width, **kind)

        self.adapters = nn.ModuleList(
            nn.ModuleDict({str(entry): adapter(entry) for entry in self.entries})
            for _ in range(1 if site == "encoder" else 2)
        )
        if backbone is not None:
            self.backbone = backbone

    def add(self, view: int, entry: int, tokens: Tensor, extra: Tensor) -> Tensor:
        """Return tokens of a view (0 or 1) at an entry of the decoder's list with the extra ones."""
        return self.adapters.get_submodule(f"{view}.{entry}")(tokens, extra)

    def extra(self, network: PairNetwork, image: Tensor, true_shape: Shapes | None) -> Tensor:
        """Return the second network's tokens, of upright pictures.

        Args:
            network: The pair network, for its grid and storage layout.
            image: ``[B, 3, H, W]`` in [-1, 1], in storage layout.
            true_shape: See `PairNetwork.encode_views`.
        """
        features = self.features
        if features is None:
            msg = (
                "the fused network has no backbone; load it with "
                "sightline.backbones.fusion.load_fused"
            )
            raise InputError(msg)
        picture = image * 0.5 + 0.5
        rows, cols = network.patch_embed.grid(*image.shape[-2:])
        if not network.landscape_only or true_shape is None:
            return features(picture, (rows, cols))
        portrait = true_shape[:, 1] < true_shape[:, 0]
        return _by_rows(
            portrait,
            lambda: features(picture[portrait].mT, (cols, rows)),
            lambda: features(picture[~portrait], (rows, cols)),
        )


class FusedStages:
    """The stages of a pair network with those of a fusion between; see `dust3r.Stages`."""

    network: PairNetwork
    fusion: Fusion

    def encode_views(
        self, image: Float[Tensor, "b 3 h w"], true_shape: Shapes | None = None
    ) -> Encoded:
        """Encode images with both networks; see `PairNetwork.encode_views`."""
        encoded = self.network.encode_views(image, true_shape)
        extra = self.fusion.extra(self.network, image, true_shape)
        if self.fusion.site != "encoder":
            return encoded._replace(extra=extra)
        return encoded._replace(tokens=self.fusion.add(0, 0, encoded.tokens, extra))

    def decode_pair(self, first: Encoded, second: Encoded) -> tuple[list[Tensor], list[Tensor]]:
        """Decode both views; see `PairNetwork.decode_pair`."""
        lists = self.network.decode_pair(first, second)
        if self.fusion.site == "encoder":
            return lists
        for view, (tokens, encoded) in enumerate(zip(lists, (first, second), strict=True)):
            assert encoded.extra is not None
            for entry in self.fusion.entries:
                tokens[entry] = self.fusion.add(view, entry, tokens[entry], encoded.extra)
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


class _Joined(FusedStages):
    """A network and a fusion that belong to a module."""

    def __init__(self, network: PairNetwork, fusion: Fusion) -> None:
        self.network, self.fusion = network, fusion


class FusedSplatt3R(Splatt3R):
    """Splatt3R with a second network's features: official names, and those of ``fusion``.

    The second network's weights are part of the state where it is one of ours, below
    ``fusion.backbone``, so that one file is all that is needed.
    """

    def __init__(
        self,
        fusion: Mapping[str, Any],
        *,
        device: Device = None,
        dtype: DType = None,
        **options: Any,
    ) -> None:
        """Create the network.

        Args:
            fusion: Options of `Fusion`; its ``backbone`` may also be a mapping with ``family``
                (``dinov2``, ``dinov3`` or ``dinov3_convnext``) and the constructor's options, or
                be left out. ``name``, ``layer`` and ``alignment`` tell how features are read;
                they are kept in `description`.
            device: Where to create it.
            dtype: Its number type.
            options: Of `Splatt3R`.
        """
        super().__init__(device=device, dtype=dtype, **options)
        given = dict(fusion)
        self.description: dict[str, Any] = {
            key: given.pop(key) for key in ("name", "layer", "alignment") if key in given
        }
        backbone = given.pop("backbone", None)
        if isinstance(backbone, Mapping):
            backbone = _build_backbone(backbone, device)
        self.fusion = Fusion(self.encoder, backbone=backbone, device=device, dtype=dtype, **given)

    @classmethod
    def around(
        cls, network: Splatt3R, fusion: Fusion, description: Mapping[str, Any]
    ) -> "FusedSplatt3R":
        """Return a fused network of finished parts."""
        fused = cls.__new__(cls)
        nn.Module.__init__(fused)
        for name, child in network.named_children():
            fused.add_module(name, child)
        if hasattr(network, "held_names"):
            fused.held_names = network.held_names
        fused.fusion = fusion
        fused.description = dict(description)
        return fused

    @property
    def note(self) -> dict[str, Any]:
        """What the tensors do not tell; goes into the ``config`` of `save_weights`."""
        adapter: Any = self.fusion.adapters.get_submodule(f"0.{self.fusion.entries[0]}")
        found = dict(self.description)
        if self.fusion.mode == "cross_attention":
            found["num_heads"] = adapter.attention.num_heads
        backbone = getattr(self.fusion, "backbone", None)
        if backbone is not None:
            names = ("num_heads", "interpolate_antialias", "interpolate_offset")
            found["backbone"] = {n: getattr(backbone, n) for n in names if hasattr(backbone, n)}
        return found

    @property
    def stages(self) -> FusedStages:
        """The stages of the pair network inside, fused."""
        return _Joined(self.encoder, self.fusion)

    def forward(self, view1: View, view2: View) -> tuple[Result, Result]:
        """Predict Gaussians of every pixel of both views; see `Splatt3R.forward`."""
        results = predict_pairs(self.stages, view1, view2)
        for view, result in zip((view1, view2), results, strict=True):
            add_colors(result, view)
        return results


def _build_backbone(told: Mapping[str, Any], device: Device) -> nn.Module:
    from sightline.models.recognize import network_class

    options = dict(told)
    return network_class(str(options.pop("family")))(**options, device=device)


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


PUBLISHED: dict[str, dict[str, Any]] = {}
"""None: every fused network is somebody's own."""
