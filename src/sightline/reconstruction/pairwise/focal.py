"""Focal lengths that fit point maps."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

FocalMode = Literal["weiszfeld", "median"]

WIDEST, LONGEST = 0.05, 100.0
"""Bounds for `estimate_focal` that no lens reaches: nonsense stays a positive number."""


def estimate_focal(
    points: Float[Tensor, "b h w 3"],
    center: Float[Tensor, "b 2"],
    *,
    pixels: Float[Tensor, "b h w 2"] | None = None,
    weights: Float[Tensor, "b h w"] | None = None,
    mode: FocalMode = "weiszfeld",
    low: float = 0.0,
    high: float = math.inf,
) -> Float[Tensor, " b"]:
    """Find the focal length under which points project onto their own pixels.

    Args:
        points: In the camera frame of their own picture.
        center: Principal points in pixels.
        pixels: Where the pixels are; by default whole numbers from 0, as DUSt3R counts.
        weights: At least 0; 0 leaves a pixel out. All 1 when absent, as in the original.
        mode: ``weiszfeld`` minimises the sum of pixel distances (ten reweighted steps from least
            squares); ``median`` is the median of the estimates of every pixel and axis.
        low: Least focal, as a multiple of that of a 60 degree view across the long side.
        high: Largest focal, likewise.
    """
    height, width = points.shape[1:3]
    if pixels is None:
        pixels = index_grid(height, width, points)[None]
    offsets = (pixels - center[:, None, None]).flatten(1, 2)
    points = points.flatten(1, 2)
    if mode == "median":
        both = offsets * points[..., 2:] / points[..., :2]
        focal = both.flatten(1).nanmedian(-1).values
    else:
        rays = (points[..., :2] / points[..., 2:]).nan_to_num(posinf=0.0, neginf=0.0)
        along, square = (rays * offsets).sum(-1), rays.square().sum(-1)
        share = None if weights is None else weights.flatten(1)
        focal = _ratio(along, square, share)
        for _ in range(10):
            distance = (offsets - focal[:, None, None] * rays).norm(dim=-1)
            closeness = 1 / distance.clamp(min=1e-8)
            focal = _ratio(along, square, closeness if share is None else closeness * share)
    base = max(height, width) / (2 * math.tan(math.radians(60) / 2))
    return focal.clamp(min=low * base, max=high * base)


def _ratio(along: Tensor, square: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return along.mean(-1) / square.mean(-1)
    return (weights * along).mean(-1) / (weights * square).mean(-1)


def index_grid(height: int, width: int, like: Tensor) -> Float[Tensor, "h w 2"]:
    """Return (column, row) of every pixel, counted from 0."""
    x = torch.arange(width, dtype=like.dtype, device=like.device)
    y = torch.arange(height, dtype=like.dtype, device=like.device)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
