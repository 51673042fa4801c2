from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.datasets.synthetic import make_scene, write_scene
from sightline.errors import InputError
from sightline.io.ply import read_gaussian_ply
from sightline.probing import paths
from sightline.probing.demo import DemoOptions, plan_demo, run_demo
from sightline.probing.demo_run import feature_picture
from sightline.probing.dtu import read_dtu
from sightline.probing.protocols import PROTOCOLS, find_protocol
from sightline.probing.tokens import TokenGrid
from sightline.results import open_run

OPTIONS = DemoOptions(
    feature="iuvrgb", geometry="auto", mode="Gft", steps=16, protocol="fast", device="cpu"
)


def test_three_steps_and_a_second_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "FRAMES", 8)
    small = replace(find_protocol("fast"), long_side=48, hidden=16)
    monkeypatch.setitem(PROTOCOLS, small.name, small)
    scene = make_scene(4, 32, 48, kind="simple", num_points=50)
    folder = write_scene(scene, tmp_path / "scene").parent
    output = tmp_path / "demo"
    results = run_demo([folder], output, OPTIONS)
    assert set(results) == {"cloud", "points", "features", "splats", "video", "report"}
    for path in results.values():
        assert path.stat().st_size > 500
    assert len(read_gaussian_ply(results["splats"])) > 1000
    before = {p: p.stat().st_mtime_ns for p in (output / "store").rglob("*.ply")}
    again = run_demo([folder], output, OPTIONS)
    assert again == results
    assert {p: p.stat().st_mtime_ns for p in (output / "store").rglob("*.ply")} == before
    # What it leaves is a run like any other.
    run = open_run(output)
    assert run.status == "done"
    assert run.metrics == {"views": 4, "registered": 4, "splats": len(run.splats() or ())}
    views = run.views()
    assert views.cameras is not None
    assert views.images.shape[0] == 4
    estimated = run.camera_file().estimated
    assert 0 < (views.cameras.w2c - estimated).abs().max() < 0.1  # poses were refined
    assert run.export(["ply", "colmap"])
    cloud = run.points()
    assert cloud is not None
    assert len(cloud.points) > 1000
    page = (output / "report.html").read_text("utf-8")
    assert "sightline probe demo" in page
    assert page.count("data:image/jpeg") >= 8  # photos, renders, features


def test_features_are_drawn_as_the_authors_do() -> None:
    """Nine channels by their own range over all views, three coloured maps beside the photo."""
    maps = torch.zeros(2, 4, 6, 8)
    maps[..., 0] = torch.linspace(-3, 5, 6)
    maps[1, :, :, 1] = 2
    grid = TokenGrid(grid=maps, down=torch.eye(4), across=torch.eye(6), is_pixels=True)
    photos = torch.full((2, 3, 4, 6), 51, dtype=torch.uint8)
    found = feature_picture(grid, photos)
    assert found.shape == (2 * 4, 4 * 6, 3)
    assert (found[:, :6] == 51).all()
    red = np.round(np.linspace(0, 1, 6) * 255).astype(int)
    np.testing.assert_array_equal(found[0, 6:12, 0], red)
    assert (found[:4, 6:12, 1] == 0).all()
    assert (found[4:, 6:12, 1] == 255).all()
    assert (found[:, 18:, 2] == 255).all()  # the ninth channel is missing


def test_the_warm_start_of_the_published_demo_is_a_thousand_steps(tmp_path: Path) -> None:
    scene = make_scene(3, 32, 48, kind="simple", num_points=50)
    folder = write_scene(scene, tmp_path / "scene").parent
    for protocol, steps, want in (
        ("feat2gs-v1", 2000, (1000, 1000)),
        ("feat2gs-v1", 1000, (999, 1)),
        ("sightline-1", 2000, (250, 1750)),
    ):
        options = replace(OPTIONS, protocol=protocol, steps=steps)
        found = plan_demo([folder], tmp_path / "out", options).protocol
        assert (found.warm_steps, found.steps) == want


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        run_demo([tmp_path], tmp_path, OPTIONS)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_one_photo_is_refused(tmp_path: Path) -> None:
    photo = tmp_path / "a.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(photo)
    with pytest.raises(InputError, match="two or more photos"):
        plan_demo([photo], tmp_path / "out", OPTIONS)
    with pytest.raises(InputError, match="steps must be 16 or more"):
        DemoOptions(steps=3)


def test_dtu_scans(tmp_path: Path) -> None:
    for name in ("images", "depths", "cams", "binary_masks"):
        (tmp_path / name).mkdir()
    photo = np.full((40, 60, 3), 200, np.uint8)
    Image.fromarray(photo).save(tmp_path / "images" / "00.png")
    depth = np.full((40, 60), 600.0, np.float32)
    depth[5, 30] = 0
    np.save(tmp_path / "depths" / "00.npy", depth)
    mask = np.zeros((40, 60), np.uint8)
    mask[:, 20:] = 255
    Image.fromarray(mask).save(tmp_path / "binary_masks" / "00.png")
    rows = "1 0 0 1000\n0 1 0 0\n0 0 1 0\n0 0 0 1"
    text = f"extrinsic\n{rows}\n\nintrinsic\n100 0 30\n0 100 20\n0 0 1\n"
    (tmp_path / "cams" / "00_cam.txt").write_text(text)
    found = read_dtu(tmp_path, ["00"])
    known = found["depth"][0] > 0
    assert found["depth"][0, 20, 50].item() == pytest.approx(0.6)  # metres
    assert found["cameras"].w2c[0, 0, 3].item() == 1.0
    # The mask is eroded by 10 pixels, the hole is black too.
    assert not known[:, :20].any()
    assert not known[20, 21:25].any()
    assert not known[5, 30]
    assert found["images"][0, :, 5, 30].tolist() == [0, 0, 0]
    assert found["images"][0, :, 20, 50].tolist() == [200, 200, 200]
    with pytest.raises(InputError, match="no picture 01"):
        read_dtu(tmp_path, ["01"])
