import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.geometry.pose import (
    camera_centers,
    invert_se3,
    look_at,
    opencv_from_opengl,
    rigid_matrix,
    se3_exp,
)

from .samples import D, randn, rotations

seeds = st.integers(0, 2**31)


def poses(seed, *batch):
    return rigid_matrix(rotations(seed, *batch), randn(seed + 3, *batch, 3))


@given(seeds, st.sampled_from([(), (3,), (2, 3)]))
def test_an_inverse_undoes_the_motion(seed, batch):
    motion = poses(seed, *batch)
    eye = torch.eye(4, dtype=D).expand_as(motion)
    torch.testing.assert_close(invert_se3(motion) @ motion, eye)
    torch.testing.assert_close(motion @ invert_se3(motion), eye)
    torch.testing.assert_close(camera_centers(motion), invert_se3(motion)[..., :3, 3])


@given(seeds)
def test_opengl_flip_is_an_involution_and_keeps_the_centre(seed):
    c2w = poses(seed, 4)
    flipped = opencv_from_opengl(c2w)
    assert torch.equal(opencv_from_opengl(flipped), c2w)
    assert torch.equal(flipped[:, :3, 3], c2w[:, :3, 3])
    assert torch.equal(flipped[:, :3, 2], -c2w[:, :3, 2])
    torch.testing.assert_close(torch.linalg.det(flipped), torch.ones(4, dtype=D))


@given(seeds)
def test_exponential_matches_the_matrix_exponential(seed):
    twist = randn(seed, 3, 6) * torch.tensor([[1e-9], [1e-3], [1.0]], dtype=D)
    omega, rho = twist[:, 3:], twist[:, :3]
    generator = torch.zeros(3, 4, 4, dtype=D)
    for i, (a, b) in enumerate(((2, 1), (0, 2), (1, 0))):
        generator[:, a, b], generator[:, b, a] = omega[:, i], -omega[:, i]
    generator[:, :3, 3] = rho
    torch.testing.assert_close(
        se3_exp(twist), torch.linalg.matrix_exp(generator), rtol=1e-12, atol=1e-14
    )


def test_exponential_has_exact_gradients_at_zero():
    torch.autograd.gradcheck(se3_exp, torch.zeros(2, 6, dtype=D, requires_grad=True))
    torch.autograd.gradcheck(se3_exp, randn(0, 2, 6).requires_grad_())


@given(seeds)
def test_look_at_centres_the_target_and_keeps_up_up(seed):
    eye, target, up = randn(seed, 3, 5, 3)
    w2c = invert_se3(look_at(eye, target, up))
    local = (w2c[:, :3, :3] @ target[..., None])[..., 0] + w2c[:, :3, 3]
    torch.testing.assert_close(local[:, :2], torch.zeros(5, 2, dtype=D))
    assert (local[:, 2] > 0).all()
    torch.testing.assert_close(torch.linalg.det(w2c), torch.ones(5, dtype=D))
    up_in_camera = (w2c[:, :3, :3] @ up[..., None])[..., 0]
    torch.testing.assert_close(up_in_camera[:, 0], torch.zeros(5, dtype=D))
    assert (up_in_camera[:, 1] < 0).all()


def test_look_at_straight_down_is_still_a_rotation():
    zero, up = torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])
    c2w = look_at(5 * up, zero, up)
    torch.testing.assert_close(c2w[:3, :3] @ c2w[:3, :3].mT, torch.eye(3))
    torch.testing.assert_close(c2w[:3, 2], -up)
