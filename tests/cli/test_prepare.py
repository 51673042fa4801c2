import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.cli import main
from sightline.io.manifest import read_manifest


def code_of(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    return int(stop.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        pixels = np.random.default_rng(ord(name)).integers(0, 255, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{name}.png")
    return tmp_path / "in"


def test_old_names_of_the_options(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.json").write_text('{"a": {"label": "cat"}}')
    words = ["--input-dir", str(folder), "--output-dir", str(tmp_path / "out"), "--size", "20"]
    words += ["--max-video-frames", "4", "--metadata-json", str(tmp_path / "m.json")]
    assert code_of("prepare", *words) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(tmp_path / "out" / "manifest.json")
    assert "1 files have no entry in m.json: b.png" in printed.err
    records, _ = read_manifest(tmp_path / "out" / "manifest.json")
    assert [(r.id, r.width, r.labels) for r in records] == [
        ("a", 20, {"label": "cat"}),
        ("b", 20, {}),
    ]


def test_json_and_dry_run(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert code_of("prepare", str(folder), "-o", out, "--dry-run", "--json") == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["a", "b"]
    assert not Path(out).exists()
    assert code_of("prepare", str(folder), "-o", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["modalities"] == {"visible": 2}


def test_options_from_yaml(tmp_path: Path, folder: Path) -> None:
    text = f"inputs: [{folder}]\noutput: {tmp_path / 'out'}\nsize: 24\nval_split: 0.5\n"
    (tmp_path / "p.yaml").write_text(text)
    assert code_of("prepare", "--config", str(tmp_path / "p.yaml")) == 0
    records, _ = read_manifest(tmp_path / "out" / "manifest.json")
    assert sorted(str(r.split) for r in records) == ["train", "val"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-o", "x"], "give at least one picture, folder or video"),
        (["nowhere", "-o", "x"], "there is no file or folder nowhere"),
        (["a", "-o", "x", "--size", "-1"], "--size must be 0 to 65535, got -1"),
        (["a", "-o", "x", "--range", "9,1"], "--range expects auto"),
        (["a", "-o", "x", "--range", "1C,2C"], "needs --gain above 0"),
        (["a", "-o", "x", "--fps", "1", "--every", "2"], "frames are chosen by one rule"),
        (["a", "-o", "x", "--overlap", "8"], "--overlap must be less than --tile"),
        (["a", "-o", "x", "--mode", "stretch"], "--mode: expected one of"),
    ],
)
def test_wrong_use_is_one_sentence(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of("prepare", *words) == 2
    printed = capsys.readouterr().err
    assert text in printed
    assert printed.count("\n") == 1


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom sightline.cli import main\n"
        "try:\n    main(['prepare', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = [m for m in ('torch', 'numpy', 'cv2', 'tifffile', 'ray') if m in sys.modules]\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
