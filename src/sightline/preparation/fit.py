"""Bring a picture to its prepared size, and say where each of its pixels came from."""

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float, Shaped

from sightline.io.masks import resize_mask

Mode = Literal["resize", "crop", "pad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A resize to ``inner`` pixels, then a crop or a border around the middle."""

    source: tuple[int, int]
    """Height and width before."""
    inner: tuple[int, int]
    """Height and width of the whole picture after resizing."""
    size: tuple[int, int]
    """Height and width after cropping or padding."""

    @property
    def offset(self) -> tuple[int, int]:
        """Rows and columns from the resized picture's corner to the result's; negative pads."""
        return (self.inner[0] - self.size[0]) // 2, (self.inner[1] - self.size[1]) // 2

    @property
    def source_from_fitted(self) -> Float[np.ndarray, "3 3"]:
        """Pixels of the result to pixels before, corner convention."""
        down, across = self.source[0] / self.inner[0], self.source[1] / self.inner[1]
        top, left = self.offset
        return np.array([[across, 0, left * across], [0, down, top * down], [0, 0, 1.0]])

    @property
    def unchanged(self) -> bool:
        """True when the picture stays as it is."""
        return self.source == self.inner == self.size

    def apply(
        self, samples: Shaped[np.ndarray, "h w c"], valid: Bool[np.ndarray, "h w"] | None = None
    ) -> tuple[Shaped[np.ndarray, "H W c"], Bool[np.ndarray, "H W"] | None]:
        """Return the picture and what of it counts; pixels that do not count are not mixed in."""
        if self.unchanged:
            return samples, valid
        if valid is not None and valid.all():
            valid = None
        if self.inner == self.source:
            resized = samples
        elif valid is None:
            resized = _resize(samples, self.inner)
        else:
            weight = _resize(valid.astype(np.float32)[..., None], self.inner)
            kept = np.where(valid[..., None], np.nan_to_num(samples), 0).astype(np.float32)
            resized = _resize(kept, self.inner) / np.maximum(weight, 1e-6)
            if samples.dtype != np.float32:
                top = np.iinfo(samples.dtype).max
                resized = np.rint(resized).clip(0, top).astype(samples.dtype)
            valid = weight[..., 0] >= 0.5
            resized = np.where(valid[..., None], resized, 0).astype(samples.dtype)
        mask = np.ones(self.inner, bool) if valid is None else valid
        samples, mask = self._frame(resized), self._frame(mask)
        return np.ascontiguousarray(samples), None if mask.all() else np.ascontiguousarray(mask)

    def apply_mask(self, mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "H W"]:
        """Return a mask by the nearest pixel; a border does not count."""
        return np.ascontiguousarray(self._frame(resize_mask(mask, *self.inner)))

    def apply_nearest(self, values: Shaped[np.ndarray, "h w"]) -> Shaped[np.ndarray, "H W"]:
        """Return values that must not be mixed, such as depth; a border is 0."""
        height, width = self.inner
        rows = ((np.arange(height) + 0.5) * values.shape[0] / height).astype(np.intp)
        columns = ((np.arange(width) + 0.5) * values.shape[1] / width).astype(np.intp)
        return np.ascontiguousarray(self._frame(values[rows[:, None], columns]))

    def _frame(self, values: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        top, left = self.offset
        height, width = self.size
        if top < 0 or left < 0:
            framed = np.zeros((height, width, *values.shape[2:]), values.dtype)
            framed[-top : -top + values.shape[0], -left : -left + values.shape[1]] = values
            return framed
        return values[top : top + height, left : left + width]


def choose_fit(height: int, width: int, size: int, mode: Mode) -> Fit:
    """Return how a picture of ``height`` x ``width`` comes to ``size``; 0 leaves it as it is."""
    if size == 0:
        return Fit(source=(height, width), inner=(height, width), size=(height, width))
    side = min(height, width) if mode == "crop" else max(height, width)
    inner = (max(1, round(height * size / side)), max(1, round(width * size / side)))
    return Fit(
        source=(height, width), inner=inner, size=inner if mode == "resize" else (size, size)
    )


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Return where tiles begin along a side; the last is moved inwards so that all are whole."""
    if length <= tile:
        return [0]
    starts = list(range(0, length - tile, tile - overlap))
    return [*starts, length - tile]


def fit_camera(camera: dict[str, Any], fit: Fit) -> dict[str, Any]:
    """Return a PINHOLE-like ``camera`` object of the picture before, after it was fitted.

    The first parameters of every COLMAP model are one or two focal lengths and the principal
    point; distortion does not change with the size.
    """
    across, down = fit.inner[1] / fit.source[1], fit.inner[0] / fit.source[0]
    top, left = fit.offset
    model, params = camera["model"], list(camera["params"])
    if model == "SIMPLE_PINHOLE":
        model, params = "PINHOLE", [params[0], params[0], *params[1:]]
    single = model in _ONE_FOCAL
    # Sides are rounded to whole pixels, so a single focal length takes the mean of both scales.
    focals = [params[0] * (across + down) / 2] if single else [params[0] * across, params[1] * down]
    at = len(focals)
    centre = [params[at] * across - left, params[at + 1] * down - top]
    return camera | {"model": model, "params": [*focals, *centre, *params[at + 2 :]]}


_ONE_FOCAL = (
    *("SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE"),
    *("SIMPLE_DIVISION", "SIMPLE_FISHEYE"),
)


def _resize(samples: Shaped[np.ndarray, "h w c"], size: tuple[int, int]) -> np.ndarray:
    height, width = samples.shape[:2]
    smaller = size[0] * size[1] < height * width
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    channels = samples.shape[2]
    # Four channels at a time: what all of OpenCV's resizers take.
    parts = [
        cv2.resize(np.ascontiguousarray(samples[..., c : c + 4]), size[::-1], interpolation=how)
        for c in range(0, channels, 4)
    ]
    return np.concatenate([part.reshape(*size, -1) for part in parts], axis=2)
