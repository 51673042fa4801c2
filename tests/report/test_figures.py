import io

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.report import figures
from sightline.report.colormap import MAGMA, TURBO


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_pixels_from_floats_and_bytes_agree() -> None:
    picture = torch.tensor([[[0.0, 1.0]], [[0.5, -1.0]], [[2.0, torch.nan]]])
    pixels = figures.to_pixels(picture)
    np.testing.assert_array_equal(pixels, [[[0, 128, 255], [255, 0, 0]]])
    again = torch.from_numpy(pixels).permute(2, 0, 1)
    np.testing.assert_array_equal(figures.to_pixels(again), pixels)


@pytest.mark.parametrize(("size", "long_side", "wanted"), [
    ((100, 200), 50, (25, 50)), ((200, 100), 50, (50, 25)), ((10, 20), 50, (10, 20)),
    ((1, 5000), 100, (1, 100)),
])  # fmt: skip
def test_pictures_only_shrink(size: tuple, long_side: int, wanted: tuple) -> None:
    assert figures.shrink(noise(*size), long_side).shape[:2] == wanted


def test_files_keep_to_the_budget() -> None:
    pictures = [noise(300, 400, i) for i in range(6)]
    free = figures.encode_jpegs(pictures, long_side=1000, budget=10**9)
    assert [Image.open(io.BytesIO(f)).size for f in free] == [(400, 300)] * 6
    budget = sum(map(len, free)) // 5
    tight = figures.encode_jpegs(pictures, long_side=1000, budget=budget)
    assert 0.5 * budget < sum(map(len, tight)) <= budget
    assert len({Image.open(io.BytesIO(f)).size for f in tight}) == 1
    # A budget that cannot be met ends at 32 pixels.
    least = figures.encode_jpegs(pictures, long_side=1000, budget=1)
    assert max(Image.open(io.BytesIO(least[0])).size) == 32
    assert figures.encode_jpegs([], long_side=10, budget=1) == []


def test_depth_is_even_in_its_inverse() -> None:
    depth = torch.tensor([[1.0, 4.0, 1.6, 0.0, torch.inf, 2.0]])
    mask = figures.depth_mask(depth, torch.tensor([[True, True, True, True, True, False]]))
    assert mask.tolist() == [[True, True, True, False, False, False]]
    colors = figures.depth_picture(depth, mask, 1.0, 4.0)
    np.testing.assert_array_equal(colors[0, :2], TURBO[[255, 0]])  # near is red
    np.testing.assert_array_equal(colors[0, 2], TURBO[128])  # 1 / 1.6 is half way
    np.testing.assert_array_equal(colors[0, 3:], np.full((3, 3), 128))


def test_depth_range_ignores_outliers_and_unknown() -> None:
    depth = torch.linspace(2, 3, 10000).reshape(100, 100)
    depth[0, :50] = 1000.0
    mask = figures.depth_mask(depth)
    near, far = figures.depth_range([depth], [mask])
    assert near == pytest.approx(2.02, abs=0.02)
    assert far == pytest.approx(2.98, abs=0.02)
    assert figures.depth_range([depth], [torch.zeros_like(mask)]) == (1.0, 2.0)
    near, far = figures.depth_range([torch.ones(9, 9)], [torch.ones(9, 9, dtype=torch.bool)])
    assert near < far


def test_error_is_the_mean_of_the_channels() -> None:
    photo = torch.zeros(3, 1, 3)
    render = photo.clone()
    render[0, 0, 1] = 0.3  # mean 0.1: half of the limit
    render[:, 0, 2] = 1.0
    colors = figures.error_picture(render, photo)
    near_half = MAGMA[127:130].astype(int)
    np.testing.assert_array_equal(colors[0, 0], MAGMA[0])
    assert np.abs(near_half - colors[0, 1]).max(axis=1).min() <= 1
    np.testing.assert_array_equal(colors[0, 2], MAGMA[255])
