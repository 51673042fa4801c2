"""DTU as Feat2GS reads it: masked photos, MVSNet cameras, depth in millimetres made metres."""

import re
from collections.abc import Sequence
from glob import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from sightline.errors import FileFormatError, InputError
from sightline.io.arrays import read_npy
from sightline.io.images import read_image, read_samples
from sightline.io.reading import check_file
from sightline.probing.frames import stack_cameras, stack_pictures

_MILLIMETRES = 1000.0
_ERODE = np.ones((10, 10), np.uint8)
_MAX_DEPTH_BYTES = 1 << 28


def read_dtu(folder: Path, stems: Sequence[str]) -> dict[str, Any]:
    """Read chosen views of a scan: ``names``, ``images``, ``cameras``, ``depth``, ``center``.

    The layout is ``images/STEM.*``, ``cams/STEM_cam.txt``, ``depths/STEM.npy`` and
    ``binary_masks/STEM.png``. A pixel counts where the mask is above one half, after one erosion by
    10 x 10, and depth is positive and finite; elsewhere photos are black. Depth is brought to the
    photos' size by the nearest pixel; lengths are divided by 1000. MVSNet's cameras count pixels from
    whole numbers, so half a pixel is added to principal points. ``center`` is the first view's
    principal point: working pictures are cut about it.

    Raises:
        InputError: If a file is missing.
        FileFormatError: If one is damaged.
    """
    names, images, depths, w2c, K, centers = [], [], [], [], [], []
    for stem in stems:
        photos = sorted((folder / "images").glob(f"{escape(stem)}.*"))
        if not photos:
            raise InputError(f"there is no picture {stem} in {folder / 'images'}; check the scan")
        picture = read_image(photos[0]).pixels
        depth = _read_depth(folder / "depths" / f"{stem}.npy")
        mask = read_samples(folder / "binary_masks" / f"{stem}.png").samples[..., 0]
        top = np.iinfo(mask.dtype).max if mask.dtype.kind == "u" else 1.0
        inside = (mask > 0.5 * top).astype(np.uint8)
        inside = cv2.resize(inside, depth.shape[::-1], interpolation=cv2.INTER_NEAREST)
        inside = cv2.erode(inside, _ERODE) > 0
        known = inside & np.isfinite(depth) & (depth > 0)
        depth = np.where(known, depth, 0.0) / _MILLIMETRES
        size = (picture.shape[1], picture.shape[0])
        large = cv2.resize(depth.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
        extrinsic, intrinsic = read_mvs_camera(folder / "cams" / f"{stem}_cam.txt")
        extrinsic[:3, 3] /= _MILLIMETRES
        # The camera file is for the depth map's size where that is not the photo's.
        if depth.shape != picture.shape[:2] and intrinsic[0, 2] < 0.75 * depth.shape[1]:
            intrinsic[0] *= size[0] / depth.shape[1]
            intrinsic[1] *= size[1] / depth.shape[0]
        centers.append((float(intrinsic[0, 2]), float(intrinsic[1, 2])))
        intrinsic[:2, 2] += 0.5
        names.append(photos[0].name)
        images.append(np.where(large[..., None] > 0, picture, 0).astype(np.uint8))
        depths.append(large)
        w2c.append(extrinsic)
        K.append(intrinsic)
    stacked = stack_pictures(images)
    return {
        "names": tuple(names),
        "images": stacked,
        "cameras": stack_cameras(w2c, K, stacked),
        "depth": torch.from_numpy(np.stack(depths)),
        "center": centers[0],
    }


def _read_depth(path: Path) -> np.ndarray:
    depth = read_npy(path, max_bytes=_MAX_DEPTH_BYTES)
    if depth.ndim != 2 or depth.dtype.kind != "f":
        raise FileFormatError(f"{path} must hold one number a pixel, got shape {depth.shape}")
    return depth


def read_mvs_camera(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read MVSNet's text form: world-to-camera ``[4 4]`` and intrinsics ``[3 3]``.

    Raises:
        InputError: If the file is missing.
        FileFormatError: If it is not of that form.
    """
    check_file(path)
    text = path.read_text("utf-8", errors="replace")[:10_000]
    found = re.fullmatch(r"\s*extrinsic\s+(.*?)\s+intrinsic\s+(.*)", text, re.DOTALL)
    try:
        if found is None:
            raise ValueError("no extrinsic and intrinsic")
        extrinsic = np.array([float(v) for v in found[1].split()]).reshape(4, 4)
        intrinsic = np.array([float(v) for v in found[2].split()[:9]]).reshape(3, 3)
    except ValueError as error:
        raise FileFormatError(f"{path} is no MVSNet camera ({error}); get it again") from error
    return extrinsic, intrinsic
