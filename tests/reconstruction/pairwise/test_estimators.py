"""Each estimator's whole way on exact data: a network that knows the truth."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.errors import InputError, OutOfMemoryError
from sightline.reconstruction import create_estimator
from sightline.reconstruction.pairwise import estimators
from sightline.reconstruction.pairwise.estimators import (
    Dust3rEstimator,
    Mast3rEstimator,
    Splatt3rEstimator,
)
from sightline.types import Reconstruction
from tests.reconstruction.pairwise.stand_in import (
    StandIn,
    Truth,
    depth_error,
    make_truth,
    pose_errors,
    some_outliers,
)

FAST: dict[str, Any] = {"size": 64, "iterations": 80, "most_points": 200}
SPARSE: dict[str, Any] = {"size": 64, "coarse": (100, 0.07, 1.5), "fine": (100, 0.01, 0.5)}


def check(
    found: Reconstruction, truth: Truth, *, degrees: float, position: float, focal: float
) -> None:
    """Poses, focal lengths and depth are near the truth, and nothing lies in the padding."""
    if len(truth.views) > 1:
        angle, shift = pose_errors(found.cameras.w2c, truth.cameras.w2c)
        assert angle < degrees
        assert shift < position
    for axis in (0, 1):
        ratio = found.cameras.K[:, axis, axis] / truth.cameras.K[:, axis, axis]
        assert float((ratio - 1).abs().max()) < focal
    assert torch.allclose(found.cameras.K[:, :2, 2], truth.cameras.K[:, :2, 2], atol=1e-3)
    assert depth_error(found, truth) < max(0.03, 2 * focal)
    assert found.valid is not None
    assert found.points is not None
    assert truth.views.masks is not None
    assert not bool((found.valid & ~truth.views.masks).any())
    assert float(found.valid.sum() / truth.views.masks.sum()) > 0.85
    assert bool(found.points[found.valid].isfinite().all())


@pytest.mark.parametrize("count", [1, 2, 4])
def test_dust3r_finds_the_scene(count: int) -> None:
    truth = make_truth(count)
    found = Dust3rEstimator(model=StandIn(truth, noise=0.005), **FAST).estimate(truth.views)
    check(found, truth, degrees=0.2, position=0.02, focal=0.01)
    assert not found.metric
    assert found.depth is not None
    assert found.valid is not None
    assert float(found.depth[found.valid].median()) == pytest.approx(1, rel=1e-4)
    assert torch.allclose(found.cameras.w2c[0], torch.eye(4, dtype=torch.float64), atol=1e-5)


@pytest.mark.parametrize("count", [2, 4])
def test_mast3r_finds_the_scene_in_metres(count: int) -> None:
    truth = make_truth(count)
    model = StandIn(truth, noise=0.005, metric=True, descriptors=True)
    found = Mast3rEstimator(model=model, **SPARSE).estimate(truth.views)
    # Matches are whole pixels of a picture 64 wide.
    check(found, truth, degrees=0.6, position=0.12, focal=0.05)
    assert found.metric
    assert found.depth is not None
    ratio = found.depth[found.valid] / truth.depth[found.valid]
    assert float(ratio.median()) == pytest.approx(1, rel=0.05)


def test_ten_views_with_a_fifth_of_the_pairs_wrong() -> None:
    truth = make_truth(10)
    wrong = some_outliers(10, 0.2)
    assert len(wrong) == 9
    model = StandIn(truth, noise=0.005, outliers=wrong)
    found = Dust3rEstimator(model=model, **FAST).estimate(truth.views)
    check(found, truth, degrees=0.3, position=0.03, focal=0.01)


def test_outliers_do_not_move_the_sparse_alignment() -> None:
    truth = make_truth(6)
    model = StandIn(truth, metric=True, outliers=some_outliers(6, 0.2), descriptors=True)
    found = Mast3rEstimator(model=model, **SPARSE).estimate(truth.views)
    check(found, truth, degrees=0.6, position=0.06, focal=0.05)


def test_the_dense_alignment_keeps_metres() -> None:
    truth = make_truth(3)
    estimator = Mast3rEstimator(model=StandIn(truth, metric=True), aligner="modular", **FAST)
    found = estimator.estimate(truth.views)
    assert found.depth is not None
    ratio = found.depth[found.valid] / truth.depth[found.valid]
    assert found.metric
    assert float(ratio.median()) == pytest.approx(1, rel=0.01)
    check(found, truth, degrees=0.2, position=0.02, focal=0.01)


def test_known_cameras_are_kept() -> None:
    truth = make_truth(3)
    views = replace(truth.views, cameras=truth.cameras)
    found = Dust3rEstimator(model=StandIn(truth, noise=0.005), **FAST).estimate(views)
    assert torch.allclose(found.cameras.w2c, truth.cameras.w2c, atol=1e-6)
    assert torch.allclose(found.cameras.K, truth.cameras.K, rtol=1e-5)
    assert found.depth is not None
    ratio = found.depth[found.valid] / truth.depth[found.valid]
    assert float(ratio.median()) == pytest.approx(1, rel=0.02)


def test_one_known_pose_of_three_places_the_world() -> None:
    truth = make_truth(3)
    w2c = truth.cameras.w2c.clone()
    w2c[1:] = torch.nan
    views = replace(truth.views, cameras=replace(truth.cameras, w2c=w2c))
    found = Dust3rEstimator(model=StandIn(truth), **FAST).estimate(views)
    assert torch.allclose(found.cameras.w2c[0], truth.cameras.w2c[0], atol=1e-4)
    assert pose_errors(found.cameras.w2c, truth.cameras.w2c)[0] < 0.2


def test_raw_counts_pixels_as_the_original_does() -> None:
    truth = make_truth(1, 64, 48)  # no resizing: the source's pixels are the network's
    model = StandIn(truth)
    exact = Dust3rEstimator(model=model, **FAST).estimate(truth.views)
    raw = Dust3rEstimator(model=model, raw=True, **FAST).estimate(truth.views)
    assert torch.allclose(exact.cameras.K[0], truth.cameras.K[0], rtol=1e-5)
    # The original lifts a pixel along the ray of its corner, not of its centre.
    assert exact.points is not None
    assert raw.points is not None
    assert exact.valid is not None
    assert raw.valid is not None
    both = exact.valid & raw.valid
    K = truth.cameras.K[0].float()
    places = [(p[both] @ K.T)[:, :2] / p[both][:, 2:] for p in (exact.points, raw.points)]
    shift = places[0] - places[1]
    assert torch.allclose(shift, torch.full_like(shift, 0.5), atol=2e-3)


def test_masked_pixels_never_become_geometry() -> None:
    truth = make_truth(2)
    assert truth.views.masks is not None
    masks = truth.views.masks.clone()
    masks[:, :, :20] = False
    found = Dust3rEstimator(model=StandIn(truth), **FAST).estimate(
        replace(truth.views, masks=masks)
    )
    assert found.valid is not None
    assert found.points is not None
    assert not bool(found.valid[:, :, :20].any())
    assert bool(found.points[:, :, :20].isnan().all())
    assert pose_errors(found.cameras.w2c, truth.cameras.w2c)[0] < 0.2


def test_pictures_cut_by_the_network_have_no_depth_there() -> None:
    truth = make_truth(2, 80, 80, portraits=False)  # squares become 4:3
    found = Dust3rEstimator(model=StandIn(truth), **FAST).estimate(truth.views)
    assert found.valid is not None
    rows = found.valid.any(2)[0].nonzero()[:, 0]
    assert (int(rows.min()), int(rows.max())) == (10, 69)
    assert torch.allclose(found.cameras.K, truth.cameras.K, rtol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_splatt3r_gives_splats_on_the_surfaces(count: int) -> None:
    truth = make_truth(count)
    model = StandIn(truth, square=True, metric=True, splats=True)
    found, splats = Splatt3rEstimator(model=model, **FAST).splats(truth.views)
    assert found.metric
    assert len(splats) == count * 64 * 64
    want = torch.cat([p.reshape(-1, 3) for p in model.points])
    home = truth.cameras.w2c[0]
    want = want @ home[:3, :3].T + home[:3, 3]
    gap = (splats.means.double() - want).norm(dim=-1)  # in the order of the views
    assert float(gap.median()) < 0.02
    assert float((splats.quats.norm(dim=-1) - 1).abs().max()) < 1e-5
    assert splats.sh.shape[1:] == (1, 3)
    colors = torch.cat(
        [torch.from_numpy(p.pixels.copy()).reshape(-1, 3) / 255 for p in model.pictures]
    )
    assert torch.allclose(splats.sh[:, 0] * 0.28209479177387814 + 0.5, colors, atol=1e-5)
    assert torch.allclose(splats.scales, torch.full_like(splats.scales, 0.01), rtol=0.02)


def test_many_views_in_order_need_few_pairs() -> None:
    truth = make_truth(24, 48, 32, portraits=False)
    model = StandIn(truth, 48)
    found = Dust3rEstimator(model=model, size=48, iterations=40, most_points=60, batch=8).estimate(
        truth.views
    )
    assert model.calls < 2 * 24 * 5
    check(found, truth, degrees=1.0, position=0.05, focal=0.02)


def test_results_repeat_exactly() -> None:
    truth = make_truth(3)
    estimator = Dust3rEstimator(model=StandIn(truth, noise=0.01), **FAST)
    first, second = estimator.estimate(truth.views), estimator.estimate(truth.views)
    assert torch.equal(first.cameras.w2c, second.cameras.w2c)
    assert first.depth is not None
    assert second.depth is not None
    assert torch.equal(first.depth, second.depth)


class Unsure(nn.Module):
    """A network without confidence."""

    def __init__(self, inner: StandIn) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, view1: Any, view2: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        results = self.inner(view1, view2)
        for result in results:
            result["conf"] = torch.ones_like(result["conf"])
        return results


def test_a_model_without_confidence_or_descriptors_still_works() -> None:
    truth = make_truth(3)
    model = Unsure(StandIn(truth, metric=True))
    options: dict[str, Any] = {"size": 64, "iterations": 60, "most_points": 200}
    found = Mast3rEstimator(model=model, **options).estimate(truth.views)
    check(found, truth, degrees=0.3, position=0.03, focal=0.01)
    with pytest.raises(InputError, match="no descriptors"):
        Mast3rEstimator(model=model, aligner="sparse", **options).estimate(truth.views)


def test_errors_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = make_truth(3)
    empty = replace(
        truth.views,
        images=truth.views.images[:0],
        names=(),
        sizes=truth.views.sizes[:0],
        from_original=truth.views.from_original[:0],
        masks=None,
    )
    estimator = Dust3rEstimator(model=StandIn(truth), **FAST)
    with pytest.raises(InputError, match="expected one or more pictures, got none"):
        estimator.estimate(empty)
    with pytest.raises(InputError, match="multiple of the patch of 16 pixels, got 100; .* 96"):
        replace(estimator, size=100).estimate(truth.views)
    with pytest.raises(InputError, match='unknown scene graph "ring"'):
        replace(estimator, graph="ring").estimate(truth.views)
    with pytest.raises(InputError, match="the viewer shows one pair"):
        replace(estimator, aligner="viewer").estimate(truth.views)
    with pytest.raises(InputError, match="no descriptors to match"):
        replace(estimator, aligner="sparse").estimate(truth.views)
    with pytest.raises(InputError, match="no means, scales"):
        Splatt3rEstimator(model=StandIn(truth, square=True), **FAST).estimate(truth.views)
    monkeypatch.setattr(estimators, "free_memory", lambda _: 1e5)
    with pytest.raises(OutOfMemoryError, match="6 pairs need about .* sparser graph"):
        estimator.estimate(truth.views)


def test_names_lead_to_the_estimators() -> None:
    for name in ("dust3r", "mast3r", "splatt3r"):
        made = create_estimator(name, size=64)
        assert getattr(made, "name", None) == name
