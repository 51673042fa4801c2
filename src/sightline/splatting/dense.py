"""Many more starting points for splats: optical flow between neighbouring views, triangulated.

Structure from motion leaves points at corners only, and growing splats from there takes thousands
of steps. With the cameras known, flow between a view and its neighbours gives depth at nearly
every textured pixel, in seconds on a CPU. A pixel is kept only if forward and backward flow agree
and its matches meet in one point, so a wrong flow costs coverage but hardly ever accuracy.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from numpy import ndarray
from torch import Tensor

from sightline.geometry.camera import project_points
from sightline.geometry.trajectory import focus_point
from sightline.protocols import Progress
from sightline.types import Cameras, TensorStruct


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseOptions:
    """What counts as a match."""

    neighbors: int = 4
    """Views that each view is matched with."""
    stride: int = 3
    """One candidate in every ``stride`` x ``stride`` pixels."""
    max_error: float = 1.0
    """Largest reprojection error, and largest disagreement of the two flows, in pixels."""
    min_views: int = 1
    """Fewest neighbours that must agree (all, where a view has fewer)."""
    min_angle: float = 1.0
    """Smallest angle, in degrees, between the rays that meet in a point."""
    ideal_angle: float = 6.0
    """Angle, in degrees, that neighbours are chosen by."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DensePoints(TensorStruct):
    """Triangulated pixels."""

    points: Float[Tensor, "N 3"]
    colors: Float[Tensor, "N 3"]
    """In [0, 1]."""
    spacing: Float[Tensor, " N"]
    """Distance between neighbouring candidates at the point, in scene units."""
    errors: Float[Tensor, " N"]
    """Mean reprojection error in pixels."""

    def __len__(self) -> int:
        """Return the number of points."""
        return self.points.shape[0]


@dataclass(frozen=True, slots=True)
class _View:
    """One picture with its camera, in float64 numpy."""

    gray: ndarray
    color: ndarray
    mask: ndarray | None
    rotation: ndarray
    translation: ndarray
    K: ndarray

    @property
    def center(self) -> ndarray:
        return -self.rotation.T @ self.translation


def match_densely(
    images: UInt8[Tensor, "V 3 H W"],
    masks: Bool[Tensor, "V H W"] | None,
    cameras: Cameras,
    points: Float[Tensor, "N 3"] | None = None,
    *,
    options: DenseOptions | None = None,
    progress: Progress | None = None,
) -> DensePoints:
    """Triangulate pixels of every view from flow to its neighbours.

    Args:
        images: Pictures.
        masks: True where a pixel counts.
        cameras: Their cameras.
        points: Some known world points, which tell which views look at the same place and from
            which distance; without them the point nearest to all optical axes stands in.
        options: What counts as a match.
        progress: Called as ``progress("splats", done, total)``.

    Returns:
        Points of all views together; a place seen in many views occurs many times. None for
        pictures of less than 16 pixels.

    Flow is Dense Inverse Search (Kroeger et al. 2016, arXiv:1603.03590). Each neighbour is first
    warped by the plane through the middle of the scene that faces the view, so that the flow only
    has to find what parallax is left.
    """
    options = options or DenseOptions()
    known = _anchor_points(cameras, points)
    neighbors = choose_neighbors(cameras, known, options)
    views = [_make_view(images, masks, cameras, v) for v in range(len(cameras))]
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    large_enough = min(images.shape[2:]) >= _MIN_SIDE
    found: list[tuple[ndarray, ...]] = []
    for v, view in enumerate(views):
        others = [views[n] for n in neighbors[v].tolist() if n >= 0 and large_enough]
        distance = _plane_distance(view, known)
        if others and distance > 0:
            found.append(_triangulate(view, others, distance, flow, options))
        if progress is not None:
            progress("splats", float(v + 1), float(len(views)))
    arrays = [np.concatenate(parts) for parts in zip(*found, strict=True)] if found else _NOTHING
    points_, colors, spacing, errors = (torch.from_numpy(a.astype(np.float32)) for a in arrays)
    return DensePoints(points=points_, colors=colors, spacing=spacing, errors=errors)


_PRIMES = torch.tensor([73856093_19349663, 1_000_000_007_083, 83492791_15485863, 2_654_435_761])
_NOTHING = (np.empty((0, 3)), np.empty((0, 3)), np.empty(0), np.empty(0))
_MAX_ANCHORS = 2000
_MIN_SIDE = 16
"""Flow needs patches of 8 pixels on two scales; smaller pictures have no matches."""


def _anchor_points(cameras: Cameras, points: Tensor | None) -> Float[Tensor, "M 3"]:
    if points is not None and len(points):
        step = max(1, math.ceil(len(points) / _MAX_ANCHORS))
        return points[::step].double()
    return focus_point(cameras).double()[None]


def choose_neighbors(
    cameras: Cameras, anchors: Float[Tensor, "M 3"], options: DenseOptions
) -> Int64[Tensor, "V K"]:
    """Choose for every view the views that see the same anchors at a useful angle.

    Returns:
        Indices, best first; -1 where there are fewer than ``options.neighbors``.

    The score of a pair is a sum over the anchors in both pictures, a Gaussian of the angle between
    their rays around the ideal one, narrow below and wide above (as in MVSNet, arXiv:1804.02505).
    """
    cameras = cameras.map(lambda t: t.double())
    pixels, _ = project_points(anchors, cameras)
    size = torch.tensor([cameras.width, cameras.height], dtype=torch.float64)
    inside = ((pixels > 0) & (pixels < size)).all(-1)  # [V, M]; NaN behind the camera is outside
    rays = torch.nn.functional.normalize(anchors - cameras.centers[:, None], dim=-1)
    count = min(options.neighbors, len(cameras) - 1)
    chosen = torch.full((len(cameras), options.neighbors), -1, dtype=torch.int64)
    for v in range(len(cameras)):
        angle = torch.rad2deg(torch.acos((rays[v] * rays).sum(-1).clamp(-1, 1)))
        offset = angle - options.ideal_angle
        width = torch.where(offset < 0, options.ideal_angle / 3, 2 * options.ideal_angle)
        score = (torch.exp(-(offset**2) / (2 * width**2)) * (inside[v] & inside)).sum(-1)
        score[v] = -1
        values, order = score.topk(count)
        chosen[v, :count] = torch.where(values > 0, order, -1)
    return chosen


def thin_points(dense: DensePoints, count: int) -> tuple[DensePoints, float]:
    """Keep about ``count`` points, evenly over surfaces and finer where cameras came closer.

    Args:
        dense: Points of all views together.
        count: Wanted number; the result has at most this many.

    Returns:
        The points, the most exact one of each cell, and the cells' size in units of ``spacing``.
    """
    order = torch.argsort(dense.errors, stable=True)
    points, spacing = (t[order].double() for t in (dense.points, dense.spacing))
    level = torch.log2(spacing).round()
    low, high = 2.0**-3, 2.0**10
    # Sums of cell numbers times large odd numbers, modulo 2**64, stand for the cells: exact but
    # for one chance in many millions of two cells sharing a number.
    best, size = order[:0], high
    for _ in range(16):
        middle = math.sqrt(low * high)
        cell = torch.floor(points / (middle * 2.0**level)[:, None]).long()
        keys = (torch.cat([cell, level[:, None].long()], 1) * _PRIMES).sum(1)
        _, first = np.unique(keys.numpy(), return_index=True)
        if len(first) > count:
            low = middle
        else:
            high, best, size = middle, order[torch.from_numpy(first).sort().values], middle
    return dense.map(lambda t: t[best]), size


def _make_view(images: Tensor, masks: Tensor | None, cameras: Cameras, v: int) -> _View:
    color = np.ascontiguousarray(images[v].permute(1, 2, 0).numpy())
    w2c = cameras.w2c[v].double().numpy()
    return _View(
        gray=cv2.cvtColor(color, cv2.COLOR_RGB2GRAY),
        color=color,
        mask=None if masks is None else masks[v].numpy(),
        rotation=w2c[:3, :3],
        translation=w2c[:3, 3],
        K=cameras.K[v].double().numpy(),
    )


def _plane_distance(view: _View, anchors: Tensor) -> float:
    """Median depth of the anchors in the picture, or of all in front when none is in it."""
    local = anchors.numpy() @ view.rotation.T + view.translation
    local = local[local[:, 2] > 1e-9]
    if not len(local):
        return 0.0
    pixels = local[:, :2] / local[:, 2:] * view.K[[0, 1], [0, 1]] + view.K[:2, 2]
    inside = ((pixels > 0) & (pixels < view.gray.shape[::-1])).all(1)
    return float(np.median(local[inside, 2] if inside.any() else local[:, 2]))


@dataclass(slots=True)
class _Match:
    """Where a neighbour sees each candidate, and the two linear equations for its depth.

    ``a * depth + b`` is the homogeneous reprojection residual, to be divided by the depth in the
    neighbour, ``z0 + z1 * depth``.
    """

    good: ndarray
    a: ndarray
    b: ndarray
    z0: float
    z1: ndarray
    center: ndarray

    def error(self, depth: ndarray) -> ndarray:
        """Reprojection error in pixels; infinite behind the neighbour."""
        z = self.z0 + self.z1 * depth
        residual = np.linalg.norm(self.a * depth[:, None] + self.b, axis=1)
        return np.where(z > 0, residual / np.maximum(z, 1e-12), np.inf)


def _triangulate(
    view: _View,
    others: list[_View],
    distance: float,
    flow: cv2.DISOpticalFlow,
    options: DenseOptions,
) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    height, width = view.gray.shape
    start = options.stride // 2
    rows, columns = np.mgrid[start : height : options.stride, start : width : options.stride]
    rows, columns = rows.ravel(), columns.ravel()
    if view.mask is not None:
        keep = view.mask[rows, columns]
        rows, columns = rows[keep], columns[keep]
    if not len(rows):
        return _NOTHING
    focal, principal = view.K[[0, 1], [0, 1]], view.K[:2, 2]
    xy = (np.stack([columns, rows], 1) + 0.5 - principal) / focal
    rays = np.concatenate([xy, np.ones((len(xy), 1))], 1) @ view.rotation  # world, z-depth 1
    matches = [_match(view, o, distance, flow, rows, columns, rays, options) for o in others]
    depth = _solve_depth(matches, options.max_error)
    points = view.center + rays * depth[:, None]
    count = np.zeros(len(depth))
    total = np.zeros(len(depth))
    widest = np.zeros(len(depth))
    for match in matches:
        error = match.error(depth)
        good = match.good & (error < options.max_error)
        count += good
        total += np.where(good, error, 0)
        widest = np.maximum(widest, np.where(good, _angles(points, view.center, match.center), 0))
    good = (
        (depth > 0) & (count >= min(options.min_views, len(others))) & (widest > options.min_angle)
    )
    colors = view.color[rows, columns] / 255
    spacing = depth * options.stride / focal.mean()
    return points[good], colors[good], spacing[good], total[good] / count[good]


def _match(
    view: _View,
    other: _View,
    distance: float,
    flow: cv2.DISOpticalFlow,
    rows: ndarray,
    columns: ndarray,
    rays: ndarray,
    options: DenseOptions,
) -> _Match:
    height, width = view.gray.shape
    # Pixels of the view (corner convention) to pixels of the other, if all lay on the plane.
    turn = other.rotation @ view.rotation.T
    shift = other.translation - turn @ view.translation
    plane = turn + np.outer(shift, [0, 0, 1]) / distance
    across = other.K @ plane @ np.linalg.inv(view.K)
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    across = np.linalg.inv(half) @ across @ half  # OpenCV's pixel centres are integers
    warp = {"dsize": (width, height), "flags": cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP}
    warped = cv2.warpPerspective(other.gray, across, **warp)  # pyright: ignore[reportCallIssue]
    forward = flow.calc(view.gray, warped, None)  # pyright: ignore[reportCallIssue,reportArgumentType]
    backward = flow.calc(warped, view.gray, None)  # pyright: ignore[reportCallIssue,reportArgumentType]
    there = np.stack([columns, rows], 1) + forward[rows, columns].astype(np.float64)
    maps = there.astype(np.float32)[None]
    back = cv2.remap(backward, maps[..., 0], maps[..., 1], cv2.INTER_LINEAR)[0]
    gap = np.linalg.norm(forward[rows, columns] + back, axis=1)
    homogeneous = np.concatenate([there, np.ones((len(there), 1))], 1) @ across.T
    pixels = homogeneous[:, :2] / np.where(homogeneous[:, 2:] > 1e-9, homogeneous[:, 2:], np.nan)
    good = (gap < options.max_error) & (pixels >= 0).all(1)
    good &= (pixels[:, 0] <= width - 1) & (pixels[:, 1] <= height - 1)
    pixels = np.where(good[:, None], pixels, 0)
    if other.mask is not None:
        column, row = np.rint(pixels).astype(int).T
        good &= other.mask[row, column]
    focal, principal = other.K[[0, 1], [0, 1]], other.K[:2, 2]
    xy = (pixels + 0.5 - principal) / focal
    start = other.rotation @ view.center + other.translation
    step = rays @ other.rotation.T
    return _Match(
        good=good,
        a=focal * (step[:, :2] - xy * step[:, 2:]),
        b=focal * (start[:2] - xy * start[2]),
        z0=float(start[2]),
        z1=step[:, 2],
        center=other.center,
    )


def _solve_depth(matches: list[_Match], max_error: float) -> ndarray:
    """Least squares over the matches, then twice more without those that disagree."""
    depth = None
    for limit in (np.inf, 3 * max_error, 1.5 * max_error):
        above = np.zeros(len(matches[0].good))
        below = np.zeros(len(matches[0].good))
        for match in matches:
            weight = match.good.astype(np.float64)
            if depth is not None:
                weight *= match.error(depth) < limit
                weight /= np.maximum(match.z0 + match.z1 * depth, 1e-12) ** 2
            above -= weight * (match.a * match.b).sum(1)
            below += weight * (match.a**2).sum(1)
        depth = above / np.maximum(below, 1e-300)
    assert depth is not None
    return depth


def _angles(points: ndarray, a: ndarray, b: ndarray) -> ndarray:
    """Angle at the points between the rays to two centres, in degrees."""
    u, v = a - points, b - points
    norms = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
    cosine = (u * v).sum(1) / np.maximum(norms, 1e-300)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))
