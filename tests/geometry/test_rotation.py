import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.geometry.rotation import (
    matrix_to_quat,
    matrix_to_rotation_6d,
    quat_conjugate,
    quat_multiply,
    quat_slerp,
    quat_to_matrix,
    rotation_6d_to_matrix,
    rotation_angle,
    so3_exp,
    so3_log,
)

from .samples import D, randn, rotations

seeds = st.integers(0, 2**31)
kinds = st.sampled_from(["uniform", "tiny", "half"])
batches = st.sampled_from([(), (3,), (2, 3)])
dtypes = st.sampled_from([torch.float32, torch.float64])
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-14}


def close(a, b, scale=1.0):
    torch.testing.assert_close(a, b, rtol=0, atol=scale * TOLERANCE[a.dtype])


@given(seeds, kinds, batches, dtypes)
def test_all_forms_give_the_rotation_back(seed, kind, batch, dtype):
    R = rotations(seed, *batch, kind=kind, dtype=dtype)
    close(R @ R.mT, torch.eye(3, dtype=dtype).expand_as(R))
    close(torch.linalg.det(R), torch.ones(batch, dtype=dtype))
    close(quat_to_matrix(matrix_to_quat(R)), R, 2)
    close(so3_exp(so3_log(R)), R, 4)
    close(rotation_6d_to_matrix(matrix_to_rotation_6d(R)), R, 2)


@given(seeds, kinds, batches)
def test_quaternions_form_a_group(seed, kind, batch):
    a, b, c = (matrix_to_quat(rotations(seed + i, *batch, kind=kind)) for i in (0, 2, 4))
    one = torch.tensor([1.0, 0, 0, 0], dtype=D).expand_as(a)
    close(quat_multiply(quat_multiply(a, b), c), quat_multiply(a, quat_multiply(b, c)))
    close(quat_multiply(a, one), a)
    close(quat_multiply(a, quat_conjugate(a)), one)
    close(quat_to_matrix(quat_multiply(a, b)), quat_to_matrix(a) @ quat_to_matrix(b), 2)


@given(seeds, kinds)
def test_a_quaternion_and_its_negative_agree_at_any_length(seed, kind):
    q = matrix_to_quat(rotations(seed, 4, kind=kind))
    close(quat_to_matrix(-3.7 * q), quat_to_matrix(q))
    assert (matrix_to_quat(quat_to_matrix(-q))[:, 0] >= 0).all()


def test_axis_half_turns_and_identity_are_exact():
    for diagonal in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)):
        R = torch.diag(torch.tensor(diagonal, dtype=D))
        close(quat_to_matrix(matrix_to_quat(R)), R)
        assert float(torch.linalg.vector_norm(so3_log(R))) == pytest.approx(
            0.0 if sum(diagonal) == 3 else math.pi
        )


@given(seeds, st.floats(0, math.pi))
def test_log_and_angle_measure_the_turn(seed, angle):
    axis = torch.nn.functional.normalize(randn(seed, 3), dim=0)
    R = rotations(seed + 9)
    turned = R @ so3_exp(angle * axis)
    assert float(rotation_angle(R, turned)) == pytest.approx(angle, abs=1e-7)
    assert float(torch.linalg.vector_norm(so3_log(R.mT @ turned))) == pytest.approx(angle, abs=1e-7)


def test_small_angles_keep_their_digits_in_float32():
    R = so3_exp(torch.tensor([1e-5, -2e-5, 3e-5]))
    torch.testing.assert_close(so3_log(R), torch.tensor([1e-5, -2e-5, 3e-5]), rtol=1e-6, atol=0)


@given(seeds, kinds, st.floats(0, 1))
def test_slerp_moves_at_constant_speed_along_the_shorter_arc(seed, kind, t):
    Ra = rotations(seed)
    Rb = Ra @ rotations(seed + 5, kind=kind)
    a, b = matrix_to_quat(Ra), matrix_to_quat(Rb)
    whole = float(rotation_angle(Ra, Rb))
    for end in (b, -b):
        middle = quat_to_matrix(quat_slerp(a, end, t))
        assert float(rotation_angle(Ra, middle)) == pytest.approx(t * whole, abs=1e-7)
        assert float(rotation_angle(middle, Rb)) == pytest.approx((1 - t) * whole, abs=1e-7)


@pytest.mark.parametrize("kind", ["uniform", "tiny", "half"])
def test_gradients_match_finite_differences(kind):
    R = rotations(3, 2, kind=kind)
    omega = so3_log(R).requires_grad_()
    torch.autograd.gradcheck(so3_exp, omega)
    torch.autograd.gradcheck(
        lambda o: so3_log(so3_exp(o) @ R.mT), (omega.detach() * 0.3 + 0.1).requires_grad_()
    )
    torch.autograd.gradcheck(lambda q: quat_to_matrix(q), matrix_to_quat(R).requires_grad_())
    other = matrix_to_quat(rotations(8, 2))
    torch.autograd.gradcheck(
        lambda q: quat_slerp(q, other, 0.3), matrix_to_quat(R).requires_grad_()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_the_identity_and_at_zero(dtype):
    omega = torch.zeros(3, dtype=dtype, requires_grad=True)
    torch.autograd.gradcheck(so3_exp, torch.zeros(3, dtype=D, requires_grad=True))
    R = so3_exp(omega)
    total = so3_log(R).sum() + rotation_angle(R, R.detach()) + matrix_to_quat(R).sum()
    (gradient,) = torch.autograd.grad(total, omega)
    assert torch.isfinite(gradient).all()
    q = torch.zeros(4, dtype=dtype, requires_grad=True)
    assert torch.equal(quat_to_matrix(q).detach(), torch.eye(3, dtype=dtype))
    (gradient,) = torch.autograd.grad(quat_to_matrix(q).sum(), q)
    assert torch.isfinite(gradient).all()
    same = torch.tensor([0.5, 0.5, 0.5, 0.5], dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(quat_slerp(same, same, 0.5).sum(), same)
    assert torch.isfinite(gradient).all()
