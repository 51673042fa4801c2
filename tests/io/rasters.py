"""Small GeoTIFFs and radiometric JPEGs, written byte by byte."""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

GEO_KEYS = (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32618)


def write_raster(
    path: Path,
    values: np.ndarray,
    *,
    names: tuple[str, ...] = (),
    nodata: str | None = None,
    pixel: float = 10.0,
    keys: tuple[int, ...] = GEO_KEYS,
) -> Path:
    """Write bands [H W C] of uint8 or uint16, uncompressed, in one strip, at (500000, 4000000)."""
    height, width, bands = values.shape
    items = "".join(
        f'<Item name="DESCRIPTION" sample="{i}" role="description">{name}</Item>'
        for i, name in enumerate(names)
    )
    bits = values.dtype.itemsize * 8
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    tags: list[tuple[int, int, bytes]] = [
        (256, 4, struct.pack("<I", width)),
        (257, 4, struct.pack("<I", height)),
        (258, 3, struct.pack(f"<{bands}H", *[bits] * bands)),
        (259, 3, struct.pack("<H", 1)),
        (262, 3, struct.pack("<H", 2 if bands >= 3 else 1)),
        (273, 4, struct.pack("<I", 8)),
        (277, 3, struct.pack("<H", bands)),
        (278, 4, struct.pack("<I", height)),
        (279, 4, struct.pack("<I", len(data))),
        (284, 3, struct.pack("<H", 1)),
    ]
    if bands > 3:
        tags.append((338, 3, struct.pack(f"<{bands - 3}H", *[0] * (bands - 3))))
    if keys:
        tags += [
            (33550, 12, struct.pack("<3d", pixel, pixel, 0)),
            (33922, 12, struct.pack("<6d", 0, 0, 0, 500000, 4000000, 0)),
            (34735, 3, struct.pack(f"<{len(keys)}H", *keys)),
        ]
    if items:
        tags.append((42112, 2, f"<GDALMetadata>{items}</GDALMetadata>\0".encode()))
    if nodata is not None:
        tags.append((42113, 2, f"{nodata}\0".encode()))
    sizes = {2: 1, 3: 2, 4: 4, 12: 8}
    body = bytearray(data + b"\0" * (len(data) % 2))
    entries = b""
    for tag, kind, value in sorted(tags):
        entries += struct.pack("<HHI", tag, kind, len(value) // sizes[kind])
        if len(value) <= 4:
            entries += value.ljust(4, b"\0")
        else:
            entries += struct.pack("<I", 8 + len(body))
            body += value + b"\0" * (len(value) % 2)
    start = 8 + len(body)
    file = struct.pack("<2sHI", b"II", 42, start) + bytes(body)
    path.write_bytes(file + struct.pack("<H", len(tags)) + entries + bytes(4))
    return path


def radiometric(counts: np.ndarray, *, as_png: bool = False, parts: int = 2) -> bytes:
    """Return a JPEG with counts [H W] in FLIR segments, and a PlanckB of 1400."""
    height, width = counts.shape
    picture = io.BytesIO()
    Image.new("RGB", (width * 2, height * 2), (200, 80, 10)).save(picture, "JPEG")
    if as_png:
        packed = io.BytesIO()
        Image.fromarray(counts.byteswap()).save(packed, "PNG")
        body = packed.getvalue()
    else:
        body = counts.astype("<u2").tobytes()
    raw = struct.pack("<HHH", 2, width, height).ljust(32, b"\0") + body
    camera = bytearray(0x320)
    struct.pack_into("<H", camera, 0, 2)
    struct.pack_into("<f", camera, 0x5C, 1400.0)
    at = 64 + 2 * 32
    header = b"FFF\0".ljust(0x14, b"\0") + struct.pack(">III", 100, 64, 2)
    directory = b""
    for kind, length, first in ((1, len(raw), at), (32, len(camera), at + len(raw))):
        entry = struct.pack(">HHII", kind, 0, 0, 0) + struct.pack(">II", first, length)
        directory += entry.ljust(32, b"\0")
    fff = header.ljust(64, b"\0") + directory + raw + bytes(camera)
    step = -(-len(fff) // parts)
    segments = b""
    for i in range(parts):
        part = b"FLIR\0\1" + bytes((i, parts - 1)) + fff[i * step : (i + 1) * step]
        segments += b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part
    jpeg = picture.getvalue()
    return jpeg[:2] + segments + jpeg[2:]
