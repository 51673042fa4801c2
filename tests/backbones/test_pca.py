import pytest
import torch

from sightline.backbones.pca import fit_pca, pca_maps, to_colors
from sightline.errors import ShapeError


@pytest.mark.parametrize("shape", [(200, 12), (9, 40)])
def test_axes_are_those_of_the_singular_value_decomposition(shape: tuple[int, int]) -> None:
    tokens = torch.randn(shape) * torch.linspace(3, 0.5, shape[1]) + 5
    pca = fit_pca(tokens, 4)
    _, values, rows = torch.linalg.svd(tokens - tokens.mean(0), full_matrices=False)
    torch.testing.assert_close((pca.axes @ rows[:4].mT).abs(), torch.eye(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(pca.variance, values[:4].square() / shape[0], rtol=1e-4, atol=1e-4)
    assert (pca.axes.gather(1, pca.axes.abs().argmax(1, keepdim=True)) > 0).all()
    maps = tokens.mT.reshape(1, shape[1], -1, 1)
    projected = pca.project(maps)[0, :, :, 0].mT
    torch.testing.assert_close(projected, (tokens - pca.mean) @ pca.axes.mT, atol=1e-4, rtol=1e-4)


def test_more_axes_than_tokens_are_refused() -> None:
    with pytest.raises(ShapeError, match="at least 5 tokens and channels.*got 3 tokens of 8"):
        fit_pca(torch.rand(3, 8), 5)


def test_colours_are_common_to_all_views_and_ignore_outliers() -> None:
    maps = torch.randn(3, 8, 20, 20)
    maps[0, :, 3, 4] = 1e4
    colours = pca_maps(maps + torch.randn(8, 1, 1) * 3)
    inside = ((colours >= 0) & (colours <= 1)).float().mean()
    assert inside > 0.95
    assert colours[:, 1:].std() > 0.1
    # The same patch in two views has the same colour.
    maps[2, :, 5, 6] = maps[1, :, 9, 9]
    colours = pca_maps(maps)
    torch.testing.assert_close(colours[2, :, 5, 6], colours[1, :, 9, 9], atol=1e-4, rtol=1e-4)


def test_the_middle_is_brighter_whatever_the_sign() -> None:
    middle = torch.zeros(1, 1, 12, 12)
    middle[..., 3:9, 3:9] = 1
    maps = torch.cat((middle * 5, torch.randn(1, 4, 12, 12) * 0.1), 1)
    for sign in (1, -1):
        first = pca_maps(maps * sign)[0, 0]
        assert first[5, 5] > 0.9
        assert first[0, 0] < 0.1


def test_masked_patches_have_no_part() -> None:
    maps = torch.randn(1, 6, 10, 10)
    valid = torch.ones(1, 10, 10, dtype=torch.bool)
    valid[..., 5:] = False
    spoiled = maps.clone()
    spoiled[..., 5:] *= 1000
    torch.testing.assert_close(
        pca_maps(spoiled, valid)[..., :5], pca_maps(maps, valid)[..., :5], atol=1e-4, rtol=1e-4
    )


def test_few_channels_leave_the_rest_at_medium() -> None:
    colours = pca_maps(torch.rand(1, 1, 4, 4))
    assert colours.shape == (1, 3, 4, 4)
    assert (to_colors(colours[0])[..., 1:] == 128).all()


def test_a_constant_map_has_a_colour() -> None:
    assert pca_maps(torch.ones(2, 5, 3, 3)).isfinite().all()
