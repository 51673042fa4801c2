from dataclasses import replace

import pytest
import torch

from sightline.errors import ShapeError
from sightline.metrics.splatt3r import seen_mask
from sightline.training.pairwise_losses import matching_loss, mean_distance
from sightline.training.splatt3r.batch import correspondences, in_unit, pair_batch, unit_of
from tests.training.splatt3r import small


def test_points_of_the_contexts_land_where_the_targets_show_them() -> None:
    """Colours agree: points, cameras and masks are of one world, that of the first view."""
    batch = small.pairs(64)
    for item in range(2):
        first = batch.points[item, 0].reshape(-1, 3)
        pixels = first @ torch.eye(3) @ small.views(64).K[item, 0].mT
        u, v = (pixels[:, :2] / pixels[:, 2:]).unbind(-1)
        grid = torch.arange(64) + 0.5
        torch.testing.assert_close(u.view(64, 64), grid.expand(64, 64), atol=1e-3, rtol=0)
        torch.testing.assert_close(v.view(64, 64), grid[:, None].expand(64, 64), atol=1e-3, rtol=0)
        # Every point of the second context, seen from the first target.
        second = batch.points[item, 1].reshape(-1, 3)
        w2c, K = batch.w2c[item, 0], batch.K[item, 0]
        local = second @ w2c[:3, :3].mT + w2c[:3, 3]
        uv = (local @ K.mT)[:, :2] / local[:, 2:]
        inside = ((uv > 1) & (uv < 63)).all(-1)
        x, y = uv[inside].long().unbind(-1)
        depth = small.views(64).depth[item, 2][y, x]
        agree = (depth - local[inside][:, 2]).abs() < 0.05
        assert agree.float().mean() > 0.7  # the rest is hidden by other things
        shown = batch.targets[item, 0][:, y, x][:, agree]
        colour = batch.images[item, 1].flatten(1)[:, inside][:, agree]
        assert (shown - colour).abs().mean() < 0.05


def test_masks_are_those_of_splatt3r() -> None:
    views, batch = small.views(), small.pairs()
    K = views.K.clone()
    K[..., :2, 2] -= 0.5
    rows = [
        {
            "depthmap": views.depth[:, v],
            "camera_intrinsics": K[:, v],
            "camera_pose": torch.linalg.inv(views.w2c[:, v]),
        }
        for v in range(4)
    ]
    want = torch.stack([seen_mask(rows[:2], row) for row in rows[2:]], 1)
    assert torch.equal(batch.masks, want)
    assert 0.2 < batch.masks.float().mean() < 1


def test_targets_are_never_the_contexts() -> None:
    batch = small.pairs()
    for target in batch.targets.unbind(1):
        for context in batch.images.unbind(1):
            assert not torch.equal(target, context)


def test_the_unit_of_data_without_one_follows_the_prediction() -> None:
    batch = small.pairs()
    first = {"pts3d": batch.points[:, 0] * 3}
    second = {"pts3d_in_other_view": batch.points[:, 1] * 3}
    assert torch.equal(unit_of(batch, first, second), torch.ones(2))  # rooms are in metres
    loose = replace(batch, metric=torch.tensor([False, True]))
    unit = unit_of(loose, first, second)
    torch.testing.assert_close(unit, torch.tensor([3.0, 1.0]))
    moved = in_unit(batch.w2c, unit)
    torch.testing.assert_close(moved[0, :, :3, 3], 3 * batch.w2c[0, :, :3, 3])
    torch.testing.assert_close(moved[:, :, :3, :3], batch.w2c[:, :, :3, :3])
    assert float(mean_distance(*batch.points.unbind(1), *batch.valid.unbind(1)).min()) > 0.5


def test_correspondences_are_matches_of_the_same_points() -> None:
    views, batch = small.views(64), small.pairs(64)
    first, second, valid = correspondences(views, 64)
    assert valid.float().mean() > 0.5
    for item in range(2):
        a = batch.points[item, 0][first[item, :, 1], first[item, :, 0]]
        b = batch.points[item, 1][second[item, :, 1], second[item, :, 0]]
        error = (a - b).norm(dim=-1)[valid[item]]
        assert error.median() < 0.05
    torch.manual_seed(0)
    truth = batch.truth()
    for view, corres in zip(truth, (first, second), strict=True):
        view["corres"], view["valid_corres"] = corres, valid
    desc = torch.nn.functional.normalize(batch.points, dim=-1)
    conf = torch.ones(2, 64, 64)
    results = [{"desc": desc[:, v], "desc_conf": conf} for v in (0, 1)]
    own = matching_loss(*truth, *results)
    results[1]["desc"] = results[1]["desc"].flip(1)
    assert own < matching_loss(*truth, *results)


def test_a_batch_without_targets_is_refused() -> None:
    views = small.views()
    with pytest.raises(ShapeError, match="2 context views and 1 target or more, got 4 views of wh"):
        pair_batch(replace(views, num_context=3))
