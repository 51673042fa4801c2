"""What the shared scene's filters go by: which views saw a point, and what lies in the sky."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sightline.geometry.cloud import sky_mask
from sightline.io.scene_result import SceneResult
from sightline.types import Cameras, Gaussians

_MOST_BYTES = 8_000_000
"""Of the bits that say which views saw which point."""
_NEAR_SURFACE = 0.03
"""A view saw a point whose depth differs by less than this share from that of its depth map."""
_SKY_VIEWS = 48
"""Views that vote about the sky, evenly chosen."""
_OPAQUE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SceneMarks:
    """Facts about points and splats, in the order of those of the scene; None where unknown."""

    seen: Bool[Tensor, "N V"] | None = None
    """Which views saw a point."""
    point_sky: Bool[Tensor, " N"] | None = None
    splat_sky: Bool[Tensor, " M"] | None = None


def mark_scene(
    result: SceneResult,
    points: Float[Tensor, "N 3"] | None,
    rows: Int[Tensor, " N"] | None = None,
    sky: Bool[Tensor, "V H W"] | None = None,
) -> SceneMarks:
    """Find out what the filters need, from the views of a scene.

    Triangulated points know their views; others are seen where they lie on a view's depth map,
    which the splats' expected depth replaces in scenes that have none.

    Args:
        result: The scene; without views nothing is known.
        points: Its points, or some of them.
        rows: Which of ``result.sparse`` the points are, in scenes that have no other.
        sky: What is sky in the views, where it is known; else it is guessed.
    """
    posed = result.registered & result.cameras.w2c.isfinite().all(-1).all(-1)
    views = posed.nonzero()[:, 0].tolist()
    if not views or result.images is None:
        return SceneMarks()
    voters = views[:: -(-len(views) // _SKY_VIEWS)]
    sky = _guess_sky(result, voters) if sky is None else sky[voters]
    marks: dict[str, Tensor | None] = {}
    cameras = result.cameras.select(voters)
    if points is not None and len(points):
        marks["seen"] = _seen(result, points, rows, views)
        marks["point_sky"] = None if sky is None else _in_sky(points, cameras, sky)
    if result.gaussians is not None and sky is not None:
        marks["splat_sky"] = _in_sky(result.gaussians.means.detach(), cameras, sky)
    for name in ("point_sky", "splat_sky"):  # a filter that changes nothing is none
        value = marks.get(name)
        if value is not None and not bool(value.any()):
            marks[name] = None
    return SceneMarks(**marks)


def _guess_sky(result: SceneResult, views: list[int]) -> Bool[Tensor, "v H W"] | None:
    assert result.images is not None
    confidence = None
    if result.depth is not None:
        depth = result.depth[views]
        confidence = None if result.confidence is None else result.confidence[views]
    elif result.gaussians is not None and len(result.gaussians):
        depth = splat_depth(result.gaussians, result.cameras.select(views))
    else:
        return None
    return sky_mask(result.images[views], depth, confidence)


def splat_depth(gaussians: Gaussians, cameras: Cameras) -> Float[Tensor, "V H W"]:
    """Return the splats' expected depth; zero where the scene is mostly transparent."""
    from sightline.splatting.render import render_gaussians

    rendering = render_gaussians(gaussians, cameras.map(lambda t: t.float()))
    assert rendering.depth is not None
    return torch.where(rendering.alpha > _OPAQUE, rendering.depth, 0.0)


def _seen(
    result: SceneResult,
    points: Float[Tensor, "N 3"],
    rows: Int[Tensor, " N"] | None,
    views: list[int],
) -> Bool[Tensor, "N V"] | None:
    count = len(result.names)
    if len(points) * -(-count // 8) > _MOST_BYTES:
        return None
    if result.depth is not None:
        seen = torch.zeros(len(points), count, dtype=torch.bool)
        for view in views:
            row, column, z, inside = _project(points, result.cameras.select([view]))
            there = result.depth[view, row, column].double()
            seen[:, view] = inside & ((z - there).abs() < _NEAR_SURFACE * z)
        return seen
    sparse = result.sparse
    if sparse is None or rows is None or not len(sparse.tracks):
        return None
    seen = torch.zeros(len(sparse.points), count, dtype=torch.bool)
    tracks = sparse.tracks.long()
    seen[tracks[:, 0], tracks[:, 1]] = True
    return seen[rows]


def _project(
    points: Float[Tensor, "N 3"], camera: Cameras
) -> tuple[Tensor, Tensor, Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """Return row, column and depth of points in one view, and which are in front and inside."""
    w2c, K = camera.w2c[0].double(), camera.K[0].double()
    local = points.double() @ w2c[:3, :3].T + w2c[:3, 3]
    z = local[:, 2]
    pixel = (local @ K.T)[:, :2] / z.clamp_min(1e-12)[:, None]
    size = pixel.new_tensor([camera.width, camera.height])
    inside = (z > 0) & ((pixel >= 0) & (pixel < size)).all(1)
    pixel = torch.where(inside[:, None], pixel, torch.zeros_like(pixel)).long()
    return pixel[:, 1], pixel[:, 0], z, inside


def _in_sky(
    points: Float[Tensor, "N 3"], cameras: Cameras, sky: Bool[Tensor, "v H W"]
) -> Bool[Tensor, " N"]:
    """Tell which points fall on the sky in most of the views that they are inside of."""
    votes = torch.zeros(len(points))
    total = torch.zeros(len(points))
    for view in range(len(cameras)):
        row, column, _, inside = _project(points, cameras.select([view]))
        votes += inside & sky[view, row, column]
        total += inside
    return (total > 0) & (votes > 0.5 * total)
