"""Camera paths for videos, derived from the cameras that took the pictures.

Every path scales and turns with the world, keeps the subject in view and uses the median lens of
the reference cameras. Paths of Feat2GS (arXiv:2412.09606), LLFF (arXiv:1905.00889) and mip-NeRF
360 (arXiv:2111.12077), with their degenerate cases (parallel axes, full circles) made safe.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.errors import InputError, UnknownNameError
from sightline.geometry.pose import invert_se3, look_at, rigid_matrix
from sightline.geometry.rotation import (
    matrix_to_quat,
    normalize_quat,
    quat_to_matrix,
    rotation_angle,
)
from sightline.types import Cameras


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryOptions:
    """Shape of the paths; angles in degrees, as in the published per-scene settings."""

    arc_degrees: float | None = None
    """Whole swing of ``arc``; None covers what the reference cameras cover, from 40 to 180."""
    spiral_turns: float = 1.0
    spiral_depth_rate: float = 0.5
    """Depth waves per turn of ``spiral``; turns times rate in halves closes the path."""
    lemniscate_degrees: float = 45.0
    """Viewing angle spanned by the eight."""
    wander_fraction: float = 48 / 512
    """Largest shift of the focus in the picture, as a fraction of the picture's width."""


@dataclass(frozen=True, slots=True)
class _Capture:
    """What the paths need to know of the reference cameras, in float64."""

    c2w: Float[Tensor, "V 4 4"]
    focus: Float[Tensor, "3"]
    up: Float[Tensor, "3"]
    average: Float[Tensor, "4 4"]
    """Camera-to-world that stands for all: their mean, or the first where the mean is useless."""
    half_width: float
    """Half the picture's width over the focal length."""

    @property
    def offsets(self) -> Float[Tensor, "V 3"]:
        """Camera centres relative to the focus."""
        return self.c2w[:, :3, 3] - self.focus

    @property
    def distance(self) -> float:
        """From the average camera to the focus."""
        return float(torch.linalg.vector_norm(self.average[:3, 3] - self.focus))

    @property
    def horizon(self) -> Float[Tensor, "2 3"]:
        """Two unit vectors across ``up``; the first points from the focus to the average camera."""
        toward = self.average[:3, 3] - self.focus
        flat = toward - (toward @ self.up) * self.up
        if float(torch.linalg.vector_norm(flat)) < 1e-6 * max(self.distance, 1e-300):
            flat = torch.linalg.cross(self.up, self.average[:3, 0])
        first = torch.nn.functional.normalize(flat, dim=0)
        return torch.stack([first, torch.linalg.cross(self.up, first)])

    @property
    def ring(self) -> tuple[float, float]:
        """Median radius about the axis through the focus, and median height above the focus."""
        heights = self.offsets @ self.up
        radii = torch.linalg.vector_norm(self.offsets - heights[:, None] * self.up, dim=-1)
        # Cameras right above the subject would turn on the spot: keep some radius.
        radius = max(float(radii.median()), 0.2 * self.distance)
        return radius, float(heights.median())


def _posed(cameras: Cameras) -> Cameras:
    """Return the cameras that have a pose, in float64 and cut from the graph."""
    known = torch.isfinite(cameras.w2c).all(-1).all(-1)
    posed = cameras.select(known).map(lambda t: t.detach().double())
    if len(posed) == 0:
        msg = (
            f"a camera path needs at least one camera with a pose, got none among {len(cameras)}; "
            "reconstruct more pictures"
        )
        raise InputError(msg)
    return posed


def mean_up(cameras: Cameras) -> Float[Tensor, "3"]:
    """Return the unit world direction that is up in the pictures.

    People tilt cameras but seldom roll them: where the cameras' horizontal axes span a plane, its
    normal is up, whatever the tilt; else it is the mean of the pictures' own up.
    """
    return _up(_posed(cameras).c2w).to(cameras.w2c.dtype)


def _up(c2w: Float[Tensor, "V 4 4"]) -> Float[Tensor, "3"]:
    mean = -c2w[:, :3, 1].mean(0)
    if float(torch.linalg.vector_norm(mean)) < 1e-3:
        mean = -c2w[0, :3, 1]
    right = c2w[:, :3, 0]
    values, vectors = torch.linalg.eigh(right.mT @ right / len(right))
    normal = vectors[:, 0]
    agreement = float(normal @ mean) / float(torch.linalg.vector_norm(mean))
    # A clear plane (20 degrees of turn at least), not one across the pictures' own up.
    if float(values[1]) > max(10 * float(values[0]), 0.03) and abs(agreement) > 0.5:
        return normal * math.copysign(1.0, agreement)
    return torch.nn.functional.normalize(mean, dim=0)


def focus_point(cameras: Cameras) -> Float[Tensor, "3"]:
    """Return the world point that the cameras look at.

    It is the point with the least squared distance to all optical axes. Where the axes are
    parallel to within two degrees, or that point is behind the cameras, it is put straight ahead:
    three times as far as the cameras are apart, or one unit from a single camera.
    """
    return _focus(_posed(cameras).c2w).to(cameras.w2c.dtype)


def _focus(c2w: Float[Tensor, "V 4 4"]) -> Float[Tensor, "3"]:
    centers, axes = c2w[:, :3, 3], c2w[:, :3, 2]
    across = torch.eye(3, dtype=c2w.dtype, device=c2w.device) - axes[:, :, None] * axes[:, None]
    normal = across.mean(0)
    # The smallest eigenvalue is the mean squared sine between the axes and their main direction.
    if float(torch.linalg.eigvalsh(normal)[0]) > math.sin(math.radians(2.0)) ** 2:
        right = (across @ centers[..., None])[..., 0].mean(0)
        point = torch.linalg.solve(normal, right)
        ahead = ((point - centers) * axes).sum(-1) > 0
        if float(ahead.double().mean()) > 0.5:
            return point
    forward = torch.nn.functional.normalize(_mean_camera(c2w)[:3, 2], dim=0)
    extent = float(torch.cdist(centers, centers).max())
    return centers.mean(0) + forward * (3 * extent if extent > 0 else 1.0)


def _mean_camera(c2w: Float[Tensor, "V 4 4"]) -> Float[Tensor, "4 4"]:
    """Return the camera at the mean centre with the mean viewing direction and mean up."""
    forward, up = c2w[:, :3, 2].mean(0), -c2w[:, :3, 1].mean(0)
    if float(torch.linalg.vector_norm(forward)) < 1e-3:
        forward = c2w[0, :3, 2]
    if float(torch.linalg.vector_norm(up)) < 1e-3:
        up = -c2w[0, :3, 1]
    center = c2w[:, :3, 3].mean(0)
    return look_at(center, center + torch.nn.functional.normalize(forward, dim=0), up)


def _describe(cameras: Cameras, focus: Tensor | None) -> _Capture:
    c2w = cameras.c2w
    target = _focus(c2w) if focus is None else focus.to(c2w)
    up = _up(c2w)
    average = _mean_camera(c2w)
    typical = float(torch.linalg.vector_norm(c2w[:, :3, 3] - target, dim=-1).median())
    if float(torch.linalg.vector_norm(average[:3, 3] - target)) < 0.5 * typical:
        # Cameras all around: their mean is inside the subject, so the first one stands for them.
        average = c2w[0]
    half_width = cameras.width / (2 * float(cameras.K[:, 0, 0].median()))
    return _Capture(c2w, target, up, average, half_width)


def _around(
    capture: _Capture, angles: Float[Tensor, " F"], radius: Float[Tensor, " F"] | float
) -> Float[Tensor, "F 3"]:
    """Return points on a ring around the focus, angle 0 at the average camera."""
    first, second = capture.horizon
    _, height = capture.ring
    flat = angles.cos()[:, None] * first + angles.sin()[:, None] * second
    radius = torch.as_tensor(radius, dtype=angles.dtype, device=angles.device)
    return capture.focus + radius[..., None] * flat + height * capture.up


def _facing(capture: _Capture, eyes: Float[Tensor, "F 3"]) -> Float[Tensor, "F 4 4"]:
    return look_at(eyes, capture.focus, capture.up)


def _orbit(
    capture: _Capture, phase: Float[Tensor, " F"], _: TrajectoryOptions
) -> Float[Tensor, "F 4 4"]:
    """Full circle at the cameras' median radius and height, starting at the average camera."""
    return _facing(capture, _around(capture, 2 * math.pi * phase, capture.ring[0]))


def _arc(
    capture: _Capture, phase: Float[Tensor, " F"], options: TrajectoryOptions
) -> Float[Tensor, "F 4 4"]:
    """Swing to one side, to the other and back."""
    swing = options.arc_degrees
    if swing is None:
        first, second = capture.horizon
        azimuths = torch.atan2(capture.offsets @ second, capture.offsets @ first)
        swing = math.degrees(float(azimuths.max() - azimuths.min()))
        swing = min(max(swing, 40.0), 180.0)
    angles = math.radians(swing) / 2 * torch.sin(2 * math.pi * phase)
    return _facing(capture, _around(capture, angles, capture.ring[0]))


def _spiral(
    capture: _Capture, phase: Float[Tensor, " F"], options: TrajectoryOptions
) -> Float[Tensor, "F 4 4"]:
    """Turn around the average camera's axis, coming closer and back (LLFF)."""
    local = (capture.c2w[:, :3, 3] - capture.average[:3, 3]) @ capture.average[:3, :3]
    radii = 1.25 * (local.amax(0) - local.amin(0))
    # Wide captures would send the camera through the subject, single ones would not move at all.
    widest = torch.tensor([0.3, 0.2, 0.25], dtype=radii.dtype, device=radii.device)
    radii = torch.minimum(
        torch.maximum(radii, 0.15 * widest * capture.distance), widest * capture.distance
    )
    t = 2 * math.pi * options.spiral_turns * phase
    local = torch.stack([t.cos(), -t.sin(), -(options.spiral_depth_rate * t).sin()], -1) * radii
    return _facing(capture, local @ capture.average[:3, :3].mT + capture.average[:3, 3])


def _lemniscate(
    capture: _Capture, phase: Float[Tensor, " F"], options: TrajectoryOptions
) -> Float[Tensor, "F 4 4"]:
    """Lying eight across the average camera's axis, starting at its crossing."""
    size = capture.distance * math.tan(math.radians(options.lemniscate_degrees) / 2)
    t = math.pi / 2 + 2 * math.pi * phase
    x = size * t.cos() / (1 + t.sin().square())
    local = torch.stack([x, x * t.sin(), torch.zeros_like(x)], -1)
    return _facing(capture, local @ capture.average[:3, :3].mT + capture.average[:3, 3])


def _ellipse(
    capture: _Capture, phase: Float[Tensor, " F"], _: TrajectoryOptions
) -> Float[Tensor, "F 4 4"]:
    """Ellipse that nine in ten cameras lie within, at constant speed (mip-NeRF 360)."""
    first, second = capture.horizon
    flat = torch.stack([capture.offsets @ first, capture.offsets @ second], -1)
    _, axes = torch.linalg.eigh(flat.mT @ flat)
    half = torch.quantile((flat @ axes).abs(), 0.9, dim=0)
    # Captures from one side have no second axis: keep the path clear of the subject.
    half = half.clamp_min(max(0.5 * float(half.max()), 0.2 * capture.distance))
    # The point of the ellipse on the average camera's side starts the path.
    start = torch.atan2(axes[0, 1] / half[1], axes[0, 0] / half[0])
    dense = start + torch.linspace(0, 2 * math.pi, 2049, dtype=phase.dtype, device=phase.device)
    if float(torch.linalg.det(axes)) < 0:
        dense = 2 * start - dense  # same turning sense as the orbit
    curve = torch.stack([dense.cos() * half[0], dense.sin() * half[1]], -1) @ axes.mT
    steps = torch.linalg.vector_norm(curve.diff(dim=0), dim=-1)
    walked = torch.cat([torch.zeros_like(steps[:1]), steps.cumsum(0)])
    at = phase * walked[-1]
    right = torch.searchsorted(walked, at, right=True).clamp(1, len(walked) - 1)
    share = ((at - walked[right - 1]) / (walked[right] - walked[right - 1]))[:, None]
    spot = torch.lerp(curve[right - 1], curve[right], share)
    eyes = capture.focus + spot @ capture.horizon + capture.ring[1] * capture.up
    return _facing(capture, eyes)


def _wander(
    capture: _Capture, phase: Float[Tensor, " F"], options: TrajectoryOptions
) -> Float[Tensor, "F 4 4"]:
    """Small circle of the average camera, sideways and forth, with its orientation kept."""
    t = 2 * math.pi * phase
    reach = 2 * options.wander_fraction * capture.half_width * capture.distance
    local = torch.stack([t.sin(), torch.zeros_like(t), t.cos() / 2], -1) * -reach
    eyes = local @ capture.average[:3, :3].mT + capture.average[:3, 3]
    return rigid_matrix(capture.average[:3, :3].expand(len(t), 3, 3), eyes)


def _interpolate(
    capture: _Capture, phase: Float[Tensor, " F"], _: TrajectoryOptions
) -> Float[Tensor, "F 4 4"]:
    """Pass through every reference camera in order, without kinks and at an even pace.

    Cubic Hermite curves over centres and sign-aligned quaternions; knots are as far apart as the
    cameras are, in place and in angle.
    """
    c2w = capture.c2w
    if len(c2w) == 1:
        return c2w.expand(len(phase), 4, 4)
    quats = matrix_to_quat(c2w[:, :3, :3])
    flips = torch.where((quats[1:] * quats[:-1]).sum(-1) < 0, -1.0, 1.0).cumprod(0)
    quats = torch.cat([quats[:1], quats[1:] * flips[:, None]])
    values = torch.cat([c2w[:, :3, 3], quats], -1)  # [V, 7]
    moved = torch.linalg.vector_norm(c2w[1:, :3, 3] - c2w[:-1, :3, 3], dim=-1)
    turned = rotation_angle(c2w[1:, :3, :3], c2w[:-1, :3, :3])
    gaps = moved / moved.mean().clamp_min(1e-12) + turned / turned.mean().clamp_min(1e-12)
    gaps = gaps.clamp_min(0.1)
    knots = torch.cat([torch.zeros_like(gaps[:1]), gaps.cumsum(0)])
    slopes = values.diff(dim=0) / gaps[:, None]
    before, after = gaps[:-1, None], gaps[1:, None]
    inner = (slopes[:-1] * after + slopes[1:] * before) / (before + after)
    tangents = torch.cat([slopes[:1], inner, slopes[-1:]])
    at = phase / phase.max().clamp_min(1e-12) * knots[-1]
    left = (torch.searchsorted(knots, at, right=True) - 1).clamp(0, len(gaps) - 1)
    gap = gaps[left, None]
    s = (at - knots[left])[:, None] / gap
    blended = (
        (2 * s**3 - 3 * s**2 + 1) * values[left]
        + (s**3 - 2 * s**2 + s) * gap * tangents[left]
        + (3 * s**2 - 2 * s**3) * values[left + 1]
        + (s**3 - s**2) * gap * tangents[left + 1]
    )
    return rigid_matrix(quat_to_matrix(normalize_quat(blended[:, 3:])), blended[:, :3])


_Path = Callable[[_Capture, Tensor, TrajectoryOptions], Tensor]

TRAJECTORIES: dict[str, _Path] = {
    "orbit": _orbit,
    "spiral": _spiral,
    "ellipse": _ellipse,
    "arc": _arc,
    "lemniscate": _lemniscate,
    "wander": _wander,
    "interpolate": _interpolate,
}
"""Path by name. All but ``interpolate`` close: after the last frame comes the first."""


def make_trajectory(
    name: str,
    cameras: Cameras,
    num_frames: int,
    focus: Float[Tensor, "3"] | None = None,
    options: TrajectoryOptions | None = None,
) -> Cameras:
    """Make the cameras of a video.

    Args:
        name: A key of ``TRAJECTORIES``.
        cameras: Reference cameras; those without a pose (NaN) are ignored.
        num_frames: Length of the path, at least 1.
        focus: World point to look at; ``focus_point(cameras)`` when absent.
        options: Shape of the path.

    Returns:
        Cameras with the reference cameras' picture size and median lens. All paths but
        ``interpolate``, which ends at the last camera, can be played in a loop.

    Raises:
        UnknownNameError: If there is no such path.
        InputError: If no camera has a pose or no frame is asked for.
    """
    if name not in TRAJECTORIES:
        raise UnknownNameError("camera path", name, TRAJECTORIES)
    if num_frames < 1:
        msg = f"a camera path needs at least 1 frame, got {num_frames}; ask for more frames"
        raise InputError(msg)
    dtype, cameras = cameras.w2c.dtype, _posed(cameras)
    capture = _describe(cameras, focus)
    phase = torch.arange(num_frames, dtype=torch.float64, device=cameras.w2c.device) / num_frames
    c2w = TRAJECTORIES[name](capture, phase, options or TrajectoryOptions())
    return Cameras(
        w2c=invert_se3(c2w).to(dtype),
        K=cameras.K.median(dim=0).values.to(dtype).expand(num_frames, 3, 3).clone(),
        height=cameras.height,
        width=cameras.width,
    )
