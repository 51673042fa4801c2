import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import InputError
from sightline.geometry.align import Similarity, transform_cameras
from sightline.geometry.pose import rigid_matrix
from sightline.geometry.rotation import so3_exp
from sightline.metrics.poses import (
    accuracy,
    align_cameras,
    area_under_curve,
    compare_poses,
    relative_pose_errors,
)
from sightline.types import Cameras

D = torch.float64
seeds = st.integers(0, 2**31)


def cameras(seed=0, count=8):
    g = torch.Generator().manual_seed(seed)
    turn = so3_exp(torch.randn(count, 3, generator=g, dtype=D))
    return rigid_matrix(turn, torch.randn(count, 3, generator=g, dtype=D))


def moved(w2c, seed=1, scale=3.0):
    g = torch.Generator().manual_seed(seed)
    similarity = Similarity(
        scale=torch.tensor(scale, dtype=D),
        rotation=so3_exp(torch.randn(3, generator=g, dtype=D)),
        translation=torch.randn(3, generator=g, dtype=D),
    )
    K = torch.eye(3, dtype=D).expand(len(w2c), 3, 3)
    return transform_cameras(Cameras(w2c=w2c, K=K, height=1, width=1), similarity).w2c, similarity


@given(seeds, st.floats(0.01, 100))
def test_cameras_in_another_world_are_the_same(seed, scale):
    reference = cameras(seed)
    estimated, _ = moved(reference, seed, scale)
    errors = compare_poses(estimated, reference)
    assert errors.rotation_degrees < 1e-5
    assert errors.center_error < 1e-7
    assert errors.ate < 1e-6
    assert (errors.found, errors.total) == (8, 8)
    assert set(errors.rra.values()) == set(errors.rta.values()) == {1.0}
    assert all(value == pytest.approx(1) for value in errors.auc.values())


def test_known_errors_are_measured():
    reference = cameras(count=20)
    turned = reference.clone()
    about = so3_exp(torch.tensor([0.0, 0.0, math.radians(2)], dtype=D))
    turned[:, :3] = about @ reference[:, :3]  # each camera rolls by 2 degrees about its own axis
    errors = compare_poses(turned, reference)
    assert errors.rotation_degrees == pytest.approx(2, abs=1e-6)
    assert errors.center_error < 1e-9
    shifted = reference.clone()
    shifted[:, :3, 3] += 0.01 * torch.randn(20, 3, dtype=D)
    errors = compare_poses(shifted, reference)
    assert errors.rotation_degrees < 1
    assert 0.001 < errors.center_error < 0.01
    assert errors.ate < 0.05


def test_relative_errors_by_hand():
    eye = torch.eye(4, dtype=D)
    reference = torch.stack([eye, eye, eye])
    reference[1, 0, 3] = 1
    estimated = reference.clone()
    estimated[1, :3, 3] = torch.tensor([-2.0, 0, 0], dtype=D)
    estimated[2, :3, :3] = so3_exp(torch.tensor([0, math.radians(10), 0], dtype=D))
    rotation, direction = relative_pose_errors(estimated, reference)
    torch.testing.assert_close(rotation, torch.tensor([0.0, 10, 10], dtype=D), atol=1e-6, rtol=0)
    # Pair (0, 2) does not move: no direction to be wrong about.
    assert direction[0] == pytest.approx(180)
    assert direction[1] == 0
    _, either = relative_pose_errors(estimated, reference, either_sign=True)
    assert either[0] == pytest.approx(0)
    missing = estimated.clone()
    missing[2] = torch.nan
    rotation, direction = relative_pose_errors(missing, reference)
    assert rotation.tolist()[1:] == direction.tolist()[1:] == [180, 180]


def test_accuracy_and_area():
    errors = torch.tensor([0.5, 2.5, 40.0, 180.0], dtype=D)
    zero = torch.zeros(4, dtype=D)
    assert accuracy(errors, 5) == 0.5
    # Shares under 1, 2, 3, 4, 5 degrees: 1/4, 1/4, 2/4, 2/4, 2/4.
    assert area_under_curve(errors, zero, 5) == pytest.approx(0.4)
    assert area_under_curve(zero, errors, 5) == pytest.approx(0.4)
    assert math.isnan(accuracy(errors[:0], 5))
    assert math.isnan(area_under_curve(zero[:0], zero[:0], 5))


@given(seeds)
def test_cameras_on_a_line_align_by_their_orientations(seed):
    reference = cameras(seed)
    axis = torch.tensor([0.3, -0.2, 1.0], dtype=D)
    centers = torch.arange(8, dtype=D)[:, None] * axis
    reference[:, :3, 3] = -(reference[:, :3, :3] @ centers[..., None])[..., 0]
    estimated, similarity = moved(reference, seed)
    errors = compare_poses(estimated, reference)
    assert errors.rotation_degrees < 1e-5
    assert errors.center_error < 1e-7
    want = similarity.inverse()
    torch.testing.assert_close(errors.alignment.rotation, want.rotation)
    torch.testing.assert_close(errors.alignment.scale, want.scale)


def test_one_or_two_cameras_are_enough():
    reference = cameras(count=2)
    estimated, _ = moved(reference)
    assert compare_poses(estimated, reference).center_error < 1e-9
    single = align_cameras(estimated[:1], reference[:1])
    assert float(single.scale) == 1
    errors = compare_poses(estimated[:1], reference[:1])
    assert errors.rotation_degrees < 1e-5
    assert math.isnan(errors.center_error)


def test_missing_cameras_lower_the_shares_only():
    reference = cameras(count=6)
    estimated, _ = moved(reference)
    estimated[0] = torch.nan
    errors = compare_poses(estimated, reference)
    assert (errors.found, errors.total) == (5, 6)
    assert errors.rotation_degrees < 1e-5
    assert errors.rra[5] == pytest.approx(10 / 15)
    with pytest.raises(InputError, match="none of the 6 estimated cameras has a pose"):
        compare_poses(estimated * torch.nan, reference)
    with pytest.raises(InputError, match="reference cameras must be finite"):
        compare_poses(reference, estimated)
