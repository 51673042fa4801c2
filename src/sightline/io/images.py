"""Read any still picture as upright 8-bit RGB: the one loader of the whole package.

The pixels are those that the file stores: embedded colour profiles are not applied, animations and
multi-page files give their first picture.
"""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from sightline.errors import FileFormatError, InputError, MissingExtraError
from sightline.io.decoding import (
    DAMAGE,
    MAX_PIXELS,
    SUPPORTED,
    Raster,
    check_pixels,
    check_png,
    check_webp,
    damaged,
    decode_deep,
    decode_heif,
    deep_colour,
    describe,
    image_format,
    open_plugin,
    pnm_maximum,
    raster_from_pillow,
    read_head,
)
from sightline.io.exif import FocalPrior, focal_prior
from sightline.io.ranges import EIGHT_BIT, ValueRange, apply_range, measure_range
from sightline.io.reading import check_file, read_whole
from sightline.io.tiff import decode_tiff, tiff_bits

__all__ = [
    "MAX_PIXELS",
    "Alpha",
    "Photo",
    "is_deep",
    "is_image",
    "orient",
    "read_image",
    "read_samples",
    "upright_to_stored",
]

Alpha = Literal["white", "black", "ignore"]
"""What a transparent picture is laid on; ``ignore`` drops the alpha plane."""

_KEEP = 0.5
"""Least alpha that counts as part of the picture."""

_MAX_BYTES = 2 << 30  # of a picture file; it is read whole
_INVERSE = {6: 8, 8: 6}  # the other orientations undo themselves
_RAW_SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".dng", ".nef"),
    *(".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw"),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Photo:
    """An upright picture and what its file said about it."""

    pixels: UInt8[np.ndarray, "height width 3"]
    """RGB, sRGB-encoded."""
    mask: Bool[np.ndarray, "height width"] | None
    """False where the picture is transparent or has no data; None when all of it counts."""
    focal: FocalPrior
    source_size: tuple[int, int]
    """Height and width as stored, before ``orientation`` was applied."""
    orientation: int
    """The EXIF orientation (1-8) that was applied."""
    source_channels: int
    source_dtype: str
    format: str
    """jpeg, png, webp, bmp, pnm, tiff, heif or avif, by content."""
    value_range: ValueRange
    bands: tuple[int, ...] | None = None
    """Which bands of a satellite picture became red, green and blue."""
    plain: bool
    """True when the file's own bytes already are this picture for any reader: 8-bit grey or RGB,
    upright, opaque."""
    exif: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, upright."""
        return self.pixels.shape[0], self.pixels.shape[1]


def read_image(
    path: Path,
    *,
    max_pixels: int = MAX_PIXELS,
    alpha: Alpha = "white",
    value_range: ValueRange | None = None,
    upright: bool = True,
) -> Photo:
    """Read one picture.

    The format is found by content, not by name. EXIF orientation is applied once. Grey is
    repeated to three channels; 16-bit and float values go through `ranges.measure_range`; a
    transparent picture is laid on a colour and its alpha plane becomes the mask (0.5 and more is
    kept).

    Args:
        path: jpg, png, webp, bmp, ppm, pgm, tiff or avif; heic and heif with the extra ``heif``;
            rare TIFFs with the extra ``geo``.
        max_pixels: Refuse larger pictures before decoding them.
        alpha: The colour under transparent pixels, or ``ignore`` to drop the alpha plane.
        value_range: Use this range instead of the picture's own, so that a sequence does not
            flicker; ignored for 8-bit pictures.
        upright: False keeps the stored pixels, which is what cameras found by programs that know
            no orientation belong to.

    Raises:
        InputError: If the file is missing or unreadable.
        FileFormatError: If it is empty, not a picture, truncated, damaged or too large.
        MissingExtraError: If its format needs an extra that is not installed.
    """
    path = Path(path)
    raster = read_samples(path, max_pixels=max_pixels)
    samples = raster.samples
    if samples.dtype == np.uint8:
        value_range = EIGHT_BIT
    elif value_range is None:
        value_range = measure_range([samples], valid=[raster.valid], satellite=raster.satellite)
    elif len(value_range.minimum) not in (1, samples.shape[-1]):
        raise FileFormatError(
            f"{path.name}: expected {len(value_range.minimum)} bands like the first picture of its "
            f"sequence, got {samples.shape[-1]}; give pictures of one kind in one folder"
        )
    rgb = apply_range(samples, value_range)
    if rgb.shape[-1] == 1:
        rgb = np.repeat(rgb, 3, axis=-1)
    mask = raster.valid
    if raster.alpha is not None and alpha != "ignore":
        rgb = _lay_on(rgb, raster.alpha, 255 if alpha == "white" else 0)
        opaque = raster.alpha >= _KEEP * 255
        mask = opaque if mask is None else mask & opaque
    if mask is not None and mask.all():
        mask = None
    turn = raster.orientation if upright else 1
    if raster.oriented:
        turn = 1 if upright else _INVERSE.get(raster.orientation, raster.orientation)
    rgb = orient(rgb, turn)
    mask = None if mask is None else orient(mask, turn)
    return Photo(
        pixels=np.require(rgb, requirements=["C", "W"]),
        mask=None if mask is None else np.require(mask, requirements=["C", "W"]),
        focal=focal_prior(raster.exif, raster.source_size[1], raster.source_size[0]),
        source_size=raster.source_size,
        orientation=raster.orientation if upright else 1,
        source_channels=raster.source_channels,
        source_dtype=raster.source_dtype,
        format=raster.format,
        value_range=value_range,
        bands=raster.bands,
        plain=raster.plain and raster.orientation == 1,
        exif=raster.exif,
    )


def read_samples(path: Path, *, max_pixels: int = MAX_PIXELS) -> Raster:
    """Read a picture's stored values without changing them; errors as `read_image`."""
    path = Path(path)
    head = read_head(path)
    kind = image_format(head)
    if kind is None:
        raise FileFormatError(f"{path.name}: expected a picture ({SUPPORTED}), {describe(head)}")
    if path.suffix.lower() in _RAW_SUFFIXES or head[8:10] == b"CR":
        raise FileFormatError(
            f"{path.name}: expected a picture ({SUPPORTED}), got a camera raw file; develop it to "
            "JPEG or TIFF first"
        )
    try:
        # From memory: a read from the disk would first make room for whatever length a damaged
        # header declares.
        data = _read_picture(path)
        with io.BytesIO(data) as file:
            if kind == "heif":
                return decode_heif(path, file, max_pixels)
            if kind == "tiff":
                return decode_tiff(path, file, max_pixels)
            image = open_plugin(kind, file)
            check_pixels(path, image.width, image.height, max_pixels)
            if kind == "png":
                check_png(path, data)
            elif kind == "webp":
                check_webp(path, data, image.width * image.height)
            deep = deep_colour(kind, file, image)
            return raster_from_pillow(image, kind, decode_deep(file) if deep else None)
    except (FileFormatError, MissingExtraError):
        raise
    except DAMAGE as error:
        raise damaged(path, kind, error) from error


def _read_picture(path: Path) -> bytes:
    if check_file(path) > _MAX_BYTES:
        raise FileFormatError(
            f"{path.name}: expected a picture of at most {_MAX_BYTES >> 30} GiB, got "
            f"{path.stat().st_size} bytes; save a smaller copy"
        )
    return read_whole(path)


def is_deep(path: Path) -> bool:
    """Say, from the header alone, whether a picture may hold more than 8 bits a channel."""
    try:
        head = read_head(path)
        kind = image_format(head)
        if kind == "png":
            return head[24] == 16
        if kind not in ("pnm", "tiff"):
            return False
        with path.open("rb") as file:
            return pnm_maximum(file) > 255 if kind == "pnm" else tiff_bits(path, file) > 8
    except (InputError, *DAMAGE):
        return False  # reading it will say what is wrong


def is_image(path: Path) -> bool:
    """Say whether a file begins like a supported picture; False for anything unreadable."""
    try:
        return image_format(read_head(path)) is not None
    except InputError:
        return False


def orient(pixels: Shaped[np.ndarray, "height width *c"], orientation: int) -> np.ndarray:
    """Turn stored pixels upright by their EXIF orientation (1-8); a view, not a copy."""
    if orientation in (2, 3, 4):
        axes = {2: (1,), 3: (0, 1), 4: (0,)}[orientation]
        return np.flip(pixels, axes)
    if orientation in (5, 6, 7, 8):
        turned = np.swapaxes(pixels, 0, 1)
        axes = {5: (), 6: (1,), 7: (0, 1), 8: (0,)}[orientation]
        return np.flip(turned, axes)
    return pixels


def upright_to_stored(orientation: int, height: int, width: int) -> Float[np.ndarray, "2 3"]:
    """Return the affine map from upright pixels to stored ones, corner convention.

    Args:
        orientation: EXIF orientation, 1-8.
        height: Of the stored picture.
        width: Of the stored picture.
    """
    # Rows give stored x and y; columns take upright x, upright y and 1.
    x, y = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
    back_x, back_y = [-1.0, 0.0, float(width)], [0.0, -1.0, float(height)]
    across, down = [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]
    back_across, back_down = [0.0, -1.0, float(width)], [-1.0, 0.0, float(height)]
    table = {
        1: (x, y),
        2: (back_x, y),
        3: (back_x, back_y),
        4: (x, back_y),
        5: (across, down),
        6: (across, back_down),
        7: (back_across, back_down),
        8: (back_across, down),
    }
    return np.array(table[orientation])


def _lay_on(
    rgb: UInt8[np.ndarray, "h w 3"], alpha: UInt8[np.ndarray, "h w"], background: int
) -> UInt8[np.ndarray, "h w 3"]:
    weight = alpha[..., None].astype(np.uint16)
    blend = rgb * weight + background * (255 - weight)
    return ((blend + 127) // 255).astype(np.uint8)
