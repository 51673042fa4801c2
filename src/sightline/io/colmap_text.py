"""The text files of a COLMAP model."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sightline.errors import FileFormatError, InputError
from sightline.io.colmap_model import CAMERA_MODELS, ColmapCamera, ColmapImage, ColmapPoints
from sightline.io.reading import bad_file

_HEADS = {
    "cameras": "# CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]\n",
    "images": "# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME\n# X Y POINT3D_ID ...\n",
    "points": "# POINT3D_ID X Y Z R G B ERROR (IMAGE_ID POINT2D_IDX) ...\n",
}
_NUMBER_ERRORS = (ValueError, OverflowError)


def read_cameras(path: Path, data: bytes) -> list[ColmapCamera]:
    """Parse ``cameras.txt``."""
    cameras: list[ColmapCamera] = []
    for line, words in _records(path, data):
        try:
            model = words[1]
            camera = ColmapCamera(
                id=_index(words[0]),
                model=model,
                width=_index(words[2]),
                height=_index(words[3]),
                params=tuple(float(word) for word in words[4:]),
            )
        except (*_NUMBER_ERRORS, IndexError) as error:
            raise _bad_line(path, "CAMERA_ID MODEL WIDTH HEIGHT PARAMS", line) from error
        if CAMERA_MODELS.get(model) != len(camera.params):
            raise _bad_line(path, "a camera model of COLMAP with all its parameters", line)
        cameras.append(camera)
    return cameras


def pack_cameras(cameras: list[ColmapCamera]) -> bytes:
    """Return the content of ``cameras.txt``."""
    lines = [
        f"{c.id} {c.model} {c.width} {c.height} {' '.join(map(_text, c.params))}\n" for c in cameras
    ]
    return (_HEADS["cameras"] + "".join(lines)).encode()


def read_images(path: Path, data: bytes) -> list[ColmapImage]:
    """Parse ``images.txt``: two lines an image, the second of which may be empty."""
    images: list[ColmapImage] = []
    lines = iter(_lines(path, data))
    for line in lines:
        if not line or line.startswith("#"):
            continue
        words = line.split(maxsplit=9)  # a name may hold blanks
        try:
            values = np.array([float(word) for word in words[1:8]])
            id_, camera_id, name = _index(words[0]), _index(words[8]), words[9]
        except (*_NUMBER_ERRORS, IndexError) as error:
            form = "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME"
            raise _bad_line(path, form, line) from error
        second = next(lines, "").split()
        try:
            pixels = np.array(second, np.float64).reshape(-1, 3)
            point_ids = np.array(second[2::3], np.float64)
            rounded = point_ids.astype(np.int64) if (abs(point_ids) < 2**53).all() else None
        except _NUMBER_ERRORS as error:
            raise _bad_line(path, "X Y POINT3D_ID ...", " ".join(second[:5])) from error
        if rounded is None or (rounded != point_ids).any():
            raise _bad_line(path, "whole POINT3D_IDs", " ".join(second[:5]))
        images.append(
            ColmapImage(
                id=id_,
                name=name,
                camera_id=camera_id,
                quat=values[:4],
                translation=values[4:],
                pixels=np.ascontiguousarray(pixels[:, :2]),
                point_ids=rounded,
            )
        )
    return images


def pack_images(images: list[ColmapImage]) -> bytes:
    """Return the content of ``images.txt``.

    Raises:
        InputError: If a name holds blanks.
    """
    parts = [_HEADS["images"]]
    for image in images:
        if len(image.name.split()) != 1:  # COLMAP itself would read the first word only
            raise InputError(
                f"COLMAP's text files cannot hold blanks in names, got {image.name!r}; write the "
                "binary files"
            )
        pose = " ".join(map(_text, [*image.quat, *image.translation]))
        parts.append(f"{image.id} {pose} {image.camera_id} {image.name}\n")
        rows = zip(image.pixels.tolist(), image.point_ids.tolist(), strict=True)
        parts.append(" ".join(f"{_text(x)} {_text(y)} {p}" for (x, y), p in rows) + "\n")
    return "".join(parts).encode()


def read_points(path: Path, data: bytes) -> ColmapPoints:
    """Parse ``points3D.txt``."""
    ids: list[int] = []
    values: list[list[float]] = []
    colors: list[list[int]] = []
    tracks: list[tuple[int, int, int]] = []
    for line, words in _records(path, data):
        try:
            ids.append(_index(words[0]))
            colors.append([int(word) for word in words[4:7]])
            values.append([float(word) for word in (*words[1:4], words[7])])
            track = [_index(word) for word in words[8:]]
        except (*_NUMBER_ERRORS, IndexError) as error:
            raise _bad_line(path, "POINT3D_ID X Y Z R G B ERROR TRACK", line) from error
        if len(track) % 2 or not all(0 <= c <= 255 for c in colors[-1]):
            raise _bad_line(path, "colours up to 255 and pairs in the track", line)
        row = len(ids) - 1
        tracks.extend((row, *pair) for pair in zip(track[::2], track[1::2], strict=True))
    table = np.array(values, np.float64).reshape(-1, 4)
    return ColmapPoints(
        ids=np.array(ids, np.int64),
        points=np.ascontiguousarray(table[:, :3]),
        colors=np.array(colors, np.uint8).reshape(-1, 3),
        errors=np.ascontiguousarray(table[:, 3]),
        tracks=np.array(tracks, np.int64).reshape(-1, 3),
    )


def pack_points(points: ColmapPoints) -> bytes:
    """Return the content of ``points3D.txt``."""
    order = np.argsort(points.tracks[:, 0], kind="stable")
    ends = np.cumsum(np.bincount(points.tracks[:, 0], minlength=len(points.ids))).tolist()
    pairs = points.tracks[order, 1:].tolist()
    lines, start = [_HEADS["points"]], 0
    rows = zip(
        points.ids.tolist(),
        points.points.tolist(),
        points.colors.tolist(),
        points.errors.tolist(),
        ends,
        strict=True,
    )
    for id_, xyz, rgb, error, end in rows:
        track = " ".join(f"{image} {index}" for image, index in pairs[start:end])
        numbers = f"{' '.join(map(_text, xyz))} {' '.join(map(str, rgb))} {_text(error)}"
        lines.append(f"{id_} {numbers} {track}".rstrip() + "\n")
        start = end
    return "".join(lines).encode()


def _text(value: float) -> str:
    return f"{value:.17g}"


def _index(word: str) -> int:
    value = int(word)
    if not 0 <= value < 1 << 62:
        raise ValueError(word)
    return value


def _lines(path: Path, data: bytes) -> list[str]:
    try:
        return [line.strip() for line in data.decode().split("\n")]
    except UnicodeDecodeError as error:
        raise bad_file(path, "text in UTF-8", f"other bytes at {error.start}") from error


def _records(path: Path, data: bytes) -> Iterator[tuple[str, list[str]]]:
    for line in _lines(path, data):
        if line and not line.startswith("#"):
            yield line, line.split()


def _bad_line(path: Path, expected: str, line: str) -> FileFormatError:
    return bad_file(path, expected, f"the line {line[:60]!r}")
