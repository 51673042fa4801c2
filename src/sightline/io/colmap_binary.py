"""The binary files of a COLMAP model; little endian, every count checked before it is used."""

import struct
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from sightline.io.colmap_model import CAMERA_MODELS, ColmapCamera, ColmapImage, ColmapPoints
from sightline.io.reading import bad_file

_NAMES = tuple(CAMERA_MODELS)
_CAMERA = struct.Struct("<IiQQ")
_IMAGE = struct.Struct("<I7dI")
_COUNT = struct.Struct("<Q")
_PIXEL = np.dtype([("xy", "<f8", 2), ("point", "<i8")])
_POINT = np.dtype(
    [("id", "<i8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("length", "<u8")]
)
_MAX_NAME = 4096


def read_cameras(path: Path, data: bytes) -> list[ColmapCamera]:
    """Parse ``cameras.bin``."""
    cameras: list[ColmapCamera] = []
    offset = _COUNT.size
    for _ in range(_count(path, data, "cameras", _CAMERA.size + 16)):
        _require(path, data, offset, _CAMERA.size)
        id_, model, width, height = _CAMERA.unpack_from(data, offset)
        if not 0 <= model < len(_NAMES):
            raise bad_file(path, f"a camera model from 0 to {len(_NAMES) - 1}", f"{model}")
        offset += _CAMERA.size
        number = CAMERA_MODELS[_NAMES[model]]
        _require(path, data, offset, 8 * number)
        params = struct.unpack_from(f"<{number}d", data, offset)
        offset += 8 * number
        cameras.append(
            ColmapCamera(id=id_, model=_NAMES[model], width=width, height=height, params=params)
        )
    _require_end(path, data, offset)
    return cameras


def pack_cameras(cameras: list[ColmapCamera]) -> bytes:
    """Return the content of ``cameras.bin``."""
    parts = [_COUNT.pack(len(cameras))]
    for c in cameras:
        parts.append(_CAMERA.pack(c.id, _NAMES.index(c.model), c.width, c.height))
        parts.append(struct.pack(f"<{len(c.params)}d", *c.params))
    return b"".join(parts)


def read_images(path: Path, data: bytes) -> list[ColmapImage]:
    """Parse ``images.bin``."""
    images: list[ColmapImage] = []
    offset = _COUNT.size
    for _ in range(_count(path, data, "images", _IMAGE.size + 1 + _COUNT.size)):
        _require(path, data, offset, _IMAGE.size)
        id_, *pose, camera_id = _IMAGE.unpack_from(data, offset)
        offset += _IMAGE.size
        end = data.find(b"\0", offset, offset + _MAX_NAME)
        if end < 0:
            raise bad_file(path, f"a name of at most {_MAX_NAME} bytes with an end", "none")
        try:
            name = data[offset:end].decode()
        except UnicodeDecodeError as error:
            raise bad_file(path, "names in UTF-8", repr(data[offset:end][:40])[1:]) from error
        offset = end + 1
        _require(path, data, offset, _COUNT.size)
        (number,) = _COUNT.unpack_from(data, offset)
        offset += _COUNT.size
        _require(path, data, offset, number * _PIXEL.itemsize)
        pixels = np.frombuffer(data, _PIXEL, number, offset)
        offset += number * _PIXEL.itemsize
        images.append(
            ColmapImage(
                id=id_,
                name=name,
                camera_id=camera_id,
                quat=np.array(pose[:4]),
                translation=np.array(pose[4:]),
                pixels=pixels["xy"].astype(np.float64),
                point_ids=pixels["point"].astype(np.int64),
            )
        )
    _require_end(path, data, offset)
    return images


def pack_images(images: list[ColmapImage]) -> bytes:
    """Return the content of ``images.bin``."""
    parts = [_COUNT.pack(len(images))]
    for image in images:
        parts.append(_IMAGE.pack(image.id, *image.quat, *image.translation, image.camera_id))
        parts.append(image.name.encode() + b"\0" + _COUNT.pack(len(image.pixels)))
        pixels = np.empty(len(image.pixels), _PIXEL)
        pixels["xy"], pixels["point"] = image.pixels, image.point_ids
        parts.append(pixels.tobytes())
    return b"".join(parts)


def read_points(path: Path, data: bytes) -> ColmapPoints:
    """Parse ``points3D.bin``."""
    count = _count(path, data, "points", _POINT.itemsize)
    starts = np.empty(count, np.int64)
    lengths = np.empty(count, np.int64)
    offset, to_length = _COUNT.size, _POINT.itemsize - _COUNT.size
    unpack, size = _COUNT.unpack_from, len(data)
    for row in range(count):  # where a record starts depends on all before it
        if offset + _POINT.itemsize > size:
            raise bad_file(path, f"{count} points", f"a file that ends after {row}")
        (length,) = unpack(data, offset + to_length)
        starts[row], lengths[row] = offset, min(length, size)
        offset += _POINT.itemsize + 8 * length
    _require(path, data, 0, offset)
    _require_end(path, data, offset)
    raw = np.frombuffer(data, np.uint8)[_COUNT.size :]
    heads = _head_bytes(starts - _COUNT.size, len(raw))
    points = raw[heads].view(_POINT)
    pairs = raw[~heads].view("<u4").reshape(-1, 2)
    tracks = np.empty((len(pairs), 3), np.int64)
    tracks[:, 0] = np.repeat(np.arange(count), lengths)
    tracks[:, 1:] = pairs
    return ColmapPoints(
        ids=points["id"].astype(np.int64),
        points=points["xyz"].astype(np.float64),
        colors=points["rgb"].copy(),
        errors=points["error"].astype(np.float64),
        tracks=tracks,
    )


def pack_points(points: ColmapPoints) -> bytes:
    """Return the content of ``points3D.bin``."""
    count = len(points.ids)
    lengths = np.bincount(points.tracks[:, 0], minlength=count)
    records = np.empty(count, _POINT)
    records["id"], records["xyz"], records["rgb"] = points.ids, points.points, points.colors
    records["error"], records["length"] = points.errors, lengths
    sizes = _POINT.itemsize + 8 * lengths
    raw = np.empty(int(sizes.sum()), np.uint8)
    heads = _head_bytes(np.cumsum(sizes) - sizes, len(raw))
    order = np.argsort(points.tracks[:, 0], kind="stable")
    raw[heads] = records.view(np.uint8)
    raw[~heads] = points.tracks[order, 1:].astype("<u4").view(np.uint8).ravel()
    return _COUNT.pack(count) + raw.tobytes()


def _head_bytes(starts: Int64[np.ndarray, " N"], size: int) -> np.ndarray:
    """Mark the bytes of the fixed part of each record; the others are tracks."""
    steps = np.zeros(size + 1, np.int8)
    steps[starts] = 1
    steps[starts + _POINT.itemsize] -= 1
    return np.cumsum(steps[:-1], dtype=np.int8).astype(bool)


def _count(path: Path, data: bytes, what: str, smallest: int) -> int:
    _require(path, data, 0, _COUNT.size)
    (count,) = _COUNT.unpack_from(data)
    if count * smallest > len(data) - _COUNT.size:
        raise bad_file(path, f"{count} {what}", f"a file of {len(data)} bytes")
    return count


def _require(path: Path, data: bytes, offset: int, size: int) -> None:
    if offset + size > len(data):
        got = f"a file of {len(data)}"
        raise bad_file(path, f"at least {offset + size} bytes", got)


def _require_end(path: Path, data: bytes, offset: int) -> None:
    if offset != len(data):
        raise bad_file(path, f"{offset} bytes", f"a file of {len(data)}")
