"""How near estimated cameras are to reference cameras."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.errors import InputError
from sightline.geometry.align import Similarity, align_umeyama, transform_points
from sightline.geometry.pose import camera_centers, invert_se3
from sightline.geometry.rotation import rotation_angle

Degrees = int | float
"""A threshold; a name, because the tests' type checker takes no integer for a float."""


def relative_pose_errors(
    estimated: Float[Tensor, "V 4 4"],
    reference: Float[Tensor, "V 4 4"],
    *,
    either_sign: bool = False,
) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
    """Compare the motion between every pair of cameras; no alignment needed.

    Args:
        estimated: ``w2c``; cameras that were not found are NaN.
        reference: ``w2c``.
        either_sign: Take opposite directions of translation for equal, as the published numbers
            of PoseDiffusion and VGGT do.

    Returns:
        Degrees between the relative rotations, and between the directions of the relative
        translations (which have no scale), for the V (V - 1) / 2 pairs in order. A pair with a
        missing camera counts as 180 degrees. Where the reference does not move, the direction is
        undefined and its error is that of the rotation alone, 0.
    """
    first, second = torch.triu_indices(len(estimated), len(estimated), 1)
    from_first = [(w2c[second] @ invert_se3(w2c[first])).double() for w2c in (estimated, reference)]
    missing = ~torch.isfinite(from_first[0]).all(-1).all(-1)
    eye = torch.eye(4, dtype=torch.float64, device=estimated.device)
    found = torch.where(missing[:, None, None], eye, from_first[0])
    truth = from_first[1]
    rotation = torch.rad2deg(rotation_angle(found[:, :3, :3], truth[:, :3, :3]))
    a, b = found[:, :3, 3], truth[:, :3, 3]
    length_a, length_b = (torch.linalg.vector_norm(t, dim=-1, keepdim=True) for t in (a, b))
    a, b = a / length_a.clamp_min(1e-12), b / length_b.clamp_min(1e-12)
    # atan2 of chord lengths: exact for tiny angles and for opposite directions.
    apart, together = (torch.linalg.vector_norm(t, dim=-1) for t in (a - b, a + b))
    direction = torch.rad2deg(2 * torch.atan2(apart, together))
    if either_sign:
        direction = torch.minimum(direction, 180 - direction)
    still = length_b[:, 0] < 1e-9
    direction = torch.where(still, 0.0, direction)
    worst = torch.tensor(180.0, dtype=torch.float64, device=estimated.device)
    return torch.where(missing, worst, rotation), torch.where(missing, worst, direction)


def accuracy(errors: Float[Tensor, " P"], threshold: Degrees) -> float:
    """Return the share of errors below a threshold: RRA@t or RTA@t from relative pose errors."""
    return float((errors < threshold).double().mean()) if len(errors) else math.nan


def area_under_curve(
    rotation: Float[Tensor, " P"], direction: Float[Tensor, " P"], threshold: int
) -> float:
    """Return AUC@threshold as PoseDiffusion and VGGT compute it.

    The mean of the accuracy of the larger of both errors over the thresholds 1, 2, ... degrees,
    from a histogram with bins of one degree.
    """
    worst = torch.maximum(rotation, direction)
    if len(worst) == 0:
        return math.nan
    counts = torch.histc(worst.clamp_max(1e6), bins=threshold, min=0, max=threshold)
    return float((counts / len(worst)).cumsum(0).mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class PoseErrors:
    """What is left between two sets of cameras once their worlds are aligned.

    Means are over the cameras that were found.
    """

    found: int
    total: int
    rotation_degrees: float
    """Mean angle between orientations, after alignment."""
    center_error: float
    """Mean distance between centres, as a fraction of the largest distance between two reference
    centres."""
    ate: float
    """Root mean square distance between centres, in the reference's units."""
    alignment: Similarity
    """From the estimate's world to the reference's."""
    rra: dict[int, float]
    """Share of pairs whose relative rotation is within 5, 15, 30 degrees."""
    rta: dict[int, float]
    """Share of pairs whose direction of translation is within 5, 15, 30 degrees."""
    auc: dict[int, float]
    """Area under the curve of the larger of both, up to 5, 10, 30 degrees."""


def align_cameras(
    estimated: Float[Tensor, "V 4 4"], reference: Float[Tensor, "V 4 4"]
) -> Similarity:
    """Find the similarity that maps the estimated cameras' world to the reference's.

    Umeyama over the centres. Centres on a line (to within a hundredth of its length) leave the
    turn about it to chance, and one place leaves all open; then the turn is the mean rotation
    between the orientations, and scale and shift follow from the centres.

    Args:
        estimated: ``w2c``, finite.
        reference: ``w2c`` of the same cameras.
    """
    estimated, reference = estimated.double(), reference.double()
    source, target = camera_centers(estimated), camera_centers(reference)
    if all(_spans_a_plane(centers) for centers in (source, target)):
        return align_umeyama(source, target)
    turns = reference[:, :3, :3].mT @ estimated[:, :3, :3]
    u, _, vt = torch.linalg.svd(turns.mean(0))
    sign = torch.ones(3, dtype=torch.float64, device=estimated.device)
    sign[2] = torch.linalg.det(u) * torch.linalg.det(vt)
    rotation = (u * sign) @ vt
    a = (source - source.mean(0)) @ rotation.mT
    b = target - target.mean(0)
    spread = a.square().sum()
    scale = (a * b).sum() / spread if float(spread) > 1e-18 else torch.ones_like(spread)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return Similarity(
        scale=scale,
        rotation=rotation,
        translation=target.mean(0) - scale * rotation @ source.mean(0),
    )


def _spans_a_plane(centers: Float[Tensor, "V 3"]) -> bool:
    if len(centers) < 3:
        return False
    lengths = torch.linalg.svdvals(centers - centers.mean(0))
    return bool(lengths[1] > 0.01 * lengths[0])


def compare_poses(
    estimated: Float[Tensor, "V 4 4"],
    reference: Float[Tensor, "V 4 4"],
    thresholds: Sequence[int] = (5, 15, 30),
) -> PoseErrors:
    """Align the estimated cameras with the reference and measure what is left.

    Args:
        estimated: ``w2c``; cameras that were not found are NaN and count in the shares only.
        reference: ``w2c`` of the same cameras, finite.
        thresholds: Degrees of ``rra`` and ``rta``.

    Raises:
        InputError: If the reference is not finite or no camera was found.
    """
    if not bool(torch.isfinite(reference).all()):
        raise InputError("reference cameras must be finite, got NaN; leave such views out")
    found = torch.isfinite(estimated).all(-1).all(-1)
    if not bool(found.any()):
        msg = f"none of the {len(estimated)} estimated cameras has a pose; nothing to compare"
        raise InputError(msg)
    a, b = estimated[found].double(), reference[found].double()
    similarity = align_cameras(a, b)
    apart = torch.linalg.vector_norm(
        transform_points(camera_centers(a), similarity) - camera_centers(b), dim=-1
    )
    centers = camera_centers(reference.double())
    extent = float(torch.cdist(centers, centers).max())
    turned = rotation_angle(a[:, :3, :3] @ similarity.rotation.mT, b[:, :3, :3])
    rotation, direction = relative_pose_errors(estimated, reference)
    return PoseErrors(
        found=int(found.sum()),
        total=len(estimated),
        rotation_degrees=math.degrees(float(turned.mean())),
        center_error=float(apart.mean()) / extent if extent > 0 else math.nan,
        ate=float(apart.square().mean().sqrt()),
        alignment=similarity,
        rra={t: accuracy(rotation, t) for t in thresholds},
        rta={t: accuracy(direction, t) for t in thresholds},
        auc={t: area_under_curve(rotation, direction, t) for t in (5, 10, 30)},
    )
