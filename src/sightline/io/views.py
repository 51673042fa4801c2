"""Pictures on disk as views at model resolution: upright, undistorted, masked, of one size."""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from sightline.errors import InputError, ShapeError
from sightline.io.images import MAX_PIXELS, Alpha, read_image
from sightline.io.intrinsics import Lens, split_lenses
from sightline.io.masks import read_mask
from sightline.io.undistort import pinhole_intrinsics, undistort_image
from sightline.protocols import Progress
from sightline.types import Cameras, Lenses, Views


def resized_shape(height: int, width: int, long_side: int | None) -> tuple[int, int]:
    """Return height and width with the long side at ``long_side``, never larger than before.

    The picture is stretched onto whole pixels, so that K scales by exactly (new width / width,
    new height / height).
    """
    if long_side is None or long_side >= max(height, width):
        return height, width
    scale = long_side / max(height, width)
    return max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5))


def load_views(
    files: Sequence[Path],
    names: Sequence[str],
    *,
    long_side: int | None = None,
    lenses: Lenses | None = None,
    w2c: Float[Tensor, "V 4 4"] | None = None,
    mask_files: Sequence[Path | None] | None = None,
    focal_priors: Float[Tensor, " V"] | None = None,
    times: Float[Tensor, " V"] | None = None,
    groups: Sequence[str] | None = None,
    alpha: Alpha = "white",
    max_pixels: int = MAX_PIXELS,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Views:
    """Read pictures as uint8 views of at most ``long_side`` pixels, undistorted where lenses are known.

    Args:
        files: The pictures; EXIF orientation is applied, unless a known lens has the size of the
            pixels as stored.
        names: One unique name a picture.
        long_side: Longest side of the views; pictures are never enlarged. None keeps their size.
        lenses: Known lenses of the upright pictures; None reads them as they are.
        w2c: Known poses; with ``lenses`` they become ``Views.cameras``.
        mask_files: A mask or None for each picture, at its upright size.
        focal_priors: Passed on.
        times: Passed on.
        groups: Passed on.
        alpha: As for `images.read_image`.
        max_pixels: As for `images.read_image`.
        workers: Threads; each holds one full-size picture. Default: the cores, at most 4.
        progress: Called as ``progress("read pictures", done, total)``.

    Returns:
        Views of one common size, padded with black at the right and bottom where sizes differ.
        ``from_original`` maps the full-size undistorted picture (whose K is
        `pinhole_intrinsics`) to the view; ``masks`` is None when every pixel counts.

    Raises:
        InputError: If there are no files, or one cannot be read.
        ShapeError: If a picture's size is not its lens's, or a list has the wrong length.
    """
    total = len(files)
    if total == 0:
        raise InputError("no pictures to load; give at least one")
    _check_lengths(total, names, lenses, w2c, mask_files)
    split = split_lenses(lenses) if lenses is not None else [None] * total
    pinholes = pinhole_intrinsics(lenses).numpy() if lenses is not None else None
    tasks = [
        _Task(
            file=Path(file),
            mask=mask_files[i] if mask_files is not None else None,
            lens=split[i],
            new_K=None if pinholes is None else pinholes[i],
            long_side=long_side,
            alpha=alpha,
            max_pixels=max_pixels,
        )
        for i, file in enumerate(files)
    ]
    canvas: _Canvas | None = None
    threads = workers or min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        # In order and at most two batches ahead, so that memory stays bounded.
        for start in range(0, total, 2 * threads):
            batch = range(start, min(start + 2 * threads, total))
            for i, loaded in zip(batch, pool.map(_load, (tasks[i] for i in batch)), strict=True):
                canvas = canvas or _Canvas(total, *loaded.pixels.shape[:2])
                canvas.put(i, loaded)
                if progress is not None:
                    progress("read pictures", float(i + 1), float(total))
    assert canvas is not None
    height, width = canvas.images.shape[2:]
    cameras = None
    if pinholes is not None and w2c is not None:
        scaled = canvas.from_original @ torch.from_numpy(pinholes)
        cameras = Cameras(w2c=w2c, K=scaled.to(w2c), height=height, width=width)
    return Views(
        images=canvas.images,
        names=tuple(names),
        from_original=canvas.from_original,
        sizes=canvas.sizes,
        cameras=cameras,
        masks=canvas.masks,
        files=tuple(Path(f) for f in files),
        mask_files=tuple(mask_files) if mask_files is not None else None,
        lenses=lenses,
        focal_priors=focal_priors,
        times=times,
        groups=tuple(groups) if groups is not None else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Task:
    file: Path
    mask: Path | None
    lens: Lens | None
    new_K: Float[np.ndarray, "3 3"] | None
    long_side: int | None
    alpha: Alpha
    max_pixels: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Loaded:
    pixels: UInt8[np.ndarray, "h w 3"]
    mask: Bool[np.ndarray, "h w"] | None
    original: tuple[int, int]


class _Canvas:
    """The growing result; pictures of unlike sizes enlarge it."""

    def __init__(self, total: int, height: int, width: int) -> None:
        self.images: UInt8[Tensor, "V 3 H W"] = torch.zeros(
            (total, 3, height, width), dtype=torch.uint8
        )
        self.masks: Bool[Tensor, "V H W"] | None = None
        self.sizes: Int64[Tensor, "V 2"] = torch.zeros((total, 2), dtype=torch.int64)
        self.from_original: Float[Tensor, "V 3 3"] = (
            torch.eye(3, dtype=torch.float64).expand(total, 3, 3).clone()
        )

    def put(self, index: int, loaded: _Loaded) -> None:
        height, width = loaded.pixels.shape[:2]
        grown = max(height, self.images.shape[2]), max(width, self.images.shape[3])
        if grown != tuple(self.images.shape[2:]):
            self._grow(index, *grown)
        full = (height, width) == tuple(self.images.shape[2:])
        self.images.numpy()[index, :, :height, :width] = loaded.pixels.transpose(2, 0, 1)
        if loaded.mask is not None or not full:
            self._need_masks(index)
        if self.masks is not None:
            mask = True if loaded.mask is None else loaded.mask
            self.masks.numpy()[index, :height, :width] = mask
        self.sizes[index] = torch.tensor([height, width])
        self.from_original[index, 0, 0] = width / loaded.original[1]
        self.from_original[index, 1, 1] = height / loaded.original[0]

    def _grow(self, filled: int, height: int, width: int) -> None:
        old = self.images
        self.images = torch.zeros((len(old), 3, height, width), dtype=torch.uint8)
        self.images[:filled, :, : old.shape[2], : old.shape[3]] = old[:filled]
        masks, self.masks = self.masks, None
        self._need_masks(filled)
        if masks is not None:
            assert self.masks is not None
            self.masks[:filled, : old.shape[2], : old.shape[3]] = masks[:filled]

    def _need_masks(self, filled: int) -> None:
        if self.masks is None:
            self.masks = torch.zeros((len(self.images), *self.images.shape[2:]), dtype=torch.bool)
            for i, (height, width) in enumerate(self.sizes[:filled].tolist()):
                self.masks[i, :height, :width] = True


def _check_lengths(
    total: int,
    names: Sequence[str],
    lenses: Lenses | None,
    w2c: Float[Tensor, "n 4 4"] | None,
    mask_files: Sequence[Path | None] | None,
) -> None:
    lengths = {
        "names": len(names),
        "lenses": total if lenses is None else lenses.K.shape[0],
        "w2c": total if w2c is None else len(w2c),
        "mask_files": total if mask_files is None else len(mask_files),
    }
    for what, length in lengths.items():
        if length != total:
            raise ShapeError(f"{what} must have one entry a picture = {total}, got {length}")


def _load(task: _Task) -> _Loaded:
    photo = read_image(task.file, alpha=task.alpha, max_pixels=task.max_pixels)
    lens, new_K = task.lens, task.new_K
    measured = (lens.height, lens.width) if lens is not None else photo.size
    if photo.orientation != 1 and lens is not None and measured == photo.source_size:
        # Its lens was measured by a program that knows no orientation.
        photo = read_image(task.file, alpha=task.alpha, max_pixels=task.max_pixels, upright=False)
    height, width = photo.size
    mask = photo.mask
    if task.mask is not None:
        drawn, _ = read_mask(
            task.mask,
            size=photo.size,
            orientation=photo.orientation,
            max_pixels=task.max_pixels,
        )
        mask = drawn if mask is None else mask & drawn
    shape = resized_shape(height, width, task.long_side)
    if lens is not None and (lens.height, lens.width) != (height, width):
        raise ShapeError(
            f"{task.file.name} is {width} x {height} pixels, but its camera says {lens.width} x "
            f"{lens.height}; give the pictures that the camera belongs to"
        )
    if lens is None or new_K is None or (not lens.distortion.any() and not lens.fisheye):
        pixels = _shrink(photo.pixels, shape)
        if mask is not None:
            mask = _shrink(mask.astype(np.uint8) * 255, shape) >= 128
        return _Loaded(pixels=pixels, mask=mask, original=(height, width))
    scaled = np.diag((shape[1] / width, shape[0] / height, 1.0)) @ new_K
    through = (lens.K, lens.distortion, lens.fisheye, scaled)
    pixels, valid = undistort_image(photo.pixels, *through, size=shape)
    if mask is not None:
        drawn, _ = undistort_image(mask.astype(np.uint8) * 255, *through, size=shape)
        mask = drawn >= 128
    if not valid.all():
        mask = valid if mask is None else mask & valid
    return _Loaded(pixels=pixels, mask=mask, original=(height, width))


def _shrink(
    pixels: UInt8[np.ndarray, "h w *c"], shape: tuple[int, int]
) -> UInt8[np.ndarray, "h2 w2 *c"]:
    if pixels.shape[:2] == shape:
        return pixels
    return cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_AREA)
