from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import InputError, UnknownNameError
from sightline.geometry.align import Similarity, transform_cameras, transform_points
from sightline.geometry.camera import project_points
from sightline.geometry.pose import invert_se3, rigid_matrix
from sightline.geometry.rotation import rotation_angle
from sightline.geometry.trajectory import (
    TRAJECTORIES,
    TrajectoryOptions,
    focus_point,
    make_trajectory,
    mean_up,
)
from sightline.types import Cameras

from .samples import D, randn, ring, rotations

NAMES = sorted(TRAJECTORIES)
CLOSED = sorted(set(NAMES) - {"interpolate"})
TARGET = (1.0, -2.0, 0.5)


def parallel(num_views):
    """Cameras side by side, all looking along +y with z up."""
    R = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=D).expand(num_views, 3, 3)
    t = torch.zeros(num_views, 3, dtype=D)
    t[:, 0] = -torch.arange(num_views, dtype=D)
    return replace(ring(num_views), w2c=rigid_matrix(R, t))


CAPTURES = {
    "circle": ring(12, target=TARGET),
    "quarter": ring(9, degrees=90, target=TARGET),
    "narrow": ring(5, degrees=20, target=TARGET),
    "pair": ring(2, degrees=30, target=TARGET),
    "single": ring(1),
    "parallel": parallel(6),
    "overhead": ring(8, radius=0.01, height=5),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("capture", CAPTURES)
def test_paths_are_rigid_finite_and_keep_the_focus_in_view(name, capture):
    reference = CAPTURES[capture]
    path = make_trajectory(name, reference, 60)
    assert len(path) == 60
    assert (path.height, path.width) == (reference.height, reference.width)
    R = path.w2c[:, :3, :3]
    torch.testing.assert_close(R @ R.mT, torch.eye(3, dtype=D).expand_as(R))
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(60, dtype=D))
    pixels, depth = project_points(focus_point(reference)[None], path)
    assert (depth > 0).all()
    assert (pixels[..., 0] > 0).all()
    assert (pixels[..., 0] < path.width).all()
    assert (pixels[..., 1] > 0).all()
    assert (pixels[..., 1] < path.height).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("capture", ["circle", "quarter", "narrow"])
def test_paths_are_smooth_upright_and_clear_of_the_subject(name, capture):
    reference = CAPTURES[capture]
    path = make_trajectory(name, reference, 240)
    centers = path.centers
    if name in CLOSED:
        centers = torch.cat([centers, centers[:1]])
    steps = torch.linalg.vector_norm(centers.diff(dim=0), dim=-1)
    assert float(steps.max()) < 4 * float(steps.mean())
    turns = rotation_angle(path.w2c[1:, :3, :3], path.w2c[:-1, :3, :3])
    assert float(turns.max()) < 0.1
    up = torch.tensor([0.0, 0.0, 1.0], dtype=D)
    assert float((-path.c2w[:, :3, 1] @ up).min()) > 0.3
    distance = torch.linalg.vector_norm(path.centers - torch.tensor(TARGET, dtype=D), dim=-1)
    typical = (4.0**2 + 1.5**2) ** 0.5
    assert float(distance.min()) > 0.4 * typical
    assert float(distance.max()) < 1.6 * typical


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 100))
def test_paths_move_and_scale_with_the_world(name, seed, scale):
    similarity = Similarity(
        scale=torch.tensor(scale, dtype=D), rotation=rotations(seed), translation=randn(seed, 3)
    )
    reference = CAPTURES["quarter"]
    moved = make_trajectory(name, transform_cameras(reference, similarity), 12)
    want = transform_cameras(make_trajectory(name, reference, 12), similarity)
    torch.testing.assert_close(moved.w2c, want.w2c, rtol=1e-6, atol=1e-6 * max(scale, 1))


def test_orbit_repeats_the_ring_it_was_made_from():
    reference = CAPTURES["circle"]
    path = make_trajectory("orbit", reference, 12)
    torch.testing.assert_close(path.w2c, reference.w2c)


def test_interpolation_passes_through_every_camera():
    reference = CAPTURES["quarter"]
    path = make_trajectory("interpolate", reference, 8 * 16 + 1)
    torch.testing.assert_close(path.w2c[::16], reference.w2c)
    # Between them the speed is even: the ring's cameras are equally far apart.
    steps = torch.linalg.vector_norm(path.centers.diff(dim=0), dim=-1)
    assert float(steps.max() / steps.min()) < 1.1


def test_interpolation_takes_half_turns_and_repeated_cameras():
    reference = ring(3, degrees=540)
    doubled = reference.select([0, 0, 1, 2])
    path = make_trajectory("interpolate", doubled, 50)
    assert torch.isfinite(path.w2c).all()
    torch.testing.assert_close(path.w2c[-1], reference.w2c[2])


def test_focus_and_up_are_those_of_the_ring():
    for capture in ("circle", "quarter", "narrow", "pair"):
        torch.testing.assert_close(
            focus_point(CAPTURES[capture]), torch.tensor(TARGET, dtype=D), msg=capture
        )
    for capture in ("circle", "quarter"):
        up = mean_up(CAPTURES[capture])
        torch.testing.assert_close(up, torch.tensor([0.0, 0.0, 1.0], dtype=D), msg=capture)


def test_parallel_axes_focus_ahead_and_diverging_axes_too():
    ahead = focus_point(CAPTURES["parallel"])
    torch.testing.assert_close(ahead, torch.tensor([2.5, 15.0, 0.0], dtype=D))
    outward = ring(6, degrees=60)
    flip = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=D))
    outward = replace(outward, w2c=flip @ outward.w2c)
    _, depth = project_points(focus_point(outward)[None], outward)
    assert (depth > 0).all()
    assert float(focus_point(ring(1)).dtype == D)


def test_a_given_focus_and_float32_are_kept():
    reference = CAPTURES["circle"].map(lambda t: t.float())
    focus = torch.tensor([1.2, -2.2, 0.4])
    path = make_trajectory("lemniscate", reference, 5, focus=focus)
    assert path.w2c.dtype == torch.float32
    pixels, _ = project_points(focus[None], path)
    torch.testing.assert_close(pixels[:, 0], path.K[:, :2, 2], rtol=0, atol=1e-3)


def test_cameras_without_a_pose_are_ignored():
    reference = CAPTURES["quarter"]
    holed = replace(
        reference,
        w2c=torch.cat([reference.w2c, torch.full((1, 4, 4), torch.nan, dtype=D)]),
        K=torch.cat([reference.K, 100 * reference.K[:1]]),
    )
    want = make_trajectory("spiral", reference, 7)
    found = make_trajectory("spiral", holed, 7)
    assert torch.equal(found.w2c, want.w2c)
    assert torch.equal(found.K, want.K)


def test_options_shape_the_paths():
    reference = CAPTURES["quarter"]
    wide = make_trajectory("arc", reference, 4, options=TrajectoryOptions(arc_degrees=180.0))
    offsets = wide.centers - torch.tensor(TARGET, dtype=D)
    flat = torch.nn.functional.normalize(offsets[:, :2], dim=-1)
    assert float(flat[1] @ flat[3]) == pytest.approx(-1, abs=1e-6)
    still = make_trajectory("wander", reference, 4, options=TrajectoryOptions(wander_fraction=0.0))
    torch.testing.assert_close(still.w2c, still.w2c[:1].expand(4, 4, 4))


def test_bad_requests_say_what_to_do():
    with pytest.raises(UnknownNameError, match='no camera path "elipse"; closest: ellipse'):
        make_trajectory("elipse", ring(2), 3)
    with pytest.raises(InputError, match="at least 1 frame, got 0"):
        make_trajectory("orbit", ring(2), 0)
    lost = Cameras(w2c=torch.full((2, 4, 4), torch.nan), K=torch.ones(2, 3, 3), height=4, width=4)
    with pytest.raises(InputError, match="at least one camera with a pose, got none among 2"):
        make_trajectory("orbit", lost, 3)


def test_transforming_points_agrees_with_inverse_poses():
    cameras = ring(2)
    local = torch.zeros(3, dtype=D)
    same = Similarity(
        scale=torch.ones((), dtype=D),
        rotation=cameras.c2w[0, :3, :3],
        translation=cameras.c2w[0, :3, 3],
    )
    torch.testing.assert_close(transform_points(local, same), invert_se3(cameras.w2c)[0, :3, 3])
