import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import ShapeError
from sightline.geometry.align import Similarity, transform_cameras, transform_points
from sightline.geometry.camera import (
    camera_rays,
    crop_intrinsics,
    focal_from_fov,
    fov_from_focal,
    intrinsics_matrix,
    pixel_grid,
    project_points,
    resize_cameras,
    scale_intrinsics,
    unproject_depth,
)

from .samples import D, randn, ring, rotations

seeds = st.integers(0, 2**31)


@given(seeds)
def test_unprojected_depth_projects_to_pixel_centres(seed):
    cameras = ring(3)
    depth = randn(seed, 3, 48, 64).exp()
    world = unproject_depth(depth, cameras)
    for v in range(3):
        pixels, z = project_points(world[v].reshape(-1, 3), cameras.select([v]))
        torch.testing.assert_close(pixels[0].reshape(48, 64, 2), pixel_grid(48, 64, dtype=D))
        torch.testing.assert_close(z[0].reshape(48, 64), depth[v])


def test_rays_run_through_the_unprojected_points():
    cameras = ring(3)
    origins, rays = camera_rays(cameras)
    world = unproject_depth(torch.full((3, 48, 64), 2.5, dtype=D), cameras)
    along = torch.nn.functional.normalize(world - origins[:, None, None], dim=-1)
    torch.testing.assert_close(rays, along)


@given(seeds, st.floats(0.2, 3), st.floats(0.2, 3))
def test_resize_and_crop_commute_with_projection(seed, sx, sy):
    cameras = ring(2)
    points = randn(seed, 20, 3)
    pixels, _ = project_points(points, cameras)
    scaled = replace(cameras, K=scale_intrinsics(cameras.K, sx, sy))
    scale = torch.tensor([sx, sy], dtype=D)
    torch.testing.assert_close(project_points(points, scaled)[0], pixels * scale)
    cropped = replace(cameras, K=crop_intrinsics(cameras.K, 7.25, -3.0))
    shift = torch.tensor([7.25, -3.0], dtype=D)
    torch.testing.assert_close(project_points(points, cropped)[0], pixels - shift)


def test_resizing_there_and_back_keeps_the_cameras():
    cameras = ring(2)
    small = resize_cameras(cameras, 24, 16)
    assert (small.height, small.width) == (24, 16)
    torch.testing.assert_close(small.K[0, :2, 2], torch.tensor([32.5 / 4, 23.5 / 2], dtype=D))
    torch.testing.assert_close(resize_cameras(small, 48, 64).K, cameras.K)


@given(seeds, st.floats(0.01, 100))
def test_moving_world_and_cameras_together_leaves_pixels_and_scales_depth(seed, scale):
    similarity = Similarity(
        scale=torch.tensor(scale, dtype=D), rotation=rotations(seed), translation=randn(seed, 3)
    )
    cameras, points = ring(4), randn(seed + 1, 10, 3) * 0.5
    pixels, depth = project_points(points, cameras)
    moved = transform_cameras(cameras, similarity)
    pixels2, depth2 = project_points(transform_points(points, similarity), moved)
    torch.testing.assert_close(pixels2, pixels)
    torch.testing.assert_close(depth2, scale * depth)
    R = moved.w2c[:, :3, :3]
    torch.testing.assert_close(R @ R.mT, torch.eye(3, dtype=D).expand_as(R))


@given(st.floats(0.1, 3.0), st.floats(1, 4000))
def test_focal_and_field_of_view_are_inverse(fov, size):
    angle = torch.tensor(fov, dtype=D)
    torch.testing.assert_close(fov_from_focal(focal_from_fov(angle, size), size), angle)
    assert float(focal_from_fov(torch.tensor(math.pi / 2), 100)) == pytest.approx(50)


def test_points_behind_have_no_pixel_and_no_bad_gradient():
    cameras = ring(1)
    points = torch.stack([torch.zeros(3, dtype=D), 2 * cameras.centers[0], cameras.centers[0]])
    points.requires_grad_()
    pixels, depth = project_points(points, cameras)
    assert torch.isfinite(pixels[0, 0]).all()
    assert torch.isnan(pixels[0, 1:]).all()
    assert depth[0, 1] < 0
    pixels[0, 0].sum().backward()
    assert points.grad is not None
    assert torch.isfinite(points.grad).all()


def test_missing_depth_is_nan_with_finite_gradients():
    cameras = ring(1)
    depth = torch.ones(1, 48, 64, dtype=D)
    depth[0, 0, :4] = torch.tensor([0.0, -1.0, torch.nan, torch.inf])
    depth.requires_grad_()
    world = unproject_depth(depth, cameras)
    assert torch.isnan(world[0, 0, :4]).all()
    assert torch.isfinite(world[0, 0, 4:]).all()
    world[0, 1:].sum().backward()
    assert depth.grad is not None
    assert torch.isfinite(depth.grad).all()


def test_depth_of_another_size_is_refused_with_the_remedy():
    with pytest.raises(ShapeError, match=r"\[2, 48, 64\] like its cameras, got \[2, 24, 32\]; res"):
        unproject_depth(torch.ones(2, 24, 32, dtype=D), ring(2))


def test_intrinsics_are_assembled_in_place():
    K = intrinsics_matrix(*torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    assert K.tolist() == [[[1, 0, 3], [0, 2, 4], [0, 0, 1]]]
