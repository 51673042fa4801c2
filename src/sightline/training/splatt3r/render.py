"""What Splatt3R predicts for a pair, drawn from other cameras."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.splatting import rasterization

NEAR, FAR = 0.1, 1000.0
"""Splatt3R's clipping planes, in metres."""


def draw_pair(
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    w2c: Float[Tensor, "b v 4 4"],
    K: Float[Tensor, "b v 3 3"],
    size: tuple[int, int],
    *,
    point_gradients: bool = False,
) -> Float[Tensor, "b v 3 h w"]:
    """Draw the Gaussians of both views of a batch of pairs on black.

    Args:
        first: What `models.splatt3r.Splatt3R` returns for view 1.
        second: And for view 2.
        w2c: From the first view's camera axes to those of the cameras.
        K: Intrinsics in pixels of ``size``.
        size: Height and width.
        point_gradients: Let gradients pass to the points that means are offset from; the network
            itself stops them.
    """

    def both(name: str, other: str = "") -> Tensor:
        return torch.cat([first[name].flatten(1, 2), second[other or name].flatten(1, 2)], 1)

    means = both("means", "means_in_other_view")
    if point_gradients:
        points = both("pts3d", "pts3d_in_other_view")
        means = means + (points - points.detach())
    colors = both("sh").mT.contiguous()  # [B, N, K, 3]
    drawn, _, _ = rasterization(
        means,
        None,
        None,
        both("opacities").squeeze(-1),
        colors,
        w2c,
        K,
        size[1],
        size[0],
        near_plane=NEAR,
        far_plane=FAR,
        covars=both("covariances"),
        sh_degree=math.isqrt(colors.shape[-2]) - 1,
    )
    return drawn.movedim(-1, -3)
