"""The segment verb: fit, predict, evaluate, and everything from one configuration file."""

import json
from pathlib import Path

import numpy as np
import pytest

from sightline.cli import main
from sightline.io.images import read_image
from sightline.segmentation.synthetic import write_dataset

CONFIGS = Path(__file__).parents[2] / "configs" / "segment"


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["segment", *map(str, words)])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    return write_dataset(folder, 4, seed=5)


def test_fit_predict_evaluate(data, tmp_path, capsys):
    bank, found, scores = (tmp_path / n for n in ("bank.safetensors", "found", "scores"))
    backbone = ("--backbone", "colour", "--size", "160")
    assert run("fit", "--references", data, "--shots", "1", *backbone, "-o", bank) == 0
    assert capsys.readouterr().out.strip() == str(bank)
    assert bank.stat().st_size < 1 << 20
    assert run("fit", "--references", data, *backbone, "-o", bank) == 2
    assert "exists" in capsys.readouterr().err

    pictures = [data / "images" / "0003.png"]
    assert run("predict", *pictures, "--bank", bank, "-o", found, "--num-out-instance", 9) == 0
    rows = json.loads((found / "results.json").read_text())
    assert {row["image_id"] for row in rows} == {3}
    assert {row["category_id"] for row in rows} <= {1, 2, 3}
    labels = read_image(found / "masks" / "0003.png").pixels[..., 0]
    assert 0 < labels.max() <= 9
    assert read_image(found / "overlays" / "0003.png").size == (240, 320)
    assert (found / "contact.png").is_file()

    words = ("evaluate", "--bank", bank, "--dataset", data, "-o", scores, "--json")
    capsys.readouterr()
    assert run(*words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["segm"]["ap50"] > 20
    assert printed["images"] == 3  # the query pictures
    assert json.loads((scores / "scores.json").read_text())["bbox"] == printed["bbox"]
    wide = read_image(scores / "overlays" / "0001.png").pixels
    assert wide.shape[1] == 2 * 320 + 10
    assert np.all(wide[:, 320:330] == 255)


def test_pictures_of_references_are_not_scored(data):
    from sightline.segmentation import tasks
    from sightline.segmentation.encoder import create_encoder
    from sightline.segmentation.references import read_references
    from sightline.segmentation.segmenter import FewShotSegmenter

    encoder = create_encoder("colour", size=64)
    bank = FewShotSegmenter(encoder).fit(read_references(data, shots=1)).bank
    assert bank is not None
    dataset, folder = tasks.open_dataset(data / "instances.json", None, bank)
    assert folder == data / "images"
    kept, left_out = tasks.without_references(dataset, bank)
    assert (len(dataset.images), len(kept.images), left_out) == (4, 3, 1)


def test_everything_from_a_configuration(tmp_path, capsys):
    out = tmp_path / "smoke"
    words = ("--config", CONFIGS / "smoke.yaml", "--synthetic", 4, "--size", 160, "-o", out)
    assert run(*words, "--seed", 1, "--shots", 1) == 0
    assert (out / "bank.safetensors").is_file()
    assert json.loads((out / "evaluation" / "scores.json").read_text())["segm"]["ap50"] > 20
    assert "AP50" in capsys.readouterr().err
    assert run(*words) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("fits",), "fit"),
        (("fit", "-o", "x"), "--references"),
        (("predict", "a.png", "-o", "x"), "picture|no file|bank"),
        (("predict", "--bank", "b", "-o", "x"), "at least one picture"),
        (
            ("fit", "--references", "missing", "--backbone", "colour", "-o", "x"),
            "no file or folder",
        ),
        (("fit", "--references", "r", "--proposals", "amg", "-o", "x"), "--sam"),
        (("fit", "--references", "r", "--shots", "0", "-o", "x"), "1 or more"),
        (("--config", str(CONFIGS / "nuts.yaml"), "-o", "x"), "--data"),
    ],
)
def test_wrong_usage_is_one_sentence(words, said, tmp_path, monkeypatch, capsys):
    import re

    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    text = capsys.readouterr().err.strip()
    assert re.search(said, text)
    assert "Traceback" not in text
    assert not (tmp_path / "x").exists()


def test_an_empty_predict_is_written_too(data, tmp_path):
    import cv2

    bank = tmp_path / "bank.safetensors"
    run("fit", "--references", data, "--backbone", "colour", "--size", "160", "-o", bank)
    cv2.imwrite(str(tmp_path / "plain.png"), np.full((40, 50, 3), 128, np.uint8))
    out = tmp_path / "found"
    assert run("predict", tmp_path / "plain.png", "--bank", bank, "-o", out) == 0
    assert json.loads((out / "results.json").read_text()) == []
