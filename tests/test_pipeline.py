"""One small scene from start to end, interrupted in every stage, and with bad input."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import sightline
from sightline.cli import main
from sightline.datasets.synthetic import make_scene, write_scene
from sightline.errors import Cancelled, InputError, OutputError
from sightline.protocols import Progress
from sightline.run import RunFolder
from sightline.types import Reconstruction, Views
from tests.faults import fill_disk

OPTIONS = {"geometry": "given", "test_every": 4, "steps": 60, "max_splats": 3000, "seed": 5}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    scene = make_scene(num_views=8, height=60, width=80, kind="simple", num_points=800)
    write_scene(scene, folder)
    return folder


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "scene"
    sightline.reconstruct(photos, output, export="ply,gs-ply,spz,transforms", **OPTIONS)
    return output


def contents(run: Path) -> dict[str, str]:
    """Hashes of everything that must be equal after an interruption, byte for byte."""
    names = ("cameras.npz", "geometry.npz", "splats.ply")
    files = [*(run / n for n in names), *sorted(run.glob("renders/test/*.png"))]
    found = {str(p.relative_to(run)): p.read_bytes() for p in files}
    found["inputs.json"] = json.dumps(_records(run)).encode()
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}


def test_run_folder_holds_what_the_contract_names(finished: Path) -> None:
    state = json.loads((finished / "run.json").read_text())
    assert state["status"] == "done"
    assert state["config"]["test_every"] == 4
    assert set(state["stages"]) >= {"ingest", "cameras", "views", "splats", "evaluate", "report"}
    assert state["metrics"]["views"] == state["metrics"]["registered"] == 8
    names = sorted(state["metrics"]["test"]["psnr"]["per_view"])
    stored = [r["file"].removeprefix("images/") for r in _records(finished)]
    assert names == sorted([stored[0], stored[4]])
    assert {"psnr", "ssim", "cc_psnr"} <= set(state["metrics"]["test"])
    for name in ("inputs.json", "cameras.npz", "geometry.npz", "splats.ply", "report.html"):
        assert (finished / name).is_file(), name
    for name in ("scene.ply", "gaussians.ply", "scene.spz", "transforms.json"):
        assert (finished / "exports" / name).is_file(), name
    with np.load(finished / "cameras.npz") as cameras:
        assert cameras["w2c"].shape == (8, 4, 4)
        assert cameras["registered"].all()
    assert not list(finished.rglob(".*.tmp*"))


def _records(run: Path) -> list[dict]:
    return json.loads((run / "inputs.json").read_text())["records"]


def test_open_run_gives_records(finished: Path) -> None:
    run = sightline.open_run(finished)
    views, cameras, splats = run.views(), run.cameras(), run.splats()
    assert views.images.dtype == torch.uint8
    assert len(cameras) == 8
    assert splats is not None
    assert len(splats) == run.metrics["splats"]
    points = run.points()
    assert points is not None
    assert points.confidence is not None
    geometry = run.geometry()
    assert geometry is not None
    assert bool(geometry.registered.all())


def test_fits_the_scene(tmp_path: Path) -> None:
    scene = make_scene(num_views=24, height=60, width=80, kind="simple", num_points=800)
    write_scene(scene, tmp_path / "photos")
    options = {**OPTIONS, "steps": 400, "test_every": 8}
    run = sightline.reconstruct(tmp_path / "photos", tmp_path / "scene", **options)
    assert run.metrics["test"]["psnr"]["mean"] > 22


def test_same_seed_gives_the_same_bytes(photos: Path, finished: Path, tmp_path: Path) -> None:
    sightline.reconstruct(photos, tmp_path / "again", **OPTIONS)
    assert contents(tmp_path / "again") == contents(finished)


def stopper(at: str, after: float) -> Progress:
    """A progress callback that cancels in a stage once a share of it is done."""

    def progress(stage: str, done: float, total: float) -> None:
        if stage == at and done >= after * total:
            raise Cancelled("stopped by the test")

    return progress


@pytest.mark.parametrize(
    ("stage", "after"), [("read inputs", 0.5), ("read pictures", 0.5), ("splats", 0.5),
                         ("evaluate", 0.4)]
)  # fmt: skip
def test_cancelled_then_resumed_gives_the_same(
    photos: Path, finished: Path, tmp_path: Path, stage: str, after: float
) -> None:
    output = tmp_path / "scene"
    with pytest.raises(Cancelled):
        sightline.reconstruct(photos, output, progress=stopper(stage, after), **OPTIONS)
    assert RunFolder.open(output).state["status"] == "cancelled"
    run = sightline.reconstruct([], output, resume=True)
    assert run.status == "done"
    assert contents(output) == contents(finished)


@pytest.mark.parametrize("writes", [3, 30])
def test_a_full_disk_loses_nothing(
    photos: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    output = tmp_path / "scene"
    with monkeypatch.context() as patch:
        fill_disk(patch, after=writes)
        with pytest.raises(OutputError, match="no space left on device; free some space"):
            sightline.reconstruct(photos, output, **OPTIONS)
    assert not list(output.rglob("*.tmp*"))
    sightline.reconstruct(photos, output, resume=True, **OPTIONS)
    assert contents(output) == contents(finished)


def _watch(run: Path, ready: Callable[[Path], bool], process: subprocess.Popen) -> None:
    while process.poll() is None and not ready(run):
        time.sleep(0.002)


@pytest.mark.parametrize(
    "ready",
    [
        lambda run: (run / "run.json").exists(),
        lambda run: (run / "inputs.json").exists(),
        lambda run: (run / "stages" / "reconstruction.npz").exists(),
        lambda run: (run / "cameras.npz").exists(),
        lambda run: (run / "splats.ply").exists(),
        lambda run: (run / "renders").exists(),
    ],
    ids=["start", "ingested", "cameras", "views", "splats", "renders"],
)
def test_killed_then_resumed_gives_the_same(
    photos: Path, finished: Path, tmp_path: Path, ready: Callable[[Path], bool]
) -> None:
    output = tmp_path / "scene"
    words = [f"--{k.replace('_', '-')}={v}" for k, v in OPTIONS.items()]
    command = [sys.executable, "-m", "sightline", "reconstruct", str(photos), "-o", str(output)]
    process = subprocess.Popen([*command, *words], stdout=-3, stderr=-3)
    _watch(output, ready, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    sightline.reconstruct(photos, output, resume=True, **OPTIONS)
    assert contents(output) == contents(finished)


def test_resuming_a_finished_run_changes_nothing(finished: Path) -> None:
    before = contents(finished)
    started = (finished / "run.json").read_text()
    run = sightline.reconstruct([], finished, resume=True)
    assert contents(finished) == before
    assert run.state["stages"]["splats"] == json.loads(started)["stages"]["splats"]


def test_a_damaged_picture_is_not_resumed_with(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    picture = min((copy / "images").iterdir())
    data = bytearray(picture.read_bytes())
    data[len(data) // 2] ^= 1
    picture.write_bytes(data)
    before = (copy / "report.html").read_bytes()
    again = ("reconstruct", "-o", str(copy), "--resume", "--export", "glb")
    assert stop_code(*again) == 2
    assert f"{picture.name} is not as the stage ingest left it" in capsys.readouterr().err
    assert (copy / "report.html").read_bytes() == before
    data[len(data) // 2] ^= 1
    picture.write_bytes(data)
    assert stop_code(*again) == 0


def test_resume_can_add_an_export_but_not_change_the_rest(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "scene"
    shutil.copytree(finished, copy)
    run = sightline.reconstruct([], copy, resume=True, export="splat")
    assert (copy / "exports" / "scene.splat").is_file()
    assert run.config["export"] == "ply,gs-ply,spz,transforms,splat"
    with pytest.raises(InputError, match="--steps is 60 in .*, got 99"):
        sightline.reconstruct([], copy, resume=True, steps=99)


def test_an_own_estimator_is_used(photos: Path, tmp_path: Path) -> None:
    truth = make_scene(num_views=8, height=60, width=80, kind="simple", num_points=800)

    class Oracle:
        def estimate(self, views: Views) -> Reconstruction:
            assert truth.ground_truth is not None
            assert len(views) == 8
            known = truth.ground_truth
            return Reconstruction(
                cameras=known.cameras, registered=known.registered, sparse=known.sparse
            )

    run = sightline.reconstruct(
        photos / "images", tmp_path / "scene", geometry=Oracle(), splats="none"
    )
    assert run.metrics["registered"] == 8
    assert run.state["stages"]["cameras"]["geometry"] == "Oracle"
    assert run.splats() is None


def stop_code(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    return int(stop.value.code or 0)


def test_command_line_prints_results_and_json(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stop_code("reconstruct", "-o", str(finished), "--resume", "--json") == 0
    shown = capsys.readouterr()
    summary = json.loads(shown.out)
    assert summary["status"] == "done"
    assert summary["metrics"]["views"] == 8


def _empty(folder: Path) -> list[str]:
    return [str(folder)]


def _missing(folder: Path) -> list[str]:
    return [str(folder / "nothing")]


def _one_photo(folder: Path) -> list[str]:
    _picture(folder / "a.png")
    return [str(folder / "a.png")]


def _unreadable(folder: Path) -> list[str]:
    _picture(folder / "a.png")
    (folder / "b.jpg").write_bytes(b"\xff\xd8\xff\xe0" + b"\0" * 40)
    return [str(folder)]


def _zero_byte_video(folder: Path) -> list[str]:
    (folder / "clip.mp4").touch()
    return [str(folder / "clip.mp4")]


def _nan_pose(folder: Path) -> list[str]:
    _picture(folder / "a.png")
    _picture(folder / "b.png")
    pose = [[1, 0, 0, float("nan")], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    frames = [{"file_path": name, "transform_matrix": pose} for name in ("a.png", "b.png")]
    content = {"fl_x": 50, "fl_y": 50, "cx": 20, "cy": 15, "w": 40, "h": 30, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(content))
    return [str(folder / "transforms.json")]


def _no_images_of_model(folder: Path) -> list[str]:
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    (sparse / "cameras.txt").write_text("1 PINHOLE 40 30 50 50 20 15\n")
    (sparse / "images.txt").write_text("1 1 0 0 0 0 0 0 1 a.png\n\n2 1 0 0 0 1 0 0 1 b.png\n\n")
    (sparse / "points3D.txt").write_text("")
    return [str(folder)]


def _picture(path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(
    "make",
    [_empty, _missing, _one_photo, _unreadable, _zero_byte_video, _nan_pose, _no_images_of_model],
)
def test_bad_input_is_one_sentence_and_code_2(
    make: Callable[[Path], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    inputs = make(given)
    before = sorted(given.rglob("*"))
    assert stop_code("reconstruct", *inputs, "-o", str(tmp_path / "scene")) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert shown[-1].startswith("sightline reconstruct: ")
    assert not any("Traceback" in line for line in shown)
    assert sorted(given.rglob("*")) == before
    for name in ("cameras.npz", "geometry.npz", "splats.ply", "report.html"):
        assert not (tmp_path / "scene" / name).exists()


def test_two_photos_without_overlap_fail_with_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for seed in range(2):
        pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
        large = Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC)
        large.save(tmp_path / f"{seed}.png")
    assert stop_code("reconstruct", str(tmp_path), "-o", str(tmp_path / "scene")) == 1
    text = capsys.readouterr().err
    assert "overlap" in text
    assert "Traceback" not in text


def test_overwrite_refuses_to_empty_its_own_input(finished: Path) -> None:
    with pytest.raises(InputError, match="lies inside the output folder"):
        sightline.reconstruct(finished / "images", finished, overwrite=True)


def test_features_are_carried_by_the_scene(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "scene"
    run = sightline.reconstruct(photos, output, **{**OPTIONS, "steps": 8}, features="iuvrgb")
    found, splats, points = run.features(), run.splats(), run.points()
    assert found is not None
    assert splats is not None
    assert points is not None
    assert found.backbone == "iuvrgb"
    assert found.splat_features is not None
    assert len(found.splat_features) == len(splats)
    assert found.point_features is not None
    assert len(found.point_features) == len(points.points)
    assert "Features" in (output / "report.html").read_text()
    plain, painted = run.scene(), run.scene("features")
    assert painted.gaussians is not None
    assert painted.gaussians.sh.shape[1] == 1
    assert plain.points is not None
    assert painted.points is not None
    assert not torch.equal(plain.points.colors, painted.points.colors)
    (file,) = run.export(["gs-ply"], colors="features")
    assert file == output / "exports" / "features" / "gaussians.ply"


def test_features_that_cannot_be_made_are_refused_before_any_work(
    photos: Path, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match='no backbone "dinov9"'):
        sightline.reconstruct(photos, tmp_path / "a", features="dinov9", **OPTIONS)
    with pytest.raises(InputError, match="--features-checkpoint"):
        sightline.reconstruct(photos, tmp_path / "a", features="dinov2_vits14", **OPTIONS)
    assert not (tmp_path / "a").exists()
    with pytest.raises(InputError, match="carries no features"):
        sightline.open_run(finished).scene("features")
