import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.splatting.losses import (
    gaussian_window,
    photometric_loss,
    photometric_loss_reference,
    ssim_map,
)


def _scene(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rendered = torch.rand(height, width, 3, generator=generator)
    target = (torch.rand(3, height, width, generator=generator) * 255).byte()
    mask = torch.rand(height, width, generator=generator) > 0.3
    return rendered, target, mask


@given(
    height=st.integers(6, 60),
    width=st.integers(6, 40),
    weight=st.sampled_from([0.0, 0.2, 1.0]),
    masked=st.booleans(),
    seed=st.integers(0, 100),
)
def test_value_and_gradient_match_autograd_in_float64(height, width, weight, masked, seed):
    rendered, target, mask = _scene(height, width, seed)
    mask = mask if masked else None
    x = rendered.clone().requires_grad_()
    loss = photometric_loss(x, target, mask, ssim_weight=weight)
    (gradient,) = torch.autograd.grad(loss, x)
    exact = rendered.double().requires_grad_()
    expected = photometric_loss_reference(exact, target, mask, ssim_weight=weight)
    (slope,) = torch.autograd.grad(expected, exact)
    assert abs(loss.item() - expected.item()) < 2e-5
    torch.testing.assert_close(gradient.double(), slope, rtol=2e-4, atol=2e-6 * slope.abs().max())


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 1), (3, 30)])
def test_pictures_smaller_than_the_window(size):
    rendered, target, _ = _scene(*size)
    x = rendered.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(photometric_loss(x, target), x)
    exact = rendered.double().requires_grad_()
    (slope,) = torch.autograd.grad(photometric_loss_reference(exact, target), exact)
    # Variances of a few pixels cancel in float32.
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-2, atol=1e-2 * slope.abs().max())


def test_the_gradient_is_that_of_the_scaled_loss():
    rendered, target, _ = _scene(20, 17)
    x = rendered.requires_grad_()
    (once,) = torch.autograd.grad(photometric_loss(x, target), x)
    (thrice,) = torch.autograd.grad(3 * photometric_loss(x, target), x)
    torch.testing.assert_close(thrice, 3 * once)


def test_float_targets_mean_the_same_as_bytes():
    rendered, target, mask = _scene(30, 20)
    a = photometric_loss(rendered, target, mask)
    b = photometric_loss(rendered, target.float() / 255, mask)
    assert a.item() == pytest.approx(b.item(), abs=1e-6)


def test_a_perfect_picture_has_no_loss():
    _, target, mask = _scene(30, 20)
    perfect = target.permute(1, 2, 0).float() / 255
    assert photometric_loss(perfect, target, mask).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", [photometric_loss, photometric_loss_reference])
def test_masked_pixels_do_not_count_at_all(loss):
    rendered, target, mask = _scene(40, 30)
    x = rendered.clone().requires_grad_()
    value = loss(x, target, mask)
    (gradient,) = torch.autograd.grad(value, x)
    assert (gradient[~mask] == 0).all()
    other = torch.where(mask[..., None], rendered, torch.rand(40, 30, 3))
    assert loss(other, target, mask).item() == pytest.approx(value.item(), abs=1e-6)


@pytest.mark.parametrize("loss", [photometric_loss, photometric_loss_reference])
def test_masked_pixels_do_not_count_as_perfect(loss):
    rendered, target, _ = _scene(24, 30)
    padded = torch.zeros(50, 61, 3)
    padded[:24, :30] = rendered
    padded_target = torch.zeros(3, 50, 61, dtype=torch.uint8)
    padded_target[:, :24, :30] = target
    mask = torch.zeros(50, 61, dtype=torch.bool)
    mask[:24, :30] = True
    expected = loss(rendered, target).item()
    assert loss(padded, padded_target, mask).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.2])
def test_a_picture_without_counting_pixels_has_no_loss_and_no_gradient(weight):
    rendered, target, mask = _scene(20, 20)
    x = rendered.requires_grad_()
    loss = photometric_loss(x, target, torch.zeros_like(mask), ssim_weight=weight)
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == 0
    assert (gradient == 0).all()


def test_similarity_at_a_pixel_is_the_published_formula():
    generator = torch.Generator().manual_seed(3)
    x, y = torch.rand(2, 3, 25, 25, generator=generator, dtype=torch.float64)
    taps = gaussian_window().double()
    window = torch.outer(taps, taps)

    def mean(values):
        return (window * values[1, 7:18, 6:17]).sum()

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    weight = torch.ones(1, 25, 25, dtype=torch.float64)
    assert ssim_map(x, y, weight)[1, 12, 11].item() == pytest.approx(expected.item(), abs=1e-6)


def test_the_loss_does_not_depend_on_the_number_of_threads():
    rendered, target, mask = _scene(130, 70)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            x = rendered.clone().requires_grad_()
            loss = photometric_loss(x, target, mask)
            results.append((loss.detach(), *torch.autograd.grad(loss, x)))
    finally:
        torch.set_num_threads(threads)
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])
