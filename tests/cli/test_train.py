"""`sightline train`: options from flags and files, exit codes, the scene builder's way."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.cli import main

TINY = [
    "--model", "dinov3_tiny",
    "--model-options", "{patch_size: 8, depth: 1, embed_dim: 64, num_heads: 1}",
    "--global-size", "16",
    "--local-size", "8",
    "--local-crops", "1",
    "--prototypes", "8",
    "--head-hidden", "16",
    "--head-bottleneck", "8",
    "--loggers", "csv",
]  # fmt: skip


def code_of(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    return int(stop.value.code or 0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for index in range(6):
        folder = tmp_path / "photos" / ("a" if index % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (24, 20, 3), np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "photos"


def test_the_scene_builders_options(
    tmp_path: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    builder = ["--dataset-dir", str(photos), "--epochs", "1", "--batch-size", "2"]
    builder += ["--lr", "1e-4", "--device", "cpu"]
    assert code_of("train", "dino", *builder, *TINY) == 0
    assert (tmp_path / "checkpoints" / "dinov3_custom.pt").is_file()
    assert "checkpoints/dinov3_custom.pt" in capsys.readouterr().out
    assert code_of("models", "check", "checkpoints/dinov3_custom.pt") == 0
    assert code_of("train", "dino", *builder, *TINY) == 2
    assert "continue it with --resume" in capsys.readouterr().err


def test_a_file_of_options_and_json(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("data: photos\nepochs: 9\nbatch_size: 2\n", encoding="utf-8")
    words = ["--config", str(config), *TINY, "-o", str(tmp_path / "out"), "--steps", "2"]
    assert code_of("train", "dino", *words, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["metrics"]["train"]["step"] == 2  # typed steps replace the file's epochs
    assert result["exports"] == [str(tmp_path / "out" / "checkpoints" / "dinov3_custom.pt")]
    assert code_of("train", "dino", *words, "--resume") == 0  # finished: nothing to do


def test_what_is_wrong_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, text in (
        ([], "usage: sightline train dino"),
        (["dingo"], 'no trainer "dingo"; closest: dino'),
        (["dino", "--data", "nowhere", "-o", str(tmp_path / "x")], "there is no folder nowhere"),
        (["dino", "--batch-sice", "3"], "did you mean --batch-size"),
        (["dino", "--config", "nothing.yaml"], "there is no configuration nothing.yaml"),
        (["dino", "-o", str(tmp_path / "x")], "give a folder of pictures with --data"),
    ):
        assert code_of("train", *words) == 2
        printed = capsys.readouterr()
        assert text in printed.out + printed.err
        assert "Traceback" not in printed.err
    assert not (tmp_path / "x").exists()


def test_print_config_shows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("train", "dino", "--print_config") == 0
    printed = capsys.readouterr().out
    assert "teacher_temp:" in printed
    assert "checkpoint_every: 200" in printed


def test_shipped_configurations_are_found_and_fit(capsys: pytest.CaptureFixture[str]) -> None:
    for name, word in (
        ("dino_smoke", "data: "),
        ("configs/train/dino_clothing.yaml", "head_norm: true"),
    ):
        assert code_of("train", "dino", "--config", name, "--print_config") == 0
        assert word in capsys.readouterr().out
