"""TIFF: what Pillow shows as it is, 16-bit and float colour, and satellite bands (GeoTIFF).

The tags decide who decodes. Pillow takes 8-bit pictures and single bands of any depth, OpenCV
takes 3 and 4 deep channels, and tifffile (extra ``geo``) takes more bands, separate planes and the
rarer compressions.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped
from PIL import TiffImagePlugin

from sightline.errors import FileFormatError, InputError, MissingExtraError
from sightline.io.decoding import (
    DAMAGE,
    Raster,
    check_pixels,
    damaged,
    decode_deep,
    open_plugin,
    raster_from_pillow,
)
from sightline.io.reading import read_whole

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _PLANAR = 256, 257, 258, 259, 277, 284
_ORIENTATION, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 274, 338, 339
_GEO = (33550, 33922, 34264, 34735)
_GDAL_METADATA, _GDAL_NODATA, _DNG_VERSION = 42112, 42113, 50706
_EVERYWHERE = (1, 2, 3, 4, 5, 7, 8, 32773, 32946)  # compressions in every libtiff
_MAX_BANDS = 4096
_FLOAT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    width: int
    height: int
    bits: int
    bands: int
    alpha: bool
    floating: bool
    separate: bool
    compression: int
    orientation: int
    satellite: bool
    nodata: float | None
    rgb: tuple[int, ...]


def decode_tiff(path: Path, file: BufferedIOBase, max_pixels: int) -> Raster:
    """Read the first page of a TIFF; errors as `images.read_image`.

    Satellite pictures (with GeoKeys or more than four bands) come with their red, green and blue
    bands by name, else the first three (or the only one), and are not valid where every one of
    them has the stated nodata value.
    """
    layout = _read_layout(path, file)
    check_pixels(path, layout.width, layout.height, max_pixels)
    simple = layout.bits <= 8 and layout.bands <= 4
    single = layout.bands == 1 and layout.bits <= 32
    deep = layout.bands in (3, 4) and layout.bits in (16, 32) and not layout.separate
    deep = deep and (layout.floating or layout.bits == 16)
    try:
        if simple or single:
            raster = raster_from_pillow(open_plugin("tiff", file), "tiff")
            # The size is the tags': Pillow states it as if turned upright already.
            size = (layout.height, layout.width)
            raster = replace(raster, source_channels=layout.bands, source_size=size)
        elif deep:
            raster = _with_opencv(file, layout)
        else:
            raster = _with_tifffile(path, layout)
    except MissingExtraError:
        raise
    except DAMAGE as error:
        if layout.compression in _EVERYWHERE:
            raise damaged(path, "tiff", error) from error
        raster = _with_tifffile(path, layout)
    if not layout.satellite:
        return raster
    return replace(
        raster,
        satellite=True,
        plain=False,
        bands=layout.rgb if layout.bands > 1 else (0,),
        valid=_has_data(raster.samples, layout.nodata),
    )


def read_bands(path: Path, bands: Sequence[int], max_pixels: int) -> Raster:
    """Read chosen bands of a TIFF's first page, in the order asked for.

    Args:
        path: The file; more than four bands need the extra ``geo``.
        bands: From 0.
        max_pixels: Refuse larger pictures.

    Returns:
        The bands, not valid where all of them have the stated nodata value.

    Raises:
        InputError: If the file has no such band.
        FileFormatError: If it is damaged.
        MissingExtraError: If it needs an extra.
    """
    with io.BytesIO(read_whole(path)) as file:
        layout = _read_layout(path, file)
        missing = [band for band in bands if not 0 <= band < layout.bands]
        if missing:
            raise InputError(
                f"{path.name}: expected bands 0 to {layout.bands - 1}, got {missing[0]}; choose "
                "others with --bands"
            )
        check_pixels(path, layout.width, layout.height, max_pixels)
        layout = replace(layout, rgb=tuple(bands), alpha=False)
        eight = layout.bits == 8 and layout.bands <= 3
        deep = layout.bits in (8, 16) or (layout.bits == 32 and layout.floating)
        try:
            if layout.bands == 1 or eight:
                raster = raster_from_pillow(open_plugin("tiff", file), "tiff")
                raster = _raster(raster.samples, layout)
            elif layout.bands in (3, 4) and deep and not layout.separate:
                raster = _with_opencv(file, layout)
            else:
                raster = _with_tifffile(path, layout)
        except DAMAGE as error:
            if isinstance(error, (FileFormatError, MissingExtraError)):
                raise
            if layout.compression in _EVERYWHERE:
                raise damaged(path, "tiff", error) from error
            raster = _with_tifffile(path, layout)
    return replace(
        raster,
        satellite=True,
        bands=tuple(bands),
        valid=_has_data(raster.samples, layout.nodata),
    )


def tiff_bits(path: Path, file: BufferedIOBase) -> int:
    """Return the bits of the deepest channel of a TIFF's first page."""
    return _read_layout(path, file).bits


def read_tags(file: BufferedIOBase) -> TiffImagePlugin.ImageFileDirectory_v2:
    """Return the tags of a TIFF's first page; damaged files raise any of `decoding.DAMAGE`."""
    file.seek(0)
    header = file.read(8)
    if header[2] == 43 or header[3] == 43:  # BigTIFF
        header += file.read(8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(header)
    file.seek(tags.next)
    tags.load(file)  # type: ignore[arg-type]
    return tags


def _read_layout(path: Path, file: BufferedIOBase) -> _Layout:
    tags = read_tags(file)
    if _DNG_VERSION in tags:
        raise FileFormatError(
            f"{path.name}: expected a picture, got a camera raw file (DNG); develop it to JPEG or "
            "TIFF first"
        )
    bands = int(tags.get(_SAMPLES, 1))
    if not 1 <= bands <= _MAX_BANDS:
        raise FileFormatError(f"{path.name}: expected at most {_MAX_BANDS} bands, got {bands}")
    bits = _all(tags.get(_BITS, 1))
    formats = _all(tags.get(_SAMPLE_FORMAT, 1))
    orientation = tags.get(_ORIENTATION, 1)
    return _Layout(
        width=int(tags.get(_WIDTH, 0)),
        height=int(tags.get(_HEIGHT, 0)),
        bits=max(int(b) for b in bits),
        bands=bands,
        # 1 and 2 are associated and unassociated alpha; 0 is an unnamed extra band
        alpha=bands in (2, 4) and _all(tags.get(_EXTRA_SAMPLES, 0))[-1] in (1, 2),
        floating=_FLOAT in formats,
        separate=tags.get(_PLANAR, 1) == 2,
        compression=int(tags.get(_COMPRESSION, 1)),
        orientation=orientation if orientation in range(1, 9) else 1,
        satellite=any(tag in tags for tag in _GEO) or bands > 4,
        nodata=parse_nodata(tags.get(_GDAL_NODATA)),
        rgb=_rgb_bands(tags.get(_GDAL_METADATA), bands),
    )


def _all(value: Any) -> tuple[Any, ...]:  # noqa: ANN401
    return value if isinstance(value, tuple) and value else (value,)


def parse_nodata(text: Any) -> float | None:  # noqa: ANN401
    """Return the number in GDAL's nodata tag, if there is one."""
    try:
        return float(str(text).strip("\0 "))
    except ValueError:
        return None


def _rgb_bands(metadata: Any, bands: int) -> tuple[int, ...]:  # noqa: ANN401
    """Return the bands named red, green and blue in GDAL's metadata, else the first three."""
    found: dict[str, int] = {}
    if isinstance(metadata, str):
        pattern = r'<Item [^>]{0,200}sample="(\d{1,4})"[^>]{0,200}>\s*(red|green|blue)\b'
        for sample, colour in re.findall(pattern, metadata[:1_000_000], re.IGNORECASE):
            if int(sample) < bands:
                found.setdefault(colour.lower(), int(sample))
    if len(found) == 3:
        return (found["red"], found["green"], found["blue"])
    return (0, 1, 2) if bands >= 3 else (0,)


def _has_data(
    samples: Shaped[np.ndarray, "h w c"], nodata: float | None
) -> Bool[np.ndarray, "h w"]:
    valid = np.ones(samples.shape[:2], bool)
    if np.issubdtype(samples.dtype, np.floating):
        valid = np.any(np.isfinite(samples), axis=2, keepdims=True)[..., 0]
    if nodata is None:
        return valid
    return valid & np.any(samples != nodata, axis=2, keepdims=True)[..., 0]


def _with_opencv(file: BufferedIOBase, layout: _Layout) -> Raster:
    # OpenCV turns TIFF pixels upright on its own, also when asked for unchanged ones.
    return replace(_raster(decode_deep(file), layout), oriented=layout.orientation != 1)


def _with_tifffile(path: Path, layout: _Layout) -> Raster:
    try:
        import tifffile  # pyright: ignore[reportMissingImports]  # optional extra
    except ImportError as error:
        raise MissingExtraError(
            f"{path.name} ({layout.bands} bands of {layout.bits} bits, TIFF compression "
            f"{layout.compression})",
            "tifffile",
            "geo",
            "convert it to an 8-bit RGB TIFF",
        ) from error
    try:
        with tifffile.TiffFile(path) as tiff:
            pixels = tiff.pages[0].asarray()
    except (KeyError, ImportError) as error:  # how tifffile says that imagecodecs is absent
        raise MissingExtraError(
            f"{path.name} (TIFF compression {layout.compression})", "imagecodecs", "geo"
        ) from error
    except DAMAGE as error:
        raise damaged(path, "tiff", error) from error
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif pixels.ndim == 3 and layout.separate:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.shape != (layout.height, layout.width, layout.bands):
        raise FileFormatError(f"{path.name}: expected one flat picture, got {pixels.shape}")
    return _raster(pixels, layout)


def _raster(pixels: Shaped[np.ndarray, "h w c"], layout: _Layout) -> Raster:
    alpha = None
    if layout.alpha:
        top = 1.0 if layout.floating else float(2**layout.bits - 1)
        alpha = np.rint(np.clip(pixels[..., -1] / top, 0, 1) * 255).astype(np.uint8)
    samples = np.ascontiguousarray(pixels[..., list(layout.rgb)])
    if samples.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        samples = samples.astype(np.float32)
    return Raster(
        samples=samples,
        alpha=alpha,
        format="tiff",
        source_size=(layout.height, layout.width),
        source_channels=layout.bands,
        source_dtype=str(pixels.dtype),
        orientation=layout.orientation,
        bands=layout.rgb if layout.bands > 4 else None,
    )
