import numpy as np
import torch

from sightline.app import points as module
from sightline.app.points import PointChoice, prepare_points
from sightline.types import PointCloud


def cloud(count: int = 10) -> PointCloud:
    positions = torch.arange(3.0 * count).reshape(count, 3)
    confidence = torch.tensor([5.0, 1, 4, 2, 3, 9, 8, 7, 6, 10])[:count]
    return PointCloud(points=positions, colors=torch.full((count, 3), 0.5), confidence=confidence)


def shown(ready: module.ViewerPoints, **choice) -> list[int]:
    return np.flatnonzero(ready.select(PointChoice(**choice))).tolist()


def test_everything_is_shown_at_first() -> None:
    assert shown(prepare_points(cloud())) == list(range(10))


def test_confidence_hides_a_share_whatever_its_unit() -> None:
    ready = prepare_points(cloud())
    assert shown(ready, hidden_percent=30.0) == [0, 2, 5, 6, 7, 8, 9]
    assert shown(ready, hidden_percent=99.0) == [9]
    scaled = PointCloud(
        points=cloud().points, colors=cloud().colors, confidence=cloud().confidence * 1e6
    )
    assert shown(prepare_points(scaled), hidden_percent=30.0) == [0, 2, 5, 6, 7, 8, 9]


def test_equally_confident_points_stay_together() -> None:
    given = cloud()
    equal = PointCloud(
        points=given.points,
        colors=given.colors,
        confidence=torch.tensor([2.0, 2, 2, 2, 2, 3, 3, 3, 4, 4]),
    )
    ready = prepare_points(equal)
    assert shown(ready, hidden_percent=40.0) == list(range(10))
    assert shown(ready, hidden_percent=50.0) == [5, 6, 7, 8, 9]
    assert shown(ready, hidden_percent=99.0) == [8, 9]


def test_points_of_chosen_views() -> None:
    tracks = torch.tensor([[0, 0], [0, 1], [3, 1], [4, 2]], dtype=torch.int32)
    ready = prepare_points(cloud(), tracks)
    assert shown(ready, views=frozenset({1})) == [0, 3]
    assert shown(ready, views=frozenset({0, 2})) == [0, 4]
    assert shown(ready, views=frozenset({7})) == []
    assert shown(ready, views=frozenset({1}), hidden_percent=20.0) == [0]


def test_colours_can_be_hidden() -> None:
    colors = torch.tensor([[0.0, 0, 0], [0.02, 0.02, 0.03], [1.0, 1, 1], [1.0, 1, 0.9]])
    ready = prepare_points(PointCloud(points=torch.zeros(4, 3), colors=colors))
    assert shown(ready, hides_black=True) == [1, 2, 3]
    assert shown(ready, hides_white=True) == [0, 1, 3]


def test_bad_points_leave_tracks_right() -> None:
    given = cloud()
    given.points[2] = torch.nan
    tracks = torch.tensor([[2, 0], [3, 0], [9, 0]], dtype=torch.int32)
    ready = prepare_points(given, tracks)
    assert len(ready.positions) == 9
    kept = ready.positions[ready.select(PointChoice(views=frozenset({0})))]
    np.testing.assert_array_equal(kept, given.points[[3, 9]].numpy())


def test_large_clouds_are_thinned_evenly(monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST_POINTS", 5)
    tracks = torch.tensor([[i, i] for i in range(10)], dtype=torch.int32)
    ready = prepare_points(cloud(), tracks)
    assert ready.positions[:, 0].tolist() == [0, 6, 12, 21, 27]
    assert shown(ready, views=frozenset({7})) == [3]
    assert shown(ready, views=frozenset({8})) == []


def test_no_points_are_fine() -> None:
    ready = prepare_points(PointCloud(points=torch.zeros(0, 3), colors=torch.zeros(0, 3)))
    assert shown(ready, hidden_percent=50.0, hides_black=True) == []
