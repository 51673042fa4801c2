"""Data sets that keep cameras and depth in a form of their own: ScanNet++ and CO3D."""

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float

from sightline.errors import FileFormatError, InputError
from sightline.io.given import GivenScene, given_from_transforms
from sightline.io.images import read_image, read_samples
from sightline.io.reading import bad_file, check_file
from sightline.types import Cameras

TRANSFORMS = Path("nerfstudio") / "transforms_undistorted.json"
PICTURES, MASKS, DEPTH = (
    "resized_undistorted_images",
    "resized_undistorted_masks",
    "render_depth_undistorted",
)
ANNOTATIONS = "frame_annotations.jgz"
_MOST_TEXT = 4 << 30
_MOST_FRAME = 1 << 20
_CHUNK = 1 << 20
_BETWEEN = re.compile(r"[\s,\[]*")


def is_scannetpp(folder: Path) -> bool:
    """Say whether a folder is a scene's ``dslr`` of ScanNet++, undistorted by its toolbox."""
    return (folder / TRANSFORMS).is_file()


def read_scannetpp(folder: Path) -> GivenScene:
    """Read a ``dslr`` folder of ScanNet++.

    ``nerfstudio/transforms_undistorted.json`` has the cameras, ``resized_undistorted_images`` the
    pictures, ``resized_undistorted_masks`` their masks and ``render_depth_undistorted`` depth in
    millimetres (rendered by the toolbox from the laser scan), the latter two where they exist.

    Raises:
        InputError: If pictures that the file names are missing.
        FileFormatError: If the file is damaged.
    """
    file = folder / TRANSFORMS
    given = given_from_transforms(file, folder / PICTURES)
    missing = [view.name for view in given.views if not view.file.is_file()]
    if missing:
        raise InputError(
            f"{file} names {len(missing)} of {len(given.views)} pictures that are not in "
            f"{folder / PICTURES} ({missing[0]}); undistort them with ScanNet++'s toolbox"
        )
    views = []
    for view in given.views:
        mask, depth = (
            (folder / part / Path(view.name).name).with_suffix(".png") for part in (MASKS, DEPTH)
        )
        views.append(
            replace(
                view,
                mask=mask if mask.is_file() else None,
                depth=depth if depth.is_file() else None,
                depth_scale=0.001,
            )
        )
    return replace(given, views=tuple(views))


def is_co3d(folder: Path) -> bool:
    """Say whether a folder is a sequence of CO3D beside its category's annotations."""
    return (folder.parent / ANNOTATIONS).is_file() and (folder / "images").is_dir()


def read_co3d(folder: Path, stems: Sequence[str]) -> dict[str, Any]:
    """Read chosen views of a sequence: ``names``, ``images``, ``cameras`` and ``depth``.

    The layout is that of CO3Dv2 (Reizenstein et al. 2021): ``CATEGORY/frame_annotations.jgz`` and,
    below ``CATEGORY/SEQUENCE``, ``images``, ``depths`` and ``depth_masks``. Cameras are PyTorch3D's
    (row vectors, x left, y up; focal length and principal point in halves of the shorter side);
    depth is 16-bit floats in PNG files, times a factor of each frame. Depth is left out where any
    view has none.

    Raises:
        InputError: If a view is not annotated.
        FileFormatError: If a file is damaged.
    """
    wanted = set(stems)
    annotations = folder.parent / ANNOTATIONS
    frames: dict[str, dict[str, Any]] = {}
    for frame in _frames(annotations):
        if frame.get("sequence_name") == folder.name:
            stem = Path(str(_at(annotations, frame, "image", "path"))).stem
            if stem in wanted:
                frames[stem] = frame
    lost = [stem for stem in stems if stem not in frames]
    if lost:
        raise InputError(
            f"{annotations} says nothing of {len(lost)} views of {folder.name} ({lost[0]}); name "
            "other views, or take geometry colmap"
        )
    names, images, depths, w2c, K = [], [], [], [], []
    for stem in stems:
        frame = frames[stem]
        file = folder / "images" / Path(frame["image"]["path"]).name
        picture = read_image(file).pixels
        names.append(file.name)
        images.append(picture)
        pose, lens = co3d_camera(annotations, frame, picture.shape[0], picture.shape[1])
        w2c.append(pose)
        K.append(lens)
        depths.append(_co3d_depth(folder, annotations, frame, picture.shape[:2]))
    if len({image.shape for image in images}) > 1:
        raise InputError(f"{folder.name}: the chosen frames are of unlike sizes; choose others")
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    known = [depth for depth in depths if depth is not None]
    return {
        "names": tuple(names),
        "images": stacked,
        "cameras": Cameras(
            w2c=torch.from_numpy(np.stack(w2c)),
            K=torch.from_numpy(np.stack(K)),
            height=stacked.shape[2],
            width=stacked.shape[3],
        ),
        "depth": torch.from_numpy(np.stack(known)) if len(known) == len(stems) else None,
    }


def co3d_camera(
    path: Path, frame: dict[str, Any], height: int, width: int
) -> tuple[Float[np.ndarray, "4 4"], Float[np.ndarray, "3 3"]]:
    """Return world-to-camera (OpenCV axes) and K of a frame's annotation.

    Raises:
        FileFormatError: If numbers are missing.
    """
    view = _at(path, frame, "viewpoint")
    try:
        R, T = np.array(view["R"], float).reshape(3, 3), np.array(view["T"], float).reshape(3)
        focal = np.array(view["focal_length"], float).reshape(2)
        center = np.array(view["principal_point"], float).reshape(2)
    except (KeyError, TypeError, ValueError) as error:
        raise bad_file(path, "R, T, focal_length and principal_point", str(error)[:60]) from error
    kind = view.get("intrinsics_format", "ndc_norm_image_bounds")
    half = np.array([width, height]) / 2
    if kind == "ndc_isotropic":
        unit = np.full(2, min(width, height) / 2)
    elif kind == "ndc_norm_image_bounds":
        unit = half
    else:
        raise bad_file(path, "intrinsics in NDC", f"{kind!r}")
    flip = np.diag([-1.0, -1.0, 1.0])
    w2c = np.eye(4)
    w2c[:3, :3], w2c[:3, 3] = flip @ R.T, flip @ T
    K = np.eye(3)
    K[[0, 1], [0, 1]] = focal * unit
    K[:2, 2] = half - center * unit
    return w2c, K


def _co3d_depth(
    folder: Path, path: Path, frame: dict[str, Any], size: tuple[int, ...]
) -> Float[np.ndarray, "H W"] | None:
    entry = frame.get("depth")
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        return None
    file = folder / "depths" / Path(entry["path"]).name
    if not file.is_file():
        return None
    samples = np.ascontiguousarray(read_samples(file).samples[..., 0])
    if samples.dtype != np.uint16:
        raise bad_file(file, "16-bit depth", str(samples.dtype))
    scale = entry.get("scale_adjustment", 1.0)
    if not isinstance(scale, (int, float)):
        raise bad_file(path, "a number in scale_adjustment", repr(scale)[:40])
    depth = samples.view(np.float16).astype(np.float32) * float(scale)
    mask = folder / "depth_masks" / Path(str(entry.get("mask_path", ""))).name
    if mask.is_file():
        depth = np.where(read_samples(mask).samples[..., 0] > 0, depth, 0.0)
    depth = np.where(np.isfinite(depth) & (depth > 0), depth, 0.0).astype(np.float32)
    return cv2.resize(depth, size[::-1], interpolation=cv2.INTER_NEAREST)


def _at(path: Path, entry: dict[str, Any], *keys: str) -> Any:  # noqa: ANN401
    value: Any = entry
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise bad_file(path, f"{'.'.join(keys)} in every frame", "one without")
        value = value[key]
    return value


def _frames(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of a packed JSON list one by one: a category's list fills gigabytes."""
    check_file(path)
    decode = json.JSONDecoder().raw_decode
    text, read = "", 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            while chunk := file.read(_CHUNK):
                read += len(chunk)
                if read > _MOST_TEXT:
                    raise bad_file(path, f"at most {_MOST_TEXT} characters", "more")
                text += chunk
                at = 0
                while True:
                    between = _BETWEEN.match(text, at)
                    start = at if between is None else between.end()
                    try:
                        entry, at = decode(text, start)
                    except ValueError:
                        break
                    if isinstance(entry, dict):
                        yield entry
                text = text[start:]
                if len(text) > _CHUNK + _MOST_FRAME:
                    raise bad_file(path, "a list of frames", "something else")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} is no gzip file of frames; download it again") from error
    if text.strip(" \n\r\t]"):
        raise bad_file(path, "a whole list of frames", "one that is cut off")
