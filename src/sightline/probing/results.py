"""The finished probes of a grid as rows and tables of scores."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from sightline.errors import FileFormatError
from sightline.io.reading import read_json
from sightline.probing.grid import read_grid
from sightline.probing.stats import Table
from sightline.probing.store import TASK_FILE

METRICS = {
    "psnr": ("PSNR", "dB", 2, True),
    "ssim": ("SSIM", "", 4, True),
    "lpips": ("LPIPS", "", 4, False),
}
"""Measure -> label, unit, digits, whether more is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One finished probe."""

    scene: str
    feature: str
    mode: str
    seed: int
    folder: Path
    inputs: tuple[Path, ...]
    scores: dict[str, list[float]]
    """Measure -> value of each test view; NaN where nothing is visible."""
    test: tuple[str, ...]
    seconds: float
    peak_memory: int
    encoder_ms: float
    """Milliseconds a view; NaN without features."""
    record: dict[str, Any]
    shape: dict[str, float]
    """Errors of the Gaussians' centres, where the true surface is known; see `shape`."""

    def mean(self, metric: str) -> float:
        """Return the mean over test views that show something, or the error of the shape."""
        if metric in self.shape:
            return self.shape[metric]
        known = [v for v in self.scores.get(metric, ()) if math.isfinite(v)]
        return math.fsum(known) / len(known) if known else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What a grid has so far."""

    grid: dict[str, Any]
    rows: tuple[Row, ...]
    companions: tuple[dict[str, Any], ...]
    """Finished videos and Probe3D probes: the cell, its ``folder`` and its ``summary``."""
    missing: int
    """Probes of the grid that are not finished."""

    @property
    def protocol(self) -> str:
        """The protocol's name."""
        return str(self.grid["protocol"]["name"])

    @property
    def features(self) -> list[str]:
        """Features in the grid's order."""
        return list(dict.fromkeys(cell["feature"] for cell in self.grid["cells"]))

    @property
    def scenes(self) -> list[str]:
        """Scenes in the grid's order."""
        return list(self.grid["scenes"])

    @property
    def modes(self) -> list[str]:
        """Modes in the grid's order, without the baseline's."""
        cells = [cell for cell in self.grid["cells"] if cell["kind"] == "probe"]
        return [m for m in dict.fromkeys(cell["mode"] for cell in cells) if m != "free"]

    def table(self, mode: str, metric: str) -> tuple[list[str], Table]:
        """Return features and their scores by scene and seed; the baseline is in every mode."""
        rows = [row for row in self.rows if row.mode in (mode, "free")]
        features = [f for f in self.features if any(row.feature == f for row in rows)]
        scenes, seeds = self.scenes, [int(s) for s in self.grid["config"]["seeds"]]
        table = np.full((len(features), len(scenes), len(seeds)), np.nan)
        for row in rows:
            at = features.index(row.feature), scenes.index(row.scene), seeds.index(row.seed)
            table[at] = row.mean(metric)
        return features, table


def collect(output: Path) -> Results:
    """Read what is finished of a grid.

    Raises:
        InputError: If there is no grid.
        FileFormatError: If a result is damaged.
    """
    grid = read_grid(output)
    store = output / "store"
    rows: list[Row] = []
    companions: list[dict[str, Any]] = []
    missing = 0
    for cell in grid["cells"]:
        folder = store / cell["task"][0] / cell["task"][1]
        if not (folder / TASK_FILE).is_file():
            missing += cell["kind"] == "probe"
            continue
        record = read_json(folder / TASK_FILE)
        if not isinstance(record, dict) or "summary" not in record:
            raise FileFormatError(f"{folder / TASK_FILE} is damaged; remove {folder} and run again")
        inputs = tuple(store / kind / key for kind, key in cell["inputs"])
        if cell["kind"] == "probe":
            rows.append(_row(cell, folder, inputs, record))
        else:
            companions.append({**cell, "folder": folder, "summary": record["summary"]})
    return Results(grid=grid, rows=tuple(rows), companions=tuple(companions), missing=missing)


def _row(
    cell: dict[str, Any], folder: Path, inputs: tuple[Path, ...], record: dict[str, Any]
) -> Row:
    summary = record["summary"]
    encoder = math.nan
    if len(inputs) > 2:
        encoder = read_json(inputs[2] / TASK_FILE)["summary"]["encoder_ms"]
    scores = {
        name: [math.nan if v is None else float(v) for v in values]
        for name, values in summary.get("scores", {}).items()
    }
    return Row(
        scene=cell["scene"],
        feature=cell["feature"],
        mode=cell["mode"],
        seed=cell["seed"],
        folder=folder,
        inputs=inputs,
        scores=scores,
        test=tuple(summary.get("test", ())),
        seconds=record["seconds"],
        peak_memory=record["peak_memory"],
        encoder_ms=encoder,
        record=record,
        shape={
            name: math.nan if v is None else float(v)
            for name, v in summary.get("shape", {}).items()
        },
    )


def published(dataset: str) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Return Feat2GS's numbers: (row, mode) -> PSNR, SSIM, LPIPS.

    Args:
        dataset: A data set's name, or ``all`` for the mean over all six.
    """
    text = resources.files("sightline.probing").joinpath("published.csv").read_text("utf-8")
    return {
        (row["feature"], row["mode"]): (float(row["psnr"]), float(row["ssim"]), float(row["lpips"]))
        for row in csv.DictReader(text.splitlines())
        if row["dataset"] == dataset
    }


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """Return the measures that any row has, in the order of `METRICS`."""
    return [name for name in METRICS if any(name in row.scores for row in rows)]
