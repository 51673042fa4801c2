import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import ShapeError
from sightline.metrics.images import (
    METRICS,
    color_corrected_psnr,
    correct_colors,
    psnr,
    ssim,
    ssim_skimage,
)
from sightline.protocols import Metric

seeds = st.integers(0, 2**31)


def pictures(seed=0, views=1, height=40, width=52, noise=0.15):
    rng = np.random.default_rng(seed)
    target = rng.random((views, height, width, 3))
    predicted = np.clip(target + noise * rng.standard_normal(target.shape), 0, 1)
    return (torch.from_numpy(x).permute(0, 3, 1, 2) for x in (predicted, target))


def test_numbers_of_scikit_image():
    # scikit-image 0.26: structural_similarity(channel_axis=-1, data_range=1) with its defaults and
    # with gaussian_weights, sigma 1.5, use_sample_covariance False; peak_signal_noise_ratio.
    predicted, target = pictures()
    assert float(psnr(predicted, target)) == pytest.approx(17.2682308152502, abs=1e-10)
    assert float(ssim_skimage(predicted, target)) == pytest.approx(0.8901953961248376, abs=1e-10)
    uniform = ssim_skimage(predicted, target, window="uniform")
    assert float(uniform) == pytest.approx(0.8915413273213799, abs=1e-10)


def test_ssim_is_the_textbook_sum_with_zeros_outside():
    predicted, target = pictures(1, height=13, width=15)
    at = np.arange(11) - 5
    window = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    window /= window.sum()
    a, b = (np.pad(x[0].numpy(), ((0, 0), (5, 5), (5, 5))) for x in (predicted, target))
    values = []
    for c in range(3):
        for i in range(13):
            for j in range(15):
                x, y = a[c, i : i + 11, j : j + 11], b[c, i : i + 11, j : j + 11]
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * x * x).sum() - mx**2, (window * y * y).sum() - my**2
                cov = (window * x * y).sum() - mx * my
                values.append(
                    (2 * mx * my + 1e-4) * (2 * cov + 9e-4)
                    / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
                )  # fmt: skip
    assert float(ssim(predicted, target)) == pytest.approx(np.mean(values), abs=1e-12)


def test_equal_pictures_are_perfect_and_views_are_apart():
    predicted, target = pictures(views=3)
    predicted[1] = target[1]
    for name, metric in METRICS.items():
        values = metric(predicted, target)
        assert values.shape == (3,)
        best = math.inf if metric.unit == "dB" else 1.0
        if name == "cc_psnr":  # rounding in the fit
            assert float(values[1]) > 150
        else:
            assert float(values[1]) == pytest.approx(best)
        assert float(values[0]) != float(values[2])
        alone = metric(predicted[2:], target[2:])
        torch.testing.assert_close(alone, values[2:])


@pytest.mark.parametrize("name", METRICS)
@given(seed=seeds)
def test_a_full_mask_changes_nothing_and_masked_pixels_have_no_say(name, seed):
    metric = METRICS[name]
    predicted, target = pictures(seed, views=2, height=24, width=30)
    full = torch.ones(2, 24, 30, dtype=torch.bool)
    torch.testing.assert_close(metric(predicted, target, full), metric(predicted, target))
    mask = full.clone()
    mask[0, :, 15:] = False
    mask[1, 3:9, 4:20] = False
    want = metric(predicted, target, mask)
    rubbish, other = predicted.clone(), target.clone()
    hidden = ~mask[:, None].expand_as(target)
    rubbish[hidden] = torch.nan
    other[hidden] = 0.3
    torch.testing.assert_close(metric(rubbish, other, mask), want)
    # Equal pixels under the mask do not raise the score.
    perfect = torch.where(hidden, target, predicted)
    torch.testing.assert_close(metric(perfect, target, mask), want)


def test_masked_psnr_is_the_psnr_of_the_rest():
    predicted, target = pictures(views=1, height=8, width=10)
    mask = torch.zeros(1, 8, 10, dtype=torch.bool)
    mask[:, 2:6, 3:9] = True
    cut = (slice(None), slice(None), slice(2, 6), slice(3, 9))
    torch.testing.assert_close(psnr(predicted, target, mask), psnr(predicted[cut], target[cut]))
    assert torch.isnan(psnr(predicted, target, torch.zeros_like(mask))).all()


def test_ssim_has_gradients_that_match_differences():
    predicted, target = pictures(views=1, height=6, width=7)
    predicted.requires_grad_()
    torch.autograd.gradcheck(lambda p: ssim(p, target), predicted)


@pytest.mark.parametrize("method", ["affine", "gains", "quadratic"])
def test_colour_correction_undoes_exposure(method):
    _, target = pictures(views=2)
    target = 0.2 + 0.5 * target
    gain = torch.tensor([1.1, 0.9, 1.2], dtype=torch.float64)[:, None, None]
    predicted = gain * target - 0.03
    assert float(psnr(predicted, target).max()) < 30
    assert float(color_corrected_psnr(predicted, target, method=method).min()) > 80
    assert correct_colors(predicted, target, method=method).dtype == torch.float64


@given(seeds)
def test_affine_correction_mixes_channels_and_never_lowers_psnr(seed):
    predicted, target = pictures(seed, views=2, height=16, width=16)
    assert (color_corrected_psnr(predicted, target) >= psnr(predicted, target) - 1e-9).all()
    # Swapped channels are a matter of colour only.
    swapped = color_corrected_psnr(predicted.flip(1), target)
    torch.testing.assert_close(swapped, color_corrected_psnr(predicted, target))


def test_correction_of_a_plain_picture_and_of_no_pixels_does_not_fail():
    predicted, target = torch.full((1, 3, 8, 8), 0.4), torch.full((1, 3, 8, 8), 0.6)
    nothing = torch.zeros(1, 8, 8, dtype=torch.bool)
    for method in ("affine", "gains", "quadratic"):
        assert float(color_corrected_psnr(predicted, target, method=method)) > 60
        corrected = correct_colors(predicted, target, nothing, method=method)
        assert corrected.shape == predicted.shape


def test_windows_larger_than_the_picture_are_refused():
    predicted, target = pictures(height=9, width=30)
    with pytest.raises(ShapeError, match="at least 11 x 11 for the gaussian window, got 9 x 30"):
        ssim_skimage(predicted, target)


def test_the_table_satisfies_the_protocol():
    for name, metric in METRICS.items():
        assert isinstance(metric, Metric)
        assert metric.name == name
