"""Between mask grids and feature grids: resizing, pooling, boxes.

The paper's formulation resizes features to the masks and averages inside each mask. Resizing is
linear and separable, so the same mean comes from resizing the *masks* with the transposed operator
to the much smaller feature grid: ``mean = (A^T M B) . F / |M|``.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from sightline.segmentation import kernels

CHUNK_BYTES = 64 << 20
"""Working memory of one chunk of masks."""


@functools.lru_cache(maxsize=32)
def _resize_matrix(source: int, target: int) -> Tensor:
    scale = source / target
    support = max(scale, 1.0)
    centre = (torch.arange(target, dtype=torch.float64) + 0.5) * scale
    cell = torch.arange(source, dtype=torch.float64) + 0.5
    weights = (1 - (cell - centre[:, None]).abs() / support).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).float()


def resize_matrix(source: int, target: int) -> Float[Tensor, "{target} {source}"]:
    """Return the operator of an antialiased bilinear resize along one axis.

    Triangles around pixel centres, widened when shrinking, rows of sum one: what
    ``interpolate(mode="bilinear", antialias=True, align_corners=False)`` applies to each axis.
    """
    return _resize_matrix(source, target).clone()


def resize_taps(source: int, target: int) -> tuple[Tensor, Tensor]:
    """Return `resize_matrix` as its non-zero entries: first column and weights of each row."""
    matrix = _resize_matrix(source, target)
    first = (matrix > 0).to(torch.uint8).argmax(1)
    width = int((matrix > 0).sum(1).max())
    index = first[:, None] + torch.arange(width)
    weights = matrix.gather(1, index.clamp(max=source - 1)) * (index < source)
    return first, weights


def pool_features(
    features: Float[Tensor, "c h w"], masks: Bool[Tensor, "n H W"]
) -> Float[Tensor, "n c"]:
    """Return the mean feature inside each mask, as if features were resized to the mask grid.

    Args:
        features: On the patch grid.
        masks: On any grid over the same image area; an empty one gives NaN.
    """
    height, width = masks.shape[1:]
    kind = {"device": features.device, "dtype": features.dtype}
    rows = _resize_matrix(features.shape[1], height).to(**kind)
    columns = _resize_matrix(features.shape[2], width).to(**kind)
    flat = features.flatten(1).T
    step = max(1, CHUNK_BYTES // (4 * height * width))
    parts = []
    for chunk in masks.split(step):
        weights = rows.T @ (chunk.to(features.dtype) @ columns)
        area = chunk.flatten(1).sum(1, dtype=features.dtype)
        parts.append(weights.flatten(1) @ flat / area[:, None])
    return torch.cat(parts) if parts else features.new_zeros(0, features.shape[0])


class Pooled(NamedTuple):
    """Where logits are positive, on a coarser grid.

    Attributes:
        weights: ``[P, h * w]``, summing to one a mask; ``weights @ cells`` is the mean feature.
            Zero for an empty mask.
        areas: ``[P]`` positive cells.
        boxes: ``[P, 4]`` around them, see `mask_boxes`.
    """

    weights: Tensor
    areas: Tensor
    boxes: Tensor


def pool_logits(logits: Float[Tensor, "p H W"], grid: tuple[int, int]) -> Pooled:
    """Return what `pool_features` and `mask_boxes` need to know of masks ``logits > 0``.

    On the CPU this is one pass over the logits that makes no masks.
    """
    if logits.device.type != "cpu" or logits.dtype != torch.float32:
        masks = logits > 0
        cells = torch.eye(grid[0] * grid[1], device=logits.device, dtype=logits.dtype)
        weights = pool_features(cells.unflatten(1, grid), masks).nan_to_num(0.0)
        return Pooled(weights, masks.flatten(1).sum(1), mask_boxes(masks))
    count, height, width = logits.shape
    y_first, y_weights = resize_taps(grid[0], height)
    x_first, x_weights = resize_taps(grid[1], width)
    weights = np.zeros((count, *grid), np.float32)
    areas, boxes = np.zeros(count, np.int64), np.zeros((count, 4), np.float32)
    kernels.scan_logits(
        logits.contiguous().numpy(),
        y_first.numpy(),
        y_weights.numpy(),
        x_first.numpy(),
        x_weights.numpy(),
        np.empty(grid[1], np.float32),
        weights,
        areas,
        boxes,
    )
    flat, sizes = torch.from_numpy(weights).flatten(1), torch.from_numpy(areas)
    return Pooled(flat / sizes.clamp(min=1)[:, None], sizes, torch.from_numpy(boxes))


def resize_logits(
    logits: Float[Tensor, "n h w"], height: int, width: int, *, align_corners: bool = False
) -> Bool[Tensor, "n {height} {width}"]:
    """Resize mask logits (bilinear, antialiased) and return where they are positive.

    Works in chunks, so that only the Boolean result exists at full size.
    """
    step = max(1, CHUNK_BYTES // (4 * height * width))
    out = logits.new_zeros(len(logits), height, width, dtype=torch.bool)
    for start in range(0, len(logits), step):
        part = logits[start : start + step, None]
        full = functional.interpolate(
            part, (height, width), mode="bilinear", antialias=True, align_corners=align_corners
        )
        torch.gt(full[:, 0], 0, out=out[start : start + step])
    return out


def mask_boxes(masks: Bool[Tensor, "n h w"]) -> Float[Tensor, "n 4"]:
    """Return ``x0 y0 x1 y1`` around each mask, the last row and column included.

    The box of an empty mask is zero.
    """

    def span(inside: Tensor) -> tuple[Tensor, Tensor]:
        size = inside.shape[1]
        first = inside.to(torch.uint8).argmax(1)
        last = size - 1 - inside.flip(1).to(torch.uint8).argmax(1)
        return first, last

    if masks.numel() == 0:
        return torch.zeros(len(masks), 4, device=masks.device)
    x0, x1 = span(masks.any(1))
    y0, y1 = span(masks.any(2))
    boxes = torch.stack((x0, y0, x1, y1), 1).float()
    return boxes * masks.flatten(1).any(1, keepdim=True)


def resize_square(
    image: Float[Tensor, "c h w"], height: int, width: int
) -> Float[Tensor, "c {height} {width}"]:
    """Resize a picture with bicubic interpolation without antialiasing, as the encoders expect."""
    if image.shape[1:] == (height, width):
        return image
    return functional.interpolate(image[None], (height, width), mode="bicubic")[0]
