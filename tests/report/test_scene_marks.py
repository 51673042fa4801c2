from dataclasses import replace

import torch

from sightline.io.export import SceneResult
from sightline.report.scene_marks import SceneMarks, mark_scene, splat_depth
from sightline.types import SparsePoints
from tests.report.fake import paint, ring_cameras, ring_gaussians, ring_points


def ring_result(**parts: object) -> SceneResult:
    cameras = ring_cameras(6, 60, 80)
    points, colors, _ = ring_points(8000)
    pictures, depth = paint(points, colors.clamp(0, 1), cameras)
    result = SceneResult(
        names=tuple("abcdef"),
        cameras=cameras,
        from_original=torch.eye(3).expand(6, 3, 3),
        original_sizes=torch.tensor([[60, 80]] * 6),
        registered=torch.tensor([True] * 5 + [False]),
        images=(pictures * 255).to(torch.uint8),
        depth=depth,
    )
    return replace(result, **parts)


def test_points_are_seen_where_they_lie_on_a_depth_map() -> None:
    points, _, _ = ring_points(8000)
    marks = mark_scene(ring_result(), points)
    assert marks.seen is not None
    shares = marks.seen.float().mean(0)
    assert shares[5] == 0  # a view without a pose sees nothing
    assert (shares[:5] > 0.15).all()
    assert (shares[:5] < 0.9).all()  # each hides some of the ring from itself
    behind = points * 0 + torch.tensor([0.0, 9.0, 0.0])  # below the floor
    hidden = mark_scene(ring_result(), behind).seen
    assert hidden is not None
    assert not hidden.any()


def test_triangulated_points_know_their_views() -> None:
    tracks = torch.tensor([[0, 1], [0, 3], [2, 0]], dtype=torch.int32)
    sparse = SparsePoints(
        points=torch.zeros(3, 3), colors=torch.zeros(3, 3, dtype=torch.uint8), tracks=tracks
    )
    result = ring_result(depth=None, sparse=sparse)
    marks = mark_scene(result, sparse.points[[2, 0]], torch.tensor([2, 0]))
    assert marks.seen is not None
    assert marks.seen.nonzero().tolist() == [[0, 0], [1, 1], [1, 3]]
    assert marks.point_sky is None


def test_what_falls_on_the_sky_is_marked() -> None:
    result = ring_result(gaussians=ring_gaussians(500))
    sky = torch.zeros(6, 60, 80, dtype=torch.bool)
    sky[:, :30] = True
    points, _, _ = ring_points(4000)
    marks = mark_scene(result, points, sky=sky)
    assert marks.point_sky is not None
    assert marks.splat_sky is not None
    assert marks.splat_sky.shape == (500,)
    # y points down: the sky half of the pictures holds what lies higher.
    assert points[marks.point_sky, 1].mean() < points[~marks.point_sky, 1].mean()
    none = mark_scene(result, points, sky=torch.zeros_like(sky))
    assert none.point_sky is None
    assert none.splat_sky is None


def test_without_views_nothing_is_known() -> None:
    bare = SceneResult.bare(gaussians=ring_gaussians(10))
    marks = mark_scene(bare, None)
    assert (marks.seen, marks.point_sky, marks.splat_sky) == (None, None, None)
    assert isinstance(marks, SceneMarks)


def test_depth_of_splats_is_zero_where_nothing_is() -> None:
    depth = splat_depth(ring_gaussians(3000), ring_cameras(1, 60, 80))
    assert (depth == 0).any()
    assert 1.5 < depth[depth > 0].median() < 6
