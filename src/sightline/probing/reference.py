"""Feat2GS's published numbers beside ours, and how far the rankings agree."""

import csv
import math
from collections.abc import Sequence
from importlib import resources

import numpy as np

from sightline.probing.features import PUBLISHED
from sightline.probing.results import METRICS, Results, published
from sightline.probing.shape import SHAPE
from sightline.probing.stats import dense_ranks, estimate, topsis
from sightline.report.markup import Html, element
from sightline.report.numbers import format_number
from sightline.report.theme import Column, section, table

DATASETS = ("LLFF", "DL3DV", "Casual", "MipNeRF360", "MVimgNet", "Tanks")
"""Of the published table; ``all`` is the mean over their thirty scenes."""
_IMAGES = ("psnr", "ssim", "lpips")
_FEWEST = 3


def row_name(feature: str) -> str | None:
    """Return a feature's row in the published tables; concatenations are joined by ``+``."""
    parts = [PUBLISHED[p].row if p in PUBLISHED else None for p in feature.split("+")]
    if feature == "InstantSplat":
        return feature
    return None if None in parts else "+".join(str(p) for p in parts)


def published_dtu() -> dict[str, dict[str, float]]:
    """Return DTU's rows in mode G: PSNR, SSIM, LPIPS, and the three distances in millimetres."""
    text = resources.files("sightline.probing").joinpath("published_dtu.csv").read_text("utf-8")
    return {
        row["feature"]: {name: float(v) for name, v in row.items() if name != "feature"}
        for row in csv.DictReader(text.splitlines())
    }


def published_row(dataset: str, feature: str, mode: str) -> dict[str, float] | None:
    """Return the published numbers of one of our features; None where there are none."""
    name = row_name(feature)
    if name is None:
        return None
    if dataset == "DTU":
        return published_dtu().get(name) if mode == "G" else None
    known = published(dataset)
    # The order in which features are concatenated does not change what they hold.
    same = {frozenset(row.split("+")): row for row, m in known if m == mode}
    found = same.get(frozenset(name.split("+")))
    return None if found is None else dict(zip(_IMAGES, known[found, mode], strict=True))


def reference_section(results: Results) -> Html | None:
    """Return a table for each data set of the grid, under the published protocol."""
    if results.protocol != "feat2gs-v1":
        return None
    sets = dict.fromkeys(scene.rpartition("/")[0] for scene in results.scenes)
    names = [name for name in sets if name in (*DATASETS, "DTU")]
    names += ["all"] if set(DATASETS) <= set(names) else []
    parts = [part for name in names if (part := _dataset(results, name)) is not None]
    note = "Feat2GS's tables of July 2025; TOPSIS over PSNR, SSIM and LPIPS, ranks by PSNR"
    return section("Beside the published tables", parts, note=note) if parts else None


def _dataset(results: Results, name: str) -> Html | None:
    metrics = [*_IMAGES, *(SHAPE if name == "DTU" else ())]
    columns = [Column(name=name if name != "all" else "All six"), Column(name="Mode")]
    for metric in metrics:
        label, unit = _label(metric)
        columns += [
            Column(name=f"{label} ours", unit=unit, is_number=True),
            Column(name="published", unit=unit, is_number=True),
        ]
    columns += [
        Column(name=f"{what} {who}", is_number=True)
        for what in ("TOPSIS", "Rank")
        for who in ("ours", "published")
    ]
    rows, agreements = [], []
    for mode in dict.fromkeys((*results.modes, "free")):
        ours = {metric: _means(results, mode, metric, name) for metric in metrics}
        pairs = {
            feature: theirs
            for feature in ours["psnr"]
            if (theirs := published_row(name, feature, mode)) is not None
        }
        mine = {f: {m: ours[m].get(f, math.nan) for m in metrics} for f in pairs}
        mine = {f: values for f, values in mine.items() if math.isfinite(values["psnr"])}
        if not mine:
            continue
        judged = [_judged(list(mine.values())), _judged([pairs[f] for f in mine])]
        for i, (feature, values) in enumerate(mine.items()):
            cells = [feature, mode]
            for metric in metrics:
                digits = _digits(metric)
                cells += [
                    format_number(values[metric], digits),
                    format_number(pairs[feature][metric], digits),
                ]
            cells += [format_number(scores[i], 3) for scores, _ in judged]
            cells += [str(ranks[i]) for _, ranks in judged]
            rows.append(cells)
        if len(mine) >= _FEWEST:
            agreements.append(f"{mode} {spearman(judged[0][1], judged[1][1]):.2f}")
    if not rows:
        return None
    told = element("p", f"Spearman of the rankings: {', '.join(agreements)}", class_="summary")
    return element("div", table(columns, rows), told if agreements else None)


def _judged(rows: Sequence[dict[str, float]]) -> tuple[list[float], list[int]]:
    """Return TOPSIS scores, with equal weights over what all rows have, and dense ranks by PSNR."""
    names = [m for m in _IMAGES if all(math.isfinite(row.get(m, math.nan)) for row in rows)]
    columns = {name: [row[name] for row in rows] for name in names}
    return topsis(columns, costs=["lpips"]), dense_ranks([r["psnr"] for r in rows], higher=True)


def spearman(first: Sequence[int], second: Sequence[int]) -> float:
    """Return Spearman's correlation of two rankings; NaN where one is all ties."""
    from scipy.stats import rankdata

    a, b = rankdata(first), rankdata(second)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def _means(results: Results, mode: str, metric: str, dataset: str) -> dict[str, float]:
    """Return each feature's mean over a data set's scenes (all six: over all their scenes)."""
    wanted = DATASETS if dataset == "all" else (dataset,)
    chosen = [i for i, s in enumerate(results.scenes) if s.rpartition("/")[0] in wanted]
    features, scores = results.table(mode, metric)
    found = estimate(scores[:, chosen])
    return {f: e.mean for f, e in zip(features, found, strict=True)}


def _label(metric: str) -> tuple[str, str]:
    return METRICS[metric][:2] if metric in METRICS else (metric.capitalize(), "mm")


def _digits(metric: str) -> int:
    return METRICS[metric][2] if metric in METRICS else 3


def shape_section(results: Results) -> Html | None:
    """Return the errors of the Gaussians' centres, where the true surface is known."""
    modes = [m for m in results.modes if any(r.shape for r in results.rows if r.mode == m)]
    columns = [Column(name="Feature"), Column(name="Mode")]
    for name in SHAPE:
        columns += [
            Column(name=f"{name.capitalize()} \u2193", is_number=True),
            Column(name="95 %", is_number=True),
        ]
    rows = []
    for mode in modes:
        tables = {name: results.table(mode, name) for name in SHAPE}
        features = tables[SHAPE[0]][0]
        found = {name: estimate(scores) for name, (_, scores) in tables.items()}
        for i, feature in enumerate(features):
            if math.isnan(found[SHAPE[0]][i].mean):
                continue
            cells = [feature, mode]
            for name in SHAPE:
                e = found[name][i]
                cells.append(format_number(e.mean, 2))
                cells.append(f"{format_number(e.low, 2)} \u2013 {format_number(e.high, 2)}")
            rows.append(cells)
    if not rows:
        return None
    note = "Thousandths of the scene's unit (mm where it is a metre), after one similarity"
    return section("Shape against measured depth", table(columns, rows), note=note)
