"""Fitted values: the exact least-squares solution, neighbours, and views that contradict."""

import pytest
import torch

from sightline.errors import InputError, ShapeError
from sightline.splatting.channels import draw_values
from sightline.splatting.lift import lift_to_gaussians
from sightline.splatting.lift_fit import (
    FitOptions,
    ViewMaps,
    fit_to_gaussians,
    neighbor_links,
)
from sightline.types import Cameras, Gaussians
from tests.splatting.test_lift import blobs, looking_ahead
from tests.splatting.toy import make_cameras, make_gaussians

ONE_ROUND = {"steps": 60, "robust_steps": 0}


def all_of(maps: torch.Tensor, trust: float = 1.0) -> ViewMaps:
    count = len(maps)
    return ViewMaps(channels=torch.arange(count), maps=maps, trust=torch.full((count,), trust))


def drawn_maps(gaussians: Gaussians, cameras: Cameras, values: torch.Tensor) -> list[torch.Tensor]:
    return [
        draw_values(gaussians, cameras.select([view]), values)[0].permute(2, 0, 1)
        for view in range(len(cameras))
    ]


def test_it_is_the_solution_of_the_normal_equations() -> None:
    gaussians, cameras = make_gaussians(), make_cameras(2)
    options = FitOptions(smoothness=0.5, neighbors=4, **ONE_ROUND)
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 2, cameras.height, cameras.width, generator=generator)
    trust = (1.0, 0.3)
    found = fit_to_gaussians(
        gaussians,
        cameras,
        [all_of(m, t) for m, t in zip(maps, trust, strict=True)],
        torch.zeros(len(gaussians), 2),
        options=options,
    ).double()
    matrix = neighbor_links(gaussians, options).to_dense().double()
    matrix += 1e-4 * torch.eye(len(gaussians), dtype=torch.float64)
    right = torch.zeros(len(gaussians), 2, dtype=torch.float64)
    for view in range(2):
        # Drawing as a matrix: one channel a splat.
        image, _ = draw_values(gaussians, cameras.select([view]), torch.eye(len(gaussians)))
        drawing = image.flatten(0, 1).double()
        matrix += trust[view] * drawing.T @ drawing
        right += trust[view] * drawing.T @ maps[view].flatten(1).T.double()
    torch.testing.assert_close(matrix @ found, right, atol=2e-3, rtol=2e-3)


def test_overlapping_splats_are_told_apart_where_means_blur() -> None:
    side_by_side = blobs([[-0.08, 0.0, 2], [0.08, 0.0, 2.001]])
    cameras = looking_ahead()
    true = torch.tensor([[1.0, 0], [0, 1]])
    maps = drawn_maps(side_by_side, cameras, true)
    blurred = lift_to_gaussians(side_by_side, cameras, maps).values
    options = FitOptions(smoothness=0.0, **ONE_ROUND)
    found = fit_to_gaussians(
        side_by_side, cameras, [all_of(maps[0])], torch.zeros(2, 2), options=options
    )
    assert (blurred - true).abs().max() > 0.2
    torch.testing.assert_close(found, true, atol=1e-3, rtol=0)


def test_what_no_view_shows_follows_its_own_kind() -> None:
    # Two seen, and behind the camera two more beside them: one of each colour.
    splats = blobs([[-0.3, 0.0, 2], [0.3, 0.0, 2], [-0.05, 0.0, -1], [0.05, 0.0, -1]])
    splats.sh[[1, 3]] = 3.0
    true = torch.tensor([[1.0], [0.0]])
    maps = drawn_maps(splats, looking_ahead(), torch.cat([true, true]))
    options = FitOptions(neighbors=3, **ONE_ROUND)
    found = fit_to_gaussians(
        splats, looking_ahead(), [all_of(maps[0])], torch.full((4, 1), 0.5), options=options
    )
    assert found[2] > 0.9
    assert found[3] < 0.1


def test_a_view_that_contradicts_the_others_is_outvoted() -> None:
    splats, cameras = blobs([[0.0, 0, 2]], scale=3.0), looking_ahead(4)  # all over the picture
    right = drawn_maps(splats, cameras, torch.ones(1, 1))
    views = [all_of(m) for m in right[:3]] + [all_of(torch.zeros_like(right[3]))]
    start = torch.zeros(1, 1)
    plain = fit_to_gaussians(splats, cameras, views, start, options=FitOptions(**ONE_ROUND))
    robust = fit_to_gaussians(splats, cameras, views, start)
    assert float(plain) == pytest.approx(0.75, abs=1e-3)
    assert float(robust) > 0.9


def test_channels_that_a_view_does_not_name_are_free_there() -> None:
    splats, cameras = blobs([[0.0, 0, 2]]), looking_ahead(2)
    (ones, _) = drawn_maps(splats, cameras, torch.ones(1, 1))
    first = ViewMaps(channels=torch.tensor([70]), maps=ones, trust=torch.ones(1))
    nothing = ViewMaps(
        channels=torch.zeros(0, dtype=torch.int64),
        maps=torch.zeros(0, *ones.shape[1:], dtype=torch.bool),
        trust=torch.zeros(0),
    )
    steps = []
    found = fit_to_gaussians(
        splats,
        cameras,
        [first, nothing],
        torch.zeros(1, 71),  # two chunks
        progress=lambda _, done, total: steps.append((done, total)),
    )
    assert float(found[0, 70]) == pytest.approx(1, abs=1e-3)
    assert (found[0, :70] == 0).all()
    assert steps[-1] == (30, 30)


def test_mistakes_are_explained() -> None:
    splats, cameras = blobs([[0.0, 0, 2]]), looking_ahead()
    good = all_of(torch.ones(1, 40, 48))
    with pytest.raises(ShapeError, match="each of 1 cameras, got 2"):
        fit_to_gaussians(splats, cameras, [good, good], torch.zeros(1, 1))
    with pytest.raises(ShapeError, match="resize the cameras"):
        fit_to_gaussians(splats, cameras, [all_of(torch.ones(1, 20, 24))], torch.zeros(1, 1))
    with pytest.raises(ShapeError, match="channels from 0 to 0"):
        fit_to_gaussians(splats, cameras, [all_of(torch.ones(2, 40, 48))], torch.zeros(1, 1))
    with pytest.raises(InputError, match="at least 1 neighbour"):
        FitOptions(neighbors=0)
    with pytest.raises(InputError, match="at least 1 step"):
        FitOptions(steps=0)
