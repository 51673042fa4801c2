"""Pictures at network size, and the exact way back to source pixels.

Sizes and crops are those of the official loaders of DUSt3R, MASt3R and Splatt3R, because the
networks only know pictures prepared like that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from PIL import Image

from sightline.errors import InputError
from sightline.io.views import load_views
from sightline.reconstruction.pictures import as_bytes
from sightline.types import Views

SQUARE_SIZE = 224
"""The training size at which pictures are cut to squares."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """One picture as a network gets it."""

    pixels: UInt8[ndarray, "h w 3"]
    from_source: Float[ndarray, "3 3"]
    """Maps pixels of the source picture to these; pixel corners are whole numbers in both."""
    source_size: tuple[int, int]
    """Height and width of the source picture."""
    mask: Bool[ndarray, "h w"] | None = None
    """True where a pixel counts."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def normalized(self) -> Float[torch.Tensor, "3 h w"]:
        """Return the network's input: ``(x - 0.5) / 0.5`` of RGB in [0, 1]."""
        return (torch.from_numpy(self.pixels.copy()).movedim(-1, 0).float() / 255 - 0.5) / 0.5


def fit_dust3r(
    pixels: UInt8[ndarray, "H W 3"], size: int, *, square_ok: bool = False, patch_size: int = 16
) -> Picture:
    """Resize and crop as DUSt3R and MASt3R do.

    Args:
        pixels: The upright picture.
        size: The long side becomes this, and both sides are then cut about the centre to multiples
            of the patch; 224 makes the short side about 224 and cuts a square instead.
        square_ok: False cuts square pictures to 4:3, which the networks at 512 were trained on.
        patch_size: Of the network.

    Raises:
        InputError: If nothing is left after the cut.
    """
    height, width = pixels.shape[:2]
    long_side = size
    if size == SQUARE_SIZE:
        long_side = round(size * max(width / height, height / width))
    resized = _resize(pixels, long_side)
    high, wide = resized.shape[:2]
    cx, cy = wide // 2, high // 2
    if size == SQUARE_SIZE:
        half_w = half_h = float(min(cx, cy))
    else:
        half_w = (2 * cx) // patch_size * patch_size / 2
        half_h = (2 * cy) // patch_size * patch_size / 2
        if wide == high and not square_ok:
            half_h = 3 * half_w / 4
    return _cut(pixels.shape[:2], resized, (cx - half_w, cy - half_h, cx + half_w, cy + half_h))


def fit_splatt3r(pixels: UInt8[ndarray, "H W 3"], size: int = 512) -> Picture:
    """Resize the short side to ``size`` and cut a centred square, as Splatt3R does."""
    height, width = pixels.shape[:2]
    resized = _resize(pixels, round(size * max(width / height, height / width)))
    high, wide = resized.shape[:2]
    cx, cy = wide // 2, high // 2
    half = float(size // 2)
    return _cut(pixels.shape[:2], resized, (cx - half, cy - half, cx + half, cy + half))


def _resize(pixels: UInt8[ndarray, "H W 3"], long_side: int) -> UInt8[ndarray, "h w 3"]:
    height, width = pixels.shape[:2]
    longest = max(height, width)
    filter_ = Image.Resampling.LANCZOS if longest > long_side else Image.Resampling.BICUBIC
    size = (max(1, round(width * long_side / longest)), max(1, round(height * long_side / longest)))
    return np.asarray(Image.fromarray(pixels).resize(size, filter_))


def _cut(
    source: tuple[int, ...],
    resized: UInt8[ndarray, "h w 3"],
    box: tuple[float, float, float, float],
) -> Picture:
    # Pillow rounds boxes half to even; a picture one pixel too small gets a black line from it.
    left, top, right, bottom = (round(edge) for edge in box)
    if right <= left or bottom <= top:
        raise InputError(
            f"a picture of {source[1]} x {source[0]} pixels is too narrow for the network; crop it "
            "to a less extreme shape"
        )
    cut = np.asarray(Image.fromarray(resized).crop((left, top, right, bottom)))
    high, wide = resized.shape[:2]
    outside = left < 0 or top < 0 or right > wide or bottom > high
    mask = None
    if outside:
        mask = np.zeros(cut.shape[:2], bool)
        mask[max(0, -top) : high - top, max(0, -left) : wide - left] = True
    affine = np.diag((wide / source[1], high / source[0], 1.0))
    affine[:2, 2] = -left, -top
    return Picture(
        pixels=cut, from_source=affine, source_size=(int(source[0]), int(source[1])), mask=mask
    )


def load_pictures(
    views: Views,
    size: int,
    *,
    square: bool = False,
    square_ok: bool = False,
    patch_size: int = 16,
) -> list[Picture]:
    """Prepare all views.

    The source is the full-size picture (upright, undistorted) where ``views.files`` is given, else
    the part of ``views.images`` that is not padding.

    Args:
        views: The pictures.
        size: As for `fit_dust3r`.
        square: Prepare them as Splatt3R does.
        square_ok: As for `fit_dust3r`.
        patch_size: As for `fit_dust3r`.
    """
    made = []
    for index in range(len(views)):
        pixels, mask = _source(views, index)
        if square:
            picture = fit_splatt3r(pixels, size)
        else:
            picture = fit_dust3r(pixels, size, square_ok=square_ok, patch_size=patch_size)
        made.append(_masked(picture, mask))
    return made


def _source(
    views: Views, index: int
) -> tuple[UInt8[ndarray, "H W 3"], Bool[ndarray, "H W"] | None]:
    if views.files is not None:
        one = load_views(
            [views.files[index]],
            [views.names[index]],
            lenses=None if views.lenses is None else views.lenses.map(lambda t: t[index, None]),
            mask_files=None if views.mask_files is None else [views.mask_files[index]],
            workers=1,
        )
        mask = None if one.masks is None else one.masks[0].numpy()
        return np.ascontiguousarray(one.images[0].movedim(0, -1).numpy()), mask
    height, width = views.sizes[index].tolist()
    pixels = as_bytes(views.images[index : index + 1])[0, :height, :width]
    mask = None
    if views.masks is not None:
        mask = views.masks[index, :height, :width].cpu().numpy()
    return np.ascontiguousarray(pixels), mask


def _masked(picture: Picture, mask: Bool[ndarray, "H W"] | None) -> Picture:
    """Carry a mask of the source to the network's pixels: where at least half of one counts."""
    if mask is None or mask.all():
        return picture
    height, width = picture.size
    scale_x, scale_y = picture.from_source[0, 0], picture.from_source[1, 1]
    wide, high = round(mask.shape[1] * scale_x), round(mask.shape[0] * scale_y)
    small = cv2.resize(mask.astype(np.uint8) * 255, (wide, high), interpolation=cv2.INTER_AREA)
    left, top = (-picture.from_source[:2, 2]).astype(int).tolist()
    inside = np.zeros((height, width), bool)
    piece = small[max(0, top) : top + height, max(0, left) : left + width] >= 128
    down, across = max(0, -top), max(0, -left)
    inside[down : down + piece.shape[0], across : across + piece.shape[1]] = piece
    if picture.mask is not None:
        inside &= picture.mask
    return Picture(
        pixels=picture.pixels,
        from_source=picture.from_source,
        source_size=picture.source_size,
        mask=inside,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingCrop:
    """A picture with depth, cut for training."""

    pixels: UInt8[ndarray, "h w 3"]
    depth: Float[ndarray, "h w"]
    K: Float[ndarray, "3 3"]
    """Pixel centres are whole numbers (the original's convention)."""


def crop_for_training(
    pixels: UInt8[ndarray, "H W 3"],
    depth: Float[ndarray, "H W"],
    K: Float[ndarray, "3 3"],
    resolution: tuple[int, int],
    *,
    aug_crop: int = 0,
    rng: np.random.Generator | None = None,
) -> TrainingCrop:
    """Cut a picture about its principal point and shrink it, as the training sets of DUSt3R do.

    Args:
        pixels: The picture.
        depth: z-depth; it is taken from the nearest pixel.
        K: With pixel centres at whole numbers.
        resolution: Width and height of the landscape result; portrait pictures get it transposed,
            nearly square ones at random.
        aug_crop: Up to this many pixels more are kept before the last centred crop.
        rng: Needed for square pictures and ``aug_crop``; by default seeded with 0.

    Raises:
        InputError: If the principal point is in the outer fifth of the picture.
    """
    rng = rng or np.random.default_rng(0)
    height, width = pixels.shape[:2]
    cx, cy = (int(c) for c in K[:2, 2].round())
    margin_x, margin_y = min(cx, width - cx), min(cy, height - cy)
    if margin_x <= width / 5 or margin_y <= height / 5:
        raise InputError(
            f"expected a principal point near the centre of {width} x {height} pixels, got "
            f"({cx}, {cy}); check the intrinsics"
        )
    K = K.astype(np.float64)
    left, top = cx - margin_x, cy - margin_y
    pixels = pixels[top : cy + margin_y, left : cx + margin_x]
    depth = depth[top : cy + margin_y, left : cx + margin_x]
    K[:2, 2] -= left, top
    height, width = pixels.shape[:2]
    nearly_square = 0.9 < height / width < 1.1 and resolution[0] != resolution[1]
    if height > 1.1 * width or (nearly_square and rng.integers(2)):
        resolution = (resolution[1], resolution[0])
    target = np.array(resolution)
    if aug_crop > 1:
        target = target + rng.integers(0, aug_crop)
    scale = float((target / (width, height)).max()) + 1e-8
    wide, high = (int(s) for s in np.floor(np.array((width, height)) * scale))
    filter_ = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    shrunk = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((wide, high), filter_))
    depth = cv2.resize(depth, (wide, high), interpolation=cv2.INTER_NEAREST)
    corner = np.array((width, height)) * scale - (wide, high)  # what rounding down cut off
    K[:2] *= scale
    K[:2, 2] += 0.5 * scale - 0.5 - 0.5 * corner
    left, top = (round(m) for m in (0.5 * (wide - resolution[0]), 0.5 * (high - resolution[1])))
    K[:2, 2] -= left, top
    rows, columns = slice(top, top + resolution[1]), slice(left, left + resolution[0])
    return TrainingCrop(
        pixels=np.ascontiguousarray(shrunk[rows, columns]),
        depth=np.ascontiguousarray(depth[rows, columns]),
        K=K.astype(np.float32),
    )


def common_batches(sizes: Sequence[tuple[int, int]], limit: int) -> list[list[int]]:
    """Group indices of equal size into batches of at most ``limit``, in order."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(size, []).append(index)
    return [row[i : i + limit] for row in groups.values() for i in range(0, len(row), limit)]
