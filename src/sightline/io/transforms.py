"""``transforms.json`` of nerfstudio and instant-ngp: pictures with lenses and poses.

Poses in the file are camera-to-world with OpenGL axes (x right, y up, z back); the record holds
``w2c`` with OpenCV axes. The world stays as it is in the file.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sightline.errors import FileFormatError, InputError
from sightline.io.atomic import atomic_write_text
from sightline.io.images import read_image
from sightline.io.reading import bad_file, check_file, inside, read_whole
from sightline.types import Lenses, TensorStruct

_MAX_BYTES = 256 << 20
_MAX_SIDE = 1_000_000
_PINHOLE = ("PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE")
_OPENCV = ("OPENCV", "SIMPLE_RADIAL", "RADIAL", "FULL_OPENCV")
_FISHEYE = ("OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "FISHEYE")
_FLIP = np.array([1.0, -1.0, -1.0])
_SUFFIXES = ("", ".png", ".jpg", ".jpeg")
_RIGID = 1e-5  # a rotation this close to orthonormal is taken as it is
_NEARLY_RIGID = 1e-2  # and this close is made orthonormal; text files round


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Transforms(TensorStruct):
    """The content of a ``transforms.json``; paths are relative to its folder, with slashes."""

    files: tuple[str, ...]
    w2c: Float[Tensor, "V 4 4"]
    """float64."""
    lenses: Lenses
    """float64; sizes are the pictures'."""
    depth_files: tuple[str, ...] | None = None
    mask_files: tuple[str, ...] | None = None
    image_ids: tuple[int, ...] | None = None
    """Ids in the COLMAP model that the file came from (``colmap_im_id``)."""
    ply_file: str | None = None
    applied_transform: Float[Tensor, "3 4"] | None = None
    """What was applied to poses and points before they were written; kept, not undone."""
    depth_scale: float | None = None
    """Scene units a step of the depth pictures (``depth_unit_scale_factor``)."""
    train_files: tuple[str, ...] | None = None
    val_files: tuple[str, ...] | None = None
    test_files: tuple[str, ...] | None = None


def read_transforms(path: Path) -> Transforms:
    """Read a file of nerfstudio, instant-ngp or the Blender scenes of NeRF.

    Intrinsics are shared or each frame's own; a focal length may come as ``camera_angle_x``. Where
    ``w`` and ``h`` are missing they are taken from the pictures, and so is a missing suffix.

    Args:
        path: The file, or the folder that holds ``transforms.json``.

    Raises:
        InputError: If the file is missing or a lens model is one that OpenCV does not know.
        FileFormatError: If it is damaged, a pose is not finite or no rotation, or a path leads out
            of the folder.
    """
    path = Path(path)
    path = path / "transforms.json" if path.is_dir() else path
    top = _load(path)
    frames = top.get("frames")
    if not isinstance(frames, list) or not frames or not all(isinstance(f, dict) for f in frames):
        raise bad_file(path, "a list of frames", "none", "give a transforms.json with frames")
    files = tuple(_picture(path, frame) for frame in frames)
    name, times = Counter(files).most_common(1)[0]
    if times > 1:
        raise bad_file(path, "one frame a picture", f"{name} {times} times", "remove the others")
    poses = [_pose(path, frame, name) for frame, name in zip(frames, files, strict=True)]
    lenses = [_Lens(path, {**top, **f}, n) for f, n in zip(frames, files, strict=True)]
    return Transforms(
        files=files,
        w2c=torch.from_numpy(np.stack(poses)),
        lenses=Lenses(
            K=torch.from_numpy(np.stack([lens.K for lens in lenses])),
            distortion=torch.from_numpy(np.stack([lens.distortion for lens in lenses])),
            fisheye=torch.tensor([lens.fisheye for lens in lenses]),
            sizes=torch.tensor([lens.size for lens in lenses], dtype=torch.int64),
        ),
        depth_files=_frame_paths(path, frames, "depth_file_path"),
        mask_files=_frame_paths(path, frames, "mask_path"),
        image_ids=_image_ids(path, frames),
        ply_file=_path(path, top, "ply_file_path") if top.get("ply_file_path") else None,
        applied_transform=_applied(path, top),
        depth_scale=_optional_number(path, top, "depth_unit_scale_factor"),
        train_files=_split(path, top, "train_filenames"),
        val_files=_split(path, top, "val_filenames"),
        test_files=_split(path, top, "test_filenames"),
    )


def write_transforms(path: Path, transforms: Transforms) -> None:
    """Write a ``transforms.json``; intrinsics are shared when all frames agree.

    Args:
        path: The file; the record's paths must be relative to its folder.
        transforms: OpenCV poses, finite.

    Raises:
        InputError: If a pose is not finite, or a lens has terms that the format lacks (the
            denominator of OpenCV's rational model).
        OutputError: If the file cannot be written.
    """
    if not bool(torch.isfinite(transforms.w2c).all()):
        raise InputError("transforms.json needs finite poses, got NaN; leave such views out")
    lenses = [_lens_fields(transforms.lenses, i) for i in range(len(transforms.files))]
    shared = all(fields == lenses[0] for fields in lenses)
    top: dict[str, Any] = dict(lenses[0]) if shared and lenses else {}
    if transforms.applied_transform is not None:
        top["applied_transform"] = transforms.applied_transform.double().tolist()
    optional = {
        "ply_file_path": transforms.ply_file,
        "depth_unit_scale_factor": transforms.depth_scale,
        "train_filenames": transforms.train_files,
        "val_filenames": transforms.val_files,
        "test_filenames": transforms.test_files,
    }
    top |= {key: value for key, value in optional.items() if value is not None}
    c2w = torch.linalg.inv(transforms.w2c.double()).numpy()
    c2w[:, :3, :3] *= _FLIP
    c2w[:, 3] = (0, 0, 0, 1)
    top["frames"] = []
    for i, name in enumerate(transforms.files):
        frame: dict[str, Any] = {"file_path": name}
        frame |= {} if shared else lenses[i]
        for key, values in (
            ("depth_file_path", transforms.depth_files),
            ("mask_path", transforms.mask_files),
            ("colmap_im_id", transforms.image_ids),
        ):
            if values is not None:
                frame[key] = values[i]
        frame["transform_matrix"] = c2w[i].tolist()
        top["frames"].append(frame)
    atomic_write_text(path, json.dumps(top, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _load(path: Path) -> dict[str, Any]:
    if check_file(path) > _MAX_BYTES:
        raise bad_file(path, f"at most {_MAX_BYTES} bytes of JSON", "more")
    try:
        top = json.loads(read_whole(path))
    except (ValueError, RecursionError) as error:
        raise bad_file(path, "JSON", f"an error ({str(error)[:100]})") from error
    if not isinstance(top, dict):
        raise bad_file(path, "a JSON object with frames", f"a {type(top).__name__}")
    return top


def _bad_frame(path: Path, name: str, expected: str, got: str) -> FileFormatError:
    return bad_file(path, f"{expected} for {name}", got, "correct or remove that frame")


def _path(path: Path, entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise bad_file(path, f"a path in {key}", f"{str(value)[:40]!r}")
    return inside(path, value)


def _picture(path: Path, frame: dict[str, Any]) -> str:
    """Return the frame's picture; the Blender scenes leave the suffix out."""
    name = _path(path, frame, "file_path")
    for suffix in _SUFFIXES:
        if (path.parent / f"{name}{suffix}").is_file():
            return name + suffix
    return name


def _frame_paths(path: Path, frames: list[dict[str, Any]], key: str) -> tuple[str, ...] | None:
    having = sum(bool(frame.get(key)) for frame in frames)
    if having == 0:
        return None
    if having < len(frames):
        got = f"{having} of {len(frames)}"
        raise bad_file(path, f"{key} in all frames or in none", got, "add the missing ones")
    return tuple(_path(path, frame, key) for frame in frames)


def _split(path: Path, top: dict[str, Any], key: str) -> tuple[str, ...] | None:
    names = top.get(key)
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise bad_file(path, f"a list of paths in {key}", f"a {type(names).__name__}")
    return tuple(inside(path, name) for name in names)


def _image_ids(path: Path, frames: list[dict[str, Any]]) -> tuple[int, ...] | None:
    ids = [frame.get("colmap_im_id") for frame in frames]
    if all(value is None for value in ids):
        return None
    found = tuple(value for value in ids if type(value) is int and 0 <= value < 2**32)
    if len(found) < len(ids):
        raise bad_file(path, "a whole colmap_im_id in all frames or in none", "others")
    return found


def _numbers(value: object) -> list[float] | None:
    """Return a flat list of finite numbers, or None if it is something else."""
    if not isinstance(value, list) or not all(type(v) in (int, float) for v in value):
        return None
    return [float(v) for v in value] if all(abs(v) < 1e15 for v in value) else None


def _matrix(value: object, shapes: Sequence[tuple[int, int]]) -> Float64[np.ndarray, "r c"] | None:
    rows = [_numbers(row) for row in value] if isinstance(value, list) and len(value) < 5 else []
    full = [row for row in rows if row is not None]
    if len(full) < len(rows) or (len(rows), len(full[0]) if full else 0) not in shapes:
        return None
    return np.array(full) if len({len(row) for row in full}) == 1 else None


def _applied(path: Path, top: dict[str, Any]) -> Float[Tensor, "3 4"] | None:
    if top.get("applied_transform") is None:
        return None
    matrix = _matrix(top["applied_transform"], [(3, 4), (4, 4)])
    if matrix is None:
        raise bad_file(path, "3 x 4 finite numbers in applied_transform", "something else")
    return torch.from_numpy(matrix[:3])


def _pose(path: Path, frame: dict[str, Any], name: str) -> Float64[np.ndarray, "4 4"]:
    """Return OpenCV ``w2c`` of a frame."""
    matrix = _matrix(frame.get("transform_matrix"), [(3, 4), (4, 4)])
    if matrix is None:
        raise _bad_frame(path, name, "a transform_matrix of 4 x 4 finite numbers", "something else")
    if len(matrix) == 4 and (np.abs(matrix[3] - (0, 0, 0, 1)) > 1e-6).any():
        raise _bad_frame(path, name, "a transform_matrix whose last row is 0 0 0 1", "another")
    block, center = matrix[:3, :3], matrix[:3, 3]
    largest = np.abs(block).max()
    if largest < 1e-9 or np.linalg.det(block / largest) <= 1e-6:
        raise _bad_frame(path, name, "a rotation in transform_matrix", "a singular or mirrored one")
    u, sizes, vt = np.linalg.svd(block)
    if sizes[0] > sizes[2] * (1 + _NEARLY_RIGID):
        raise _bad_frame(path, name, "a rotation in transform_matrix", "one that skews")
    # A common scale (Blender's objects may have one) is no part of the camera's pose.
    exact = np.abs(block @ block.T - np.eye(3)).max() < _RIGID
    rotation = (block if exact else u @ vt) * _FLIP
    w2c = np.eye(4)
    w2c[:3, :3] = rotation.T
    w2c[:3, 3] = -rotation.T @ center
    return w2c


def _optional_number(path: Path, entry: Mapping[str, Any], key: str) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    numbers = _numbers([value])
    if numbers is None:
        raise bad_file(path, f"a finite number in {key}", f"{str(value)[:40]!r}")
    return numbers[0]


class _Lens:
    """One frame's lens from its own and the shared fields."""

    def __init__(self, path: Path, fields: Mapping[str, Any], name: str) -> None:
        self.path, self.fields, self.name = path, fields, name
        self.size = self._size()
        height, width = self.size
        fx = self._focal("fl_x", "camera_angle_x", width)
        fy = self._focal("fl_y", "camera_angle_y", height)
        if fx is None and fy is None:
            raise _bad_frame(path, name, "fl_x or camera_angle_x", "neither")
        cx, cy = self._number("cx", width / 2), self._number("cy", height / 2)
        self.K = np.array([[fx or fy, 0, cx], [0, fy or fx, cy], [0, 0, 1]], np.float64)
        k1, k2, k3, k4, p1, p2 = (
            self._number(k, 0.0) for k in ("k1", "k2", "k3", "k4", "p1", "p2")
        )
        model = str(fields.get("camera_model", "OPENCV_FISHEYE" if self._fisheye() else "OPENCV"))
        self.fisheye = model in _FISHEYE
        if self.fisheye:
            self.distortion = np.array([k1, k2, k3, k4, 0, 0, 0, 0], np.float64)
        elif model in _PINHOLE:
            self.distortion = np.zeros(8)
        elif model in _OPENCV and k4 == 0:
            self.distortion = np.array([k1, k2, p1, p2, k3, 0, 0, 0], np.float64)
        else:
            what = f"a lens of model {model[:40]}" + (
                f" with k4 = {k4}" if model in _OPENCV else ""
            )
            raise InputError(
                f"{path.name}: {what} cannot be used here, only "
                f"{', '.join((*_PINHOLE, *_OPENCV, *_FISHEYE))}; undistort the pictures first"
            )

    def _number(self, key: str, default: float) -> float:
        value = _optional_number(self.path, self.fields, key)
        return default if value is None else value

    def _fisheye(self) -> bool:
        return self.fields.get("is_fisheye") is True

    def _focal(self, key: str, angle_key: str, side: int) -> float | None:
        focal = _optional_number(self.path, self.fields, key)
        angle = _optional_number(self.path, self.fields, angle_key)
        if focal is None and angle is not None and 0 < angle < math.pi:
            focal = side / 2 / math.tan(angle / 2)
        if focal is not None and focal <= 0:
            raise _bad_frame(self.path, self.name, f"a positive {key}", f"{focal:g}")
        return focal

    def _size(self) -> tuple[int, int]:
        height, width = (_optional_number(self.path, self.fields, key) for key in ("h", "w"))
        if height is None or width is None:
            return read_image(self.path.parent / self.name).size
        if not all(0 < side <= _MAX_SIDE and side == int(side) for side in (height, width)):
            got = f"{width:g} x {height:g}"
            raise _bad_frame(self.path, self.name, "a whole picture size w x h", got)
        return int(height), int(width)


def _lens_fields(lenses: Lenses, index: int) -> dict[str, Any]:
    K = lenses.K[index].double()
    k1, k2, p1, p2, k3, *rational = lenses.distortion[index].double().tolist()
    fields: dict[str, Any] = {
        "camera_model": "PINHOLE",
        "fl_x": K[0, 0].item(),
        "fl_y": K[1, 1].item(),
        "cx": K[0, 2].item(),
        "cy": K[1, 2].item(),
        "w": int(lenses.sizes[index, 1]),
        "h": int(lenses.sizes[index, 0]),
    }
    if bool(lenses.fisheye[index]):
        return {**fields, "camera_model": "OPENCV_FISHEYE", "k1": k1, "k2": k2, "k3": p1, "k4": p2}
    if any(rational):
        raise InputError(
            "transforms.json has no rational lens model (k4 k5 k6 of OpenCV); undistort the "
            "pictures first"
        )
    if any((k1, k2, p1, p2, k3)):
        fields |= {"camera_model": "OPENCV", "k1": k1, "k2": k2, "k3": k3, "p1": p1, "p2": p2}
    return fields
