"""Similarity transforms: finding them from matched points and applying them to scenes."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.errors import InputError
from sightline.geometry.pose import rigid_matrix
from sightline.geometry.rotation import matrix_to_quat, quat_multiply
from sightline.geometry.sh import rotate_sh
from sightline.types import Cameras, Gaussians, Reconstruction, TensorStruct

_COLLINEAR = 1e-10
"""Ratio of the two largest covariance singular values: a spread of 1e-5 across the main axis."""
_JUDGES = 2048
"""Matches that ``align_robust`` draws from and scores by."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Similarity(TensorStruct):
    """The map ``x -> scale * rotation @ x + translation`` between two worlds."""

    scale: Float[Tensor, ""]
    rotation: Float[Tensor, "3 3"]
    translation: Float[Tensor, "3"]

    @property
    def matrix(self) -> Float[Tensor, "4 4"]:
        """The map as one 4x4 matrix (not rigid: its upper left block is scaled)."""
        return rigid_matrix(self.scale * self.rotation, self.translation)

    def inverse(self) -> "Similarity":
        """Return the map that undoes this one."""
        rotation = self.rotation.mT
        return Similarity(
            scale=1 / self.scale,
            rotation=rotation,
            translation=-(rotation @ self.translation) / self.scale,
        )

    def __matmul__(self, other: "Similarity") -> "Similarity":
        """Return ``other`` followed by this map."""
        return Similarity(
            scale=self.scale * other.scale,
            rotation=self.rotation @ other.rotation,
            translation=transform_points(other.translation, self),
        )


def transform_points(
    points: Float[Tensor, "*batch 3"], similarity: Similarity
) -> Float[Tensor, "*batch 3"]:
    """Move world points."""
    return similarity.scale * (points @ similarity.rotation.mT) + similarity.translation


def transform_cameras(cameras: Cameras, similarity: Similarity) -> Cameras:
    """Move cameras with the world; pictures stay and z-depths are multiplied by the scale."""
    rotation = cameras.w2c[:, :3, :3] @ similarity.rotation.mT
    centers = transform_points(cameras.centers, similarity)
    translation = -(rotation @ centers[..., None])[..., 0]
    return replace(cameras, w2c=rigid_matrix(rotation, translation))


def transform_gaussians(gaussians: Gaussians, similarity: Similarity) -> Gaussians:
    """Move splats with the world, their view-dependent colours included."""
    turn = matrix_to_quat(similarity.rotation)
    return replace(
        gaussians,
        means=transform_points(gaussians.means, similarity),
        quats=quat_multiply(turn, gaussians.quats),
        scales=gaussians.scales * similarity.scale,
        sh=rotate_sh(gaussians.sh, similarity.rotation),
    )


def transform_reconstruction(
    reconstruction: Reconstruction, similarity: Similarity, *, metric: bool = False
) -> Reconstruction:
    """Move a whole reconstruction; ``raw`` stays the model's own output.

    Args:
        reconstruction: What to move.
        similarity: To the new world.
        metric: True when the new world's unit is a metre.
    """
    points, depth, sparse = reconstruction.points, reconstruction.depth, reconstruction.sparse
    if sparse is not None:
        sparse = replace(sparse, points=transform_points(sparse.points, similarity))
    return replace(
        reconstruction,
        cameras=transform_cameras(reconstruction.cameras, similarity),
        metric=metric,
        depth=None if depth is None else depth * similarity.scale,
        points=None if points is None else transform_points(points, similarity),
        sparse=sparse,
    )


def _solve_umeyama(
    source: Float[Tensor, "*batch N 3"],
    target: Float[Tensor, "*batch N 3"],
    weights: Float[Tensor, "*batch N"],
    *,
    with_scale: bool,
) -> tuple[
    Float[Tensor, "*batch"],
    Float[Tensor, "*batch 3 3"],
    Float[Tensor, "*batch 3"],
    Float[Tensor, "*batch"],
]:
    """Return scales, rotations, translations and how far from collinear the points are."""
    weights = (weights / weights.sum(-1, keepdim=True))[..., None]
    source_mean = (weights * source).sum(-2, keepdim=True)
    target_mean = (weights * target).sum(-2, keepdim=True)
    source, target = source - source_mean, target - target_mean
    covariance = (weights * target).mT @ source
    u, sigma, vt = torch.linalg.svd(covariance)
    sign = torch.ones_like(sigma)
    sign[..., 2] = torch.where(torch.linalg.det(u) * torch.linalg.det(vt) < 0, -1.0, 1.0)
    rotation = (u * sign[..., None, :]) @ vt
    variance = (weights * source.square()).sum((-2, -1))
    scale = (sigma * sign).sum(-1) / variance if with_scale else torch.ones_like(variance)
    moved = scale[..., None] * (rotation @ source_mean.mT)[..., 0]
    # Both clouds must span a plane; the covariance alone is also small for unrelated clouds.
    spread = torch.stack([_spread(source, weights), _spread(target, weights)]).amin(0)
    return scale, rotation, target_mean[..., 0, :] - moved, spread


def _spread(points: Float[Tensor, "*batch N 3"], weights: Float[Tensor, "*batch N 1"]) -> Tensor:
    values = torch.linalg.eigvalsh((weights * points).mT @ points)
    tiny = torch.finfo(points.dtype).tiny
    return torch.where(values[..., 2] > tiny, values[..., 1] / values[..., 2].clamp_min(tiny), 0.0)


def _checked(source: Tensor, target: Tensor, weights: Tensor | None) -> tuple[Tensor, ...]:
    if weights is None:
        weights = torch.ones_like(source[:, 0])
    if not all(bool(torch.isfinite(t).all()) for t in (source, target, weights)):
        msg = "alignment needs finite points and weights, got NaN or infinity; drop those rows"
        raise InputError(msg)
    if bool((weights < 0).any()) or int((weights > 0).sum()) < 3:
        msg = (
            "alignment needs at least 3 matched points with positive weight, "
            f"got {int((weights > 0).sum())} of {len(source)}; add matches"
        )
        raise InputError(msg)
    # Double precision inside: world offsets far from the origin would cancel in single.
    return source.double(), target.double(), weights.double()


_ON_A_LINE = (
    "alignment needs points that do not lie on one line (the turn about it is free), "
    "got {count} points on a line; add points or align with known rotations"
)


def align_umeyama(
    source: Float[Tensor, "N 3"],
    target: Float[Tensor, "N 3"],
    weights: Float[Tensor, " N"] | None = None,
    *,
    with_scale: bool = True,
) -> Similarity:
    """Find the similarity with the least weighted squared error from ``source`` to ``target``.

    Closed form, never a reflection; differentiable. Points in one plane are enough.

    Args:
        source: Points of the first world.
        target: The same points in the second.
        weights: At least 0; all 1 when absent.
        with_scale: False fixes the scale at 1 (Kabsch).

    Raises:
        InputError: With fewer than 3 points, values that are not finite, or all points on a line.

    Umeyama, PAMI 13(4), 1991.

    >>> source = torch.rand(10, 3)
    >>> found = align_umeyama(source, 2 * source + 1)
    >>> [round(float(value), 3) for value in (found.scale, *found.translation)]
    [2.0, 1.0, 1.0, 1.0]
    """
    dtype = source.dtype
    source, target, weights = _checked(source, target, weights)
    scale, rotation, translation, spread = _solve_umeyama(
        source, target, weights, with_scale=with_scale
    )
    if float(spread.detach()) < _COLLINEAR:
        raise InputError(_ON_A_LINE.format(count=len(source)))
    return Similarity(scale=scale, rotation=rotation, translation=translation).map(
        lambda t: t.to(dtype)
    )


def align_robust(
    source: Float[Tensor, "N 3"],
    target: Float[Tensor, "N 3"],
    weights: Float[Tensor, " N"] | None = None,
    *,
    trials: int = 512,
    seed: int = 0,
) -> Similarity:
    """Find the similarity that fits the majority of the matches.

    Least median of squares over random triplets (Rousseeuw 1984), then two least-squares fits to
    the matches within 2.5 robust standard deviations. Bears just under half of the matches wrong.

    Args:
        source: Points of the first world.
        target: The same points in the second.
        weights: At least 0; all 1 when absent. They count in the fits, not in the choice.
        trials: Triplets tried. 512 find a good one among 40 % wrong matches in all but one of
            1e50 runs, among 49 % in all but one of 1e31.
        seed: Of the triplets.

    Raises:
        InputError: As ``align_umeyama``.
    """
    dtype = source.dtype
    source, target, weights = _checked(source, target, weights)
    index = weights.nonzero()[:, 0]
    source, target, weights = source[index], target[index], weights[index]
    generator = torch.Generator().manual_seed(seed)
    # A sample bounds memory: its median is as good a judge as that of a million matches.
    judges = torch.randperm(len(index), generator=generator)[:_JUDGES].to(source.device)
    some_source, some_target = source[judges], target[judges]
    draws = torch.rand(trials, len(judges), generator=generator).topk(3, dim=-1).indices
    draws = draws.to(source.device)
    ones = torch.ones(trials, 3, dtype=source.dtype, device=source.device)
    scale, rotation, translation, spread = _solve_umeyama(
        some_source[draws], some_target[draws], ones, with_scale=True
    )
    usable = spread > _COLLINEAR
    if not bool(usable.any()):
        raise InputError(_ON_A_LINE.format(count=len(source)))
    moved = scale[:, None, None] * (some_source @ rotation.mT) + translation[:, None]
    medians = (moved - some_target).square().sum(-1).median(-1).values
    best = int(torch.where(usable, medians, torch.inf).argmin())
    fit = Similarity(scale=scale[best], rotation=rotation[best], translation=translation[best])
    for _ in range(2):
        residuals = torch.linalg.vector_norm(transform_points(source, fit) - target, dim=-1)
        # 1.4826 turns a median deviation into a standard one; the floor keeps exact matches.
        extent = (target - target.mean(0)).abs().amax()
        deviation = 1.4826 * residuals.median()
        inliers = residuals <= 2.5 * deviation + 1e-9 * extent
        fit = align_umeyama(source, target, weights * inliers)
    return fit.map(lambda t: t.to(dtype))
