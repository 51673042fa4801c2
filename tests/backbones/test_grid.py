from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from sightline.backbones.grid import Fit, Placement, fit_pictures, pixel_positions, place
from sightline.errors import ShapeError
from sightline.types import Features

SIDES = st.integers(8, 90)
ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def ramp(height: int, width: int) -> torch.Tensor:
    """A picture whose red and green are the pixel's own x and y over 128."""
    x, y = ((torch.arange(side) + 0.5) / 128 for side in (width, height))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"))
    return torch.cat((grid, torch.zeros(1, height, width))).unsqueeze(0)


@given(SIDES, SIDES, st.sampled_from([4, 7, 16]), st.sampled_from(["stretch", "pad", "letterbox"]))
def test_positions_are_where_the_canvas_shows_them(
    height: int, width: int, patch: int, fit: Fit
) -> None:
    placement = place((height, width), fit, step=patch, stride=patch, side=8 * patch)
    canvas = fit_pictures(ramp(height, width), placement, ZERO, ONE)
    assert canvas.shape[-2:] == placement.canvas
    assert placement.grid == (canvas.shape[-2] // patch, canvas.shape[-1] // patch)
    positions = placement.positions()
    assert positions.shape == (*placement.grid, 2)
    # The mean of a linear ramp over a patch is its value at the centre. Resizing bends the ramp
    # within a few pixels of the border, and padding cuts it.
    seen = functional.avg_pool2d(canvas, patch)[0, :2].permute(1, 2, 0) * 128
    scale = max(height / placement.inner[0], width / placement.inner[1], 1.0)
    margin = (patch / 2 + 3) * scale
    limits = torch.tensor([width, height])
    inside = ((positions > margin) & (positions < limits - margin)).all(-1)
    assert torch.allclose(seen[inside].double(), positions[inside], atol=0.02 * scale)


@given(SIDES, SIDES, st.sampled_from([1, 7, 16]))
def test_stretched_patches_cover_the_picture_evenly(height: int, width: int, patch: int) -> None:
    placement = place((height, width), "stretch", step=patch, stride=patch)
    positions = placement.positions()
    rows, cols = placement.grid
    assert torch.allclose(positions.mean((0, 1)), torch.tensor([width / 2, height / 2]).double())
    assert positions[0, 0].tolist() == pytest.approx([width / cols / 2, height / rows / 2])
    pixels = place((height, width), "stretch", step=1, stride=1).positions()
    maps = torch.rand(2, 3, rows, cols)
    want = functional.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
    assert torch.allclose(placement.sample(maps, pixels), want, atol=1e-4)


@given(SIDES, SIDES)
def test_sampling_at_the_patches_gives_them_back(height: int, width: int) -> None:
    placement = place((height, width), "pad", step=7, stride=7)
    maps = torch.rand(1, 2, *placement.grid)
    assert torch.allclose(placement.sample(maps, placement.positions()), maps, atol=1e-4)


def test_padding_is_zero_after_normalisation_with_the_smaller_half_first() -> None:
    placement = place((11, 14), "pad", step=7, stride=7)
    assert placement == Placement((11, 14), (14, 14), (11, 14), (1, 0), (2, 2))
    canvas = fit_pictures(torch.ones(1, 3, 11, 14), placement, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert torch.equal(canvas[0, 0, :, 0], torch.tensor([0.0, *[1.0] * 11, 0.0, 0.0]))
    assert placement.positions()[0, 0].tolist() == [3.5, 2.5]


def test_a_picture_that_fits_is_not_touched() -> None:
    images = torch.rand(2, 3, 28, 14)
    placement = place((28, 14), "stretch", step=14, stride=14)
    assert torch.equal(fit_pictures(images, placement, ZERO, ONE), images)


def test_positions_need_the_right_size() -> None:
    class Own:
        patch_size, embed_dim, mean, std = 7, 2, ZERO, ONE

        def placement(self, height: int, width: int) -> Placement:
            return place((height, width), "stretch", step=7, stride=7)

        def extract(self, images: torch.Tensor, *, layers: Sequence[int]) -> list[Features]:
            return []

    features = Features(patches=torch.zeros(1, 2, 3, 4), layer=0, normed=False)
    assert pixel_positions(features, (21, 28), Own())[0, 0].tolist() == [3.5, 3.5]
    with pytest.raises(ShapeError, match="grid like 4x3 for a picture of 28x21 pixels, got 3x4"):
        pixel_positions(features, (28, 21), Own())
    # Without the backbone the grid covers the picture.
    assert pixel_positions(features, (28, 21))[0, 0].tolist() == [21 / 8, 28 / 6]
