"""Masks and scores of Splatt3R on cases that can be told by hand."""

import pytest
import torch

from sightline.metrics.splatt3r import (
    masked_mse,
    official_mse,
    official_mse_over_mask,
    photometric_loss,
    seen_mask,
    ssim_map,
)


def view(shift: float, depth: float = 2.0) -> dict[str, torch.Tensor]:
    K = torch.tensor([[20.0, 0, 10], [0, 20, 8], [0, 0, 1]])[None]
    pose = torch.eye(4)[None].clone()
    pose[0, 0, 3] = shift
    return {
        "depthmap": torch.full((1, 16, 20), depth),
        "camera_intrinsics": K,
        "camera_pose": pose,
    }


def test_a_wall_is_seen_where_pictures_overlap() -> None:
    # A shift of 0.5 at depth 2 is 5 pixels; the border of the picture itself is outside.
    mask = seen_mask([view(0.5)], view(0.0))
    assert mask.shape == (1, 16, 20)
    assert bool(mask[0, 1:, 6:].all())
    assert not bool(mask[0, :, :6].any())
    assert not bool(seen_mask([view(0.0, 3.0)], view(0.0)).any())
    hole = view(0.0)
    hole["depthmap"][0, 4] = 0
    assert not bool(seen_mask([view(0.0)], hole)[0, 4].any())


def test_the_published_numbers_differ_as_stated() -> None:
    generator = torch.Generator().manual_seed(0)
    color, target = torch.rand(2, 1, 2, 3, 8, 8, generator=generator)
    mask = torch.ones(1, 2, 8, 8, dtype=torch.bool)
    assert torch.allclose(masked_mse(color, target, mask), official_mse(color, target, mask))
    one = color[:, :1], target[:, :1], mask[:, :1]
    assert torch.allclose(official_mse_over_mask(*one), 3 * masked_mse(*one))
    with pytest.raises(ValueError, match="1 or 3 views, got 2"):
        official_mse_over_mask(color, target, mask)
    mask[..., :4] = False
    assert torch.allclose(
        masked_mse(color, target, mask), (color - target)[..., 4:].square().mean()
    )
    plain = photometric_loss(color, target, mask)
    assert torch.allclose(
        photometric_loss(color, target, mask, torch.tensor(2.0)), plain + 0.25 * 2.0
    )


def test_equal_pictures_are_perfectly_similar() -> None:
    picture = torch.rand(2, 3, 16, 18)
    assert torch.allclose(ssim_map(picture, picture), torch.ones_like(picture), atol=1e-4)
    assert float(ssim_map(picture, 1 - picture).mean()) < 0
