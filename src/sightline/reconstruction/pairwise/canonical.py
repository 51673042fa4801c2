"""One point map a picture from those of all its pairs, and depth on a coarse grid (MASt3R)."""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

CanonicalMode = Literal["avg-angle", "avg-reldepth"]


def canonical_view(
    points: Float[Tensor, "n h w 3"],
    confidence: Float[Tensor, "n h w"],
    subsample: int = 8,
    mode: CanonicalMode = "avg-angle",
) -> tuple[Float[Tensor, "h w 3"], Float[Tensor, "h w"], Float[Tensor, "h w"]]:
    """Average what n pairs say about one picture.

    Args:
        points: Of the picture, in its own camera frame.
        confidence: At least 1.
        subsample: Side of a block; the sides of the picture are multiples of it.
        mode: How depth relative to the block's centre is averaged: as the slope's angle, which
            is bounded, or as a plain ratio.

    Returns:
        The mean points; the depth of every pixel relative to the centre of its block; confidence.
    """
    share = confidence - 0.999
    total = share.sum(0)
    mean = (share[..., None] * points).sum(0) / total[..., None]
    center = slice(subsample // 2, None, subsample)
    depth = points[..., 2]
    core = depth[:, center, center].clamp(min=torch.finfo(depth.dtype).eps)
    depth, weights = (functional.pixel_unshuffle(x[:, None], subsample) for x in (depth, share))
    weights = weights / weights.sum(0)  # [n, S * S, h / S, w / S]
    if mode == "avg-reldepth":
        relative = (weights * depth / core[:, None]).sum(0)
    else:
        across = points[..., :2].movedim(-1, 1)
        offset = functional.pixel_unshuffle(across, subsample).unflatten(1, (2, -1))
        offset = offset - across[:, :, None, center, center]
        radius = offset.norm(dim=1).clamp(min=1e-8)
        angle = (weights * torch.arctan((depth - core[:, None]) / radius)).sum(0)
        relative = 1 + radius.mean(0) * angle.tan() / mean[center, center, 2]
    relative = functional.pixel_shuffle(relative[None], subsample)[0, 0]
    return mean, relative, share.square().sum(0) / total


def anchor_offsets(
    relative: Float[Tensor, "h w"], pixels: Int64[Tensor, "m 2"], subsample: int = 8
) -> tuple[Int64[Tensor, " m"], Float[Tensor, " m"]]:
    """Tie pixels to the centre of their block.

    Args:
        relative: Relative depth from `canonical_view`.
        pixels: (x, y).
        subsample: Side of a block.

    Returns:
        The number of each pixel's block, row by row, and its depth over that of the centre.
    """
    start = subsample // 2
    core = relative[start::subsample, start::subsample]
    x, y = pixels.unbind(-1)
    index = (y // subsample) * core.shape[1] + x // subsample
    return index, relative[y, x] / core.flatten()[index]
