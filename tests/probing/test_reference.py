"""Our numbers beside the published ones, from results that are made up by hand."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest

from sightline.probing.reference import (
    DATASETS,
    published_dtu,
    published_row,
    reference_section,
    row_name,
    shape_section,
    spearman,
)
from sightline.probing.results import Results, Row
from sightline.probing.tables import latex_table, summary_csv


def row(scene: str, feature: str, mode: str, psnr: float, **more: Any) -> Row:
    return Row(
        scene=scene,
        feature=feature,
        mode=mode,
        seed=0,
        folder=Path(),
        inputs=(),
        scores={"psnr": [psnr], "ssim": [psnr / 40], "lpips": [1 / psnr]},
        test=("a",),
        seconds=1.0,
        peak_memory=1,
        encoder_ms=1.0,
        record={},
        shape=more.get("shape", {}),
    )


def results(rows: list[Row], protocol: str = "feat2gs-v1") -> Results:
    cells = [
        {"feature": r.feature, "mode": r.mode, "kind": "probe", "scene": r.scene} for r in rows
    ]
    grid = {
        "cells": cells,
        "scenes": list(dict.fromkeys(r.scene for r in rows)),
        "config": {"seeds": [0]},
        "protocol": {"name": protocol},
    }
    return Results(grid=grid, rows=tuple(rows), companions=(), missing=0)


def test_rows_of_the_published_tables() -> None:
    assert row_name("dino_b16") == "DINO"
    assert row_name("radio+mast3r") == "RADIO+MASt3R"
    assert row_name("mine") is None
    assert published_row("all", "radio", "G") == {"psnr": 19.73, "ssim": 0.6513, "lpips": 0.3143}
    # Table 6: the baseline, fine-tuned features, all of them concatenated (in any order).
    assert published_row("all", "InstantSplat", "free") == {
        "psnr": 18.87,
        "ssim": 0.6044,
        "lpips": 0.3039,
    }
    found = published_row("all", "dust3r", "Gft")
    assert found is not None
    assert found["psnr"] == 19.75
    every = "radio+mast3r+dust3r+dino_b16+mae_b16+midas_l16+clip_b16+dinov2_b14+sam_base+dift"
    for feature in (f"{every}+iuvrgb", f"iuvrgb+{every}"):
        found = published_row("all", feature, "G")
        assert found is not None
        assert (found["psnr"], found["ssim"], found["lpips"]) == (19.80, 0.6545, 0.3105)
    assert published_row("all", "iuvrgb+dift", "G") == {
        "psnr": 19.70,
        "ssim": 0.6524,
        "lpips": 0.3147,
    }
    assert published_row("DTU", "radio", "A") is None


def test_dtu_table() -> None:
    table = published_dtu()
    assert len(table) == 11
    assert table["RADIO"]["distance"] == 5.431
    assert table["IUVRGB"]["completion"] == 16.957
    best = min(table, key=lambda name: table[name]["accuracy"])
    assert best == "RADIO"


def test_published_numbers_stand_beside_ours() -> None:
    rows = [
        row(f"{name}/{i}", feature, "G", psnr)
        for name in DATASETS
        for i in range(2)
        for feature, psnr in (("radio", 21.0), ("dift", 19.0), ("iuvrgb", 15.0))
    ]
    page = str(reference_section(results(rows)))
    for text in ("LLFF", "Tanks", "All six", "21.00", "19.73", "0.6513", "TOPSIS"):
        assert text in page, text
    assert page.count("G 1.00") == 7  # each table, and all six together
    assert reference_section(results(rows, "sightline-1")) is None
    one = str(reference_section(results([r for r in rows if r.scene.startswith("LLFF")])))
    assert "All six" not in one
    assert "19.88" not in one  # DUSt3R is not in the grid


def test_shape_is_told_with_dtu_beside_it() -> None:
    shape = {"accuracy": 2.0, "completion": 1.5, "distance": 6.0}
    rows = [row("DTU/scan1", "radio", "G", 21.0, shape=shape)]
    found = results(rows)
    page = str(shape_section(found))
    assert "Accuracy" in page
    assert "6.00" in page
    reference = str(reference_section(found))
    assert "5.431" in reference
    assert "6.000" in reference
    lines = list(csv.DictReader(summary_csv(found).splitlines()))
    assert {line["metric"]: line["mean"] for line in lines}["distance"] == "6"
    assert shape_section(results([row("a", "radio", "G", 20.0)])) is None


def test_spearman_of_rankings() -> None:
    assert spearman([1, 2, 3], [1, 2, 3]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # 1 - 6 sum d^2 / (n (n^2 - 1)) without ties.
    assert spearman([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(1 - 6 * 4 / 60)
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_ties_are_bold_together() -> None:
    rows = []
    for scene in range(6):
        rows += [
            row(f"s{scene}", "a", "G", 20.0 + (0.5 if scene % 2 else -0.5)),
            row(f"s{scene}", "b", "G", 20.1),
            row(f"s{scene}", "c", "G", 10.0),
        ]
    text = latex_table(results(rows))
    bold = [line.split(" & ")[0] for line in text.splitlines() if r"\mathbf" in line]
    assert bold == ["a", "b"]
