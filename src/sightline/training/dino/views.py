"""The crops of a picture that self-distillation compares, and the masks of their patches.

Crops, colours, blur and solarisation follow DINOv2's recipe (Oquab et al. 2023, as in
``facebookresearch/dinov2``), on numpy and OpenCV. Pictures of any other number of channels are
standardised first and have gain, offset and blur only: hue, grey and solarisation mean nothing
there.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from sightline.datasets.pictures import resize

Pixels = Float32[np.ndarray, "height width channels"]
Crop = Float32[np.ndarray, "size size channels"]

_ASPECT = (3 / 4, 4 / 3)
_TRIES = 10
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Box(NamedTuple):
    """Part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How crops are made."""

    mean: tuple[float, ...]
    """Taken off, in units of ``prepare``'s result."""
    std: tuple[float, ...]
    global_size: int
    local_size: int
    local_crops: int
    gram_size: int
    """0 makes no crops for a Gram teacher."""
    global_scale: tuple[float, float]
    local_scale: tuple[float, float]
    jitter: float
    blur: float

    @property
    def colour(self) -> bool:
        """Whether pictures are red, green and blue."""
        return len(self.mean) == 3

    def prepare(self, pixels: UInt8[np.ndarray, "h w c"] | Pixels) -> Pixels:
        """Return colour from 0 to 1, and other values standardised, 0 where there are none."""
        if self.colour and pixels.dtype == np.uint8:
            return pixels.astype(np.float32) / 255
        mean, std = (np.asarray(v, np.float32) for v in (self.mean, self.std))
        return np.nan_to_num((pixels - mean) / std, nan=0.0, posinf=0.0, neginf=0.0)

    def finish(self, pixels: Pixels) -> Float32[np.ndarray, "channels height width"]:
        """Return what the network wants: normalised, channels first."""
        if self.colour:
            mean, std = (np.asarray(v, np.float32) for v in (self.mean, self.std))
            pixels = (pixels - mean) / std
        return np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)

    def crops(
        self, pixels: UInt8[np.ndarray, "h w c"] | Pixels, rng: np.random.Generator
    ) -> dict[str, Float32[np.ndarray, "crops channels size size"]]:
        """Return ``global`` (2), ``local`` and ``gram`` (2, undistorted) crops of a picture."""
        picture = self.prepare(pixels)
        found: dict[str, list[np.ndarray]] = {"global": [], "local": [], "gram": []}
        for index in range(2):
            box = random_box(rng, picture.shape[0], picture.shape[1], self.global_scale)
            flip = rng.random() < 0.5
            crop = cut(picture, box, self.global_size, flip=flip)
            if self.gram_size:
                found["gram"].append(self.finish(cut(picture, box, self.gram_size, flip=flip)))
            found["global"].append(self.finish(self._distort(crop, rng, index)))
        for _ in range(self.local_crops):
            box = random_box(rng, picture.shape[0], picture.shape[1], self.local_scale)
            crop = cut(picture, box, self.local_size, flip=rng.random() < 0.5)
            found["local"].append(self.finish(self._distort(crop, rng, None)))
        return {name: np.stack(crops) for name, crops in found.items() if crops}

    def whole(self, pixels: UInt8[np.ndarray, "h w c"] | Pixels, size: int) -> np.ndarray:
        """Return the central square of a picture, undistorted, for validation."""
        picture = self.prepare(pixels)
        height, width = picture.shape[:2]
        side = min(height, width)
        box = Box((height - side) // 2, (width - side) // 2, side, side)
        return self.finish(cut(picture, box, size, flip=False))

    def _distort(self, crop: Crop, rng: np.random.Generator, which: int | None) -> Crop:
        """Change colours and sharpness; ``which`` global crop, or None for a local one."""
        if self.colour:
            if rng.random() < 0.8 and self.jitter:
                crop = jitter_colours(crop, rng, self.jitter)
            if rng.random() < 0.2:
                crop = np.repeat((crop @ _LUMA)[..., None], 3, axis=-1)
        elif rng.random() < 0.8 and self.jitter:
            crop = jitter_bands(crop, rng, self.jitter)
        chance = {0: 1.0, 1: 0.1, None: 0.5}[which]
        if rng.random() < chance and self.blur > 0.1:
            crop = blurred(crop, rng.uniform(0.1, self.blur))
        if which == 1 and self.colour and rng.random() < 0.2:
            crop = np.where(crop >= 0.5, 1 - crop, crop)
        return crop


def random_box(
    rng: np.random.Generator, height: int, width: int, scale: tuple[float, float]
) -> Box:
    """Return a part of a random area (a share of the picture's) and aspect ratio."""
    low, high = math.log(_ASPECT[0]), math.log(_ASPECT[1])
    for _ in range(_TRIES):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            top = int(rng.integers(height - rows + 1))
            return Box(top, int(rng.integers(width - columns + 1)), rows, columns)
    # A picture too long for any: the middle, as square as the limits ask for.
    columns = min(width, round(height * _ASPECT[1]))
    rows = min(height, round(columns / _ASPECT[0]))
    return Box((height - rows) // 2, (width - columns) // 2, rows, columns)


def cut(picture: Pixels, box: Box, size: int, *, flip: bool) -> Crop:
    """Return part of a picture at a square size, perhaps mirrored."""
    part = picture[box.top : box.top + box.height, box.left : box.left + box.width]
    crop = resize(part, size, size)
    return np.ascontiguousarray(crop[:, ::-1]) if flip else crop


def jitter_colours(crop: Crop, rng: np.random.Generator, strength: float = 1.0) -> Crop:
    """Change brightness, contrast, saturation and hue in a random order (.4, .4, .2, .1)."""
    for which in rng.permutation(4):
        if which == 3:
            turn = rng.uniform(-0.1, 0.1) * min(strength, 5.0)
            hsv = cv2.cvtColor(np.clip(crop, 0, 1), cv2.COLOR_RGB2HSV)
            hsv[..., 0] = (hsv[..., 0] + 360 * turn) % 360
            crop = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
            continue
        spread = (0.4, 0.4, 0.2)[which] * strength
        factor = np.float32(rng.uniform(max(0.0, 1 - spread), 1 + spread))
        if which == 0:
            base: np.ndarray | float = 0.0
        elif which == 1:
            base = (crop @ _LUMA).mean()
        else:
            base = (crop @ _LUMA)[..., None]
        crop = np.clip(base + factor * (crop - base), 0, 1).astype(np.float32)
    return crop


def jitter_bands(crop: Crop, rng: np.random.Generator, strength: float = 1.0) -> Crop:
    """Change gain and offset of each standardised band, most of it for all bands alike."""
    bands = crop.shape[-1]
    gain = 1 + strength * (rng.uniform(-0.3, 0.3) + rng.uniform(-0.1, 0.1, bands))
    offset = strength * (rng.uniform(-0.3, 0.3) + rng.uniform(-0.1, 0.1, bands))
    return (crop * np.maximum(gain, 0) + offset).astype(np.float32)


def blurred(crop: Crop, sigma: float) -> Crop:
    """Return the crop under a Gaussian of 9 pixels, or as many as it has."""
    side = min(9, (crop.shape[0] - 1) // 2 * 2 + 1)
    kernel = cv2.getGaussianKernel(side, sigma, cv2.CV_32F)
    done = cv2.sepFilter2D(crop, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
    return done.reshape(crop.shape)


def block_mask(
    rng: np.random.Generator, rows: int, columns: int, count: int
) -> Bool[np.ndarray, "rows columns"]:
    """Return exactly ``count`` masked patches, in blocks as far as they fit (BEiT, DINOv3).

    Blocks have at least 4 patches and an aspect ratio of 0.3 to 3.3; what is missing to the count
    after no further block fits is drawn at random, which DINOv3 added.
    """
    mask = np.zeros((rows, columns), bool)
    low, high = math.log(0.3), math.log(1 / 0.3)
    done = 0
    while done < count:
        most = min(count - done, count)
        added = 0
        for _ in range(_TRIES):
            area = rng.uniform(min(4, most), most)
            aspect = math.exp(rng.uniform(low, high))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (0 < height < rows and 0 < width < columns):
                continue
            top, left = int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1))
            part = mask[top : top + height, left : left + width]
            new = part.size - int(part.sum())
            if 0 < new <= most:
                part[:] = True
                added = new
                break
        if not added:
            break
        done += added
    if done < count:
        free = np.flatnonzero(~mask)
        mask.flat[rng.permutation(free)[: count - done]] = True
    return mask


def mask_counts(
    rng: np.random.Generator, crops: int, patches: int, share: float, ratio: tuple[float, float]
) -> tuple[int, ...]:
    """Return how many patches of each crop are masked: a share of the crops, evenly spread."""
    masked = int(crops * share)
    edges = np.linspace(ratio[0], ratio[1], masked + 1)
    counts = [int(patches * rng.uniform(edges[i], edges[i + 1])) for i in range(masked)]
    counts += [0] * (crops - masked)
    return tuple(counts[i] for i in rng.permutation(crops))
