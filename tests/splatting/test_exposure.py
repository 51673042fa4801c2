import pytest
import torch

from sightline.splatting.exposure import (
    Exposure,
    ExposureConfig,
    ExposureModel,
    apply_exposure,
    grid_variation,
    nearby_weights,
)
from tests.splatting.toy import make_cameras


def _offset(seed=0):
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) * 0.1


def test_the_kernel_agrees_with_the_plain_map():
    image = torch.rand(150, 130, 3)
    upstream = torch.randn(150, 130, 3)
    results = []
    for dtype in (torch.float32, torch.float64):
        x, o = (t.to(dtype).requires_grad_() for t in (image, _offset()))
        out = apply_exposure(x, o)
        results.append((out.detach(), *torch.autograd.grad(out, [x, o], upstream.to(dtype))))
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-4)


def test_a_constant_grid_is_an_affine_map():
    image = torch.rand(20, 30, 3)
    grid = _offset()[..., None, None, None].expand(3, 4, 4, 5, 6).clone()
    expected = apply_exposure(image, _offset())
    torch.testing.assert_close(apply_exposure(image, grid), expected, rtol=1e-5, atol=1e-5)
    assert grid_variation(grid).item() == 0


def test_a_grid_varies_over_the_picture():
    grid = torch.zeros(3, 4, 2, 2, 2)
    grid[:, 3, :, :, 1] = 0.5  # the right side is brighter
    out = apply_exposure(torch.zeros(10, 11, 3), grid)
    torch.testing.assert_close(out[3, :, 1], torch.linspace(0, 0.5, 11))
    assert grid_variation(grid).item() > 0


@pytest.mark.parametrize("kind", ["affine", "bilateral"])
def test_the_training_views_mean_stays_the_identity(kind):
    config = ExposureConfig(kind=kind, grid=(3, 2, 2))
    model = ExposureModel(config, 6, "cpu")
    train = [1, 2, 4]
    for view in (1, 4, 1, 2):
        leaf = model.leaf(view)
        gradient = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(view))
        model.step(view, gradient, 1e-2, train)
    assert model.values[train].abs().max() > 1e-3
    torch.testing.assert_close(
        model.values[train].mean(0), torch.zeros_like(model.values[0]), rtol=0, atol=1e-6
    )


def test_held_out_views_take_after_their_neighbours():
    cameras = make_cameras(5)
    model = ExposureModel(ExposureConfig(), 5, "cpu")
    model.values[:] = torch.arange(5.0)[:, None, None]
    model.values[2] = 77  # never looked at
    exposure = model.finish(cameras, [0, 1, 3, 4], 1.0)
    assert exposure.fitted.tolist() == [True, True, False, True, True]
    assert exposure.values[2, 0, 0].item() == pytest.approx(2.0, abs=0.3)
    assert torch.equal(exposure.values[3], model.values[3])


def test_weights_favour_near_cameras_and_sum_to_one():
    cameras = make_cameras(9)
    weights = nearby_weights(cameras, [4, 0], [1, 2, 3, 7, 8], 1.0, nearest=2)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert weights[0].argmax() == 2
    assert weights[1].argmax() == 0
    assert (weights > 0).sum(1).tolist() == [2, 2]


def test_a_view_without_pose_gets_the_mean():
    cameras = make_cameras(4)
    cameras.w2c[3] = torch.nan
    torch.testing.assert_close(
        nearby_weights(cameras, [3], [0, 1], 1.0), torch.tensor([[0.5, 0.5]])
    )


def test_corrected_pictures_stay_in_range():
    values = torch.zeros(2, 3, 4)
    values[1, :, 3] = 0.6
    exposure = Exposure(values=values, fitted=torch.ones(2, dtype=torch.bool))
    images = torch.rand(2, 3, 8, 9)
    out = exposure.apply(images, [1, 0])
    torch.testing.assert_close(out[0], (images[0] + 0.6).clamp(0, 1))
    torch.testing.assert_close(out[1], images[1])
