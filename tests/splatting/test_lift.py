"""Lifting: constants stay, what is hidden gets nothing, masks and order count."""

import pytest
import torch

from sightline.errors import InputError, ShapeError
from sightline.splatting.lift import lift_to_gaussians, lift_to_points
from sightline.splatting.rasterize import rasterization
from sightline.types import Cameras, Gaussians
from tests.splatting.toy import make_cameras, make_gaussians


def looking_ahead(count: int = 1) -> Cameras:
    K = torch.tensor([[40.0, 0, 24], [0, 40, 20], [0, 0, 1]]).expand(count, 3, 3)
    return Cameras(w2c=torch.eye(4).expand(count, 4, 4), K=K, height=40, width=48)


def blobs(means: list[list[float]], opacity: float = 0.99, scale: float = 0.1) -> Gaussians:
    count = len(means)
    return Gaussians(
        means=torch.tensor(means),
        quats=torch.tensor([[1.0, 0, 0, 0]]).expand(count, 4).contiguous(),
        scales=torch.full((count, 3), scale),
        opacities=torch.full((count,), opacity),
        sh=torch.zeros(count, 1, 3),
    )


def test_a_constant_map_is_carried_unchanged() -> None:
    cameras, gaussians = make_cameras(3), make_gaussians()
    value = torch.tensor([0.3, -2.0, 5.0])
    maps = [value[:, None, None].expand(3, cameras.height, cameras.width)] * 3
    lifted = lift_to_gaussians(gaussians, cameras, maps)
    seen = lifted.weights > 1e-3
    assert seen.any()
    torch.testing.assert_close(
        lifted.values[seen], value.expand(int(seen.sum()), 3), rtol=1e-3, atol=1e-3
    )
    assert (lifted.values[lifted.weights <= 1e-6] == 0).all()


def test_it_is_the_transpose_of_drawing() -> None:
    cameras, gaussians = make_cameras(1), make_gaussians()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(70, cameras.height, cameras.width, generator=generator)  # two chunks
    own = torch.randn(len(gaussians), 70, generator=generator)
    image, _, _ = rasterization(
        gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, own,
        cameras.w2c, cameras.K, cameras.width, cameras.height,
    )  # fmt: skip
    lifted = lift_to_gaussians(gaussians, cameras, [pixels])
    summed = lifted.values * lifted.weights[:, None]
    there = (image[0].permute(2, 0, 1).double() * pixels).sum()
    back = (summed.double() * own).sum()
    torch.testing.assert_close(there, back, rtol=1e-4, atol=1e-2)


def test_what_lies_behind_gets_nothing() -> None:
    front_and_back = blobs([[0.0, 0, 2], [0, 0, 4]])
    red_middle = torch.ones(1, 40, 48)
    lifted = lift_to_gaussians(front_and_back, looking_ahead(), [red_middle])
    alone = lift_to_gaussians(blobs([[0.0, 0, 4]]), looking_ahead(), [red_middle])
    assert lifted.weights[1] < 0.3 * alone.weights[0]  # the front one is soft at its rim


def test_masked_pixels_do_not_count() -> None:
    pair = blobs([[-0.6, 0, 2], [0.6, 0, 2]])
    left = torch.zeros(1, 40, 48, dtype=torch.bool)
    left[:, :, :24] = True
    features = torch.where(left, 1.0, 7.0)
    lifted = lift_to_gaussians(pair, looking_ahead(), [features], left)
    assert lifted.values[0, 0] == pytest.approx(1)
    assert lifted.weights[1] < 1e-3 * lifted.weights[0]


def test_points_read_the_map_where_they_are_seen() -> None:
    cameras = looking_ahead(2)
    x = torch.arange(48) + 0.5
    ramp = x.expand(1, 40, 48)
    points = torch.tensor([[0.0, 0, 2], [0.25, 0, 2], [0, 0, 5], [0, 0, -1], [9, 0, 1]])
    depth = torch.full((2, 40, 48), 2.0)
    depth[1] = torch.nan  # unknown there: hides nothing
    lifted = lift_to_points(points, cameras, [ramp, ramp + 10], depth)
    assert lifted.weights.tolist() == [2, 2, 1, 0, 0]
    assert lifted.values[:, 0].tolist() == pytest.approx([29, 34, 34, 0, 0])


def test_masks_hide_points_too() -> None:
    masks = torch.zeros(1, 40, 48, dtype=torch.bool)
    points = torch.tensor([[0.0, 0, 2]])
    lifted = lift_to_points(points, looking_ahead(), [torch.ones(2, 40, 48)], masks=masks)
    assert lifted.weights.tolist() == [0]
    assert lifted.values.tolist() == [[0, 0]]


def test_bad_calls_are_explained() -> None:
    cameras, gaussians = looking_ahead(2), blobs([[0.0, 0, 2]])
    good = torch.ones(1, 40, 48)
    with pytest.raises(ShapeError, match="resize the cameras"):
        lift_to_gaussians(gaussians, cameras, [torch.ones(1, 4, 4)])
    with pytest.raises(ShapeError, match="each of 2 cameras, got 1"):
        lift_to_gaussians(gaussians, cameras, [good])
    with pytest.raises(ShapeError, match="got more"):
        lift_to_points(gaussians.means, cameras, [good] * 3)
    with pytest.raises(InputError, match="must not be negative"):
        lift_to_points(gaussians.means, cameras, [good] * 2, tolerance=-1.0)
