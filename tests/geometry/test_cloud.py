"""Dense points from depth maps, and what is sky."""

import torch

from sightline.geometry.cloud import dense_cloud, map_cloud, sky_mask
from sightline.types import Cameras

SIZE = (40, 60)


def cameras(count: int = 1) -> Cameras:
    K = torch.tensor([[50.0, 0, 30], [0, 50, 20], [0, 0, 1]], dtype=torch.float64)
    w2c = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    w2c[:, 0, 3] = -0.1 * torch.arange(count)
    return Cameras(w2c=w2c, K=K.expand(count, 3, 3), height=SIZE[0], width=SIZE[1])


def test_a_wall_seen_twice_is_thinned_to_one_point_a_pixel() -> None:
    depth = torch.full((2, *SIZE), 2.0)
    images = torch.full((2, 3, *SIZE), 51, dtype=torch.uint8)
    cloud = dense_cloud(images, depth, cameras(2))
    assert torch.allclose(cloud.points[:, 2], torch.tensor(2.0))
    assert torch.allclose(cloud.colors, torch.tensor(0.2))
    pixels = SIZE[0] * SIZE[1]
    assert 0.7 * pixels < len(cloud.points) < 1.5 * pixels
    # The corners of the picture, through pixel centres.
    assert float(cloud.points[:, 0].min()) == float(torch.tensor((0.5 - 30) / 50 * 2))


def test_steps_holes_and_lost_views_give_no_points() -> None:
    depth = torch.full((2, *SIZE), 2.0)
    depth[0, :, 30:] = 4.0
    depth[0, :10] = 0
    given = cameras(2)
    given.w2c[1] = torch.nan
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    valid[0, 35:] = False
    images = torch.zeros(2, 3, *SIZE, dtype=torch.uint8)
    cloud = dense_cloud(images, depth, given, valid=valid)
    pixel = cloud.points[:, :2] / cloud.points[:, 2:] * 50 + torch.tensor([30.0, 20.0])
    assert float(pixel[:, 1].min()) > 10
    assert float(pixel[:, 1].max()) < 35
    assert not bool(((pixel[:, 0] > 29) & (pixel[:, 0] < 31)).any())


def test_the_surest_point_of_a_cell_stays_and_the_number_is_bounded() -> None:
    depth = torch.full((3, *SIZE), 2.0)
    confidence = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0)) + 1
    images = torch.zeros(3, 3, *SIZE, dtype=torch.uint8)
    everything = dense_cloud(images, depth, cameras(3), confidence=confidence)
    some = dense_cloud(images, depth, cameras(3), confidence=confidence, most=300)
    assert len(some.points) <= 300
    assert everything.confidence is not None
    assert some.confidence is not None
    assert float(some.confidence.mean()) > float(everything.confidence.mean()) > 1.5
    sure = dense_cloud(images, depth, cameras(3), confidence=confidence, hidden=50.0)
    assert sure.confidence is not None
    assert float(sure.confidence.min()) > 1.45


def test_far_outliers_and_empty_maps_are_borne() -> None:
    depth = torch.full((1, *SIZE), 1e-3)
    depth[0, 5, 5] = 1e9
    images = torch.zeros(1, 3, *SIZE, dtype=torch.uint8)
    assert len(dense_cloud(images, depth, cameras()).points) >= 1
    assert len(dense_cloud(images, torch.zeros(1, *SIZE), cameras()).points) == 0


def scene_with_sky() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images = torch.zeros(1, 3, *SIZE, dtype=torch.uint8)
    images[0, :, :20] = torch.tensor([130, 170, 220])[:, None, None]
    ground = torch.randint(0, 120, (3, 20, 60), generator=torch.Generator().manual_seed(1))
    images[0, :, 20:] = ground.byte()
    depth = torch.full((1, *SIZE), 2.0)
    depth[0, :20] = 30.0
    confidence = torch.full((1, *SIZE), 8.0)
    confidence[0, :18] = 1.1
    return images, depth, confidence


def test_point_maps_give_the_same_points_as_their_depth() -> None:
    depth = torch.full((2, *SIZE), 2.0)
    images = torch.randint(0, 255, (2, 3, *SIZE), dtype=torch.uint8)
    given = cameras(2)
    row, column = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(60) + 0.5, indexing="ij")
    local = torch.stack([(column - 30) / 25, (row - 20) / 25, torch.full_like(row, 2)], -1)
    maps = torch.stack([local, local + torch.tensor([0.1, 0, 0])])
    maps[0, 0, 0] = torch.nan
    confidence = torch.rand(2, *SIZE)
    cloud = map_cloud(images, maps, confidence=confidence)
    assert cloud.confidence is not None
    pixels = SIZE[0] * SIZE[1]
    assert 0.7 * pixels < len(cloud.points) < 1.5 * pixels
    own = dense_cloud(images, depth, given, confidence=confidence)
    apart = torch.cdist(cloud.points, own.points).min(dim=1).values
    assert float(apart.max()) < 0.06  # within the cell that both are thinned to
    few = map_cloud(images, maps, valid=torch.zeros(2, *SIZE, dtype=torch.bool))
    assert len(few.points) == 0
    assert len(map_cloud(images, maps, most=100).points) <= 100


def test_sky_is_found_above_and_nowhere_else() -> None:
    images, depth, confidence = scene_with_sky()
    for given in (None, confidence):
        sky = sky_mask(images, depth, given)[0]
        assert float(sky[:17].float().mean()) > 0.95
        assert not bool(sky[21:].any())


def test_a_near_or_certain_ceiling_is_no_sky() -> None:
    images, depth, _ = scene_with_sky()
    assert not bool(sky_mask(images, torch.full_like(depth, 3.0)).any())
    assert not bool(sky_mask(images, depth, torch.full_like(depth, 5.0)).any())
