import pytest
import torch

from sightline.errors import ShapeError
from sightline.splatting.params import NAMES, GaussianParams
from sightline.types import Gaussians


def _gaussians(count=20, bands=9):
    generator = torch.Generator().manual_seed(2)
    return Gaussians(
        means=torch.randn(count, 3, generator=generator),
        quats=torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1),
        scales=torch.rand(count, 3, generator=generator) + 0.1,
        opacities=torch.rand(count, generator=generator) * 0.9 + 0.05,
        sh=torch.randn(count, bands, 3, generator=generator),
    )


def test_activated_values_come_back():
    gaussians = _gaussians()
    params = GaussianParams.from_gaussians(gaussians)
    again = params.activate(antialiased=True)
    for name in ("means", "quats", "scales", "opacities", "sh"):
        torch.testing.assert_close(getattr(again, name), getattr(gaussians, name))
    assert again.antialiased
    assert len(params) == 20
    assert params.sh_degree == 2
    assert params.sh0.shape == (20, 1, 3)
    assert params.shN.shape == (20, 8, 3)


def test_extreme_values_stay_finite():
    gaussians = _gaussians(2)
    gaussians.opacities[:] = torch.tensor([0.0, 1.0])
    gaussians.scales[0] = 0
    params = GaussianParams.from_gaussians(gaussians)
    assert all(torch.isfinite(t).all() for t in params.tensors().values())


def test_activation_has_gradients():
    params = GaussianParams.from_gaussians(_gaussians())
    g = params.activate()
    sum(t.sum() for t in (g.means, g.quats, g.scales, g.opacities, g.sh)).backward()
    assert all(t.grad is not None for t in params.tensors().values())


def test_rows_are_selected_in_order():
    params = GaussianParams.from_gaussians(_gaussians())
    means = params.means.detach().clone()
    params.select(torch.tensor([7, 2, 7]))
    assert torch.equal(params.means, means[[7, 2, 7]])
    assert sorted(dict(params.named_parameters())) == sorted(NAMES)


def test_half_a_band_is_refused():
    g = _gaussians(bands=9)
    with pytest.raises(ShapeError, match=r"sh must be \[N, K, 3\] with K = 1, 4, 9 or 16, got"):
        GaussianParams(g.means, g.scales, g.quats, g.opacities, g.sh[:, :5])
