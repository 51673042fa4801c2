"""What the golden values do not show: invalid ground truth, no valid pixels, perfect predictions."""

import torch
from torch import Tensor

from sightline.training.pairwise_losses import (
    dust3r_loss,
    info_nce,
    mast3r_loss,
    matching_loss,
    regression_loss,
    scale_shift_invariant_loss,
)

View = dict[str, Tensor]
Batch = tuple[View, View, View, View]


def batch() -> Batch:
    rng = torch.Generator().manual_seed(0)
    views: list[View] = []
    for _ in range(2):
        points = torch.randn(2, 6, 8, 3, generator=rng) + torch.tensor([0.0, 0.0, 4.0])
        views.append({
            "pts3d": points,
            "valid_mask": torch.rand(2, 6, 8, generator=rng) > 0.3,
            "sky_mask": torch.rand(2, 6, 8, generator=rng) > 0.8,
            "camera_pose": torch.eye(4).repeat(2, 1, 1),
            "is_metric_scale": torch.tensor([True, False]),
            "corres": torch.randint(0, 6, (2, 10, 2), generator=rng),
            "valid_corres": torch.rand(2, 10, generator=rng) > 0.2,
        })  # fmt: skip
    for name, view in zip(("pts3d", "pts3d_in_other_view"), views[:2], strict=True):
        views.append({
            name: (view["pts3d"] + 0.1 * torch.randn(2, 6, 8, 3, generator=rng)).requires_grad_(),
            "conf": 1 + torch.rand(2, 6, 8, generator=rng),
            "desc": torch.nn.functional.normalize(torch.randn(2, 6, 8, 4, generator=rng), dim=-1),
            "desc_conf": 1 + torch.rand(2, 6, 8, generator=rng),
        })  # fmt: skip
    return views[0], views[1], views[2], views[3]


def test_unknown_truth_has_no_influence() -> None:
    views = batch()
    clean = mast3r_loss(*views)
    for view in views[:2]:
        view["pts3d"] = torch.where(view["valid_mask"][..., None], view["pts3d"], torch.nan)
    loss = mast3r_loss(*views)
    assert torch.equal(loss, clean)
    loss.backward()
    for view, name in ((views[2], "pts3d"), (views[3], "pts3d_in_other_view")):
        gradient = view[name].grad
        assert gradient is not None
        assert bool(gradient.isfinite().all())
        assert bool(gradient.any())


def test_scale_is_free_unless_metric() -> None:
    views = batch()
    large = {**views[2], "pts3d": 2 * views[2]["pts3d"]}
    other = {**views[3], "pts3d_in_other_view": 2 * views[3]["pts3d_in_other_view"]}
    twice: Batch = (views[0], views[1], large, other)
    assert torch.allclose(dust3r_loss(*views), dust3r_loss(*twice), rtol=1e-5)
    kept = regression_loss(*views, keep_metric=True)[0]
    moved = regression_loss(*twice, keep_metric=True)[0]
    assert torch.allclose(kept[1], moved[1], rtol=1e-4, atol=1e-6)
    assert float((moved[0] - kept[0]).detach().sum()) > 1


def test_the_test_measure_forgives_shift_and_scale() -> None:
    views = batch()
    shift = torch.tensor([0.0, 0.0, 0.7])
    views[2]["pts3d"] = 3 * views[0]["pts3d"] + shift
    views[3]["pts3d_in_other_view"] = 3 * views[1]["pts3d"] + shift
    assert float(scale_shift_invariant_loss(*views).detach()) < 1e-4


def test_nothing_valid_costs_nothing() -> None:
    views = batch()
    for view in views[:2]:
        view["valid_mask"] = torch.zeros_like(view["valid_mask"])
        view["sky_mask"] = torch.zeros_like(view["sky_mask"])
        view["valid_corres"] = torch.zeros_like(view["valid_corres"])
    assert float(dust3r_loss(*views).detach()) == 0
    assert float(matching_loss(*views)) == 0


def test_matching_wants_partners_alike_and_others_not() -> None:
    eye = torch.eye(8)[None]
    valid = torch.ones(1, 8, dtype=torch.bool)
    assert float(info_nce(eye, eye, valid).max()) < 1e-6
    assert float(info_nce(eye, eye.roll(1, 1), valid).min()) > 20
