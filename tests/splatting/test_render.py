import pytest
import torch

from sightline.errors import InputError
from sightline.splatting.render import render_gaussians
from tests.splatting.toy import make_cameras, make_gaussians


def test_chunks_do_not_show():
    cameras, gaussians = make_cameras(5), make_gaussians()
    whole = render_gaussians(gaussians, cameras, chunk=5)
    parts = render_gaussians(gaussians, cameras, chunk=2)
    assert whole.rgb.shape == (5, 3, 40, 48)
    for name in ("rgb", "alpha", "depth"):
        assert torch.equal(getattr(whole, name), getattr(parts, name))


def test_the_background_shows_where_nothing_is():
    cameras, gaussians = make_cameras(2), make_gaussians()
    color = torch.tensor([0.2, 0.4, 0.6])
    black = render_gaussians(gaussians, cameras, with_depth=False)
    tinted = render_gaussians(gaussians, cameras, background=color, with_depth=False)
    expected = black.rgb + (1 - black.alpha)[:, None] * color[:, None, None]
    torch.testing.assert_close(tinted.rgb, expected.clamp(0, 1), atol=1e-5, rtol=0)
    assert black.depth is None


def test_depth_is_that_of_the_splats_and_zero_elsewhere():
    cameras, gaussians = make_cameras(1), make_gaussians()
    rendering = render_gaussians(gaussians, cameras)
    assert (rendering.depth[rendering.alpha == 0] == 0).all()
    solid = rendering.depth[rendering.alpha > 0.9]
    assert ((solid > 1) & (solid < 6)).all()


def test_the_antialiased_rasteriser_is_used_for_splats_fitted_with_it():
    cameras = make_cameras(1)
    small = make_gaussians().map(lambda t: t)
    small.scales.mul_(0.02)
    classic = render_gaussians(small, cameras, with_depth=False)
    object.__setattr__(small, "antialiased", True)
    dimmed = render_gaussians(small, cameras, with_depth=False)
    assert dimmed.alpha.sum() < 0.5 * classic.alpha.sum()


def test_no_cameras_give_no_pictures():
    empty = make_cameras(2).select([])
    rendering = render_gaussians(make_gaussians(), empty)
    assert rendering.rgb.shape == (0, 3, 40, 48)
    assert rendering.depth.shape == (0, 40, 48)


def test_bad_calls_are_explained():
    cameras = make_cameras(2)
    with pytest.raises(InputError, match="chunk must be at least 1 camera, got 0"):
        render_gaussians(make_gaussians(), cameras, chunk=0)
    cameras.w2c[1] = torch.nan
    with pytest.raises(InputError, match="select the registered views first"):
        render_gaussians(make_gaussians(), cameras)
