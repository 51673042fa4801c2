"""Points that hang in front of what other pictures see lose their confidence."""

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sightline.geometry.pose import invert_se3
from sightline.reconstruction.pairwise.graph import Pair
from sightline.reconstruction.pairwise.pairs import Grid


@torch.no_grad()
def clean_confidence(
    confidence: Sequence[Float[Tensor, "_ _"]],
    depth: Sequence[Float[Tensor, "_ _"]],
    points: Sequence[Float[Tensor, "_ _ 3"]],
    poses: Float[Tensor, "n 4 4"],
    K: Float[Tensor, "n 3 3"],
    grids: Sequence[Grid],
    tolerance: float = 0.001,
    radius: int = 0,
    pairs: Collection[Pair] | None = None,
) -> list[Float[Tensor, "_ _"]]:
    """Set the confidence of points to 0 that a surer pixel of another picture looks through.

    Args:
        confidence: Of each picture's pixels.
        depth: z-depth of each picture.
        points: World points of each picture.
        poses: Camera to world.
        K: In the grids' pixels.
        grids: Where the pixels are.
        tolerance: Share of the depth by which a point must be in front.
        radius: It must be in front of all pixels this near to where it falls, because on a slope
            the nearest pixel's centre may lie deeper than the point. The original takes 0.
        pairs: Pictures that are compared; None compares all.

    Returns:
        The new confidences. Pictures are gone through in order; later ones see earlier changes.
    """
    cleaned = [c.clone() for c in confidence]
    w2c = invert_se3(poses)
    depth = [_nearest_around(d, radius) for d in depth]
    for i, cloud in enumerate(points):
        for j, grid in enumerate(grids):
            if i == j or (pairs is not None and (i, j) not in pairs and (j, i) not in pairs):
                continue
            local = cloud @ w2c[j, :3, :3].T + w2c[j, :3, 3]
            z = local[..., 2]
            seen = local @ K[j].T
            place = seen[..., :2] / seen[..., 2:]
            origin, step = (place.new_tensor(x) for x in (grid.origin, grid.step))
            place = ((place - origin) / step).nan_to_num(nan=-1.0).round().clamp(-1, 2**20).long()
            x, y = place.unbind(-1)
            inside = (z > 0) & (x >= 0) & (x < grid.width) & (y >= 0) & (y < grid.height)
            x, y = x[inside], y[inside]
            own = cleaned[i][inside]
            bad = (z[inside] < (1 - tolerance) * depth[j][y, x]) & (own < cleaned[j][y, x])
            cleaned[i][inside] = torch.where(bad, own.clamp(max=0.0), own)
    return cleaned


def _nearest_around(depth: Float[Tensor, "h w"], radius: int) -> Float[Tensor, "h w"]:
    if radius == 0:
        return depth
    side = 2 * radius + 1
    return -functional.max_pool2d(-depth[None], side, 1, radius)[0]
