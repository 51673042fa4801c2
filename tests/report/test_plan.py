import re

import numpy as np
import pytest
import torch

from sightline.geometry.pose import invert_se3, look_at
from sightline.report.plan import CameraPlan, camera_plan
from sightline.types import Cameras
from tests.report.fake import ring_cameras, ring_cloud


def cameras_at(eyes: list, targets: list) -> Cameras:
    eye, target = torch.tensor(eyes), torch.tensor(targets)
    up = torch.tensor([0.0, -1.0, 0.0]).expand_as(eye)
    intrinsics = torch.tensor([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])
    return Cameras(
        w2c=invert_se3(look_at(eye, target, up)),
        K=intrinsics.expand(len(eye), 3, 3).clone(),
        height=80,
        width=100,
    )


def plan_of(cameras: Cameras, **options) -> CameraPlan:
    names = tuple(f"{i}.jpg" for i in range(len(cameras)))
    registered = torch.isfinite(cameras.w2c).all((1, 2))
    return CameraPlan(cameras=cameras, names=names, registered=registered, **options)


def apexes(drawing: str) -> dict[str, np.ndarray]:
    found = re.findall(r'points="([-\d.]+),([-\d.]+) [^"]*"[^>]*><title>([^<]*)<', drawing)
    return {name: np.array([float(x), float(y)]) for x, y, name in found}


def test_distances_are_true_and_the_view_is_from_above() -> None:
    # y is down: seen from above, turning right from +z leads to +x.
    eyes = [[0.0, 0.0, 0.0], [4.0, 0.0, 0.0], [4.0, 0.0, 1.0], [4.0, 5.0, 1.0]]
    ahead = [[e[0], e[1], e[2] + 5] for e in eyes]
    drawing = camera_plan(plan_of(cameras_at(eyes, ahead)))
    assert drawing is not None
    at = apexes(drawing)
    unit = np.linalg.norm(at["1.jpg"] - at["0.jpg"]) / 4
    assert np.linalg.norm(at["2.jpg"] - at["1.jpg"]) == pytest.approx(unit, rel=0.02)
    np.testing.assert_allclose(at["3.jpg"], at["2.jpg"], atol=0.2)  # height does not show
    right, forward = at["1.jpg"] - at["0.jpg"], at["2.jpg"] - at["1.jpg"]
    # On the page y is down, so a turn to the left has a negative cross product.
    assert right[0] * forward[1] - right[1] * forward[0] < 0


def test_held_out_cameras_have_their_own_colour_and_lie_on_top() -> None:
    drawing = camera_plan(plan_of(ring_cameras(9), test=(0, 8)))
    assert drawing is not None
    kinds = re.findall(r'<polygon[^>]*class="([^"]*)"', drawing)
    assert kinds == ["cam"] * 7 + ["cam held"] * 2
    assert "<title>8.jpg (held out)</title>" in drawing


def test_cameras_without_pose_are_left_out() -> None:
    cameras = ring_cameras(5)
    cameras.w2c[2] = torch.nan
    drawing = camera_plan(plan_of(cameras))
    assert drawing is not None
    assert set(apexes(drawing)) == {"0.jpg", "1.jpg", "3.jpg", "4.jpg"}
    cameras.w2c[:] = torch.nan
    assert camera_plan(plan_of(cameras)) is None


def test_far_points_do_not_shrink_the_cameras() -> None:
    points = ring_cloud(500).points
    points[:5] = 1e6
    points[5] = torch.nan
    with_far = apexes(camera_plan(plan_of(ring_cameras(8), points=points)) or "")
    without = apexes(camera_plan(plan_of(ring_cameras(8), points=points[6:])) or "")
    for name, at in without.items():
        np.testing.assert_allclose(with_far[name], at, atol=0.5)


def test_many_points_stay_small() -> None:
    drawing = camera_plan(plan_of(ring_cameras(8), points=ring_cloud(50_000).points))
    assert drawing is not None
    assert len(drawing) < 90_000


@pytest.mark.parametrize("metric", [True, False])
def test_one_camera_and_cameras_that_look_down(metric: bool) -> None:
    one = camera_plan(plan_of(cameras_at([[0.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]]), metric=metric))
    assert one is not None
    assert (" m<" in one) == metric
    down = cameras_at([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [[0.0, 9.0, 0.1], [1.0, 9.0, 0.1]])
    assert camera_plan(plan_of(down)) is not None
