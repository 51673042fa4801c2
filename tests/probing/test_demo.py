from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.datasets.synthetic import make_scene, write_scene
from sightline.errors import InputError
from sightline.io.ply import read_gaussian_ply
from sightline.probing import videos
from sightline.probing.demo import DemoOptions, plan_demo, run_demo
from sightline.probing.dtu import read_dtu
from sightline.probing.protocols import PROTOCOLS, find_protocol

OPTIONS = DemoOptions(
    feature="iuvrgb", geometry="auto", mode="Gft", steps=16, protocol="fast", device="cpu"
)


def test_three_steps_and_a_second_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "_FRAMES", 8)
    small = replace(find_protocol("fast"), long_side=48, hidden=16)
    monkeypatch.setitem(PROTOCOLS, small.name, small)
    scene = make_scene(4, 32, 48, kind="simple", num_points=50)
    folder = write_scene(scene, tmp_path / "scene").parent
    output = tmp_path / "demo"
    results = run_demo([folder], output, OPTIONS)
    assert set(results) == {"cloud", "points", "splats", "video"}
    for path in results.values():
        assert path.stat().st_size > 500
    assert len(read_gaussian_ply(results["splats"])) > 1000
    before = {p: p.stat().st_mtime_ns for p in (output / "store").rglob("*.ply")}
    again = run_demo([folder], output, OPTIONS)
    assert again == results
    assert {p: p.stat().st_mtime_ns for p in (output / "store").rglob("*.ply")} == before


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
