"""Lift what is known per pixel (features, labels, masks) onto splats and points.

A splat gets the mean of the pixels that it is seen in, weighted by its part in their blend. So
occlusion counts exactly as it does in pictures, and one pass over the views is enough. The closed
form is the least-squares value where splats do not overlap (Marrie et al. 2024, LUDVIG,
arXiv:2410.14462); ``lift_fit`` solves for those that do.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from sightline.errors import InputError, ShapeError
from sightline.geometry.camera import project_points
from sightline.splatting.channels import draw_and_gather
from sightline.types import Cameras, Gaussians, TensorStruct

_CHANNELS = 64
"""Drawn at once: bounds memory, at the cost of sorting the splats again for the next ones."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lifted(TensorStruct):
    """Values carried by splats or points."""

    values: Float[Tensor, "N D"]
    """Weighted means; zero where ``weights`` is."""
    weights: Float[Tensor, " N"]
    """In pixels: how much was seen in all views together."""


def lift_to_gaussians(
    gaussians: Gaussians,
    cameras: Cameras,
    maps: Iterable[Float[Tensor, "D H W"]],
    masks: Bool[Tensor, "V H W"] | None = None,
) -> Lifted:
    """Carry maps of all views onto splats.

    Args:
        gaussians: The scene.
        cameras: Of the maps, at their size; shrink them (``resize_cameras``) for coarse maps.
        maps: One a camera, in order, on the splats' device; they are taken one by one.
        masks: False where a pixel does not count.

    Raises:
        ShapeError: A map is not of the cameras' size, or they are not as many.
    """
    count = len(gaussians)
    total: Tensor | None = None
    weights = gaussians.means.new_zeros(count)
    done = 0
    for view, features in enumerate(_checked(maps, cameras)):
        if total is None:
            total = features.new_zeros(count, len(features))
        mask = features.new_ones(features.shape[1:]) if masks is None else masks[view].to(features)
        channels = torch.cat([mask[None], features * mask])
        camera = cameras.select([view])
        parts = [_transposed(gaussians, camera, part) for part in channels.split(_CHANNELS)]
        joined = torch.cat(parts, 1)
        weights += joined[:, 0]
        total += joined[:, 1:]
        done += 1
    if done != len(cameras) or total is None:
        raise ShapeError(f"expected one map for each of {len(cameras)} cameras, got {done}")
    return Lifted(values=_divided(total, weights), weights=weights)


def _checked(
    maps: Iterable[Float[Tensor, "D H W"]], cameras: Cameras
) -> Iterable[Float[Tensor, "D H W"]]:
    for number, features in enumerate(maps):
        if number >= len(cameras):
            raise ShapeError(f"expected one map for each of {len(cameras)} cameras, got more")
        if features.shape[1:] != (cameras.height, cameras.width):
            raise ShapeError(
                f"expected maps of the cameras' {cameras.height} x {cameras.width} pixels, got "
                f"{list(features.shape[1:])}; resize the cameras with resize_cameras"
            )
        yield features.float()


def _transposed(
    gaussians: Gaussians, camera: Cameras, channels: Float[Tensor, "C H W"]
) -> Float[Tensor, "N C"]:
    """Return for every splat the sum over pixels of its blending weight times the channels."""
    nothing = gaussians.means.new_zeros(len(gaussians), len(channels))
    return draw_and_gather(gaussians, camera, nothing, lambda _: channels.permute(1, 2, 0))


@torch.no_grad()
def lift_to_points(
    points: Float[Tensor, "N 3"],
    cameras: Cameras,
    maps: Iterable[Float[Tensor, "D H W"]],
    depth: Float[Tensor, "V H W"] | None = None,
    masks: Bool[Tensor, "V H W"] | None = None,
    tolerance: float = 0.03,
) -> Lifted:
    """Carry maps of all views onto points: the mean over the views that see each.

    Args:
        points: World points.
        cameras: Of the maps, at their size.
        maps: One a camera, in order; they are taken one by one.
        depth: Of the scene in every view; points behind it are hidden there. Zero and not finite
            mean unknown, and hide nothing. None: every point in the picture is seen.
        masks: False where a pixel does not count.
        tolerance: How far behind, as a fraction of the depth, a point may lie and be seen.

    Raises:
        InputError: ``tolerance`` is negative.
        ShapeError: A map is not of the cameras' size, or they are not as many.
    """
    if tolerance < 0:
        raise InputError(f"tolerance must not be negative, got {tolerance}; use 0.03")
    total: Tensor | None = None
    weights = points.new_zeros(len(points))
    done = 0
    for view, features in enumerate(_checked(maps, cameras)):
        if total is None:
            total = features.new_zeros(len(points), len(features))
        pixels, z = project_points(points, cameras.select([view]).map(lambda t: t.to(points)))
        size = points.new_tensor([cameras.width, cameras.height])
        seen = ((pixels[0] > 0) & (pixels[0] < size)).all(-1)
        # Hidden points keep the middle of the picture: nothing is read there.
        place = torch.where(seen[:, None], pixels[0], size / 2)
        column, row = place.long().unbind(-1)
        if depth is not None:
            front = depth[view][row, column].to(z)
            known = torch.isfinite(front) & (front > 0)
            seen &= ~known | (z[0] <= front * (1 + tolerance))
        if masks is not None:
            seen &= masks[view][row, column]
        where = (2 * place / size - 1)[None, None].to(features)
        read = functional.grid_sample(
            features[None], where, "bilinear", "border", align_corners=False
        )
        total += read[0, :, 0].T * seen[:, None]
        weights += seen
        done += 1
    if done != len(cameras) or total is None:
        raise ShapeError(f"expected one map for each of {len(cameras)} cameras, got {done}")
    return Lifted(values=_divided(total, weights), weights=weights)


def _divided(total: Tensor, weights: Tensor) -> Tensor:
    """Return the means; splats that hardly anything is seen of have none."""
    known = weights > 1e-6
    return torch.where(known[:, None], total / weights.clamp(min=1e-6)[:, None], 0.0)
