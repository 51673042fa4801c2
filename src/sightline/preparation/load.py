"""Read one picture, raster or radiometric JPEG as upright values, and tell its modality."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped, UInt8, UInt16

from sightline.errors import InputError
from sightline.io.decoding import MAX_PIXELS, Raster, image_format, read_head
from sightline.io.exif import FocalPrior, focal_prior
from sightline.io.flir import is_radiometric, read_radiometric
from sightline.io.geotiff import GeoTags, read_geo
from sightline.io.images import Alpha, is_deep, orient, read_samples
from sightline.io.intrinsics import fit_lens
from sightline.io.tiff import read_bands
from sightline.preparation.scan import Source

_THERMAL, _INFRARED, _DEPTH = {"thermal", "lwir", "flir"}, {"ir", "nir"}, {"depth", "depths"}
_KEEP = 0.5  # least alpha that counts as part of the picture


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loaded:
    """An upright picture with all that its file said."""

    samples: Shaped[np.ndarray, "height width channels"]
    """uint8, uint16 or float32: grey, RGB, or the chosen bands of a raster, shown ones first."""
    shown: int
    """How many channels are shown: 1 or 3."""
    valid: Bool[np.ndarray, "height width"] | None
    """False where a raster has no data or a picture is transparent; None when all counts."""
    orientation: int
    """The EXIF orientation that was applied."""
    source_size: tuple[int, int]
    source_channels: int
    source_dtype: str
    format: str
    plain: bool
    """True when the file's own bytes already are this picture for any reader."""
    modality: str
    bands: tuple[int | str, ...] | None = None
    """Names, or indices from 0, of a raster's ``samples``."""
    geo: GeoTags | None = None
    counts: UInt16[np.ndarray, "height width"] | None = None
    """The raw picture of a radiometric JPEG, as stored."""
    focal: FocalPrior
    exif: dict[str, Any] = field(default_factory=dict)


def needs_range(source: Source) -> bool:
    """Say, from the header alone, whether a picture shares a measured range with its group.

    Rasters have their own range each.
    """
    if source.kind == "video":
        return False
    kind = image_format(read_head(source.path))
    if kind == "jpeg":
        return is_radiometric(source.path)
    return is_deep(source.path) and not (kind == "tiff" and read_geo(source.path).is_raster)


def load(
    source: Source,
    *,
    alpha: Alpha = "white",
    modality: str | None = None,
    bands: str | Sequence[int | str] | None = None,
) -> Loaded:
    """Read one picture.

    Args:
        source: What to read.
        alpha: What transparent pictures are laid on; ``ignore`` drops their alpha plane.
        modality: What the user says that it is.
        bands: Of rasters: ``all``, or indices from 0 and names, by commas or one by one.

    Raises:
        InputError: If it cannot be read or has no such band.
        FileFormatError: If it is damaged.
        MissingExtraError: If its format needs an extra.
    """
    path = source.path
    kind = image_format(read_head(path))
    if kind == "jpeg" and is_radiometric(path):
        return _radiometric(path, modality)
    geo = read_geo(path) if kind == "tiff" else None
    if geo is not None and (geo.is_raster or modality == "satellite"):
        return _raster(path, geo, modality, bands)
    raster = read_samples(path)
    orientation, oriented = raster.orientation, raster.oriented
    if source.given is not None and source.given.lens is not None and orientation != 1:
        lens = source.given.lens
        if not oriented and fit_lens(lens, *raster.source_size):
            orientation = 1  # its camera was found on the pixels as stored
    samples, valid = _opaque(raster, alpha)
    if not oriented:
        samples = orient(samples, orientation)
        valid = None if valid is None else orient(valid, orientation)
    return Loaded(
        samples=np.require(samples, requirements=["C"]),
        shown=samples.shape[-1],
        valid=valid,
        orientation=orientation,
        source_size=raster.source_size,
        source_channels=raster.source_channels,
        source_dtype=raster.source_dtype,
        format=raster.format,
        plain=raster.plain and orientation == 1 and raster.source_channels == 3,
        modality=modality or _modality(source, raster.source_channels, samples.dtype),
        focal=focal_prior(raster.exif, raster.source_size[1], raster.source_size[0]),
        exif=raster.exif,
    )


def choose_bands(
    wanted: str | Sequence[int | str] | None, names: Sequence[str | None], path: Path
) -> tuple[list[int], int]:
    """Return the bands to read, shown ones first, and how many are shown (1 or 3).

    Shown are the first three that are asked for, or the first of fewer; by default those named
    red, green and blue, else the first three, else the first.

    Raises:
        InputError: If a band is asked for that does not exist.
    """
    colours = [_named(names, colour) for colour in ("red", "green", "blue")]
    usual = [c for c in colours if c is not None]
    usual = usual if len(usual) == 3 else list(range(3 if len(names) >= 3 else 1))
    if wanted is None:
        return usual, len(usual)
    if wanted == "all":
        return [*usual, *(i for i in range(len(names)) if i not in usual)], len(usual)
    parts = wanted.split(",") if isinstance(wanted, str) else wanted
    chosen = []
    for part in parts:
        text = str(part).strip()
        at = _named(names, text)
        if at is None and text.isdecimal() and int(text) < len(names):
            at = int(text)
        if at is None:
            known = ", ".join(name for name in names if name) or "without names"
            raise InputError(
                f'{path.name} has no band "{text}": expected 0 to {len(names) - 1}, or a name '
                f"({known}); change --bands"
            )
        chosen.append(at)
    if len(set(chosen)) < len(chosen):
        raise InputError(f"--bands names a band of {path.name} twice; keep one of them")
    return chosen, 3 if len(chosen) >= 3 else 1


def _named(names: Sequence[str | None], wanted: str) -> int | None:
    lower = [(name or "").casefold() for name in names]
    return lower.index(wanted.casefold()) if wanted.casefold() in lower else None


def _raster(
    path: Path, geo: GeoTags, modality: str | None, wanted: str | Sequence[int | str] | None
) -> Loaded:
    bands, shown = choose_bands(wanted, geo.names, path)
    raster = read_bands(path, bands, MAX_PIXELS)
    orientation = 1 if raster.oriented else raster.orientation
    valid = raster.valid
    return Loaded(
        samples=np.ascontiguousarray(orient(raster.samples, orientation)),
        shown=shown,
        valid=None if valid is None or valid.all() else orient(valid, orientation),
        orientation=raster.orientation,
        source_size=raster.source_size,
        source_channels=raster.source_channels,
        source_dtype=raster.source_dtype,
        format="tiff",
        plain=False,
        modality=modality or "satellite",
        bands=tuple(geo.names[band] or band for band in bands),
        geo=geo,
        focal=focal_prior({}, raster.source_size[1], raster.source_size[0]),
        exif=raster.exif,
    )


def _radiometric(path: Path, modality: str | None) -> Loaded:
    found = read_radiometric(path, max_pixels=MAX_PIXELS)
    # The coloured picture may be of another size; its orientation and date are the camera's.
    exif = read_samples(path).exif
    height, width = found.counts.shape
    orientation = exif.get("Orientation", 1)
    orientation = orientation if orientation in range(1, 9) else 1
    return Loaded(
        samples=np.ascontiguousarray(orient(found.counts, orientation))[..., None],
        shown=1,
        valid=None,
        orientation=orientation,
        source_size=(height, width),
        source_channels=1,
        source_dtype="uint16",
        format="jpeg",
        plain=False,
        modality=modality or "thermal",
        counts=found.counts,
        focal=focal_prior({}, width, height),  # EXIF speaks of the coloured picture's lens
        exif=exif | {"FLIR": found.constants},
    )


def _opaque(
    raster: Raster, alpha: Alpha
) -> tuple[Shaped[np.ndarray, "h w c"], Bool[np.ndarray, "h w"] | None]:
    """Lay a transparent picture on a colour; its mask keeps what is half opaque or more."""
    samples, plane = raster.samples, raster.alpha
    if plane is None or alpha == "ignore":
        return samples, raster.valid
    weight: UInt8[np.ndarray, "h w 1"] = plane[..., None]
    if samples.dtype == np.uint8:
        under = 255 if alpha == "white" else 0
        blend = samples * weight.astype(np.uint16) + under * (255 - weight.astype(np.uint16))
        samples = ((blend + 127) // 255).astype(np.uint8)

    opaque = plane >= _KEEP * 255
    valid = opaque if raster.valid is None else raster.valid & opaque
    return samples, None if valid.all() else valid


def _modality(source: Source, channels: int, dtype: np.dtype) -> str:
    if channels not in (1, 2):
        return "visible"
    if dtype == np.uint16:
        if source.words & _DEPTH:
            return "depth"
        return "thermal" if source.words & _THERMAL else "other"
    if dtype == np.uint8:
        return "ir" if source.words & _INFRARED else "visible"
    return "other"
