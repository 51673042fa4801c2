"""Radiometric JPEGs of FLIR cameras: the sensor's own 16-bit counts behind the coloured picture.

APP1 segments that begin with ``FLIR`` hold one FFF file in parts. Its directory names records: 1
is the raw picture, 32 the camera's constants (as ExifTool documents them).
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt16

from sightline.errors import FileFormatError
from sightline.io.decoding import DAMAGE, check_pixels, damaged, open_plugin

_RAW, _CAMERA = 1, 32
_MAX_RECORDS = 256
_PNG = b"\x89PNG"
# Offsets in the camera record, little endian; 32-bit floats but for the integer PlanckO.
_CONSTANTS = {
    "Emissivity": (0x20, "f"),
    "ObjectDistance": (0x24, "f"),
    "ReflectedApparentTemperature": (0x28, "f"),
    "AtmosphericTemperature": (0x2C, "f"),
    "IRWindowTemperature": (0x30, "f"),
    "IRWindowTransmission": (0x34, "f"),
    "RelativeHumidity": (0x3C, "f"),
    "PlanckR1": (0x58, "f"),
    "PlanckB": (0x5C, "f"),
    "PlanckF": (0x60, "f"),
    "PlanckO": (0x308, "i"),
    "PlanckR2": (0x30C, "f"),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Radiometric:
    """What a radiometric JPEG hides."""

    counts: UInt16[np.ndarray, "height width"]
    constants: dict[str, float]
    """By ExifTool's names; temperatures in kelvin. Those that turn counts into temperatures."""


def is_radiometric(path: Path) -> bool:
    """Say whether a readable JPEG has FLIR segments."""
    try:
        with path.open("rb") as file:
            return any(True for _ in _segments(file))
    except (OSError, *DAMAGE):
        return False


def read_radiometric(path: Path, *, max_pixels: int) -> Radiometric:
    """Read the raw picture of a radiometric JPEG.

    Raises:
        FileFormatError: If the file has no raw picture, or a damaged or too large one.
    """
    try:
        with path.open("rb") as file:
            parts = dict(_segments(file))
        return _decode(path, b"".join(parts[i] for i in sorted(parts)), max_pixels)
    except FileFormatError:
        raise
    except DAMAGE as error:
        raise damaged(path, "FLIR", error) from error


def _segments(file: io.BufferedReader) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of every FLIR segment before the picture's own data."""
    if file.read(2) != b"\xff\xd8":
        return
    while len(head := file.read(4)) == 4 and head[0] == 0xFF and head[1] != 0xDA:
        length = int.from_bytes(head[2:], "big") - 2
        if head[1] != 0xE1 or length < 8:
            file.seek(max(length, 0), io.SEEK_CUR)
            continue
        body = file.read(length)
        if body.startswith(b"FLIR\0"):
            yield body[6], body[8:]


def _decode(path: Path, data: bytes, max_pixels: int) -> Radiometric:
    records = _records(data)
    if _RAW not in records:
        raise FileFormatError(
            f"{path.name}: expected a raw picture among its FLIR records, got none; the file is "
            "damaged: copy it from the camera again"
        )
    raw = records[_RAW]
    width, height = struct.unpack("<HH", raw[2:6])
    if raw[:2] == b"\0\2":  # the record says 2 in its own byte order
        width, height = struct.unpack(">HH", raw[2:6])
    check_pixels(path, width, height, max_pixels)
    body = raw[32:]
    if body.startswith(_PNG):
        image = open_plugin("png", io.BytesIO(body))
        check_pixels(path, image.width, image.height, max_pixels)
        counts = np.asarray(image).astype(np.uint16)
        if counts.ndim == 2 and _rough(counts.byteswap()) < _rough(counts):
            counts = counts.byteswap()  # cameras put little-endian counts into big-endian PNGs
    else:
        need = 2 * width * height
        if len(body) < need:
            raise FileFormatError(
                f"{path.name}: expected {need} bytes of raw picture, got {len(body)}; the file is "
                "truncated: copy it from the camera again"
            )
        order = ">u2" if raw[:2] == b"\0\2" else "<u2"
        counts = np.frombuffer(body[:need], order).astype(np.uint16).reshape(height, width)
    if counts.ndim != 2:
        raise FileFormatError(f"{path.name}: expected one channel of counts, got {counts.shape}")
    return Radiometric(counts=counts, constants=_constants(records.get(_CAMERA, b"")))


def _records(data: bytes) -> dict[int, bytes]:
    """Return the content of each record by its type; the header comes in either byte order."""
    if data[:4] not in (b"FFF\0", b"AFF\0"):
        raise ValueError("no FFF header")
    order = ">" if 0 < struct.unpack(">I", data[0x14:0x18])[0] < 1000 else "<"
    at, count = struct.unpack(f"{order}II", data[0x18:0x20])
    found = {}
    for i in range(min(count, _MAX_RECORDS)):
        entry = data[at + 32 * i : at + 32 * i + 32]
        if len(entry) < 32:
            break
        (kind,) = struct.unpack(f"{order}H", entry[:2])
        first, length = struct.unpack(f"{order}II", entry[12:20])
        if kind and first + length <= len(data):
            found.setdefault(kind, data[first : first + length])
    return found


def _rough(counts: np.ndarray) -> float:
    """Return the mean step between neighbours: wrong byte order makes noise of a picture."""
    return float(np.abs(np.diff(counts.astype(np.int32), axis=1)).mean()) if counts.size else 0.0


def _constants(record: bytes) -> dict[str, float]:
    order = ">" if record[:2] == b"\0\2" else "<"
    found = {}
    for name, (at, kind) in _CONSTANTS.items():
        if len(record) >= at + 4:
            value = struct.unpack_from(f"{order}{kind}", record, at)[0]
            if np.isfinite(value):
                found[name] = float(value)
    return found
