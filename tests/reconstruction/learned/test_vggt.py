"""The whole path of the estimators with a network that is right, or nearly."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.datasets.synthetic import make_scene
from sightline.errors import CheckpointError, InputError, OutOfMemoryError, ReconstructionError
from sightline.geometry.align import Similarity, transform_points
from sightline.geometry.camera import project_points, unproject_depth
from sightline.metrics.poses import relative_pose_errors
from sightline.reconstruction import create_estimator
from sightline.reconstruction.learned import VggtEstimator, VggtOmegaEstimator
from sightline.reconstruction.learned.gauge import align_cameras
from sightline.types import Cameras, Reconstruction, Scene, Views
from tests.reconstruction.learned.oracle import Oracle, without_cameras

HEIGHT, WIDTH = 84, 112


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(
        10, HEIGHT, WIDTH, kind="simple", num_points=200, supersampling=1, test_every=0
    )


def truth_of(scene: Scene) -> Reconstruction:
    assert scene.ground_truth is not None
    return scene.ground_truth


def chosen(scene: Scene, index: list[int]) -> tuple[Views, Reconstruction]:
    """Some views, without their cameras, and the truth about them."""
    truth, rows = truth_of(scene), torch.tensor(index)
    assert truth.depth is not None
    views = replace(
        scene.views,
        images=scene.views.images[rows],
        names=tuple(scene.views.names[i] for i in index),
        from_original=scene.views.from_original[rows],
        sizes=scene.views.sizes[rows],
        cameras=None,
    )
    known = Reconstruction(
        cameras=truth.cameras.select(rows),
        registered=truth.registered[rows],
        depth=truth.depth[rows],
    )
    return views, known


def estimated(
    views: Views, truth: Reconstruction, *, noise: dict[str, Any] | None = None, **options: Any
) -> tuple[Reconstruction, Oracle]:
    network = Oracle(truth, **(noise or {}))
    estimator = VggtEstimator(model=network, **{"side": 112, **options})
    network.prepare(estimator._frames(views))
    return estimator.estimate(views), network


def errors(found: Reconstruction, truth: Reconstruction) -> dict[str, float]:
    """Degrees, degrees, and relative errors of focal length and depth (scale taken out)."""
    assert found.depth is not None
    assert found.valid is not None
    assert truth.depth is not None
    turn, direction = relative_pose_errors(found.cameras.w2c, truth.cameras.w2c.double())
    ratio = (found.depth / truth.depth)[found.valid]
    focal = found.cameras.K[:, 0, 0] / truth.cameras.K[:, 0, 0]
    return {
        "turn": float(turn.max()) if len(turn) else 0.0,
        "direction": float(direction.max()) if len(direction) else 0.0,
        "focal": float((focal - 1).abs().max()),
        "depth": float((ratio / ratio.median() - 1).abs().median()),
    }


@pytest.mark.parametrize("count", [1, 2, 4, 10])
def test_exact_predictions_come_back_exactly(scene: Scene, count: int) -> None:
    views, truth = chosen(scene, list(range(count)))
    found, network = estimated(views, truth)
    assert errors(found, truth) == pytest.approx(
        {"turn": 0, "direction": 0, "focal": 0, "depth": 0}, abs=2e-4
    )
    assert len(network.passes) == 1
    assert bool(found.registered.all())
    assert found.valid is not None
    assert bool(found.valid.all())
    assert found.depth is not None
    # The gauge: first camera at the origin, median depth one.
    torch.testing.assert_close(found.cameras.w2c[0], torch.eye(4).double(), atol=1e-9, rtol=0)
    assert float(found.depth[found.valid].median()) == pytest.approx(1, abs=1e-5)


def test_errors_are_as_large_as_the_noise(scene: Scene) -> None:
    views, truth = chosen(scene, list(range(10)))
    noise = {"depth_noise": 0.01, "turn_noise": 0.1, "shift_noise": 0.005}
    found, _ = estimated(views, truth, noise=noise)
    worst = errors(found, truth)
    assert 0.1 < worst["turn"] < 0.8
    assert worst["depth"] < 0.02
    assert worst["focal"] < 1e-5


def test_points_lie_on_the_surfaces(scene: Scene) -> None:
    views, truth = chosen(scene, [0, 1, 2])
    found, _ = estimated(views, truth)
    assert found.points is not None
    assert truth.depth is not None
    first = truth.cameras.w2c[0].double()
    world = unproject_depth(truth.depth.double(), truth.cameras.map(torch.Tensor.double))
    local = world @ first[:3, :3].mT + first[:3, 3]
    scale = truth.depth.median()
    assert float((found.points * scale - local).norm(dim=-1).median()) < 1e-3


def test_point_maps_may_be_used_instead(scene: Scene) -> None:
    views, truth = chosen(scene, [0, 3, 6])
    found, _ = estimated(views, truth, head="points")
    assert max(errors(found, truth).values()) < 2e-4


def test_the_choice_of_the_first_picture_changes_nothing(scene: Scene) -> None:
    order = [4, 0, 7, 2]
    views, truth = chosen(scene, order)
    shuffled, network = estimated(views, truth)
    straight, other = estimated(*chosen(scene, sorted(order)))
    # The network saw the same picture first both times ...
    assert order[network.passes[0][0]] == sorted(order)[other.passes[0][0]]
    # ... and the relative motion of two pictures is the same.
    a = shuffled.cameras.w2c[0] @ torch.linalg.inv(shuffled.cameras.w2c[1])
    b = straight.cameras.w2c[2] @ torch.linalg.inv(straight.cameras.w2c[0])
    torch.testing.assert_close(a[:3, :3], b[:3, :3], atol=1e-5, rtol=0)


def tall_and_wide(scene: Scene) -> tuple[Views, Reconstruction]:
    """Every second picture is cut to a portrait; views are padded to one size."""
    views, truth = chosen(scene, list(range(6)))
    assert truth.depth is not None
    images, sizes, K = views.images.clone(), views.sizes.clone(), truth.cameras.K.clone()
    depth = truth.depth.clone()
    masks = torch.ones(6, HEIGHT, WIDTH, dtype=torch.bool)
    left, width = 26, 60
    for view in (1, 3, 5):
        for field in (images, depth):
            part = field[view, ..., left : left + width].clone()
            field[view] = 0
            field[view, ..., :width] = part
        masks[view, :, width:] = False
        sizes[view] = torch.tensor([HEIGHT, width])
        K[view, 0, 2] -= left
    cameras = Cameras(w2c=truth.cameras.w2c, K=K, height=HEIGHT, width=WIDTH)
    views = replace(views, images=images, sizes=sizes, masks=masks)
    return views, replace(truth, cameras=cameras, depth=depth)


@pytest.mark.parametrize("fit", ["pad", "crop", None])
def test_portrait_and_landscape_mixed(scene: Scene, fit: str | None) -> None:
    views, truth = tall_and_wide(scene)
    found, _ = estimated(views, truth, fit=fit, side=112)
    worst = errors(found, truth)
    # A crop in the middle leaves the principal point where it was.
    assert worst["turn"] < 1e-3
    assert worst["focal"] < 1e-5
    # Depth is read at the nearest of pixels of another size here.
    assert worst["depth"] < 0.01
    assert found.valid is not None
    assert views.masks is not None
    assert not bool((found.valid & ~views.masks).any()), "padding became geometry"
    share = found.valid[1].float().sum() / views.masks[1].sum()
    if fit == "crop":
        # 84 x 60 becomes 157 x 112 pixels, and 112 of 154 rows stay.
        assert float(share) == pytest.approx(112 / 154, abs=0.02)
    else:
        assert float(share) == 1


def test_masked_pixels_are_not_valid(scene: Scene) -> None:
    views, truth = chosen(scene, [0, 1])
    masks = torch.ones(2, HEIGHT, WIDTH, dtype=torch.bool)
    masks[0, :40] = False
    found, _ = estimated(replace(views, masks=masks), truth)
    assert found.valid is not None
    assert found.points is not None
    assert torch.equal(found.valid, masks)
    assert bool(found.points[0, :40].isnan().all())


def test_results_are_in_pixels_of_the_original(scene: Scene) -> None:
    views, truth = chosen(scene, [0, 1])
    half = torch.diag(torch.tensor([0.25, 0.5, 1.0])).expand(2, 3, 3)
    found, _ = estimated(replace(views, from_original=half), truth)
    assert (found.cameras.height, found.cameras.width) == (2 * HEIGHT, 4 * WIDTH)
    K = truth.cameras.K
    torch.testing.assert_close(found.cameras.K[:, 0, 0], 4 * K[:, 0, 0].double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.cameras.K[:, 1, 2], 2 * K[:, 1, 2].double(), rtol=1e-5, atol=0)


def test_many_views_in_chunks(scene: Scene) -> None:
    views, truth = chosen(scene, list(range(10)))
    found, network = estimated(views, truth, chunk=4, overlap=2)
    assert len(network.passes) >= 4
    assert max(len(p) for p in network.passes) <= 4
    assert max(errors(found, truth).values()) < 1e-3


@pytest.fixture(scope="module")
def walk() -> Scene:
    """Sixty small pictures once around, so that the end meets the beginning."""
    return make_scene(60, 56, 70, kind="simple", num_points=100, supersampling=1, test_every=0)


def test_sixty_views_in_bounded_memory(walk: Scene) -> None:
    views, truth = chosen(walk, list(range(60)))
    noise = {"depth_noise": 0.01, "turn_noise": 0.05, "shift_noise": 0.002}
    found, network = estimated(views, truth, noise=noise, side=70, chunk=8, overlap=3)
    assert max(len(p) for p in network.passes) == 8
    # Twelve chunks, and the end of the walk was seen together with its beginning.
    assert any({0, 59} <= set(p) for p in network.passes)
    assert bool(found.registered.all())
    worst = errors(found, truth)
    assert worst["turn"] < 1
    assert worst["depth"] < 0.03
    assert worst["focal"] < 1e-5


def test_known_cameras_decide_the_world(scene: Scene) -> None:
    views, truth = chosen(scene, [0, 2, 4, 6])
    known = replace(views, cameras=truth.cameras)
    found, _ = estimated(known, truth)
    torch.testing.assert_close(found.cameras.w2c.float(), truth.cameras.w2c, atol=1e-4, rtol=0)
    assert truth.depth is not None
    torch.testing.assert_close(found.depth, truth.depth, atol=1e-3, rtol=1e-3)


def test_two_cameras_are_enough_to_align() -> None:
    cameras = make_scene(4, 8, 8, kind="simple", num_points=10).views.cameras
    assert cameras is not None
    w2c = cameras.w2c.double()
    world = Similarity(
        scale=torch.tensor(2.5).double(),
        rotation=w2c[1, :3, :3],
        translation=torch.tensor([1.0, -2.0, 3.0]).double(),
    )
    moved = w2c.clone()
    moved[:, :3, :3] = w2c[:, :3, :3] @ world.rotation.mT
    centers = transform_points(-(w2c[:, :3, :3].mT @ w2c[:, :3, 3:])[..., 0], world)
    moved[:, :3, 3] = -(moved[:, :3, :3] @ centers[..., None])[..., 0]
    for rows in ([0, 1], [0, 1, 2, 3]):
        found = align_cameras(w2c[rows], moved[rows])
        torch.testing.assert_close(found.matrix, world.matrix, atol=1e-5, rtol=0)


def test_tracks_reproject(scene: Scene) -> None:
    views, truth = chosen(scene, list(range(5)))
    found, _ = estimated(views, truth, tracks=200)
    sparse = found.sparse
    assert sparse is not None
    assert len(sparse.points) > 20
    lengths = torch.bincount(sparse.tracks[:, 0].long())
    assert int(lengths.min()) >= 2
    pixels, _ = project_points(sparse.points.double(), found.cameras)
    seen = pixels[sparse.tracks[:, 1].long(), sparse.tracks[:, 0].long()]
    assert float(seen.isfinite().all(-1).float().mean()) > 0.95


def test_raw_unprojects_at_integer_pixels(scene: Scene) -> None:
    views, truth = chosen(scene, [0, 1])
    plain, _ = estimated(views, truth)
    raw, _ = estimated(views, truth, raw=True)
    assert plain.raw is None
    assert set(raw.raw[0]) >= {"pose_enc", "depth"}
    assert plain.points is not None
    assert raw.points is not None
    assert plain.depth is not None
    shift = (plain.points - raw.points)[0, 40, 50]
    z, focal = plain.depth[0, 40, 50], plain.cameras.K[0, 0, 0]
    half = 0.5 * z / focal
    torch.testing.assert_close(shift[:2], torch.stack([half, half]).float(), rtol=1e-3, atol=1e-6)


class Broken(torch.nn.Module):
    """Says nonsense about one picture, and has no field of view for another."""

    patch_size = 14

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        count, height, width = images.shape[1], *images.shape[-2:]
        encoding = torch.tensor([0.0, 0, 0, 0, 0, 0, 1, 1, 1]).repeat(1, count, 1)
        depth = torch.ones(1, count, height, width, 1)
        dark = images.mean((2, 3, 4))[0] < 0.2
        encoding[0, dark] = torch.nan
        encoding[0, ~dark, 7:] = 0
        return {"pose_enc": encoding, "depth": depth, "depth_conf": depth[..., 0]}


def test_unusable_outputs_are_told(scene: Scene) -> None:
    views, _ = chosen(scene, [0, 1, 2])
    views = replace(views, images=views.images * torch.tensor([1.0, 0.0, 1.0])[:, None, None, None])
    found = VggtEstimator(model=Broken(), side=112).estimate(views)
    assert found.registered.tolist() == [True, False, True]
    assert found.rejected == ((views.names[1], found.rejected[0][1]),)
    assert "not finite" in found.rejected[0][1]
    # Without a field of view the usual focal length stands in.
    assert float(found.cameras.K[0, 0, 0]) == pytest.approx(1.2 * WIDTH)
    with pytest.raises(ReconstructionError, match="no usable camera"):
        VggtEstimator(model=Broken(), side=112).estimate(
            replace(views, images=torch.zeros_like(views.images))
        )


def test_too_little_memory_says_what_would_fit(scene: Scene) -> None:
    views, truth = chosen(scene, list(range(10)))
    with pytest.raises(OutOfMemoryError, match=r"vggt needs about .* GB for 3 of 10 pictures"):
        estimated(views, truth, memory_limit=0.301)


class Greedy(torch.nn.Module):
    patch_size = 14

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")


def test_memory_that_runs_out_after_all_is_a_sentence(scene: Scene) -> None:
    views, _ = chosen(scene, [0, 1])
    with pytest.raises(OutOfMemoryError, match="on 2 pictures at once; use --memory-limit"):
        VggtEstimator(model=Greedy(), side=112).estimate(views)


def test_a_memory_limit_makes_chunks(scene: Scene) -> None:
    from sightline.reconstruction.learned.memory import memory_need

    views, truth = chosen(scene, list(range(10)))
    need = memory_need(Oracle(truth), HEIGHT, WIDTH, torch.device("cpu"))
    held = 21 * 10 * HEIGHT * WIDTH  # bytes of the result
    limit = (need.total(4) + held) / 1e9 + 1e-4
    found, network = estimated(views, truth, memory_limit=limit)
    assert max(len(p) for p in network.passes) == 4
    assert max(errors(found, truth).values()) < 1e-3


@pytest.mark.parametrize("name", ["vggt", "vggt-omega"])
def test_missing_weights_are_one_sentence(
    scene: Scene, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sightline.reconstruction.learned import weights

    monkeypatch.setattr(weights, "cached", lambda name: None)
    views, _ = chosen(scene, [0])
    with pytest.raises(CheckpointError, match="sightline models download vggt_"):
        create_estimator(name).estimate(views)


def test_weights_of_another_model(scene: Scene, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    views, _ = chosen(scene, [0])
    save_file({"cls_token": torch.zeros(1, 1, 384)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="other.safetensors"):
        create_estimator("vggt", checkpoint=tmp_path / "other.safetensors").estimate(views)


def test_options_that_cannot_be(scene: Scene) -> None:
    views, truth = chosen(scene, [0, 1, 2, 3])
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"side": 100}, "nearest is 98"),
        ({"fit": "balanced"}, 'no fit "balanced"'),
        ({"chunk": 2}, "3 or more"),
        ({"chunk": 3, "overlap": 5}, "1 to 2 views"),
    )
    for options, text in cases:
        with pytest.raises(InputError, match=text):
            estimated(views, truth, **options)


def tiny_vggt() -> torch.nn.Module:
    from sightline.models import build

    torch.manual_seed(0)
    config = {
        "img_size": 56, "patch_size": 14, "embed_dim": 32, "depth": 4, "num_heads": 4,
        "encoder_depth": 2, "encoder_heads": 4, "camera_trunk_depth": 1, "camera_heads": 8,
        "dpt_features": 16, "dpt_out_channels": [12, 16, 24, 24], "dpt_layers": [0, 1, 2, 3],
        "track_features": 16, "track_corr_levels": 3, "track_corr_radius": 2, "track_hidden": 24,
        "track_depth": 2, "track_iters": 2,
    }  # fmt: skip
    return build("vggt", config)


def test_a_real_network_of_any_weights_gives_finite_maps(scene: Scene) -> None:
    views, _ = chosen(scene, [0, 1, 2, 3])
    model = tiny_vggt()
    before = torch.random.get_rng_state()
    found = VggtEstimator(model=model, side=56, tracks=20).estimate(views)
    assert torch.equal(before, torch.random.get_rng_state())
    assert bool(found.registered.all())
    for value in (found.depth, found.confidence, found.cameras.w2c, found.cameras.K):
        assert value is not None
        assert bool(value.isfinite().all())
    again = VggtEstimator(model=model, side=56).estimate(views)
    torch.testing.assert_close(found.depth, again.depth)


def test_another_encoder_goes_through_the_same_door(scene: Scene) -> None:
    from sightline.models.dinov3 import DinoVisionTransformer
    from sightline.models.vggt import VGGT

    torch.manual_seed(0)
    encoder = DinoVisionTransformer(patch_size=16, embed_dim=24, depth=2, num_heads=2)
    model = VGGT(
        64,
        16,
        32,
        enable_point=False,
        enable_track=False,
        aggregator={"patch_embed": encoder, "depth": 4, "num_heads": 4},
        camera={"trunk_depth": 1, "num_heads": 8},
        dpt={
            "features": 16,
            "out_channels": (12, 16, 24, 24),
            "intermediate_layer_idx": (0, 1, 2, 3),
        },
    )
    views, _ = chosen(scene, [0, 1, 2])
    estimator = VggtEstimator(model=model, side=64)
    assert estimator._frames(views).layout.height == 48
    found = estimator.estimate(views)
    assert found.depth is not None
    assert bool(found.registered.all())
    assert bool(found.depth.isfinite().all())
    # The side that suits the patch.
    assert VggtEstimator(model=model)._frames(views).layout.width == 512


def test_the_object_serves_many_scenes(scene: Scene) -> None:
    views, _ = chosen(scene, [0, 1])
    other, _ = chosen(scene, [5, 6, 7])
    estimator = VggtEstimator(model=tiny_vggt(), side=56)
    first = estimator.estimate(views)
    estimator.estimate(other)
    again = estimator.estimate(views)
    torch.testing.assert_close(first.depth, again.depth)


def test_omega_takes_balanced_frames(scene: Scene) -> None:
    views, _ = chosen(scene, [0, 1])
    estimator = VggtOmegaEstimator(model=torch.nn.Identity(), side=64, patch=16)
    layout = estimator._frames(views).layout
    # 84 x 112 has the shape 3:4; four by four patches become three by five.
    assert (layout.height, layout.width) == (48, 80)


def test_views_are_not_changed(scene: Scene) -> None:
    views, truth = chosen(scene, [0, 1])
    before = views.images.clone()
    estimated(without_cameras(views), truth)
    assert torch.equal(views.images, before)
