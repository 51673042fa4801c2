import math

import pytest
import torch

from sightline.errors import InputError
from sightline.geometry.camera import project_points
from sightline.splatting.initialize import (
    InitConfig,
    initialize_params,
    neighbor_distance,
    random_points,
    scene_extent,
)
from sightline.types import Cameras, PointCloud
from tests.splatting.toy import make_cameras


def _generator():
    return torch.Generator().manual_seed(0)


def test_distances_are_to_the_three_nearest_others():
    points = torch.randn(60, 3)
    apart = torch.cdist(points, points).sort(dim=1).values
    torch.testing.assert_close(neighbor_distance(points), apart[:, 1:4].mean(1))


def test_few_points_have_fewer_neighbours():
    assert neighbor_distance(torch.zeros(1, 3)).tolist() == [0]
    pair = torch.tensor([[0.0, 0, 0], [0, 3, 4]])
    assert neighbor_distance(pair).tolist() == [5, 5]


def test_splats_sit_on_the_points_in_their_colours():
    cloud = PointCloud(points=torch.randn(50, 3), colors=torch.rand(50, 3))
    params = initialize_params(
        cloud, InitConfig(opacity=0.3, scale=0.5), sh_degree=2, extent=100.0, generator=_generator()
    )
    gaussians = params.activate()
    assert torch.equal(gaussians.means, cloud.points)
    assert gaussians.sh.shape == (50, 9, 3)
    assert (gaussians.sh[:, 1:] == 0).all()
    torch.testing.assert_close(gaussians.sh[:, 0] * 0.28209479177387814 + 0.5, cloud.colors)
    torch.testing.assert_close(gaussians.opacities, torch.full((50,), 0.3))
    expected = 0.5 * neighbor_distance(cloud.points)
    torch.testing.assert_close(gaussians.scales, expected[:, None].expand(50, 3))


def test_sizes_stay_in_proportion_to_the_scene():
    points = torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [500, 0, 0]])
    cloud = PointCloud(points=points, colors=torch.rand(5, 3))
    params = initialize_params(cloud, InitConfig(), sh_degree=0, extent=2.0, generator=_generator())
    scales = params.activate().scales
    assert scales.min().item() == pytest.approx(2e-6, rel=1e-3)
    assert scales.max().item() == pytest.approx(0.2, rel=1e-3)


def test_no_points_are_refused():
    cloud = PointCloud(points=torch.zeros(0, 3), colors=torch.zeros(0, 3))
    with pytest.raises(InputError, match="at least one starting point, got none; pass points"):
        initialize_params(cloud, InitConfig(), sh_degree=0, extent=1.0, generator=_generator())


def test_random_points_are_seen():
    cameras = make_cameras()
    cloud = random_points(cameras, 300, _generator())
    pixels, depth = project_points(cloud.points, cameras)
    size = torch.tensor([48.0, 40.0])
    seen = ((pixels >= 0) & (pixels <= size)).all(-1).any(0)
    assert seen.float().mean() > 0.99
    assert depth[depth > 0].median().item() == pytest.approx(3, rel=0.5)


def test_one_camera_is_enough_for_random_points():
    cloud = random_points(make_cameras().select([0]), 10, _generator())
    assert torch.isfinite(cloud.points).all()


def test_the_extent_is_the_spread_of_the_cameras():
    cameras = make_cameras()
    centers = cameras.centers
    expected = 1.1 * (centers - centers.mean(0)).norm(dim=-1).max()
    assert scene_extent(cameras) == pytest.approx(expected.item(), rel=1e-5)


def test_a_panorama_takes_its_extent_from_the_points():
    w2c = torch.eye(4).expand(3, 4, 4)
    K = torch.tensor([[50.0, 0, 20], [0, 50, 20], [0, 0, 1]]).expand(3, 3, 3)
    cameras = Cameras(w2c=w2c, K=K, height=40, width=40)
    points = torch.tensor([[0.0, 0, 10], [0.1, 0, 10], [0, 0.1, 10]])
    assert scene_extent(cameras, points) == pytest.approx(2.0)
    assert scene_extent(cameras) == 1.0
    assert math.isfinite(scene_extent(cameras, -points))


def test_a_long_walk_takes_its_extent_from_what_is_near():
    w2c = torch.eye(4).repeat(21, 1, 1)
    w2c[:, 2, 3] = -torch.arange(
        21.0
    )  # 20 units straight ahead, walls 1 unit to the left and right
    K = torch.tensor([[50.0, 0, 20], [0, 50, 20], [0, 0, 1]]).expand(21, 3, 3)
    cameras = Cameras(w2c=w2c, K=K, height=40, width=40)
    along = torch.arange(0, 40, 0.25)
    points = torch.stack([torch.ones_like(along), torch.zeros_like(along), along], -1)
    walls = torch.cat([points, points * torch.tensor([-1.0, 1, 1])])
    assert scene_extent(cameras) == pytest.approx(11.0)
    # Points 1 unit aside come into the picture at a depth of 2.5, and hide all behind them.
    assert 2.5 < scene_extent(cameras, walls) < 8
