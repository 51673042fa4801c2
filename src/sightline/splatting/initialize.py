"""First splats: from points of any density, or at random where cameras look."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import KDTree
from torch import Tensor, nn

from sightline.errors import InputError
from sightline.geometry.camera import project_points
from sightline.geometry.sh import rgb_to_sh0
from sightline.geometry.trajectory import focus_point
from sightline.splatting.params import GaussianParams
from sightline.types import Cameras, PointCloud


@dataclass(frozen=True, slots=True, kw_only=True)
class InitConfig:
    """What the first splats look like."""

    opacity: float = 0.1
    scale: float = 1.0
    """Standard deviation in units of the mean distance to the three nearest points."""


def initialize_params(
    cloud: PointCloud,
    config: InitConfig,
    *,
    sh_degree: int,
    extent: float,
    generator: torch.Generator,
) -> GaussianParams:
    """Place one round splat at every point (Kerbl et al. 2023, arXiv:2308.04079, sec. 5).

    Args:
        cloud: World points with colours in [0, 1].
        config: Size and opacity.
        sh_degree: Degree of the spherical harmonics; bands above the constant start at zero.
        extent: Size of the scene; splats start no larger than a tenth of it.
        generator: On the CPU; for the orientations, which are uniform.

    Raises:
        InputError: If there is no point.
    """
    count = len(cloud.points)
    if not count:
        raise InputError(
            "splats need at least one starting point, got none; pass points, or random ones from "
            "random_points"
        )
    scale = (neighbor_distance(cloud.points) * config.scale).clamp(1e-6 * extent, 0.1 * extent)
    sh = torch.zeros(count, (sh_degree + 1) ** 2, 3)
    sh[:, 0] = rgb_to_sh0(cloud.colors.float())
    quats = torch.randn(count, 4, generator=generator)
    return GaussianParams(
        means=cloud.points.float(),
        scales=scale.log()[:, None].expand(-1, 3),
        quats=nn.functional.normalize(quats, dim=-1),
        opacities=torch.full((count,), math.log(config.opacity / (1 - config.opacity))),
        sh=sh,
    )


def neighbor_distance(points: Float[Tensor, "N 3"], neighbors: int = 3) -> Float[Tensor, " N"]:
    """Return each point's mean distance to its nearest others; 0 for a single point."""
    count = min(neighbors, len(points) - 1)
    if count < 1:
        return torch.zeros(len(points))
    array = points.detach().cpu().double().numpy()
    distances, _ = KDTree(array).query(array, count + 1)
    return torch.from_numpy(distances[:, 1:].mean(1).astype(np.float32))


def scene_extent(cameras: Cameras, points: Float[Tensor, "N 3"] | None = None) -> float:
    """Return the length that step sizes and thresholds are relative to.

    1.1 times the largest distance of a camera from the cameras' mean, as in 3DGS, but between 0.2
    and 1.25 times the median depth of what is seen: after a short camera move or a panorama that
    radius tells nothing about the scene, and after a long walk it is the length of the walk, and
    steps of that size throw splats across the street.
    """
    centers = cameras.centers.double()
    extent = 1.1 * float((centers - centers.mean(0)).norm(dim=-1).max())
    depth = 0.0 if points is None or not len(points) else _seen_depth(cameras, points)
    if depth:
        extent = min(max(extent, 0.2 * depth), 1.25 * depth)
    return extent if extent > 0 else 1.0


def _seen_depth(cameras: Cameras, points: Tensor, cells: int = 24, most: int = 20_000) -> float:
    """Return the median over cells of the pictures of the nearest point's depth; 0 if none."""
    sample = points[:: max(1, len(points) // most)].double()
    pixels, depth = project_points(sample, cameras.map(lambda t: t.double()))
    size = torch.tensor([cameras.width, cameras.height], dtype=torch.float64)
    view, point = ((pixels > 0) & (pixels < size)).all(-1).nonzero(as_tuple=True)
    cell = (pixels[view, point] * (cells / size.max())).long()
    nearest = torch.full((len(cameras) * cells * cells,), math.inf, dtype=torch.float64)
    nearest.scatter_reduce_(
        0, (view * cells + cell[:, 1]) * cells + cell[:, 0], depth[view, point], "amin"
    )
    seen = nearest[nearest.isfinite()]
    return float(seen.median()) if len(seen) else 0.0


def random_points(cameras: Cameras, count: int, generator: torch.Generator) -> PointCloud:
    """Draw grey points in what the cameras see, for scenes without any known point.

    Depths are log-uniform from a quarter of to four times the cameras' median distance from the
    point that they look at.
    """
    views = torch.randint(len(cameras), (count,), generator=generator)
    uniform = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    size = torch.tensor([cameras.width, cameras.height], dtype=torch.float64)
    K = cameras.K.double()[views]
    focal = torch.stack([K[:, 0, 0], K[:, 1, 1]], -1)
    xy = (uniform[:, :2] * size - K[:, :2, 2]) / focal
    depth = _typical_distance(cameras) * 4 ** (2 * uniform[:, 2] - 1)
    local = torch.cat([xy, torch.ones(count, 1, dtype=torch.float64)], -1) * depth[:, None]
    c2w = cameras.c2w.double()[views]
    points = torch.einsum("nij,nj->ni", c2w[:, :3, :3], local) + c2w[:, :3, 3]
    return PointCloud(points=points.float(), colors=torch.full((count, 3), 0.5))


def _typical_distance(cameras: Cameras) -> float:
    centers = cameras.centers.double()
    ahead = ((focus_point(cameras).double() - centers) * cameras.c2w[:, :3, 2].double()).sum(-1)
    return float(ahead[ahead > 0].median()) if bool((ahead > 0).any()) else 1.0
