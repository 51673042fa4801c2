"""Features of any backbone inside a pair network (DUSt3R, MASt3R, Splatt3R).

The adapters and the names of checkpoints are `sightline.models.fusion`'s; here they meet a
`Backbone`. `FusedPairNetwork` wraps any pair network; `fuse_splatt3r` makes a network that is saved
under Splatt3R's own names, and `load_fused` reads it back.
"""

from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sightline.backbones import create_backbone
from sightline.backbones.base import NetworkBackbone
from sightline.backbones.grid import place, placement_of
from sightline.backbones.networks import adapt_convnext, read_dinov2, read_dinov3, vit
from sightline.errors import CheckpointError, InputError
from sightline.models.dinov2 import DinoVisionTransformer as DinoV2
from sightline.models.dinov3 import SAT_MEAN, SAT_STD
from sightline.models.dinov3 import DinoVisionTransformer as DinoV3
from sightline.models.dinov3_convnext import ConvNeXt
from sightline.models.dust3r import PairNetwork, View, predict_pairs
from sightline.models.dust3r_heads import Result
from sightline.models.fusion import (
    FusedSplatt3R,
    FusedStages,
    Fusion,
    FusionAdapter,
    MapMode,
    Mode,
    Site,
    TokenFusion,
    align_tokens,
)
from sightline.models.splatt3r import Splatt3R
from sightline.nn.options import Device, DType
from sightline.protocols import Backbone

__all__ = [
    "Alignment",
    "FusedPairNetwork",
    "FusionAdapter",
    "MapMode",
    "Mode",
    "Site",
    "TokenFusion",
    "align_tokens",
    "attach",
    "backbone_of",
    "features_on_grid",
    "fuse_splatt3r",
    "load_fused",
]

Alignment = Literal["image", "features"]


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


class GridFeatures(NamedTuple):
    """`features_on_grid` of one backbone, as `models.fusion.Fusion` asks for it."""

    backbone: Backbone
    layer: int = -1
    alignment: Alignment = "image"

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], grid: tuple[int, int]
    ) -> Float[Tensor, "b n d"]:
        """Return tokens on a patch grid."""
        return features_on_grid(self.backbone, images, grid, self.layer, self.alignment)


class FusedPairNetwork(nn.Module, FusedStages):
    """A pair network whose tokens get those of a second backbone added.

    It has the stages of `PairNetwork` and takes its place, also inside a `Splatt3R`: its
    ``encoder`` attribute may be set to a `FusedPairNetwork` of the former one. Sites and modes are
    those of `models.fusion.Fusion`.
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
        self.fusion = Fusion(network, backbone.embed_dim, mode, site, device=device, dtype=dtype)
        self.fusion.features = GridFeatures(backbone, layer, alignment)

    def forward(self, view1: View, view2: View) -> tuple[Result, Result]:
        """Predict points of both views; see `PairNetwork.forward`."""
        return predict_pairs(self, view1, view2)


def fuse_splatt3r(
    network: Splatt3R,
    backbone: Backbone,
    mode: Mode = "add",
    site: Site = "encoder",
    alignment: Alignment = "image",
    layer: int = -1,
    *,
    name: str = "",
    width: int | None = None,
    num_heads: int = 8,
) -> FusedSplatt3R:
    """Return a Splatt3R with a backbone fused in, which at first predicts what it did before.

    Args:
        network: The Splatt3R; its parts are taken over, not copied.
        backbone: The second backbone. Where it is a DINOv2, DINOv3 or ConvNeXt of ours its weights
            become part of the network's state.
        mode: How to join; see `FusionAdapter`, or ``"cross_attention"``.
        site: Where; see `models.fusion.Fusion`.
        alignment: See `features_on_grid`.
        layer: Which layer of the backbone.
        name: The backbone's name, for `load_fused`.
        width: Channels of the adapters, by default those of the tokens.
        num_heads: Of ``cross_attention``.
    """
    held = backbone.network if isinstance(backbone, NetworkBackbone) else None
    parameter = next(network.parameters())
    fused = FusedSplatt3R.around(
        network,
        Fusion(
            network.encoder,
            backbone.embed_dim,
            mode,
            site,
            width=width,
            num_heads=num_heads,
            backbone=held if isinstance(held, HELD) else None,
            device=parameter.device,
            dtype=parameter.dtype,
        ),
        {"name": name, "layer": layer, "alignment": alignment},
    )
    fused.fusion.features = GridFeatures(backbone, layer, alignment)
    return fused


def load_fused(path: str | Path, backbone: Backbone | None = None) -> FusedSplatt3R:
    """Return a fused Splatt3R from a file, ready to run.

    Args:
        path: A checkpoint of `FusedSplatt3R`.
        backbone: The second backbone, where the file does not hold it; by default the one of the
            name in the file, with its published weights.

    Raises:
        CheckpointError: The file holds another network, or the backbone's weights are missing.
        UnknownNameError: The file holds no backbone, and names none that is known.
    """
    from sightline.models import load

    model = load(path)
    if not isinstance(model, FusedSplatt3R):
        msg = f"expected a fused Splatt3R in {path}, got a {type(model).__name__}; load it plainly"
        raise CheckpointError(msg)
    return attach(model, backbone)


def attach(model: FusedSplatt3R, backbone: Backbone | None = None) -> FusedSplatt3R:
    """Give a fused Splatt3R its backbone: the one given, the one in its state, or that of its name.

    Raises:
        CheckpointError: The backbone's weights are missing.
        InputError: The backbone has another number of channels.
    """
    told = model.description
    name = str(told.get("name", ""))
    held = getattr(model.fusion, "backbone", None)
    if backbone is None:
        backbone = backbone_of(held, name) if held is not None else create_backbone(name)
    alignment: Alignment = "features" if told.get("alignment") == "features" else "image"
    model.fusion.features = GridFeatures(backbone, int(told.get("layer", -1)), alignment)
    return model


HELD = (DinoV2, DinoV3, ConvNeXt)
"""Networks whose weights a fused checkpoint holds."""


def backbone_of(network: nn.Module, name: str = "") -> NetworkBackbone:
    """Return a DINOv2, DINOv3 or ConvNeXt of any size as a backbone.

    Args:
        network: The network.
        name: Tells weights for satellite pictures, which have a normalisation of their own.

    Raises:
        InputError: It is another network.
    """
    if isinstance(network, DinoV2):
        return vit(network, read_dinov2)
    if isinstance(network, DinoV3):
        if name.endswith("_sat493m"):
            return vit(network, read_dinov3, mean=SAT_MEAN, std=SAT_STD)
        return vit(network, read_dinov3)
    if isinstance(network, ConvNeXt):
        return adapt_convnext(network)
    msg = (
        f"expected a DINOv2, DINOv3 or ConvNeXt, got a {type(network).__name__}; "
        "make the backbone by name"
    )
    raise InputError(msg)
