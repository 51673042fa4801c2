"""What every source of multi-view samples has to stand."""

import torch
from torch.nn import functional

from sightline.datasets.overlap import shown_in
from sightline.types import MultiView


def worst_reprojection(sample: MultiView, view: int = 0, other: int = 1) -> tuple[float, float]:
    """Return the share of a view that another shows, and the mean colour difference there."""
    pixels, seen = shown_in(sample, view, other)
    height, width = sample.size
    grid = pixels / pixels.new_tensor([width, height]) * 2 - 1
    there = functional.grid_sample(sample.images[None, other], grid[None], align_corners=False)[0]
    apart = (there - sample.images[view]).abs().mean(0)
    return float(seen.float().mean()), float(apart[seen].mean())


def check_sample(sample: MultiView, num_views: int, height: int, width: int) -> None:
    """Check what holds for every sample, whatever its source."""
    assert sample.images.shape == (num_views, 3, height, width)
    assert sample.images.dtype == torch.float32
    assert 0 <= float(sample.images.min()) <= float(sample.images.max()) <= 1
    assert sample.size == (height, width)
    assert len(sample) == num_views == len(sample.names[0])
    assert len(sample.scenes) == 1
    assert bool((sample.depth[sample.valid] > 0).all())
    assert bool(torch.isfinite(sample.depth).all())
    turn = sample.w2c[:, :3, :3].double()
    eye = torch.eye(3, dtype=torch.float64)
    assert float((turn @ turn.mT - eye).abs().max()) < 1e-5
    assert bool((torch.linalg.det(turn) > 0).all())
    assert bool((sample.K[:, 2] == torch.tensor([0.0, 0.0, 1.0])).all())
