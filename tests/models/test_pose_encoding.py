import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.models import pose_encoding as pe


def cameras(seed: int, count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rotation = pe.quaternion_to_matrix(torch.randn(count, 4, generator=generator))
    extrinsics = torch.cat((rotation, torch.randn(count, 3, 1, generator=generator)), -1)
    focal = 200 + 300 * torch.rand(count, 2, generator=generator)
    intrinsics = torch.diag_embed(torch.cat((focal, torch.ones(count, 1)), -1))
    intrinsics[:, 0, 2], intrinsics[:, 1, 2] = 259.0, 147.0
    return extrinsics, intrinsics


@given(st.integers(0, 1000))
def test_cameras_go_there_and_back(seed: int) -> None:
    extrinsics, intrinsics = cameras(seed)
    encoding = pe.encode_cameras(extrinsics, intrinsics, (294, 518))
    back = pe.decode_cameras(encoding, (294, 518))
    assert torch.allclose(back[0], extrinsics, atol=1e-5)
    assert torch.allclose(back[1], intrinsics, rtol=1e-4)
    assert (encoding[:, 6] >= 0).all()


@given(st.integers(0, 1000))
def test_rotations_are_rotations(seed: int) -> None:
    matrix = cameras(seed)[0][:, :, :3]
    assert torch.allclose(matrix @ matrix.mT, torch.eye(3).expand(5, 3, 3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(matrix), torch.ones(5), atol=1e-5)
    inverse = pe.invert_extrinsics(cameras(seed)[0])
    full = torch.cat((cameras(seed)[0], torch.tensor([[[0.0, 0, 0, 1]]]).expand(5, 1, 4)), 1)
    assert torch.allclose(inverse @ full, torch.eye(4).expand(5, 4, 4), atol=1e-5)


@pytest.mark.parametrize("axis", range(3))
def test_half_turns_have_gradients(axis: int) -> None:
    quaternion = torch.zeros(4)
    quaternion[axis] = 1.0
    matrix = pe.quaternion_to_matrix(quaternion).requires_grad_()
    back = pe.matrix_to_quaternion(matrix)
    assert torch.allclose(back, quaternion)
    back.sum().backward()
    assert matrix.grad is not None
    assert matrix.grad.isfinite().all()


def test_points_project_to_their_pixels() -> None:
    extrinsics, intrinsics = cameras(3, 2)
    depth = 1 + torch.rand(2, 4, 6, 1)
    points = pe.unproject_depth(depth, extrinsics, intrinsics)
    seen = points @ extrinsics[:, None, :, :3].mT + extrinsics[:, None, None, :, 3]
    pixels = seen @ intrinsics[:, None].mT
    pixels = pixels[..., :2] / pixels[..., 2:]
    assert torch.allclose(seen[..., 2:], depth, atol=1e-5)
    assert torch.allclose(pixels[0, 2, 5], torch.tensor([5.0, 2.0]), atol=1e-2)
    intrinsics[0, 0, 1] = 0.1
    with pytest.raises(ValueError, match="expected cameras without skew"):
        pe.unproject_depth(depth, extrinsics, intrinsics)
