import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import ShapeError
from sightline.geometry.sh import C0, evaluate_sh, rgb_to_sh0, rotate_sh, sh0_to_rgb, sh_basis

from .samples import D, randn, rotations

seeds = st.integers(0, 2**31)


def test_the_basis_is_orthonormal():
    # Gauss-Legendre in z times equal azimuths integrates polynomials of degree 8 exactly.
    import numpy as np

    z, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(8))
    azimuth = torch.arange(16, dtype=D) * (2 * torch.pi / 16)
    z, azimuth = torch.meshgrid(z, azimuth, indexing="ij")
    r = (1 - z * z).sqrt()
    directions = torch.stack([r * azimuth.cos(), r * azimuth.sin(), z], -1).reshape(-1, 3)
    basis = sh_basis(4, directions)
    weights = (weight[:, None] * (2 * torch.pi / 16)).expand(8, 16).reshape(-1, 1)
    torch.testing.assert_close(basis.mT @ (weights * basis), torch.eye(25, dtype=D))


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
@given(seed=seeds)
def test_rotated_coefficients_show_the_turned_colours(degree, seed):
    sh = 0.1 * randn(seed, 5, (degree + 1) ** 2, 3)
    R, d = rotations(seed + 1), randn(seed + 2, 5, 3)
    torch.testing.assert_close(evaluate_sh(rotate_sh(sh, R), d @ R.mT), evaluate_sh(sh, d))


@given(seeds)
def test_rotations_of_coefficients_compose(seed):
    sh, A, B = randn(seed, 2, 16, 3), rotations(seed + 1), rotations(seed + 2)
    torch.testing.assert_close(rotate_sh(rotate_sh(sh, B), A), rotate_sh(sh, A @ B))


def test_half_turn_about_x_flips_the_published_signs():
    signs = [-1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1]
    R = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=D))
    sh = randn(0, 1, 16, 3)
    want = sh * torch.tensor([1, *signs], dtype=D)[:, None]
    torch.testing.assert_close(rotate_sh(sh, R), want)


def test_first_band_has_the_signs_of_gaussian_splatting():
    c = 0.4886025119029199
    d = torch.tensor([0.0, 0.6, 0.8], dtype=D)
    torch.testing.assert_close(
        sh_basis(1, 5 * d), torch.tensor([C0, -c * 0.6, c * 0.8, 0.0], dtype=D)
    )


def test_colours_are_clamped_below_only_and_constants_round_trip():
    rgb = torch.tensor([[0.2, 0.5, 1.4]])
    torch.testing.assert_close(sh0_to_rgb(rgb_to_sh0(rgb)), rgb)
    seen = evaluate_sh(rgb_to_sh0(rgb)[:, None], torch.tensor([[0.0, 0.0, 1.0]]))
    torch.testing.assert_close(seen, rgb)
    dark = evaluate_sh(rgb_to_sh0(-rgb)[:, None], torch.tensor([[0.0, 0.0, 1.0]]))
    assert torch.equal(dark, torch.zeros(1, 3))


def test_gradients_reach_coefficients_directions_and_rotation():
    sh, d, R = 0.05 * randn(0, 2, 9, 3), randn(1, 2, 3), rotations(2)
    for tensor in (sh, d, R):
        tensor.requires_grad_()
    torch.autograd.gradcheck(lambda s, v, r: evaluate_sh(rotate_sh(s, r), v), (sh, d, R))


def test_other_counts_and_degrees_are_refused():
    with pytest.raises(ShapeError, match=r"K one of 1, 4, 9, 16, 25, got \[2, 5, 3\]"):
        evaluate_sh(torch.zeros(2, 5, 3), torch.ones(2, 3))
    with pytest.raises(ShapeError, match="degree 0 to 4 here, got 5"):
        sh_basis(5, torch.ones(2, 3))
