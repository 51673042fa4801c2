"""Runs with learned geometry, from pictures to exports, with networks that are right or random."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
import torch

import sightline
from sightline.cli import main
from sightline.datasets.synthetic import make_scene, write_scene
from sightline.errors import CheckpointError, InputError, ReconstructionError
from sightline.metrics.poses import relative_pose_errors
from sightline.reconstruction.learned import VggtEstimator
from sightline.results import Run
from sightline.types import Gaussians, Reconstruction, Scene, Views
from tests.reconstruction.learned.oracle import Oracle

HEIGHT, WIDTH = 84, 112


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has in its cache."""
    from sightline.reconstruction.learned import weights

    monkeypatch.setattr(weights, "cached", lambda name: None)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(8, HEIGHT, WIDTH, kind="simple", num_points=400, test_every=0)


@pytest.fixture(scope="module")
def photos(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "scene"
    write_scene(scene, folder)
    return folder


class Prepared(VggtEstimator):
    """Shows the oracle the pictures first, since it knows them by their looks."""

    def estimate(self, views: Views) -> Reconstruction:
        assert isinstance(self.model, Oracle)
        self.model.prepare(self._frames(views))
        return VggtEstimator.estimate(self, views)


def oracle(scene: Scene, count: int = 8, **noise: Any) -> Prepared:
    truth = scene.ground_truth
    assert truth is not None
    assert truth.depth is not None
    known = Reconstruction(
        cameras=truth.cameras.select(list(range(count))),
        registered=truth.registered[:count],
        depth=truth.depth[:count],
    )
    return Prepared(model=Oracle(known, **noise), side=112)


@pytest.fixture(scope="module")
def finished(scene: Scene, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "scene"
    sightline.reconstruct(
        photos / "images",
        output,
        geometry=oracle(scene),
        splats="none",
        export="ply,glb,colmap,transforms,depth",
    )
    return output


def test_dense_results_are_stored_and_exported(scene: Scene, finished: Path) -> None:
    run = Run(finished)
    truth = scene.ground_truth
    assert truth is not None
    assert truth.depth is not None
    found = run.geometry()
    assert found is not None
    assert found.depth is not None
    assert found.valid is not None
    assert bool(found.valid.all())
    turn, direction = relative_pose_errors(found.cameras.w2c, truth.cameras.w2c.double())
    assert max(float(turn.max()), float(direction.max())) < 1e-2
    torch.testing.assert_close(found.cameras.K, truth.cameras.K.double(), rtol=1e-4, atol=1e-3)
    ratio = found.depth / truth.depth
    assert float((ratio / ratio.median() - 1).abs().quantile(0.95)) < 1e-3
    with np.load(finished / "geometry.npz") as arrays:
        assert {"depth", "confidence", "geometry_valid", "sky"} <= set(arrays)
        assert not arrays["sky"].any(), "a room has no sky"
    cloud = run.points()
    assert cloud is not None
    assert cloud.confidence is not None
    assert 1000 < len(cloud.points) < 8 * HEIGHT * WIDTH
    names = {path.name for path in (finished / "exports").iterdir()}
    assert names >= {"scene.ply", "scene.glb", "sparse", "transforms.json", "depth"}
    assert len(list((finished / "exports" / "depth" / "normals").glob("*.png"))) == 8


def test_points_lie_on_the_true_surfaces(scene: Scene, finished: Path) -> None:
    truth = scene.ground_truth
    assert truth is not None
    assert truth.depth is not None
    cloud, cameras = Run(finished).points(), Run(finished).cameras()
    assert cloud is not None
    local = cloud.points.double() @ cameras.w2c[0, :3, :3].T + cameras.w2c[0, :3, 3]
    K = cameras.K[0]
    pixel = local[:, :2] / local[:, 2:] @ K[:2, :2].T + K[:2, 2]
    column, row = pixel.floor().long().unbind(-1)
    seen = (local[:, 2] > 0) & (column >= 0) & (column < WIDTH) & (row >= 0) & (row < HEIGHT)
    unit = float(truth.depth.median())
    there = truth.depth[0][row[seen], column[seen]] / unit
    # What the first view sees is at its depth; the rest is hidden behind something nearer.
    difference = local[seen, 2] - there
    assert float((difference > -0.02).double().mean()) > 0.97
    assert float((difference.abs() < 0.02).double().mean()) > 0.4


def test_colmap_export_is_opened_and_retriangulated(finished: Path) -> None:
    model = pycolmap.Reconstruction(str(finished / "exports" / "sparse" / "0"))
    assert model.num_reg_images() == 8
    assert model.num_points3D() > 300
    errors = []
    for point in list(model.points3D.values())[::5]:
        elements = point.track.elements
        if len(elements) < 3:
            continue
        images = [model.image(e.image_id) for e in elements]
        pixels = [i.points2D[e.point2D_idx].xy for i, e in zip(images, elements, strict=True)]
        again = pycolmap.estimate_triangulation(
            np.array(pixels),
            [i.cam_from_world() for i in images],
            [model.camera(i.camera_id) for i in images],
        )
        if again is None:
            continue
        for image, pixel in zip(images, pixels, strict=True):
            projected = image.project_point(again["xyz"])
            assert projected is not None
            errors.append(float(np.linalg.norm(projected - pixel)))
    assert len(errors) > 100
    assert max(errors) < 1


@pytest.mark.parametrize("count", [1, 2])
def test_one_and_two_pictures(scene: Scene, photos: Path, tmp_path: Path, count: int) -> None:
    pictures = sorted((photos / "images").iterdir())[:count]
    run = sightline.reconstruct(
        pictures,
        tmp_path / "scene",
        geometry=oracle(scene, count),
        steps=60,
        max_splats=4000,
        export="gs-ply",
    )
    assert run.metrics["registered"] == count
    splats = run.splats()
    assert splats is not None
    assert len(splats) > 1000
    assert (run.path / "report.html").is_file()


def psnr(run: Run) -> float:
    return float(run.metrics["test"]["psnr"]["mean"])


def test_splats_from_learned_cameras_are_as_good_as_from_exact_ones(
    scene: Scene, photos: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"steps": 150, "max_splats": 8000, "test_every": 4, "seed": 3}
    learned = sightline.reconstruct(
        photos / "images", tmp_path / "learned", geometry=oracle(scene), **options
    )
    exact = sightline.reconstruct(photos, tmp_path / "exact", geometry="given", **options)
    assert psnr(learned) > psnr(exact) - 0.3


def test_refined_poses_are_stored_and_the_estimate_kept(
    scene: Scene, photos: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"steps": 80, "max_splats": 3000, "test_every": 4}
    run = sightline.reconstruct(
        photos / "images", tmp_path / "run", geometry=oracle(scene, turn_noise=0.2), **options
    )
    known = run.camera_file()
    change = (known.cameras.w2c - known.estimated).abs().amax((1, 2))
    assert bool((change > 0).all()), "held-out views follow the others"
    assert float(change.max()) < 0.05
    assert run.state["stages"]["splats"]["refined_poses"]
    plain = sightline.reconstruct(
        photos / "images",
        tmp_path / "plain",
        geometry=oracle(scene, turn_noise=0.2),
        refine_poses=False,
        **options,
    )
    assert torch.equal(plain.camera_file().estimated, plain.cameras().w2c)


def test_a_repeated_splat_stage_starts_from_the_estimate(
    scene: Scene, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    options: dict[str, Any] = {"steps": 40, "max_splats": 2000}
    sightline.reconstruct(photos / "images", output, geometry=oracle(scene), **options)
    before = {name: (output / name).read_bytes() for name in ("cameras.npz", "splats.ply")}
    state = json.loads((output / "run.json").read_text())
    for stage in ("splats", "evaluate", "report"):
        state["stages"].pop(stage, None)
    (output / "run.json").write_text(json.dumps(state))
    sightline.reconstruct([], output, resume=True)
    for name, content in before.items():
        assert (output / name).read_bytes() == content, name


class WithSplats(Prepared):
    def splats(self, views: Views) -> tuple[Reconstruction, Gaussians]:
        found = self.estimate(views)
        assert found.points is not None
        means = found.points[:, ::4, ::4].reshape(-1, 3)
        count = len(means)
        quats = torch.zeros(count, 4)
        quats[:, 0] = 1
        return found, Gaussians(
            means=means,
            quats=quats,
            scales=torch.full((count, 3), 0.02),
            opacities=torch.full((count,), 0.8),
            sh=torch.zeros(count, 1, 3),
        )


def test_feedforward_splats_are_taken_over(scene: Scene, photos: Path, tmp_path: Path) -> None:
    estimator = oracle(scene)
    whole = WithSplats(model=estimator.model, side=112)
    run = sightline.reconstruct(
        photos / "images", tmp_path / "run", geometry=whole, splats="feedforward", test_every=4
    )
    splats = run.splats()
    assert splats is not None
    assert len(splats) == run.metrics["splats"] == 8 * 21 * 28
    assert "psnr" in run.metrics["test"]
    with pytest.raises(InputError, match="needs a model that sees splats"):
        sightline.reconstruct(
            photos / "images", tmp_path / "no", geometry=estimator, splats="feedforward"
        )


TINY: dict[str, Any] = {
    "img_size": 56, "patch_size": 14, "embed_dim": 32, "depth": 4, "num_heads": 4,
    "encoder_depth": 2, "encoder_heads": 4, "camera_trunk_depth": 1, "camera_heads": 8,
    "dpt_features": 16, "dpt_out_channels": [12, 16, 24, 24], "dpt_layers": [0, 1, 2, 3],
    "enable_track": False,
}  # fmt: skip


@pytest.fixture
def tiny_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small network's file, and a loader that builds that network."""
    from sightline import models
    from sightline.checkpoints import load_strict, read_weights, save_weights

    torch.manual_seed(0)
    path = tmp_path / "tiny.safetensors"
    save_weights(models.build("vggt", TINY), path)
    loads: list[object] = []

    def load(name: object, checkpoint: object = None, device: object = None) -> torch.nn.Module:
        if checkpoint is None:  # a file of a size of its own is loaded by its path alone
            name, checkpoint = "vggt_1b", name
        assert name == "vggt_1b"
        network = models.build("vggt", {**TINY, "device": device})
        if checkpoint is not False:
            loads.append(checkpoint)
            load_strict(network, read_weights(str(checkpoint)), str(checkpoint))
        return network

    monkeypatch.setattr(models, "load", load)
    monkeypatch.setattr(load, "loads", loads, raising=False)
    return path


def stop_code(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    return int(stop.value.code or 0)


def test_command_line_records_weights(photos: Path, tiny_weights: Path, tmp_path: Path) -> None:
    import hashlib

    output = tmp_path / "run"
    words = ("--checkpoint", str(tiny_weights), "--splats", "none")  # it says what it is
    code = stop_code(
        "reconstruct", str(photos / "images"), "-o", str(output), *words, "--max-frames", "2"
    )
    assert code == 0
    state = json.loads((output / "run.json").read_text())
    assert any("vggt was chosen" in text for text in state["warnings"])
    (facts,) = state["checkpoints"]
    assert facts["sha256"] == hashlib.sha256(tiny_weights.read_bytes()).hexdigest()
    assert "non-commercial" in facts["licence"]
    for name in ("cameras.npz", "geometry.npz"):
        with np.load(output / name) as arrays:
            for key in arrays:
                if arrays[key].dtype.kind == "f":
                    assert np.isfinite(arrays[key]).all(), key


def test_error_paths_of_the_command_line(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = str(photos / "images")
    output = ("-o", str(tmp_path / "run"))
    other = tmp_path / "other.pt"
    torch.save({"cls_token": torch.zeros(1, 1, 384)}, other)
    cases = [
        (("--geometry", "vggt"), 2, "sightline models download vggt_1b"),
        (("--geometry", "mast3r"), 2, "sightline models download MASt3R"),
        (("--geometry", "vggt", "--checkpoint", "nowhere.pt"), 2, "nowhere.pt"),
        (("--geometry", "vggt", "--checkpoint", str(other)), 2, "other.pt"),
        (("--checkpoint", str(other)), 2, "holds no network known here"),
        (("--memory-limit", "0"), 2, "--memory-limit must be above 0"),
        (
            ("--geometry", "vggt", "--checkpoint", str(other), "--memory-limit", "1"),
            4,
            "5.0 GB",
        ),
    ]
    for words, code, text in cases:
        assert stop_code("reconstruct", pictures, *output, "--overwrite", *words) == code, words
        shown = capsys.readouterr().err
        assert text in shown
        assert "Traceback" not in shown


def test_auto_takes_over_where_sfm_fails(
    photos: Path, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sightline.pipeline import geometry
    from sightline.reconstruction.colmap import ColmapEstimator
    from sightline.reconstruction.learned import weights

    def fails(self: ColmapEstimator, views: Views) -> Reconstruction:
        raise ReconstructionError("nothing matches; a learned model needs fewer: --geometry vggt")

    monkeypatch.setattr(ColmapEstimator, "estimate", fails)
    with pytest.raises(ReconstructionError, match="--geometry vggt"):
        sightline.reconstruct(photos / "images", tmp_path / "none", splats="none")
    monkeypatch.setattr(weights, "cached", lambda name: tiny_weights if name == "vggt_1b" else None)
    monkeypatch.setattr(geometry, "FEW_VIEWS", 1)
    run = sightline.reconstruct(photos / "images", tmp_path / "run", splats="none", max_frames=2)
    assert run.state["stages"]["cameras"]["geometry"] == "vggt"
    assert any("structure from motion failed" in text for text in run.warnings)
    one = min((photos / "images").iterdir())
    single = sightline.reconstruct(one, tmp_path / "one", splats="none")
    assert any("vggt was chosen: one picture" in text for text in single.warnings)


def test_networks_stay_loaded_between_runs(
    photos: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    from sightline import models

    loaded: dict = {}
    for name in ("a", "b"):
        sightline.reconstruct(
            photos / "images",
            tmp_path / name,
            geometry="vggt",
            checkpoint=str(tiny_weights),
            splats="none",
            max_frames=1,
            loaded=loaded,
        )
    assert len(models.load.loads) == 1  # type: ignore[attr-defined]


def test_missing_weights_leave_no_half_run(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--checkpoint FILE"):
        sightline.reconstruct(photos / "images", tmp_path / "run", geometry="vggt")
    assert not (tmp_path / "run" / "cameras.npz").exists()


def test_the_estimator_record_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        VggtEstimator().side = 3  # type: ignore[misc]


def test_each_input_becomes_its_own_run(
    photos: Path, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sightline import models

    one, two = sorted((photos / "images").iterdir())[:2]
    output = tmp_path / "runs"
    words = ("--geometry", "vggt", "--checkpoint", str(tiny_weights), "--splats", "none")
    code = stop_code(
        "reconstruct", str(one), str(two), "-o", str(output), "--each", "--json", *words
    )
    assert code == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(line["path"]).name for line in lines] == [one.stem, two.stem]
    assert all(line["metrics"]["registered"] == 1 for line in lines)
    assert len(models.load.loads) == 1  # type: ignore[attr-defined]
    missing = str(tmp_path / "nothing.png")
    code = stop_code("reconstruct", missing, str(one), "-o", str(tmp_path / "b"), "--each", *words)
    assert code == 2
    assert "nothing.png" in capsys.readouterr().err
    assert (tmp_path / "b" / one.stem / "cameras.npz").is_file()


def test_bundle_adjustment_of_learned_cameras_and_what_helped(tmp_path: Path) -> None:
    """Noise of a degree goes down to that of structure from motion, and the report says so."""
    from PIL import Image

    from tests.reconstruction import scenes

    w2c = scenes.orbit(6)
    truth = scenes.cameras(w2c)
    views = scenes.views(w2c)
    for name, image in zip(views.names, views.images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / name)

    class Rough:
        def estimate(self, views: Views) -> Reconstruction:
            from sightline.geometry.rotation import so3_exp

            generator = torch.Generator().manual_seed(0)
            noise = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
            rough = w2c.clone()
            rough[:, :3, :3] = so3_exp(torch.deg2rad(0.7 * noise[0])) @ w2c[:, :3, :3]
            rough[:, :3, 3] += 0.02 * noise[1]
            K = truth.K.clone()
            K[:, (0, 1), (0, 1)] *= 1.03
            return Reconstruction(
                cameras=dataclasses.replace(truth, w2c=rough, K=K),
                registered=torch.ones(6, dtype=torch.bool),
                depth=torch.full((6, *views.images.shape[-2:]), 4.0),
            )

    run = sightline.reconstruct(
        sorted(tmp_path.glob("*.png")),
        tmp_path / "run",
        geometry=Rough(),
        refine="ba",
        test_every=5,
        steps=50,
        max_splats=3000,
        resolution=160,
    )
    found = run.camera_file().estimated
    turn, direction = relative_pose_errors(found, w2c)
    assert float(turn.max()) < 0.15
    assert float(direction.max()) < 0.6
    assert run.state["stages"]["cameras"]["adjusted"]
    assert any("bundle adjustment moved cameras" in text for text in run.warnings)
    chain = run.metrics["chain"]
    assert set(chain) == {"learned", "adjusted", "refined"}
    assert chain["adjusted"] > chain["learned"]
    assert "Held-out PSNR after" in (run.path / "report.html").read_text()
