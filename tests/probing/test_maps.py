"""The published error maps against numbers worked out by hand."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sightline.metrics.images import ssim, ssim_picture
from sightline.metrics.lpips import Lpips
from sightline.probing.maps import error_maps, jet, write_error_maps


def test_maps_by_hand() -> None:
    photo = torch.full((3, 24, 24), 0.5)
    render = photo.clone()
    render[:, 4, 4] += 0.3  # one pixel is off in all channels
    render[0, 9, 9] += 0.3  # another in one
    render[:, 20:] = 0  # under the mask
    mask = torch.ones(24, 24, dtype=torch.bool)
    mask[20:] = False
    found = error_maps(render, photo, mask)
    assert set(found) == {"psnr", "ssim", "mse"}

    def psnr(rmse: float) -> int:
        return int(255 * 20 * math.log10(1 / (0.01 + rmse)) / 40)

    assert abs(int(found["psnr"][4, 4]) - psnr(0.3)) <= 1
    assert abs(int(found["psnr"][9, 9]) - psnr(0.3 / math.sqrt(3))) <= 1
    assert found["psnr"][0, 20] == 255  # no error: 40 dB at most
    assert (found["psnr"][21] == 255).all()  # masked pixels are perfect
    # 0.09 of 0.2 is 0.45 of the colours: 4 * 0.45 = 1.8.
    want = [int(255 * v) for v in (1.5 - 1.2, 1.0, 1.5 - 0.8)]
    assert np.abs(found["mse"][4, 4].astype(int) - want).max() <= 1
    assert found["mse"][0, 20].tolist() == [0, 0, 127]
    assert found["ssim"][0, 20] == 255  # (1 + 1) / 2
    assert found["ssim"][4, 4] < 255


def test_ssim_at_every_pixel_has_the_mean_of_the_score() -> None:
    a, b = torch.rand(2, 1, 3, 20, 24)
    picture = ssim_picture(a, b)
    assert picture.shape == (1, 3, 20, 24)
    torch.testing.assert_close(picture.mean((1, 2, 3)), ssim(a, b))


def test_lpips_in_space_has_the_mean_of_the_score(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Lpips("vgg")
    for parameter in network.parameters():
        parameter.abs_()
    a, b = torch.rand(2, 1, 3, 32, 32)
    layers = network.maps(a, b, normalize=False)
    assert [layer.shape[-1] for layer in layers] == [32, 16, 8, 4, 2]
    total = torch.stack([layer.mean() for layer in layers]).sum()
    torch.testing.assert_close(total, network(a, b, normalize=False)[0])
    photos, renders = ((x * 255).to(torch.uint8) for x in (a, b))
    mask = torch.ones(1, 32, 32, dtype=torch.bool)
    names = write_error_maps(tmp_path, renders, photos, mask, network)
    assert names == [f"{kind}_map_00000.png" for kind in ("psnr", "ssim", "mse", "lpips")]
    for name in names:
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (32, 32)


def test_jet() -> None:
    found = jet(torch.tensor([[0.0, 0.25, 0.5, 0.75, 1.0]]))
    want = [[0, 0, 127], [0, 127, 255], [127, 255, 127], [255, 127, 0], [127, 0, 0]]
    assert found[0].tolist() == want
