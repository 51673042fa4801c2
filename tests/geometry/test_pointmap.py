import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import InputError
from sightline.geometry.camera import camera_rays
from sightline.geometry.pointmap import depth_edges, depth_to_normals, voxel_thin

from .samples import D, randn, ring

seeds = st.integers(0, 2**31)


@given(seeds)
def test_normals_of_a_plane_are_exact(seed):
    cameras = ring(2)
    normal = torch.nn.functional.normalize(
        torch.tensor([0.0, 0.0, 1.0], dtype=D) + 0.1 * randn(seed, 3), dim=0
    )
    origins, rays = camera_rays(cameras)
    length = -(origins @ normal)[:, None, None] / (rays @ normal)
    depth = length * (rays * cameras.c2w[:, None, None, :3, 2]).sum(-1)
    found = depth_to_normals(depth, cameras)
    want = (cameras.w2c[:, :3, :3] @ normal)[:, None, None].expand_as(found)
    hit = depth > 0
    inner = hit.clone()
    inner[:, 1:] &= hit[:, :-1]
    inner[:, :-1] &= hit[:, 1:]
    torch.testing.assert_close(found[inner], want[inner], rtol=0, atol=1e-9)


def test_normals_beside_a_step_belong_to_their_own_surface():
    cameras = ring(1)
    depth = torch.ones(1, 48, 64, dtype=D)
    depth[:, :, 32:] = 3
    depth[:, 0, 0] = 0
    normals = depth_to_normals(depth, cameras)
    facing = torch.tensor([0.0, 0.0, -1.0], dtype=D).expand(48, 64, 3).clone()
    facing[0, 0] = 0
    torch.testing.assert_close(normals[0], facing)


def test_a_pixel_without_neighbours_has_no_normal():
    depth = torch.zeros(1, 48, 64, dtype=D)
    depth[0, 10, 10] = 2
    assert not depth_to_normals(depth, ring(1)).any()


def test_edges_are_marked_on_both_sides_of_a_step_only():
    depth = torch.ones(1, 8, 10)
    depth[:, :, 5:] = 1.2
    depth[:, 0, :] = 0
    edges = depth_edges(depth)
    assert edges[0, 1:].sum(0).tolist() == [0, 0, 0, 0, 7, 7, 0, 0, 0, 0]
    assert not edges[0, 0].any()
    assert not depth_edges(depth, relative=0.25).any()


@given(seeds, st.floats(0.05, 2))
def test_thinning_keeps_one_point_in_each_cell(seed, cell):
    points = randn(seed, 300, 3)
    kept = voxel_thin(points, cell)
    cells = torch.floor((points - points.amin(0)) / cell)
    assert torch.equal(kept, kept.sort().values)
    assert len(torch.unique(cells[kept], dim=0)) == len(kept) == len(torch.unique(cells, dim=0))


def test_thinning_prefers_priority_then_order_and_drops_what_is_not_finite():
    points = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [5, 0, 0], [torch.nan, 0, 0], [0.2, 0, 0]])
    assert voxel_thin(points, 1.0).tolist() == [0, 2]
    priority = torch.tensor([0.1, 0.9, 0.0, 1.0, 0.9])
    assert voxel_thin(points, 1.0, priority).tolist() == [1, 2]
    assert voxel_thin(points[3:4], 1.0).tolist() == []


def test_unusable_cells_are_refused():
    points = torch.tensor([[0.0, 0, 0], [1e9, 0, 0]])
    with pytest.raises(InputError, match="must be above 0, got 0"):
        voxel_thin(points, 0.0)
    with pytest.raises(InputError, match="larger cell or drop far outliers"):
        voxel_thin(points, 1.0)
