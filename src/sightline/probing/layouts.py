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

from sightline.datasets.annotations import Entry
from sightline.datasets.co3d import camera_from_pytorch3d, half_float_depth
from sightline.errors import FileFormatError, InputError
from sightline.io.given import GivenScene, given_from_transforms
from sightline.io.images import read_image, read_samples
from sightline.io.reading import bad_file, check_file
from sightline.probing.frames import stack_cameras, stack_pictures

TRANSFORMS = Path("nerfstudio") / "transforms_undistorted.json"
PICTURES = ("resized_undistorted_images", "undistorted_images")
MASKS = ("resized_undistorted_masks", "undistorted_anon_masks")
DEPTH = ("undistorted_depths", "render_depth")
"""As the download and the toolbox call them; the first one that is there is taken."""
ANNOTATIONS = "frame_annotations.jgz"
_MOST_TEXT = 4 << 30
_MOST_FRAME = 1 << 20
_CHUNK = 1 << 20
_BETWEEN = re.compile(r"[\s,\[]*")


def is_scannetpp(folder: Path) -> bool:
    """Say whether a folder is a scene's ``dslr`` of ScanNet++, undistorted by its toolbox."""
    return (folder / TRANSFORMS).is_file()


def read_scannetpp(folder: Path) -> GivenScene:
    """Read a ``dslr`` folder of ScanNet++ (Yeshwanth et al. 2023).

    `TRANSFORMS` has the cameras, one of `PICTURES` the pictures, of `MASKS` their masks, and of
    `DEPTH` depth in millimetres, rendered from the laser scan; the latter two where they exist.

    Raises:
        InputError: If pictures that the file names are missing.
        FileFormatError: If the file is damaged.
    """
    pictures, masks, depth = (
        next((folder / name for name in names if (folder / name).is_dir()), folder / names[0])
        for names in (PICTURES, MASKS, DEPTH)
    )
    given = given_from_transforms(folder / TRANSFORMS, pictures)
    missing = [view.name for view in given.views if not view.file.is_file()]
    if missing:
        raise InputError(
            f"{folder / TRANSFORMS} names {len(missing)} of {len(given.views)} pictures that are "
            f"not in {pictures} ({missing[0]}); undistort them with ScanNet++'s toolbox"
        )
    views = []
    for view in given.views:
        mask, map_ = ((f / Path(view.name).name).with_suffix(".png") for f in (masks, depth))
        views.append(
            replace(
                view,
                mask=mask if mask.is_file() else None,
                depth=map_ if map_.is_file() else None,
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
    below ``CATEGORY/SEQUENCE``, ``images``, ``depths`` and ``depth_masks``. Depth is left out where
    any view has none.

    Raises:
        InputError: If a view is not annotated.
        FileFormatError: If a file is damaged.
    """
    wanted = set(stems)
    annotations = folder.parent / ANNOTATIONS
    frames: dict[str, Entry] = {}
    for frame in _frames(annotations):
        if frame.text("sequence_name") == folder.name:
            stem = Path(frame.inner("image").text("path")).stem
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
        file = folder / "images" / Path(frames[stem].inner("image").text("path")).name
        picture = read_image(file).pixels
        size = (picture.shape[0], picture.shape[1])
        names.append(file.name)
        images.append(picture)
        view = frames[stem].inner("viewpoint")
        focal, center = view.array("focal_length", 2), view.array("principal_point", 2)
        if not view.has("intrinsics_format"):  # version 1: halves of each side
            halves = np.array([size[1], size[0]]) / min(size)
            focal, center = focal * halves, center * halves
        elif view.text("intrinsics_format") != "ndc_isotropic":
            raise bad_file(annotations, "ndc_isotropic", view.text("intrinsics_format"))
        pose, lens = camera_from_pytorch3d(
            view.array("R", 3, 3), view.array("T", 3), focal, center, size
        )
        w2c.append(pose)
        K.append(lens)
        depths.append(_depth(folder, frames[stem], size))
    if len({image.shape for image in images}) > 1:
        raise InputError(f"{folder.name}: the chosen frames are of unlike sizes; choose others")
    stacked = stack_pictures(images)
    known = [depth for depth in depths if depth is not None]
    return {
        "names": tuple(names),
        "images": stacked,
        "cameras": stack_cameras(w2c, K, stacked),
        "depth": torch.from_numpy(np.stack(known)) if len(known) == len(stems) else None,
    }


def _depth(folder: Path, frame: Entry, size: tuple[int, int]) -> Float[np.ndarray, "H W"] | None:
    if not frame.has("depth"):
        return None
    entry = frame.inner("depth")
    file = folder / "depths" / Path(entry.text("path")).name
    if not file.is_file():
        return None
    depth = half_float_depth(file) * np.float32(entry.number("scale_adjustment"))
    if entry.has("mask_path"):
        mask = folder / "depth_masks" / Path(entry.text("mask_path")).name
        if mask.is_file():
            depth = np.where(read_samples(mask).samples[..., 0] > 0, depth, np.float32(0))
    return cv2.resize(depth, size[::-1], interpolation=cv2.INTER_NEAREST)


def _frames(path: Path) -> Iterator[Entry]:
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
                at = start = 0
                while True:
                    between = _BETWEEN.match(text, at)
                    start = at if between is None else between.end()
                    try:
                        value, at = decode(text, start)
                    except ValueError:
                        break
                    yield Entry(path, value, "a frame")
                text = text[start:]
                if len(text) > _CHUNK + _MOST_FRAME:
                    raise bad_file(path, "a list of frames", "something else")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} is no gzip file of frames; download it again") from error
    if text.strip(" \n\r\t]"):
        raise bad_file(path, "a whole list of frames", "one that is cut off")
