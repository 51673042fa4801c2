"""Dense depth from all pairs at once, when cameras and pairs have their places."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.geometry.pose import invert_se3
from sightline.reconstruction.pairwise.graph import Pair
from sightline.reconstruction.pairwise.pairs import Grid, Predictions

_MOST = 24
"""Predictions of one picture that are merged; the surest are taken."""
_ROUNDS = 8


@torch.no_grad()
def fuse_depth(
    predictions: Predictions,
    edges: Sequence[Pair],
    transforms: Float[Tensor, "E 4 4"],
    poses: Float[Tensor, "N 4 4"],
    K: Float[Tensor, "N 3 3"],
    grids: Sequence[Grid],
) -> list[Float[Tensor, "_ _"]]:
    """Find for every pixel the depth with the least weighted sum of distances to its predictions.

    The predictions of a pixel lie near its ray; reweighted least squares along the ray finds their
    median. This is what the global alignment optimises, solved pixel by pixel.

    Args:
        predictions: At full size.
        edges: The pairs that count.
        transforms: From each pair's frame to the world, scaled.
        poses: Camera to world.
        K: In the grids' pixels.
        grids: Of the pictures.

    Returns:
        z-depth; 0 where no prediction counts.
    """
    w2c = invert_se3(poses)
    result = []
    for image, grid in enumerate(grids):
        found = [(e, s) for e, pair in enumerate(edges) for s in (0, 1) if pair[s] == image]
        found.sort(key=lambda es: -float(predictions[edges[es[0]]].confidence[es[1]].mean()))
        points, weights = [], []
        for edge, side in found[:_MOST]:
            maps = predictions[edges[edge]]
            local = w2c[image] @ transforms[edge]
            points.append(maps.points[side] @ local[:3, :3].T + local[:3, 3])
            weights.append(maps.confidence[side])
        rays = (grid.pixels() - K[image, :2, 2]) / K[image, [0, 1], [0, 1]]
        rays = torch.cat([rays, torch.ones_like(rays[..., :1])], -1)
        result.append(_along_rays(torch.stack(points), torch.stack(weights), rays))
    return result


def _along_rays(
    points: Float[Tensor, "e h w 3"],
    confidence: Float[Tensor, "e h w"],
    rays: Float[Tensor, "h w 3"],
) -> Float[Tensor, "h w"]:
    counted = confidence > 0
    weights = torch.where(counted, confidence.clamp(min=1.0).log() + 1e-3, 0.0)
    along = (points * rays).sum(-1)
    square = rays.square().sum(-1)
    start = torch.where(counted, points[..., 2], torch.nan).nanmedian(0).values
    depth = start.nan_to_num()
    floor = 1e-4 * depth.abs().clamp(min=1e-12)
    for _ in range(_ROUNDS):
        distance = (points - depth[..., None] * rays).norm(dim=-1)
        share = weights / torch.maximum(distance, floor)
        depth = (share * along).sum(0) / (share.sum(0) * square).clamp(min=1e-30)
    return torch.where(counted.any(0), depth, 0.0)
