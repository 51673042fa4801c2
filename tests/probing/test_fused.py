"""Backbones compared inside Splatt3R: every run once, one page with intervals, ties and costs."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from sightline.checkpoints import save_weights
from sightline.cli.train import run
from sightline.errors import CheckpointError, InputError, UnknownNameError
from sightline.models.splatt3r import Splatt3R
from sightline.probing.fused import START, VariantRun, compare, scores_table, variants_of
from sightline.probing.fused_report import pairs_csv, summary_csv
from sightline.training.splatt3r.evaluate import PairScore
from tests.datasets.replicas import room, write_co3d
from tests.training.splatt3r import small

CONFIGS = Path(__file__).parents[2] / "configs"


def co3d(root: Path) -> Path:
    """Write a CO3D of one sequence, which is trained on and scored alike."""
    write_co3d(root, room(8))
    lists = root / "apple" / "set_lists" / "set_lists_fewview_train.json"
    content = json.loads(lists.read_text())
    lists.write_text(json.dumps({**content, "test": content["train"]}))
    return root


def score(scene: str, psnr: float) -> PairScore:
    return PairScore(
        scene=scene, psnr=psnr, ssim=psnr / 40, lpips=math.nan, coverage=0.9, points=0.1
    )


def made(variant: str, seed: int, gain: float) -> VariantRun:
    start = tuple(score(f"room {k}", 10.0 + k + seed) for k in range(4))
    end = tuple(score(s.scene, s.psnr + gain + 0.01 * k) for k, s in enumerate(start))
    costs = dict.fromkeys(
        ("backbone_ms", "network_ms", "memory", "backbone_parameters", "trained_parameters"), 2.0
    )
    return VariantRun(
        variant=variant,
        seed=seed,
        folder=Path(),
        start=start,
        end=end,
        costs=costs | {"seconds": 1.0},
    )


def test_gains_are_paired_over_scenes_and_seeds() -> None:
    runs = [made(name, seed, gain) for name, gain in (("a", 2.0), ("b", 0.5)) for seed in (0, 1)]
    names, table = scores_table(runs, "psnr")
    assert names == [START, "a", "b"]
    assert table.shape == (3, 4, 2)
    np.testing.assert_allclose((table[1] - table[0]).mean(), 2.015)
    rows = list(csv.DictReader(summary_csv(runs).splitlines()))
    assert [row["variant"] for row in rows] == names
    gain = {row["variant"]: row for row in rows}
    assert float(gain["a"]["psnr_gain_low"]) > 1.9
    assert float(gain["b"]["psnr_gain_high"]) < 0.6
    assert gain["a"]["lpips"] == ""  # not known, not zero
    assert gain[START]["network_ms"] == ""
    assert len(pairs_csv(runs).splitlines()) == 1 + 4 * 4 * 2


def test_entries_are_names_or_options() -> None:
    chosen = small.settings(
        backbone=None,
        compare=("iuvrgb", {"name": "sum", "backbone": "iuvrgb", "fusion": "addition"}),
    )
    first, second = variants_of(chosen)
    assert (first.name, first.settings.backbone) == ("iuvrgb", "iuvrgb")
    assert (second.name, second.settings.mode) == ("sum", "add")
    for entries, error, text in (
        (("iuvrgb", "iuvrgb"), InputError, 'two entries of compare are called "iuvrgb"'),
        (({"backbone": "iuvrgb", "fusoin": "add"},), UnknownNameError, "fusoin.*fusion"),
        ((3,), InputError, "a backbone's name or a mapping of options in compare, got 3"),
    ):
        with pytest.raises(error, match=text):
            variants_of(small.settings(backbone=None, compare=entries))


def test_a_comparison_runs_once_and_is_told_on_one_page(tmp_path: Path) -> None:
    chosen = small.settings(
        backbone=None,
        compare=("iuvrgb", {"name": "noise", "backbone": "random"}),
        seeds=(0,),
        train="all",
        steps=1,
        lr=1e-3,
        targets=1,
    )
    output = tmp_path / "comparison"
    report = compare(chosen, output, command="sightline train splatt3r")
    page = report.read_text()
    for text in (
        "iuvrgb",
        "noise",
        START,
        "ms a pair",
        "Paired differences",
        "gradients and struc",
    ):
        assert text in page, text
    assert page.count("data:image/jpeg") >= 10
    assert 'src="http' not in page
    rows = list(csv.DictReader((output / "summary.csv").read_text().splitlines()))
    assert {row["variant"] for row in rows} == {START, "iuvrgb", "noise"}
    assert all(float(row["network_ms"]) > 0 for row in rows if row["variant"] != START)
    # All variants start from the same network.
    pairs = list(csv.DictReader((output / "pairs.csv").read_text().splitlines()))
    starts = {
        (row["variant"], row["seed"], row["scene"]): row["psnr"]
        for row in pairs
        if row["moment"] == "start"
    }
    for (_, seed, scene), value in starts.items():
        assert value == starts["iuvrgb", seed, scene]
    stamps = {p: p.stat().st_mtime_ns for p in (output / "runs").rglob("*") if p.is_file()}
    assert len(stamps) > 12
    compare(chosen, output)
    assert stamps == {p: p.stat().st_mtime_ns for p in (output / "runs").rglob("*") if p.is_file()}


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="holds something else; give a new folder"):
        compare(small.settings(backbone=None, compare=("iuvrgb",)), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["photo.jpg"]


def test_the_experiment_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = str(CONFIGS / "dinov2_co3d_experiment.yaml")
    output = str(tmp_path / "out")
    with pytest.raises(InputError, match=r"there is no folder .*data/co3d; get CO3D v2 \(https"):
        run(["splatt3r", "--config", config, "-o", output])
    assert not Path(output).exists()
    data = co3d(tmp_path / "co3d")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(CheckpointError, match="sightline models download splatt3r_v1.0"):
        run(["splatt3r", "--config", config, "--data", str(data), "-o", output])


def test_the_experiment_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a generated CO3D and a tiny Splatt3R; all else as the file says."""
    data, weights = co3d(tmp_path / "co3d"), tmp_path / "splatt3r.safetensors"
    save_weights(Splatt3R(**small.NETWORK), weights)
    words = ["splatt3r", "--config", str(CONFIGS / "dinov2_co3d_experiment.yaml")]
    words += ["--data", str(data), "--checkpoint", str(weights), "-o", str(tmp_path / "out")]
    words += ["--compare", "[{name: control, backbone: iuvrgb, fusion: concat}]", "--seeds", "[0]"]
    words += ["--steps", "2", "--batch-size", "2", "--val-pairs", "2", "--resolution", "32"]
    words += ["--targets", "1", "--num-workers", "0", "--lpips", "none", "--loggers", "csv"]
    words += ["--precision", "32", "--device", "cpu", "--json"]
    run(words)
    result = json.loads(capsys.readouterr().out)
    assert [Path(file).name for file in result["files"]] == [
        "report.html",
        "summary.csv",
        "pairs.csv",
    ]
    assert "apple" in (tmp_path / "out" / "pairs.csv").read_text()
    assert "control" in (tmp_path / "out" / "report.html").read_text()
