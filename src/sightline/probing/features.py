"""What is probed: names, layers and concatenations, and how each comes to its token grid."""

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from sightline.backbones import check_name, create_backbone
from sightline.backbones.base import IMAGENET_MEAN, IMAGENET_STD, NetworkBackbone
from sightline.backbones.grid import Placement, placement_of
from sightline.errors import InputError, ShapeError
from sightline.io.sums import sha256
from sightline.probing.protocols import Protocol
from sightline.probing.start import squared_spacing
from sightline.probing.tokens import (
    TokenGrid,
    TokenMaps,
    concatenate,
    even_placement,
    reduce_tokens,
)
from sightline.protocols import Backbone
from sightline.types import Features


@dataclass(frozen=True, slots=True)
class Published:
    """A row of the published table.

    Attributes:
        row: Its name there.
        layer: What the reference reads; -2 is the last but one.
        norm: Whether that passed the model's final norm.
        project: Whether every token also passed CLIP's projection.
    """

    row: str
    layer: int = -1
    norm: bool = True
    project: bool = False


PUBLISHED: dict[str, Published] = {
    "vggt_e": Published("VGGTenc"),
    "vggt_d": Published("VGGTdec", norm=False),
    "radio": Published("RADIO"),
    "dust3r": Published("DUSt3R"),
    "dino_b16": Published("DINO", norm=False),
    "mast3r": Published("MASt3R"),
    "dift": Published("SD", norm=False),
    "dinov2_b14": Published("DINOv2", norm=False),
    "clip_b16": Published("CLIP", project=True),
    "mae_b16": Published("MAE", layer=-2, norm=False),
    "midas_l16": Published("MiDaS", norm=False),
    "sam_base": Published("SAM", norm=False),
    "iuvrgb": Published("IUVRGB"),
}
"""Feat2GS's tags, which `create_backbone` knows as aliases, in the order of its table."""

PIXEL_FEATURES = ("iuv", "iuvrgb")
POINTS = "points"
"""The control that knows the answer: the cloud itself, which geometry only has to copy."""
_OTHER_NORMALISATION = ("clip", "radio", "dift", "stable_diffusion")
_ABSOLUTE_POSITIONS = ("sam_base", "sam_large")
"""Of a fixed size, unless they are told how pictures fit."""
_VGGT = ("vggt",)
_VGGT_WIDTH, _VGGT_STEP = 518, 14


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturePart:
    """One network of a feature.

    Attributes:
        backbone: A name for `create_backbone`, or of an object given to the grid.
        checkpoint: Weights.
        layers: Put side by side; empty is what the protocol reads.
        norm: Whether layers pass the final norm; None is what the protocol says.
    """

    backbone: str
    checkpoint: str | None = None
    layers: tuple[int, ...] = ()
    norm: bool | None = None

    @property
    def is_drawn(self) -> bool:
        """Whether it is made of random numbers, which then follow the run's seed."""
        return "random" in re.split("[:+]", self.backbone)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One row of a table: a network, or several concatenated."""

    name: str
    parts: tuple[FeaturePart, ...]

    @property
    def is_drawn(self) -> bool:
        """Whether any part follows the run's seed."""
        return any(part.is_drawn for part in self.parts)

    @property
    def needs_cloud(self) -> bool:
        """Whether it is made of the cloud's points."""
        return any(part.backbone == POINTS for part in self.parts)

    @property
    def is_pixels(self) -> bool:
        """Whether it is ``iuv`` or ``iuvrgb`` alone, whose scales are held in place."""
        return len(self.parts) == 1 and self.parts[0].backbone in PIXEL_FEATURES


class CloudPoints:
    """Where each pixel of the training views lies and how near its neighbours: the cloud itself.

    Four channels: the point about zero and of unit spread, and the logarithm of its spacing
    likewise, which is where a Gaussian's size starts.
    """

    patch_size, embed_dim, depth = 1, 4, 1
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self, points: Float[Tensor, "V h w 3"], valid: Bool[Tensor, "V h w"]) -> None:
        """Take a cloud's points; where none is known there is no Gaussian, and zeros do."""
        known = points[valid].float()
        spacing = 0.5 * squared_spacing(known).log()[:, None]
        channels = [values - values.mean(0) for values in (known, spacing)]
        channels = [values / values.std(0).norm().clamp(min=1e-12) for values in channels]
        maps = known.new_zeros(*valid.shape, self.embed_dim)
        maps[valid] = torch.cat(channels, -1)
        self.maps = maps.permute(0, 3, 1, 2)

    def extract(
        self, images: Float[Tensor, "V 3 h w"], *, layers: Sequence[int] = (-1,)
    ) -> list[Features]:
        """Return the points; the pictures only have to be those of the cloud."""
        if self.maps.shape[-2:] != images.shape[-2:] or len(self.maps) != len(images):
            raise ShapeError(
                f"points of {tuple(self.maps.shape)} do not belong to pictures of "
                f"{tuple(images.shape)}; take the cloud of the same views"
            )
        maps = self.maps.to(images)
        return [Features(patches=maps, layer=layer, normed=False) for layer in layers]


def parse_features(entries: Sequence[str | Mapping[str, Any]]) -> list[Feature]:
    """Read features as a configuration has them.

    An entry is a name, ``A+B`` for a concatenation, or a mapping with ``name`` (of the row),
    ``backbone``, ``checkpoint``, ``layers``, ``norm`` and ``sweep``: a list of layers, each of
    which becomes a row ``NAME@LAYER``. A concatenation of networks with files of their own has
    ``parts`` instead of a backbone: names, or mappings with the same options but ``sweep``.

    Raises:
        InputError: If an entry is of neither form, or two rows have one name.
    """
    features: list[Feature] = []
    for entry in entries:
        if isinstance(entry, str):
            features.append(Feature(name=entry, parts=_parts_of(entry)))
            continue
        if not isinstance(entry, Mapping) or not isinstance(
            entry.get("name", entry.get("backbone")), str
        ):
            raise InputError(
                f"a feature must be a name, A+B, or a mapping with a backbone, got {entry!r}"
            )
        features += _from_mapping(dict(entry))
    names = [feature.name for feature in features]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two features are called {twice[0]}; give one of them another name")
    return features


def _parts_of(name: str) -> tuple[FeaturePart, ...]:
    """Return the networks of a concatenation by name; ``fused:A+B`` is one network."""
    names = [name] if "fused:" in name else name.split("+")
    return tuple(FeaturePart(backbone=one.strip()) for one in names)


_OPTIONS = ("backbone", "checkpoint", "layers", "norm")


def _from_mapping(entry: dict[str, Any]) -> list[Feature]:
    backbone = entry.pop("backbone", None) or entry["name"]
    name = entry.pop("name", backbone)
    sweep, parts = entry.pop("sweep", None), entry.pop("parts", None)
    if parts is not None:
        if entry or sweep is not None or not isinstance(parts, Sequence) or len(parts) < 2:
            raise InputError(
                f"feature {name}: parts are two or more, and each has its own options, got "
                f"{sorted([*entry, *(['sweep'] if sweep is not None else [])]) or parts}"
            )
        joined = tuple(_part(name, part) for part in parts)
        return [Feature(name=name, parts=joined)]
    if sweep is None:
        plain = _parts_of(backbone)
        if len(plain) > 1 and not entry:
            return [Feature(name=name, parts=plain)]
        return [Feature(name=name, parts=(_part(name, {"backbone": backbone, **entry}),))]
    return [
        Feature(
            name=f"{name}@{layer}",
            parts=(_part(name, {"backbone": backbone, **entry, "layers": [layer]}),),
        )
        for layer in sweep
    ]


def _part(name: str, entry: Any) -> FeaturePart:  # noqa: ANN401
    if isinstance(entry, str):
        return FeaturePart(backbone=entry)
    if not isinstance(entry, Mapping) or not isinstance(entry.get("backbone"), str):
        raise InputError(f"feature {name}: a part must be a name or have a backbone, got {entry!r}")
    unknown = entry.keys() - set(_OPTIONS)
    if unknown:
        raise InputError(
            f"feature {name}: no option {min(unknown)}; known are backbone, checkpoint, layers, "
            "norm, sweep and parts"
        )
    checkpoint, layers = entry.get("checkpoint"), entry.get("layers") or ()
    if isinstance(layers, int):
        layers = (layers,)
    return FeaturePart(
        backbone=entry["backbone"],
        checkpoint=None if checkpoint is None else str(checkpoint),
        layers=tuple(int(layer) for layer in layers),
        norm=entry.get("norm"),
    )


def identify(part: FeaturePart, own: Mapping[str, Backbone]) -> str:
    """Return a text that changes with the weights: a digest of file, folder or object.

    Raises:
        UnknownNameError: If there is no such backbone.
        InputError: If there is no such file.
    """
    if part.backbone in own:
        return _object_digest(own[part.backbone])
    if part.backbone != POINTS:
        check_name(part.backbone)
    if part.checkpoint is None:
        return ""
    digest = hashlib.sha256()
    # A fused backbone has a file for each of its parts, and none where it is empty.
    for given in part.checkpoint.split(",") if "fused:" in part.backbone else [part.checkpoint]:
        digest.update(b"part")
        if not given or "://" in given:
            digest.update(given.encode())
            continue
        path = Path(given)
        if not path.exists():
            raise InputError(
                f"feature {part.backbone}: there is no checkpoint {path}; check the path"
            )
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            digest.update(bytes.fromhex(sha256(file)))
    return digest.hexdigest()[:20]


def _object_digest(backbone: Backbone) -> str:
    kind = type(backbone)
    digest = hashlib.sha256(f"{kind.__module__}.{kind.__qualname__}".encode())
    digest.update(str(getattr(backbone, "fingerprint", "")).encode())
    if isinstance(backbone, torch.nn.Module):
        for name, value in backbone.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:20]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Extracted:
    """A feature of the training views."""

    tokens: TokenGrid
    seconds: float
    """Of the networks alone, for all views."""
    channels: int
    """Before PCA."""


def extract_feature(
    feature: Feature,
    images: Float[Tensor, "V 3 h w"],
    protocol: Protocol,
    *,
    seed: int = 0,
    device: str = "cpu",
    own: Mapping[str, Backbone] | None = None,
) -> Extracted:
    """Encode the training views and reduce the features as the protocol says.

    Args:
        feature: What to extract.
        images: Working pictures in [0, 1].
        protocol: PCA, layers and quirks.
        seed: Of PCA, and of what is drawn at random.
        device: Where networks run.
        own: Objects by name, which take the place of `create_backbone`.

    Raises:
        InputError: If a feature is not possible under the protocol.
        CheckpointError: If weights are missing.
    """
    if protocol.quirks.iuv_needs_two_views and len(images) < 2 and feature.is_pixels:
        raise InputError(
            "the view index of a single view divides by zero under the quirk iuv_needs_two_views"
        )
    found: list[TokenMaps] = []
    seconds = 0.0
    for part in feature.parts:
        backbone = (own or {}).get(part.backbone) or _build(part, protocol, seed, device)
        began = time.perf_counter()
        found.append(_encode(backbone, part, images, protocol))
        seconds += time.perf_counter() - began
    single = len(found) == 1
    tokens = (
        reduce_tokens(found[0], protocol, seed) if single else concatenate(found, protocol, seed)
    )
    channels = sum(part.maps.shape[1] for part in found)
    return Extracted(tokens=tokens, seconds=seconds, channels=channels)


def reading_of(part: FeaturePart, protocol: Protocol) -> tuple[tuple[int, ...], bool]:
    """Return which layers are read, and whether through the final norm."""
    published = PUBLISHED.get(part.backbone)
    layers, norm = (-1,), True
    if not protocol.layer_norm and published is not None:
        norm = published.norm
    if part.backbone == "mae_b16":
        layers, norm = ((-2,), False) if protocol.quirks.mae_block_11 else (layers, norm)
    return part.layers or layers, norm if part.norm is None else part.norm


def _build(part: FeaturePart, protocol: Protocol, seed: int, device: str) -> Backbone:
    _, norm = reading_of(part, protocol)
    options: dict[str, Any] = {}
    kind = part.backbone.removeprefix("random:")
    published = PUBLISHED.get(kind)
    if kind not in (*PIXEL_FEATURES, "random"):
        if not norm:
            options["norm"] = False
        if published is not None and published.project and not protocol.layer_norm:
            options["project"] = True
    padded = protocol.quirks.stretched_padding and not _is_vggt(kind)
    if padded and kind in _ABSOLUTE_POSITIONS:
        options["fit"] = "pad"
    backbone = create_backbone(part.backbone, part.checkpoint, device, seed=seed, **options)
    for one in getattr(backbone, "parts", (backbone,)):
        if padded and isinstance(one, NetworkBackbone) and one.fit == "stretch":
            one.fit = "pad"
    if protocol.quirks.imagenet_for_all and kind.startswith(_OTHER_NORMALISATION):
        backbone.mean, backbone.std = IMAGENET_MEAN, IMAGENET_STD
    return backbone


def _is_vggt(name: str) -> bool:
    return name.split("_")[0] in _VGGT


def _encode(
    backbone: Backbone, part: FeaturePart, images: Float[Tensor, "V 3 h w"], protocol: Protocol
) -> TokenMaps:
    layers, _ = reading_of(part, protocol)
    size = (images.shape[-2], images.shape[-1])
    pictures = images
    if protocol.quirks.stretched_padding and _is_vggt(part.backbone.removeprefix("random:")):
        pictures = vggt_pictures(images)
    with torch.no_grad(), _precision(part.backbone, images, protocol):
        found = backbone.extract(pictures, layers=list(layers))
    grids = {tuple(layer.patches.shape[-2:]) for layer in found}
    if len(grids) > 1:
        raise InputError(
            f"layers {list(layers)} of {part.backbone} have unlike grids {sorted(grids)}; probe "
            "them one by one"
        )
    maps = torch.cat([layer.patches for layer in found], 1).float()
    grid = (maps.shape[-2], maps.shape[-1])
    placement: Placement = (
        even_placement(size, grid)
        if protocol.quirks.stretched_padding
        else placement_of(backbone, size, grid)
    )
    return TokenMaps(maps=maps, placement=placement, is_pixels=grid == size)


def _precision(name: str, images: Tensor, protocol: Protocol) -> AbstractContextManager[object]:
    """Run VGGT in half precision on a GPU where the reference does; everything else in full."""
    reference = not protocol.layer_norm and _is_vggt(name.removeprefix("random:"))
    if not reference or images.device.type != "cuda":
        return nullcontext()
    half = torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16
    return torch.autocast("cuda", half)


def vggt_pictures(images: Float[Tensor, "V 3 h w"]) -> Float[Tensor, "V 3 H W"]:
    """Resize as VGGT's own loader: 518 wide, the height to 14s, its middle 518 rows if higher.

    The probe then takes the grid to cover the whole picture (quirk ``stretched_padding``).
    """
    height, width = images.shape[-2:]
    high = max(1, round(height * _VGGT_WIDTH / width / _VGGT_STEP)) * _VGGT_STEP
    resized = functional.interpolate(
        images, (high, _VGGT_WIDTH), mode="bicubic", antialias=True
    ).clamp(0, 1)
    if high <= _VGGT_WIDTH:
        return resized
    top = (high - _VGGT_WIDTH) // 2
    return resized[:, :, top : top + _VGGT_WIDTH]
