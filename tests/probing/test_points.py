"""The control that knows the answer."""

from pathlib import Path

import pytest
import torch

from sightline.errors import ShapeError
from sightline.probing import files
from sightline.probing.config import config_from
from sightline.probing.features import CloudPoints
from sightline.probing.grid import plan_grid, run_grid
from sightline.probing.start import squared_spacing
from sightline.probing.tasks import CLOUD, TOKENS
from tests.probing import tiny


def test_points_are_moved_and_scaled_only() -> None:
    points = torch.randn(2, 4, 6, 3) * 5 + 20
    valid = torch.rand(2, 4, 6) < 0.8
    points[~valid] = torch.nan
    found = CloudPoints(points, valid).extract(torch.rand(2, 3, 4, 6), layers=[-1])[0].patches
    assert found.isfinite().all()
    known, spacing = found.permute(0, 2, 3, 1)[valid].split((3, 1), -1)
    wanted = squared_spacing(points[valid]).log()
    assert torch.corrcoef(torch.stack([spacing[:, 0], wanted]))[0, 1] > 0.9999
    torch.testing.assert_close(known.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(known.std(0).norm(), torch.tensor(1.0))
    # One factor for all axes.
    before, after = torch.pdist(points[valid]), torch.pdist(known)
    torch.testing.assert_close(after / before, (after / before).mean().expand_as(after))
    with pytest.raises(ShapeError, match="do not belong to pictures"):
        CloudPoints(points, valid).extract(torch.rand(1, 3, 4, 6))


def test_points_are_those_of_the_cloud(tmp_path: Path) -> None:
    config = config_from(tiny.grid(features=["points", "iuvrgb"]))
    grid = plan_grid(config)
    cells = {cell.feature: cell.task for cell in grid.cells}
    scene, cloud, tokens = cells["points"].inputs
    assert tokens.inputs == (scene, cloud)
    assert cells["iuvrgb"].inputs[2].inputs == (scene,)
    output = tmp_path / "out"
    outcome = run_grid(config, output)
    assert not outcome.failed
    store = output / "store"
    found = files.read_tokens(store / "features" / tokens.key / TOKENS)
    known = files.read_cloud(store / "cloud" / cloud.key / CLOUD)
    assert found.is_pixels
    assert torch.equal(found.grid.permute(0, 3, 1, 2), CloudPoints(known.points, known.valid).maps)
