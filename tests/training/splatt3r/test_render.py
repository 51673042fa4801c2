import torch

from sightline.models.splatt3r import add_colors
from sightline.training.splatt3r.batch import PairBatch
from sightline.training.splatt3r.evaluate import masked_scores
from sightline.training.splatt3r.render import draw_pair
from tests.training.splatt3r import small


def exact(batch: PairBatch) -> tuple[dict, dict]:
    """Return what a perfect network would say: opaque dots of a pixel's size on true points."""
    results = []
    side = batch.size[0]
    for view in (0, 1):
        points = batch.points[:, view].clone().requires_grad_()
        size = points[..., 2:].detach().abs() / batch.K[:, :1, 0, 0].view(-1, 1, 1, 1) * 0.5
        offset = torch.zeros_like(points).requires_grad_()
        result = {
            "pts3d": points,
            "means": points.detach() + offset,
            "scales": size.expand(-1, -1, -1, 3),
            "rotations": torch.tensor([0.0, 0, 0, 1]).expand(2, side, side, 4),
            "sh": torch.zeros(2, side, side, 3, 1),
            "opacities": torch.full((2, side, side, 1), 0.95),
            "offset": offset,
        }
        picture = batch.images[:, view]
        add_colors(result, {"img": picture * 2 - 1, "original_img": picture})
        results.append(result)
    first, second = results
    second["means_in_other_view"] = second.pop("means")
    second["pts3d_in_other_view"] = second.pop("pts3d")
    return first, second


def test_true_points_draw_the_targets() -> None:
    batch = small.pairs(64)
    first, second = exact(batch)
    drawn = draw_pair(first, second, batch.w2c, batch.K, batch.size)
    assert drawn.shape == batch.targets.shape
    right, alike = masked_scores(drawn.clamp(0, 1), batch.targets, batch.masks)
    still = batch.images[:, :1].expand_as(batch.targets)
    copied, _ = masked_scores(still, batch.targets, batch.masks)
    assert (right > copied + 3).all()
    assert (right > 20).all()
    assert (alike > 0.7).all()


def test_gradients_stop_at_the_points_unless_asked_for() -> None:
    batch = small.pairs()
    for asked in (False, True):
        first, second = exact(batch)
        drawn = draw_pair(first, second, batch.w2c, batch.K, batch.size, point_gradients=asked)
        (drawn - batch.targets).square().mean().backward()
        assert first["offset"].grad.abs().sum() > 0
        gradient = first["pts3d"].grad
        if asked:
            torch.testing.assert_close(gradient, first["offset"].grad)
        else:
            assert gradient is None
