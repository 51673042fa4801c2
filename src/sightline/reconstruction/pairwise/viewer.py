"""Two pictures without optimisation (DUSt3R's PairViewer)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.geometry.pose import invert_se3
from sightline.reconstruction.pairwise.focal import LONGEST, WIDEST, estimate_focal
from sightline.reconstruction.pairwise.pairs import Grid, Predictions
from sightline.reconstruction.pairwise.poses import solve_pnp


class PairScene(NamedTuple):
    """Two cameras and their depth maps; the world is one of the cameras."""

    poses: Float[Tensor, "2 4 4"]
    focals: Float[Tensor, "2"]
    depth: list[Float[Tensor, "_ _"]]
    confidence: list[Float[Tensor, "_ _"]]
    found: tuple[bool, bool]
    """Whether each camera's pose in the other's frame was found."""


def view_pair(
    predictions: Predictions,
    grids: Sequence[Grid],
    *,
    min_confidence: float = 3.0,
    iterations: int = 100,
    focals: Sequence[float | None] = (None, None),
) -> PairScene:
    """Take focal lengths from both directions of a pair, and everything else from the surer one.

    Args:
        predictions: Of (0, 1) and (1, 0).
        grids: Of both pictures.
        min_confidence: Above it, a pixel is used to find the pose.
        iterations: Of RANSAC.
        focals: Known focal lengths in the grids' pixels.
    """
    sure = [
        torch.maximum(predictions[i, 1 - i].confidence[0], predictions[1 - i, i].confidence[1])
        for i in (0, 1)
    ]
    lengths: list[float] = []
    relative: list[Tensor] = []
    found = []
    for i in (0, 1):
        own = predictions[i, 1 - i].points[0]
        center = own.new_tensor(grids[i].center)
        pixels = grids[i].pixels().to(own)
        known = focals[i]
        if known is None:
            length = estimate_focal(
                own[None], center[None], pixels=pixels[None], low=WIDEST, high=LONGEST
            )
            known = float(length)
        lengths.append(known)
        chosen = sure[i] > min_confidence
        if float(chosen.float().mean()) < 0.05:  # the network is not that sure of anything
            chosen = sure[i] > 0
        points = predictions[1 - i, i].points[1]
        pose = solve_pnp(points[chosen], pixels[chosen], known, center, iterations=iterations)
        found.append(pose is not None)
        relative.append(torch.eye(4, dtype=own.dtype) if pose is None else pose[1])
    base = 0 if predictions[0, 1].score > predictions[1, 0].score else 1
    other = 1 - base
    maps = predictions[base, other]
    w2c = invert_se3(relative[other])
    poses, depth = [torch.eye(4, dtype=w2c.dtype)] * 2, [maps.points[0][..., 2]] * 2
    poses[other] = relative[other]
    depth[other] = maps.points[1] @ w2c[2, :3] + w2c[2, 3]
    return PairScene(torch.stack(poses), torch.tensor(lengths), depth, sure, (found[0], found[1]))
