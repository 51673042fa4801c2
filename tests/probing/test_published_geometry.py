"""The published way from photos to a cloud with DUSt3R, on a network that knows the truth."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from sightline.probing import clouds
from sightline.probing.clouds import make_cloud
from sightline.probing.frames import make_frame
from sightline.probing.protocols import Protocol, find_protocol
from sightline.probing.scenes import ProbeScene
from sightline.reconstruction.pairwise import solve
from sightline.reconstruction.pairwise.estimators import Dust3rEstimator
from sightline.reconstruction.pairwise.solve import Solution
from sightline.types import Views
from tests.reconstruction.pairwise.stand_in import StandIn, Truth, make_truth

SIZE = (48, 64)


@pytest.fixture(scope="module")
def truth() -> Truth:
    return make_truth(4, 64, 48, portraits=False)


@pytest.fixture(scope="module")
def protocol() -> Protocol:
    return find_protocol("feat2gs-v1", {"long_side": 64})


@pytest.fixture(scope="module")
def scene(truth: Truth, protocol: Protocol) -> ProbeScene:
    """Three training views and a test view."""
    return ProbeScene(
        id="room",
        names=truth.views.names,
        num_train=3,
        frame=make_frame(SIZE, protocol),
        working=truth.views.images,
        targets=truth.views.images,
    )


def options(truth: Truth, **more: Any) -> dict[str, Any]:
    return {"model": StandIn(truth, noise=0.003), "size": 64, "iterations": 30, **more}


def estimator(truth: Truth, protocol: Protocol, **more: Any) -> Dust3rEstimator:
    found = clouds._estimator("dust3r", protocol, options(truth, **more), "cpu")
    assert isinstance(found, Dust3rEstimator)
    return found


def views_of(truth: Truth, count: int) -> Views:
    views = truth.views
    return Views(
        images=views.images[:count],
        names=views.names[:count],
        from_original=views.from_original[:count],
        sizes=views.sizes[:count],
    )


def test_settings_of_the_reference(truth: Truth, protocol: Protocol) -> None:
    found = estimator(truth, protocol)
    assert (found.raw, found.graph, found.aligner) == (True, "complete", "cloud")
    assert (found.schedule, found.shared_focal, found.known_focal) == ("linear", True, None)
    assert found.square_ok
    assert (Dust3rEstimator().iterations, found.rate, found.weighting) == (300, 0.01, "log")
    ours = clouds._estimator("dust3r", find_protocol("sightline-1"), {}, "cpu")
    assert isinstance(ours, Dust3rEstimator)
    assert (ours.raw, ours.shared_focal, ours.schedule) == (False, False, "cosine")


def test_focals_are_averaged_after_the_tree_and_frozen(truth: Truth, protocol: Protocol) -> None:
    views = views_of(truth, 3)
    first = estimator(truth, protocol, iterations=0, shared_focal=False).estimate(views).raw
    shared = estimator(truth, protocol, iterations=30).estimate(views).raw
    assert isinstance(first, Solution)
    assert isinstance(shared, Solution)
    guesses = first.K[:, 0, 0].tolist()
    assert max(guesses) - min(guesses) > 0.01
    want = math.fsum(guesses) / 3
    assert shared.K[:, 0, 0].tolist() == pytest.approx([want] * 3, rel=1e-5)
    moved = estimator(truth, protocol, iterations=30, shared_focal=False).estimate(views).raw
    assert not torch.allclose(moved.K[:, 0, 0], first.K[:, 0, 0], atol=1e-3)  # else they move


def test_step_size_falls_linearly(
    truth: Truth, protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    real = solve.optimize

    def spy(*args: Any, **named: Any) -> Any:
        told.append(named["schedule"])
        return real(*args, **named)

    monkeypatch.setattr(solve, "optimize", spy)
    estimator(truth, protocol, iterations=2).estimate(views_of(truth, 2))
    assert told == ["linear"]


def test_second_run_keeps_the_first_focal(
    scene: ProbeScene, truth: Truth, protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, float | None]] = []
    real = Dust3rEstimator.estimate

    def spy(self: Dust3rEstimator, views: Views) -> Any:
        seen.append((len(views), self.known_focal))
        return real(self, views)

    monkeypatch.setattr(Dust3rEstimator, "estimate", spy)
    cloud = make_cloud(scene, "dust3r", protocol, options=options(truth))
    assert [count for count, _ in seen] == [3, 4]
    assert seen[0][1] is None
    # Rendered pictures are as large as working ones here, so K is that of the cloud.
    assert seen[1][1] == pytest.approx(float(cloud.train.K[0, 0, 0]), rel=1e-6)
    torch.testing.assert_close(cloud.test.K[0], cloud.train.K[0])
    ours = find_protocol("sightline-1", {"long_side": 64})
    seen.clear()
    make_cloud(scene, "dust3r", ours, options=options(truth))
    assert [focal for _, focal in seen] == [None, None]


def test_world_and_unit_are_the_aligners(
    scene: ProbeScene, truth: Truth, protocol: Protocol
) -> None:
    cloud = make_cloud(scene, "dust3r", protocol, options=options(truth))
    own = estimator(truth, protocol).estimate(views_of(truth, 3)).raw
    # Lifted by hand: pixel (i, j) along ((i, j) - size / 2) / f.
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    rays = torch.stack(
        [(x - 32) / own.K[1, 0, 0], (y - 24) / own.K[1, 0, 0], torch.ones_like(x)], -1
    )
    world = (rays * own.depth[1][..., None]) @ own.poses[1, :3, :3].T + own.poses[1, :3, 3]
    kept = own.confidence[1] > 0
    assert torch.equal(cloud.valid[1], kept)
    torch.testing.assert_close(cloud.points[1][kept], world[kept], rtol=1e-4, atol=1e-4)
    # The mean of the pairs' logarithmic scales is that of 0.5: the aligner's unit, not ours.
    scales = torch.stack([pair.scale for pair in own.pairs.values()])
    assert scales.log().mean().exp().item() == pytest.approx(0.5, rel=1e-4)


def test_registration_and_masks_use_all_pixels(
    scene: ProbeScene, truth: Truth, protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    real = clouds.find_similarity

    def spy(again: torch.Tensor, first: torch.Tensor, known: torch.Tensor) -> Any:
        counted.append(int(known.sum()))
        return real(again, first, known)

    monkeypatch.setattr(clouds, "find_similarity", spy)
    cloud = make_cloud(scene, "dust3r", protocol, options=options(truth))
    assert counted == [3 * 48 * 64]
    assert int(cloud.valid.sum()) < 3 * 48 * 64  # the noise makes `clean` drop some
    assert 0.2 < float(cloud.masks.mean()) < 1


def test_lenses_of_test_views_follow_the_first_run(scene: ProbeScene, truth: Truth) -> None:
    ours = find_protocol("sightline-1", {"long_side": 64, "unit_world": False})
    cloud = make_cloud(scene, "dust3r", ours, options=options(truth))
    ratio = cloud.test.K[0, 0, 0] / truth.cameras.K[3, 0, 0]
    assert float(ratio) == pytest.approx(1, rel=0.03)
    # Not the first training view's, whose lens is another.
    assert not torch.allclose(cloud.test.K[0], cloud.train.K[0], rtol=1e-3)
    assert dataclasses.asdict(ours)["shared_focal"] is False
