from dataclasses import replace

import pytest
import torch

from sightline.errors import InputError
from sightline.splatting.evaluate import evaluate_splats
from sightline.splatting.exposure import Exposure
from tests.splatting.toy import make_gaussians, make_views


def test_the_scene_itself_scores_highest():
    views = make_views()
    told = []
    scored = evaluate_splats(
        make_gaussians(), views, [2, 5], progress=lambda *message: told.append(message)
    )
    assert scored.names == ("002.png", "005.png")
    assert (scored.scores["psnr"] > 45).all()
    assert (scored.scores["ssim"] > 0.99).all()
    metrics = scored.metrics()
    assert set(metrics) == {"psnr", "ssim", "cc_psnr"}
    assert set(metrics["psnr"]["per_view"]) == {"002.png", "005.png"}
    assert metrics["psnr"]["mean"] == pytest.approx(scored.scores["psnr"].mean().item())
    assert told == [("evaluate", 1, 2), ("evaluate", 2, 2)]


def test_exposure_is_put_back_before_scoring():
    views = make_views()
    dark = replace(views, images=(views.images * 0.6).round().byte())
    values = torch.zeros(8, 3, 4)
    values[:, [0, 1, 2], [0, 1, 2]] = -0.4
    exposure = Exposure(values=values, fitted=torch.ones(8, dtype=torch.bool))
    plain = evaluate_splats(make_gaussians(), dark, [1])
    corrected = evaluate_splats(make_gaussians(), dark, [1], exposure=exposure)
    assert corrected.scores["psnr"][0] > 45 > plain.scores["psnr"][0] + 10
    assert plain.scores["cc_psnr"][0] > 40


def test_masked_pixels_do_not_count():
    views = make_views()
    images = views.images.clone()
    images[:, :, :20] = 255 - images[:, :, :20]
    masks = torch.ones(8, 40, 48, dtype=torch.bool)
    masks[:, :20] = False
    scored = evaluate_splats(make_gaussians(), replace(views, images=images, masks=masks), [0])
    assert scored.scores["psnr"][0] > 45


def test_nothing_to_score_is_refused():
    views = make_views()
    with pytest.raises(InputError, match="at least one view with a camera, got none"):
        evaluate_splats(make_gaussians(), views, [])
    with pytest.raises(InputError, match="at least one view with a camera, got none"):
        evaluate_splats(make_gaussians(), replace(views, cameras=None), [0])
