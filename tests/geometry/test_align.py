import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.errors import InputError
from sightline.geometry.align import (
    Similarity,
    align_robust,
    align_umeyama,
    transform_cameras,
    transform_gaussians,
    transform_points,
    transform_reconstruction,
)
from sightline.geometry.camera import unproject_depth
from sightline.geometry.rotation import quat_to_matrix
from sightline.geometry.sh import evaluate_sh
from sightline.types import Gaussians, Reconstruction, SparsePoints

from .samples import D, randn, ring, rotations

seeds = st.integers(0, 2**31)
scales = st.floats(0.01, 100)


def similarities(seed, scale):
    return Similarity(
        scale=torch.tensor(scale, dtype=D),
        rotation=rotations(seed),
        translation=10 * randn(seed, 3),
    )


def same(a, b, **tolerance):
    for name in ("scale", "rotation", "translation"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), **tolerance)


@given(seeds, scales, st.sampled_from(["solid", "plane", "three"]))
def test_umeyama_recovers_a_sampled_similarity(seed, scale, shape):
    truth = similarities(seed, scale)
    source = randn(seed + 5, 3 if shape == "three" else 30, 3)
    if shape == "plane":
        source[:, 2] = 0.7 * source[:, 0] - 0.2
    same(align_umeyama(source, transform_points(source, truth)), truth, rtol=1e-6, atol=1e-6)


@given(seeds)
def test_a_mirrored_cloud_is_matched_by_a_rotation(seed):
    source = randn(seed, 20, 3)
    target = source * torch.tensor([-1.0, 1.0, 1.0], dtype=D)
    assert float(torch.linalg.det(align_umeyama(source, target).rotation)) == pytest.approx(1)


@given(seeds)
def test_zero_weights_hide_outliers_and_the_fit_is_a_minimum(seed):
    truth = similarities(seed, 2.0)
    source = randn(seed + 5, 12, 3)
    target = transform_points(source, truth)
    target[:4] += 5
    weights = torch.ones(12, dtype=D)
    weights[:4] = 0
    same(align_umeyama(source, target, weights), truth, rtol=1e-6, atol=1e-6)
    noisy = transform_points(source, truth) + 0.1 * randn(seed + 6, 12, 3)
    best = align_umeyama(source, noisy)

    def cost(s):
        return float((transform_points(source, s) - noisy).square().sum())

    for i in range(5):
        nudge = Similarity(
            scale=best.scale * (1 + 1e-3 * float(randn(i, 1))),
            rotation=best.rotation @ rotations(i, kind="tiny"),
            translation=best.translation + 1e-3 * randn(i + 9, 3),
        )
        assert cost(nudge) >= cost(best)


def test_fixed_scale_and_float32():
    source = randn(0, 10, 3, dtype=torch.float32)
    found = align_umeyama(source, 3 * source, with_scale=False)
    assert float(found.scale) == 1
    assert found.rotation.dtype == torch.float32
    torch.testing.assert_close(found.rotation, torch.eye(3))


def test_the_fit_is_differentiable():
    source = randn(0, 6, 3).requires_grad_()
    target = randn(1, 6, 3).requires_grad_()
    torch.autograd.gradcheck(lambda a, b: align_umeyama(a, b).matrix, (source, target))


def test_undetermined_fits_are_refused_with_the_reason():
    line = torch.linspace(-1, 1, 8, dtype=D)[:, None] * randn(0, 3) + 50 * randn(1, 3)
    with pytest.raises(InputError, match="do not lie on one line .* got 8 points on a line"):
        align_umeyama(line, line)
    with pytest.raises(InputError, match="do not lie on one line"):
        align_umeyama(torch.zeros(8, 3, dtype=D), line)
    with pytest.raises(InputError, match="do not lie on one line"):
        align_robust(line, line)
    with pytest.raises(InputError, match="at least 3 matched points with positive weight, got 2"):
        align_umeyama(line[:2], line[:2])
    with pytest.raises(InputError, match="finite points and weights, got NaN"):
        align_umeyama(line, line * torch.nan)


@settings(max_examples=10)
@given(seeds, st.sampled_from([20, 200, 5000]))
def test_robust_alignment_survives_two_in_five_wrong_matches(seed, count):
    truth = similarities(seed, 3.0)
    source = randn(seed + 5, count, 3)
    target = transform_points(source, truth) + 1e-4 * randn(seed + 6, count, 3)
    wrong = count * 2 // 5
    target[:wrong] = 30 * randn(seed + 7, wrong, 3)
    same(align_robust(source, target), truth, rtol=1e-3, atol=3e-3)
    weights = torch.ones(count, dtype=D)
    weights[0] = 0
    same(align_robust(source, target, weights), truth, rtol=1e-3, atol=3e-3)


def test_robust_alignment_of_exact_matches_is_exact():
    truth = similarities(4, 0.5)
    source = randn(1, 40, 3)
    same(align_robust(source, transform_points(source, truth)), truth)


@given(seeds, scales)
def test_similarities_form_a_group(seed, scale):
    a, b = similarities(seed, scale), similarities(seed + 7, 1 / scale)
    x = randn(seed + 2, 5, 3)
    torch.testing.assert_close(
        transform_points(x, a @ b), transform_points(transform_points(x, b), a)
    )
    torch.testing.assert_close(transform_points(transform_points(x, a), a.inverse()), x)
    torch.testing.assert_close((a @ b).matrix, a.matrix @ b.matrix)


@given(seeds, scales)
def test_splats_keep_their_shape_and_colours_in_the_moved_world(seed, scale):
    moved_by = similarities(seed, scale)
    splats = Gaussians(
        means=randn(seed, 4, 3),
        quats=randn(seed + 1, 4, 4),
        scales=randn(seed + 2, 4, 3).exp(),
        opacities=randn(seed + 3, 4).sigmoid(),
        sh=0.1 * randn(seed + 4, 4, 16, 3),
    )
    moved = transform_gaussians(splats, moved_by)

    def covariance(g):
        M = quat_to_matrix(g.quats) * g.scales[:, None]
        return M @ M.mT

    A = moved_by.scale * moved_by.rotation
    torch.testing.assert_close(covariance(moved), A @ covariance(splats) @ A.mT)
    eye = randn(seed + 5, 3)
    torch.testing.assert_close(
        evaluate_sh(moved.sh, moved.means - transform_points(eye, moved_by)),
        evaluate_sh(splats.sh, splats.means - eye),
        rtol=1e-6,
        atol=1e-6,
    )


def test_a_moved_reconstruction_is_consistent():
    cameras, moved_by = ring(2), similarities(3, 2.5)
    depth = randn(0, 2, 48, 64).exp()
    sparse = SparsePoints(
        points=randn(1, 3, 3),
        colors=torch.zeros(3, 3, dtype=torch.uint8),
        tracks=torch.zeros(0, 2, dtype=torch.int32),
    )
    scene = Reconstruction(
        cameras=cameras,
        registered=torch.ones(2, dtype=torch.bool),
        depth=depth,
        points=unproject_depth(depth, cameras),
        sparse=sparse,
        metric=True,
    )
    moved = transform_reconstruction(scene, moved_by)
    assert moved.depth is not None
    assert moved.points is not None
    assert moved.sparse is not None
    assert not moved.metric
    torch.testing.assert_close(unproject_depth(moved.depth, moved.cameras), moved.points)
    torch.testing.assert_close(moved.sparse.points, transform_points(sparse.points, moved_by))
    torch.testing.assert_close(
        moved.cameras.w2c, transform_cameras(cameras, moved_by).w2c, rtol=0, atol=0
    )
