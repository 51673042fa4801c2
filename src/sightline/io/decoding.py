"""Bytes of a picture file to raw samples: format by content, one decoder a format, all checked.

Nothing here interprets values: depth, grey, alpha and orientation are `images`' business.
"""

import importlib
import struct
import zlib
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image, ImageFile

from sightline.errors import FileFormatError, InputError, MissingExtraError
from sightline.io.boxes import iterate_boxes, read_box
from sightline.io.exif import read_exif
from sightline.io.reading import check_file

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEFLATE = 1032
"""Times that deflate can shrink anything at most."""

_FREE_PIXELS, _PIXELS_A_BYTE = 64_000_000, 4096
"""Up to that many pixels a WebP file may be as small as it likes; a photo has two a byte or so."""

MAX_PIXELS = 300_000_000
"""Default limit: above any phone's or camera's picture, far below a decompression bomb."""

SUPPORTED = "jpg, png, webp, bmp, ppm, pgm, tiff, heic, heif or avif"
HEAD_BYTES = 64

DAMAGE = (  # what Pillow, libheif and tifffile raise on damaged or hostile files
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    struct.error,
    zlib.error,
    cv2.error,
    Image.DecompressionBombError,
    Warning,
)

_ORIENTATION = 0x0112
# Plug-ins are called directly: Image.open has a process-wide pixel limit of its own.
_PLUGINS = {
    "jpeg": ("PIL.JpegImagePlugin", "JpegImageFile"),
    "png": ("PIL.PngImagePlugin", "PngImageFile"),
    "webp": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "bmp": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "pnm": ("PIL.PpmImagePlugin", "PpmImageFile"),
    "tiff": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "avif": ("PIL.AvifImagePlugin", "AvifImageFile"),
}
_FOREIGN = (  # formats that people do give, to say what the file is
    (b"GIF8", "a GIF animation"),
    (b"%PDF", "a PDF document"),
    (b"8BPS", "a Photoshop document"),
    (b"v/1\x01", "an OpenEXR picture"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 picture"),
    (b"FUJIFILMCCD-RAW", "a camera raw file"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML text"),
    (b"<!DOC", "a web page"),
    (b"<html", "a web page"),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Raster:
    """A decoded picture as stored, before orientation, range, alpha and grey are dealt with."""

    samples: Shaped[np.ndarray, "height width channels"]
    """uint8, uint16 or float32; 1 or 3 channels, or the bands of a satellite picture."""
    alpha: UInt8[np.ndarray, "height width"] | None = None
    valid: Bool[np.ndarray, "height width"] | None = None
    """False where a satellite picture has no data."""
    format: str
    source_size: tuple[int, int]
    """Height and width as stored."""
    source_channels: int
    source_dtype: str
    orientation: int = 1
    """EXIF orientation of the stored pixels."""
    oriented: bool = False
    """True when the decoder has turned ``samples`` upright already."""
    satellite: bool = False
    bands: tuple[int, ...] | None = None
    """Which stored bands ``samples`` holds, where that is a choice."""
    plain: bool = False
    """True for 8-bit grey or RGB without transparency, which any reader shows alike."""
    exif: dict[str, Any] = field(default_factory=dict)


def image_format(head: bytes) -> str | None:
    """Return the kind of picture that these first ``HEAD_BYTES`` bytes begin, or None."""
    if head[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return "bmp"
    if head[:1] == b"P" and head[1:2] in (b"2", b"3", b"5", b"6") and head[2:3] in b" \t\n\r#":
        return "pnm"
    return _heif_format(head)


def read_head(path: Path) -> bytes:
    """Return the first bytes of a regular file.

    Raises:
        InputError: If there is no such file or it cannot be read.
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"cannot read {path}: {reason}; check its permissions") from error


def check_pixels(path: Path, width: int, height: int, max_pixels: int) -> None:
    """Refuse a picture whose declared size is empty or above the limit, before decoding it."""
    if width < 1 or height < 1:
        raise FileFormatError(f"{path.name}: expected a picture, got {width} x {height} pixels")
    if width * height > max_pixels:
        raise FileFormatError(
            f"{path.name}: expected at most {max_pixels / 1e6:g} million pixels, got {width} x "
            f"{height}; reduce the picture, or raise the limit if you trust the file"
        )


def check_png(path: Path, data: bytes) -> None:
    """Refuse a PNG file whose pixels cannot be in it, or have changed since it was written.

    Decoders take the memory for all declared pixels first, and not all compare sums.
    """
    width, height = struct.unpack(">II", data[16:24])
    bits = data[24] * _PNG_CHANNELS.get(data[25], 1)
    need = height * (1 + width * bits // 8)
    if need > _DEFLATE * len(data) + (1 << 20):
        raise FileFormatError(
            f"{path.name}: expected the pixels of a {width} x {height} picture, got {len(data)} "
            "bytes, which cannot hold them; copy or export it again"
        )
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        stop = at + 8 + length
        if data[at + 4 : at + 8] == b"IDAT" and stop + 4 <= len(data):
            (known,) = struct.unpack_from(">I", data, stop)
            if zlib.crc32(memoryview(data)[at + 4 : stop]) != known:
                raise damaged(path, "png", ValueError("its sums do not match its pixels"))
        at = stop + 4


def check_webp(path: Path, data: bytes, pixels: int) -> None:
    """Refuse a large WebP file with hardly a byte in it: its decoder makes room for all first."""
    if pixels > _FREE_PIXELS and pixels > _PIXELS_A_BYTE * len(data):
        raise FileFormatError(
            f"{path.name}: expected a picture of {pixels / 1e6:.0f} million pixels, got {len(data)} "
            "bytes; save it as PNG if it is that empty"
        )


def damaged(path: Path, kind: str, error: BaseException) -> FileFormatError:
    """Build the error for a file that its decoder could not finish."""
    text = " ".join(str(error).split())[:120] or type(error).__name__
    return FileFormatError(
        f"{path.name}: expected a whole {kind} picture, got a damaged or truncated file ({text}); "
        "copy or export it again"
    )


def open_plugin(kind: str, file: BufferedIOBase) -> ImageFile.ImageFile:
    """Open a file with the one Pillow plug-in for its format; only the header is read."""
    module, name = _PLUGINS[kind]
    try:
        plugin = getattr(importlib.import_module(module), name)
    except ImportError as error:  # Pillow before 11.3 has no AVIF
        raise FileFormatError(
            f"this picture is {kind}, which needs Pillow 11.3 or newer: pip install -U pillow"
        ) from error
    file.seek(0)
    return plugin(file)


def raster_from_pillow(
    image: ImageFile.ImageFile, kind: str, deep: Shaped[np.ndarray, "h w c"] | None = None
) -> Raster:
    """Decode an opened picture into samples and alpha.

    Args:
        image: As `open_plugin` returned it.
        kind: Its format.
        deep: The same picture with 16-bit channels, where Pillow would reduce them to 8.
    """
    exif = read_exif(image)
    size = (image.height, image.width)
    orientation = _orientation(image)
    image.load()
    # Pillow's TIFF reader turns the pixels by itself and then drops the tag.
    oriented = orientation != 1 and _orientation(image) == 1
    mode = image.mode
    transparent = "transparency" in image.info or mode in ("LA", "La", "PA", "RGBA", "RGBa")
    samples, alpha = _samples(image, transparent=transparent)
    dtype = str(samples.dtype)
    if deep is not None:
        samples, alpha, dtype = _split_alpha(deep)
    return Raster(
        samples=samples,
        alpha=alpha,
        format=kind,
        source_size=size,
        source_channels=len(image.getbands()),
        source_dtype="bool" if mode == "1" else dtype,
        orientation=orientation,
        oriented=oriented,
        plain=mode in ("L", "RGB") and not transparent and deep is None,
        exif=exif,
    )


def _heif_format(head: bytes) -> str | None:
    if head[4:8] != b"ftyp":
        return None
    length = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12]] + [head[i : i + 4] for i in range(16, length - 3, 4)]
    if b"avif" in brands or b"avis" in brands:
        return "avif"
    heif = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
    return "heif" if heif & set(brands[:1]) else None


def describe(head: bytes) -> str:
    """Say what a file that is no supported picture seems to be."""
    if not head:
        return "got an empty file; copy or export it again"
    for magic, what in _FOREIGN:
        if head.lstrip()[: len(magic)].lower() == magic.lower():
            return f"got {what}; convert it first"
    return "got other bytes; check that it is a picture"


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except DAMAGE:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _samples(
    image: Image.Image, *, transparent: bool
) -> tuple[Shaped[np.ndarray, "h w c"], UInt8[np.ndarray, "h w"] | None]:
    mode = image.mode
    if mode.startswith("I"):  # 16-bit grey, and 16-bit PGM as 32-bit integers
        values = np.asarray(image)
        small = bool(values.min() >= 0) and bool(values.max() <= np.iinfo(np.uint16).max)
        values = values.astype(np.uint16 if small else np.float32)
        return values[..., None], None
    if mode == "F":
        return np.asarray(image, np.float32)[..., None], None
    grey = mode in ("1", "L", "LA", "La")
    if transparent:
        pixels = np.asarray(image.convert("LA" if grey else "RGBA"))
        return np.ascontiguousarray(pixels[..., :-1]), np.ascontiguousarray(pixels[..., -1])
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return (pixels[..., None] if grey else pixels), None


def deep_colour(kind: str, file: BufferedIOBase, image: ImageFile.ImageFile) -> bool:
    """Say whether Pillow would cut 16-bit colour down to 8 bits."""
    if kind == "png":
        file.seek(24)
        depth, colour = file.read(2)
        return depth == 16 and colour != 0
    if kind == "pnm":
        return image.mode == "RGB" and pnm_maximum(file) > 255
    return False


def pnm_maximum(file: BufferedIOBase) -> int:
    """Return the declared largest value of a PGM or PPM file, 0 if there is none."""
    file.seek(0)
    lines = (line.split(b"#")[0] for line in file.read(4096).split(b"\n"))
    words = b" ".join(lines).split()
    return int(words[3]) if len(words) > 3 and words[3].isdigit() else 0


def decode_deep(file: BufferedIOBase) -> Shaped[np.ndarray, "h w c"]:
    """Decode 3 or 4 channels of 16 bits or floats, RGB order, with OpenCV."""
    file.seek(0)
    pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3:
        raise ValueError("the deep colour data cannot be decoded")
    order = cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(pixels, order)


def _split_alpha(
    pixels: Shaped[np.ndarray, "h w c"],
) -> tuple[Shaped[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"] | None, str]:
    if pixels.shape[2] == 3:
        return pixels, None, str(pixels.dtype)
    alpha = np.rint(pixels[..., 3].astype(np.float32) / 257).astype(np.uint8)
    return np.ascontiguousarray(pixels[..., :3]), alpha, str(pixels.dtype)


def decode_heif(path: Path, file: BufferedIOBase, max_pixels: int) -> Raster:
    """Read a HEIF picture, which comes upright; errors as `images.read_image`."""
    try:
        import pi_heif  # optional extra
    except ImportError as error:
        raise MissingExtraError(
            f"{path.name} is a HEIF picture, which", "pi-heif", "heif", "convert it to JPEG"
        ) from error
    if not _items_are_named(file):
        raise FileFormatError(
            f"{path.name}: expected a HEIF picture, got one with unreadable item names; the file "
            "is damaged: copy or export it again"
        )
    file.seek(0)
    heif = pi_heif.open_heif(file, convert_hdr_to_8bit=True)
    check_pixels(path, heif.size[0], heif.size[1], max_pixels)
    # libheif applies the stored rotation itself and resets the orientation tag to 1.
    image = heif.to_pillow()
    samples, alpha = _samples(image, transparent=image.mode in ("LA", "RGBA", "RGBa"))
    return Raster(
        samples=samples,
        alpha=alpha,
        format="heif",
        source_size=(image.height, image.width),
        source_channels=len(image.getbands()),
        source_dtype="uint8" if heif.info.get("bit_depth", 8) <= 8 else "uint16",
        exif=read_exif(image),
    )


def _items_are_named(file: BufferedIOBase) -> bool:
    """Check the item list of a HEIF file: pi-heif 1.4 crashes the process on names not in UTF-8."""
    for kind, first, stop in iterate_boxes(file, 0, file.seek(0, 2)):
        if kind != b"meta":
            continue
        for part, inner, end in iterate_boxes(file, first + 4, stop):
            if part != b"iinf":
                continue
            version = read_box(file, inner, end, 1)
            skipped = 6 if version == b"\0" else 8
            for _, entry, entry_end in iterate_boxes(file, inner + skipped, end):
                try:
                    # Version and flags (4 bytes) and a binary id come first, texts then.
                    read_box(file, entry, entry_end)[8:].decode()
                except UnicodeDecodeError:
                    return False
    return True
