"""Training a probe: what moves when, and that the benchmark measures something."""

import dataclasses

import pytest
import torch

from sightline.errors import InputError
from sightline.probing.clouds import Cloud, choose_method, make_cloud, probe_input
from sightline.probing.poses import draw, refine_test_poses
from sightline.probing.protocols import Protocol, find_protocol
from sightline.probing.scenes import ProbeScene, SceneSource, load_scene
from sightline.probing.scoring import score_renders
from sightline.probing.tokens import TokenGrid, even_placement, make_grid
from sightline.probing.train import ProbeInput, ProbeResult, train_probe
from sightline.types import Reconstruction, Views
from tests.probing import tiny

SOURCE = SceneSource(
    id="ball", synthetic={"kind": "simple", "num_views": 8, "height": 48, "width": 48, "seed": 1}
)


def protocol(**changes: object) -> Protocol:
    return find_protocol(
        "fast", {**tiny.CHANGES, "long_side": 48, "train_views": 3, "hidden": 48, **changes}
    )


@pytest.fixture(scope="module")
def scene() -> ProbeScene:
    return load_scene(SOURCE, protocol())


@pytest.fixture(scope="module")
def cloud(scene: ProbeScene) -> Cloud:
    return make_cloud(scene, "auto", protocol())


@pytest.fixture(scope="module")
def inputs(scene: ProbeScene, cloud: Cloud) -> ProbeInput:
    return probe_input(cloud, scene)


def features(scene: ProbeScene, channels: int = 8) -> TokenGrid:
    torch.manual_seed(0)
    maps = torch.randn(scene.num_train, channels, 6, 6)
    return make_grid(maps, even_placement((48, 48), (6, 6)))


def test_scene_and_cloud(scene: ProbeScene, cloud: Cloud) -> None:
    assert (scene.num_train, scene.num_test) == (3, 1)
    assert cloud.method == "depth"
    # The unit world: cameras around the origin, median depth 1.
    assert cloud.train.centers.mean(0).abs().max() < 1e-6
    camera = cloud.train.w2c[0].float()
    depths = (cloud.points[0] @ camera[2, :3] + camera[2, 3])[cloud.valid[0]]
    assert 0.5 < float(depths.median()) < 2
    # Points lie where their pixels look: projecting gives the pixel centres back.
    local = (
        cloud.points[1] @ cloud.train.w2c[1, :3, :3].float().mT + cloud.train.w2c[1, :3, 3].float()
    )
    pixels = local @ cloud.train.K[1].float().mT
    pixels = pixels[..., :2] / pixels[..., 2:]
    torch.testing.assert_close(pixels[4, 7], torch.tensor([7.5, 4.5]), rtol=1e-3, atol=1e-3)


def test_depth_of_given_cameras_comes_from_training_views() -> None:
    settings = protocol(depth_steps=40)
    close = SceneSource(
        id="close",
        synthetic={**SOURCE.synthetic, "num_views": 30},
        train=("view_000", "view_001", "view_002", "view_003"),
        test=("view_004",),
    )
    scene = load_scene(close, settings)
    blind = dataclasses.replace(scene, depth=None)
    assert choose_method(blind, "auto") == "given"
    found = make_cloud(blind, "given", settings)
    # Whatever test photos show does not matter.
    dark = dataclasses.replace(blind, working=blind.working.clone())
    dark.working[blind.num_train :] = 0
    again = make_cloud(dark, "given", settings)
    assert torch.equal(found.points, again.points)
    exact = make_cloud(scene, "depth", settings)
    both = found.valid & exact.valid
    assert both.float().mean() > 0.5
    true = exact.points / exact.unit
    error = (found.points / found.unit - true)[both].norm(dim=-1).median()
    center = true[both].mean(0)
    assert error < 0.5 * (true[both] - center).norm(dim=-1).median()


def test_methods_say_what_they_lack(scene: ProbeScene) -> None:
    bare = dataclasses.replace(scene, depth=None, cameras=None)
    with pytest.raises(InputError, match="colmap, dust3r, mast3r, vggt"):
        choose_method(bare, "auto")
    with pytest.raises(InputError, match="no depth"):
        choose_method(dataclasses.replace(scene, depth=None), "depth")


def test_any_estimator_gives_a_cloud(scene: ProbeScene) -> None:
    """An oracle in another world for each call: registration brings test poses back."""
    assert scene.cameras is not None
    cameras, depth = scene.cameras, scene.depth

    class Oracle:
        def estimate(self, views: Views) -> Reconstruction:
            index = [scene.names.index(name) for name in views.names]
            scale = 1.0 if len(index) == scene.num_train else 2.5
            chosen = cameras.select(index)
            w2c = chosen.w2c.clone()
            w2c[:, :3, 3] *= scale
            assert depth is not None
            return Reconstruction(
                cameras=dataclasses.replace(chosen, w2c=w2c),
                registered=torch.ones(len(index), dtype=torch.bool),
                depth=depth[index] * scale,
            )

    settings = protocol(unit_world=False)
    found = make_cloud(scene, "oracle", settings, estimator=Oracle())
    known = make_cloud(scene, "depth", settings)
    torch.testing.assert_close(found.points, known.points, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.test.w2c, known.test.w2c, rtol=1e-4, atol=1e-4)
    assert (found.masks == known.masks).float().mean() > 0.99
    wrong = make_cloud(
        scene, "oracle", protocol(unit_world=False, quirks={"Q10": True}), estimator=Oracle()
    )
    assert not torch.allclose(wrong.test.w2c, known.test.w2c, atol=1e-2)


@pytest.mark.parametrize("on", [False, True])
def test_q3_and_the_settings_of_estimators(on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.probing import clouds
    from sightline.reconstruction import create_estimator

    @dataclasses.dataclass(frozen=True)
    class Refining:
        optimize_depth: bool = True
        device: str = "?"

        def estimate(self, views: Views) -> Reconstruction:
            raise NotImplementedError

    monkeypatch.setattr(clouds, "create_estimator", lambda *_, **__: Refining())
    found = clouds._estimator("mast3r", protocol(quirks={"Q3": on}), {}, "cpu")
    assert (found.optimize_depth, found.device) == (not on, "cpu")
    monkeypatch.setattr(clouds, "create_estimator", create_estimator)
    published = find_protocol("feat2gs-v1")
    mast3r = clouds._estimator("mast3r", published, {"subsample": 4}, "cpu")
    assert (mast3r.fine, mast3r.shared_intrinsics, mast3r.subsample) == ((200, 0.014, 0.5), True, 4)
    assert clouds._estimator("mast3r", protocol(), {}, "cpu").fine == (300, 0.01, 0.5)


def run(scene: ProbeScene, inputs: ProbeInput, mode: str, **changes: object) -> ProbeResult:
    tokens = None if mode == "free" else features(scene)
    return train_probe(inputs, tokens, mode, protocol(**changes), seed=0)


@pytest.mark.parametrize("mode", ["G", "T", "A", "Gft", "Tft", "Aft", "free"])
def test_modes_read_out_what_they_should(scene: ProbeScene, inputs: ProbeInput, mode: str) -> None:
    found = run(scene, inputs, mode)
    heads = {name.split(".")[0].removeprefix("head_") for name in found.readout}
    geometry, texture = {"xyz", "scaling", "rotation", "opacity"}, {"f_dc", "f_rest"}
    want = {"G": geometry, "T": texture, "A": geometry | texture, "f": set()}[mode[0]]
    assert heads == want
    # What is free has moved only a little from the cloud.
    for name in (geometry | texture) - want:
        assert 0 < (found.raw[name] - inputs.start[name]).abs().mean() < 0.1, name
    assert bool(found.history["warm"]) == (mode != "free")


def test_same_seed_same_bytes_other_seed_other_probe(scene: ProbeScene, inputs: ProbeInput) -> None:
    one, two = (train_probe(inputs, features(scene), "A", protocol(), seed=3) for _ in range(2))
    other = train_probe(inputs, features(scene), "A", protocol(), seed=4)
    for name, value in one.raw.items():
        assert torch.equal(value, two.raw[name]), name
    assert not torch.equal(one.raw["xyz"], other.raw["xyz"])


def test_warm_start_leaves_what_is_free(scene: ProbeScene, inputs: ProbeInput) -> None:
    found = run(scene, inputs, "G", steps=1, quirks={"Q21": True}, warm_steps=30)
    # The only photometric step is the last one, which does not step under Q21.
    assert torch.equal(found.raw["f_dc"], inputs.start["f_dc"])
    torch.testing.assert_close(found.w2c, inputs.cameras.w2c, rtol=1e-5, atol=1e-5)
    assert found.history["warm"][-1] < found.history["warm"][0]


def test_q21_last_step(scene: ProbeScene, inputs: ProbeInput) -> None:
    stepped = run(scene, inputs, "G", steps=1)
    assert not torch.equal(stepped.raw["f_dc"], inputs.start["f_dc"])


def test_q22_gauge(scene: ProbeScene, inputs: ProbeInput) -> None:
    fixed = run(scene, inputs, "free")
    torch.testing.assert_close(fixed.w2c[0], inputs.cameras.w2c[0], rtol=1e-6, atol=1e-6)
    assert (fixed.w2c[1:] - inputs.cameras.w2c[1:]).abs().max() > 1e-7
    free = run(scene, inputs, "free", quirks={"Q22": True})
    assert (free.w2c[0] - inputs.cameras.w2c[0]).abs().max() > 1e-7


def test_q8_features_freeze_after_the_warm_start(scene: ProbeScene, inputs: ProbeInput) -> None:
    frozen = run(scene, inputs, "Aft")
    moving = run(scene, inputs, "Aft", quirks={"Q8": False})
    assert not torch.equal(frozen.raw["xyz"], moving.raw["xyz"])


def test_q9_hidden_width_of_pixel_features(scene: ProbeScene, inputs: ProbeInput) -> None:
    pixels = make_grid(torch.rand(3, 6, 48, 48), even_placement((48, 48), (48, 48)), is_pixels=True)
    for narrow, hidden in ((True, 6), (False, 48)):
        settings = protocol(quirks={"Q9": narrow})
        found = train_probe(inputs, pixels, "G", settings)
        assert found.readout["head_xyz.mlp_warp.0.weight"].shape == (hidden, 6)


def test_scales_are_held_for_pixel_features(scene: ProbeScene, inputs: ProbeInput) -> None:
    args = (inputs, features(scene), "G", protocol(steps=20))
    plain = train_probe(*args)
    held = train_probe(*args, penalise_scales=True)
    assert not torch.equal(plain.raw["scaling"], held.raw["scaling"])


@pytest.mark.parametrize("late", [False, True])
def test_q13_which_pose_is_kept(
    scene: ProbeScene, inputs: ProbeInput, cloud: Cloud, late: bool
) -> None:
    splats = train_probe(inputs, None, "free", protocol(baseline_steps=40)).gaussians()
    test = cloud.test.map(lambda t: t.float())
    start = dataclasses.replace(test, w2c=test.w2c.clone())
    start.w2c[:, 0, 3] += 0.03
    photos = scene.targets[scene.num_train :].float() / 255
    settings = protocol(pose_steps=25, pose_translation=2e-3, quirks={"Q13": late})
    found = refine_test_poses(splats, start, photos, cloud.masks, settings)
    with torch.no_grad():
        image = draw(splats, found.w2c, test)
        first = draw(splats, start.w2c, test)
    weight = cloud.masks[..., None]
    want = photos.permute(0, 2, 3, 1) * weight

    def loss(picture: torch.Tensor) -> torch.Tensor:
        return (want - picture * weight).abs().mean((1, 2, 3))

    assert loss(image) < loss(first)
    # The loss is that of the pose, unless the pose is one step later.
    assert torch.allclose(loss(image), found.loss, rtol=1e-4) != late


def test_pose_search_moves_each_view_alone(
    scene: ProbeScene, inputs: ProbeInput, cloud: Cloud
) -> None:
    splats = train_probe(inputs, None, "free", protocol(baseline_steps=10)).gaussians()
    test = cloud.train.map(lambda t: t.float())
    photos = scene.targets[: scene.num_train].float() / 255
    masks = torch.ones(3, 48, 48)
    together = refine_test_poses(splats, test, photos, masks, protocol(pose_steps=5))
    alone = refine_test_poses(
        splats, test.select([1]), photos[1:2], masks[1:2], protocol(pose_steps=5)
    )
    torch.testing.assert_close(together.w2c[1], alone.w2c[0], rtol=1e-5, atol=1e-6)


def test_true_depth_scores_above_random_features(
    scene: ProbeScene, inputs: ProbeInput, cloud: Cloud
) -> None:
    """The benchmark measures something: geometry in the features comes out as better views."""
    assert scene.depth is not None
    assert scene.cameras is not None
    points = cloud.points.permute(0, 3, 1, 2)
    knowing = make_grid(points, even_placement((48, 48), (48, 48)), is_pixels=True)
    torch.manual_seed(0)
    noise = make_grid(torch.randn(3, 3, 48, 48), even_placement((48, 48), (48, 48)), is_pixels=True)
    settings = protocol(warm_steps=150, steps=10, pose_steps=0)
    photos = scene.targets[scene.num_train :].float() / 255
    test = cloud.test.map(lambda t: t.float())
    scores: dict[str, list[float]] = {"knowing": [], "noise": []}
    for seed in range(2):
        for name, tokens in (("knowing", knowing), ("noise", noise)):
            splats = train_probe(inputs, tokens, "G", settings, seed=seed).gaussians()
            with torch.no_grad():
                render = draw(splats, test.w2c, test).permute(0, 3, 1, 2)
            found = score_renders(render, photos, cloud.masks == 1, settings)
            scores[name].append(float(found["psnr"].mean()))
    # By a margin that is wider than the spread over seeds.
    spread = max(max(v) - min(v) for v in scores.values())
    assert min(scores["knowing"]) > max(scores["noise"]) + max(1.0, spread), scores
