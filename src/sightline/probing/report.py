"""The report of a grid: one page of numbers, one a scene, CSV and LaTeX beside them."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sightline.io.atomic import atomic_write_text
from sightline.probing.forest import forest_plot
from sightline.probing.probe3d import mean_scores
from sightline.probing.reference import reference_section, shape_section
from sightline.probing.results import METRICS, Results, Row, collect, metrics_of
from sightline.probing.scene_page import scene_page, strip
from sightline.probing.stats import (
    Difference,
    Estimate,
    differences,
    estimate,
    rank_stability,
    seed_agreement,
    tied_ranks,
)
from sightline.probing.tables import latex_table, scores_csv, summary_csv
from sightline.report.markup import Html, element
from sightline.report.numbers import format_count, format_number, format_seconds
from sightline.report.theme import Column, brand, command_block, page, section, table, tiles

REPORT_FILE = "report.html"


def write_report(output: Path, *, command: str = "") -> Path:
    """Write ``report.html``, ``scenes/*.html``, ``scores.csv``, ``summary.csv``, ``table.tex``.

    Args:
        output: Folder of a grid; unfinished probes are left out and counted.
        command: What makes the page again.

    Raises:
        InputError: If there is no grid.
    """
    results = collect(output)
    command = command or f"sightline probe report -o {output}"
    pages = {scene: f"scenes/{_slug(scene, i)}.html" for i, scene in enumerate(results.scenes)}
    for scene, name in pages.items():
        rows = [row for row in results.rows if row.scene == scene]
        if rows:
            extra = [c for c in results.companions if c["scene"] == scene]
            text = scene_page(scene, rows, extra, output, command)
            atomic_write_text(output / name, text)
    atomic_write_text(output / "scores.csv", scores_csv(results))
    atomic_write_text(output / "summary.csv", summary_csv(results))
    atomic_write_text(output / "table.tex", latex_table(results))
    path = output / REPORT_FILE
    atomic_write_text(path, render(results, pages, command))
    return path


def _slug(scene: str, index: int) -> str:
    return f"{index:03d}-" + (re.sub(r"[^A-Za-z0-9]+", "-", scene).strip("-")[:60] or "scene")


def render(results: Results, pages: dict[str, str], command: str) -> str:
    """Return the page of numbers."""
    rows = results.rows
    metrics = metrics_of(rows)
    names = ", ".join(results.modes)
    main = element(
        "main",
        brand("probe"),
        element("h1", "Which features know 3D"),
        element(
            "p",
            f"{_counted(len(results.features), 'feature')}, "
            f"{_counted(len(results.scenes), 'scene')}, "
            f"{_counted(len(results.grid['config']['seeds']), 'seed')}, mode {names}, "
            f"protocol {results.protocol}.",
            class_="summary",
        ),
        _notes(results),
        _headline(results),
        _strips(results, pages),
        [_mode(results, mode, metrics) for mode in results.modes],
        shape_section(results),
        _probe3d(results),
        _costs(results),
        reference_section(results),
        _scenes(results, pages),
        _facts(results),
        command_block(command),
    )
    return page("Which features know 3D", main)


def _notes(results: Results) -> Html | None:
    notes = []
    if results.missing:
        notes.append(f"{_counted(results.missing, 'probe')} not finished and left out.")
    if results.grid.get("lpips_note"):
        notes.append(f"{results.grid['lpips_note']}.")
    seeds = len(results.grid["config"]["seeds"])
    if len(results.scenes) < 3 or seeds < 3:
        notes.append(
            f"{_counted(len(results.scenes), 'scene')} and {_counted(seeds, 'seed')} are narrow "
            "grounds: intervals over so few understate what another scene would change."
        )
    if not notes:
        return None
    return element("ul", [element("li", note) for note in notes], class_="notes")


def _counted(number: int, what: str) -> str:
    return f"{format_count(number)} {what}{'' if number == 1 else 's'}"


def _headline(results: Results) -> Html | None:
    entries = []
    for mode in results.modes:
        features, scores = results.table(mode, "psnr")
        found = estimate(scores)
        known = [i for i, e in enumerate(found) if not math.isnan(e.mean)]
        if known:
            best = max(known, key=lambda i: found[i].mean)
            entries.append(
                (f"Best in {mode}: {features[best]}", format_number(found[best].mean, 2), "dB")
            )
    entries.append(("Probes", format_count(len(results.rows)), ""))
    minutes = format_seconds(sum(row.seconds for row in results.rows))
    entries.append(("Time in probes", minutes, ""))
    return tiles(entries)


def _mode(results: Results, mode: str, metrics: Sequence[str]) -> Html | None:
    parts: list[Html | None] = []
    summaries: dict[str, tuple[list[str], list[Estimate], list[tuple[int, int]]]] = {}
    for metric in metrics:
        higher = METRICS[metric][3]
        features, scores = results.table(mode, metric)
        pairs = differences(scores, higher=higher)
        summaries[metric] = (features, estimate(scores), tied_ranks(scores, pairs, higher=higher))
    if not summaries:
        return None
    first = next(iter(summaries))
    features, scores = results.table(mode, first)
    parts.append(_score_table(summaries))
    label, unit, digits, higher = METRICS[first]
    parts.append(
        element(
            "figure",
            element("figcaption", element("b", f"{label}, mean and 95 % interval"), unit),
            forest_plot(*summaries[first][:2], unit=unit, digits=digits, higher=higher),
            class_="card",
        )
    )
    parts.append(_pair_table(features, differences(scores, higher=higher), digits))
    parts.append(
        _rank_table(features, rank_stability(scores, higher=higher), seed_agreement(scores))
    )
    titles = {"G": "geometry", "T": "texture", "A": "all"}
    title = titles.get(mode.removesuffix("ft"), mode) + (", fine-tuned" if mode[1:] else "")
    return section(
        f"Mode {mode}: {title}",
        element("div", parts, class_="grid"),
        note="Bootstrap over scenes and seeds; features whose intervals do not part share ranks",
    )


def _score_table(
    summaries: dict[str, tuple[list[str], list[Estimate], list[tuple[int, int]]]],
) -> Html:
    columns = [Column(name="Feature")]
    for metric in summaries:
        label, unit, _, higher = METRICS[metric]
        arrow = "\u2191" if higher else "\u2193"
        columns.append(Column(name=f"{label} {arrow}", unit=unit, is_number=True))
        columns.append(Column(name="95 %", is_number=True))
        columns.append(Column(name="\u00b1 seeds", is_number=True))
        columns.append(Column(name="Rank", is_number=True))
    features, found, _ = next(iter(summaries.values()))
    sign = 1 if METRICS[next(iter(summaries))][3] else -1
    order = sorted(
        range(len(features)),
        key=lambda i: -sign * found[i].mean if not math.isnan(found[i].mean) else math.inf,
    )
    rows = []
    for i in order:
        cells = [features[i]]
        for metric, (_, estimates, ranks) in summaries.items():
            digits = METRICS[metric][2]
            e = estimates[i]
            cells += [
                format_number(e.mean, digits),
                f"{format_number(e.low, digits)} \u2013 {format_number(e.high, digits)}",
                format_number(e.seed_spread, digits),
                "\u2013" if math.isnan(e.mean) else _span(ranks[i]),
            ]
        rows.append(cells)
    return table(columns, rows)


def _span(rank: tuple[int, int]) -> str:
    first, last = rank
    return str(first) if first == last else f"{first}\u2013{last}"


def _pair_table(
    features: Sequence[str], pairs: Sequence[Sequence[Difference | None]], digits: int
) -> Html | None:
    if len(features) < 2:
        return None
    columns = [Column(name="Better by"), *(Column(name=name, is_number=True) for name in features)]
    rows = []
    for name, row in zip(features, pairs, strict=True):
        cells = [name]
        for pair in row:
            if pair is None or math.isnan(pair.mean):
                cells.append("\u2013")
                continue
            text = format_number(pair.mean, digits)
            width = format_number((pair.high - pair.low) / 2, digits)
            tie = element("small", " tie") if pair.tied else None
            cells.append(element("span", text, element("small", f" \u00b1{width}"), tie))
        rows.append(cells)
    return element(
        "details",
        element("summary", "Paired differences: row minus column, on the same scenes and seeds"),
        table(columns, rows),
    )


def _rank_table(features: Sequence[str], shares: np.ndarray, agreement: float) -> Html | None:
    if len(features) < 2:
        return None
    columns = [Column(name="Share of bootstrap samples in place")]
    columns += [Column(name=str(i + 1), unit="%", is_number=True) for i in range(len(features))]
    rows = [
        [name, *(format_number(100 * float(share), 0) for share in row)]
        for name, row in zip(features, shares, strict=True)
    ]
    told = "" if math.isnan(agreement) else f"; Spearman between seeds {agreement:.2f}"
    return element("details", element("summary", f"Rank stability{told}"), table(columns, rows))


def _strips(results: Results, pages: dict[str, str]) -> Html | None:
    scenes = [scene for scene in results.scenes if any(r.scene == scene for r in results.rows)]
    figures = []
    for scene in scenes[:6]:
        seed = results.grid["config"]["seeds"][0]
        rows = [
            r
            for r in results.rows
            if r.scene == scene and r.seed == seed and r.mode in (results.modes[:1] or ["free"])
        ]
        found = strip(rows)
        if found is not None:
            link = element("a", scene, href=pages[scene])
            figures.append(element("div", element("p", link), found))
    if not figures:
        return None
    return section(
        "Renders of one held-out view", figures, note="First seed; the photo comes first"
    )


def _probe3d(results: Results) -> Html | None:
    cells = [c for c in results.companions if c["kind"] == "probe3d"]
    parts = []
    for probe in dict.fromkeys(c["mode"] for c in cells):
        chosen = [c for c in cells if c["mode"] == probe]
        found = {
            feature: mean_scores([c["summary"] for c in chosen if c["feature"] == feature])
            for feature in dict.fromkeys(c["feature"] for c in chosen)
        }
        names = list(dict.fromkeys(name for scores in found.values() for name in scores))
        columns = [Column(name=probe.capitalize())]
        columns += [Column(name=name.replace("_", " "), is_number=True) for name in names]
        rows = []
        for feature, scores in found.items():
            means = [scores.get(name, math.nan) for name in names]
            rows.append([feature, *(format_number(v, 3) for v in means)])
        parts.append(table(columns, rows))
    return (
        section(
            "Probe3D",
            *parts,
            note="Over the same features; trained on training views, one test view",
        )
        if parts
        else None
    )


def _costs(results: Results) -> Html | None:
    columns = [
        Column(name="Feature"),
        Column(name="Encoder", unit="ms a view", is_number=True),
        Column(name="Peak memory", unit="GB", is_number=True),
        Column(name="Probe", unit="min", is_number=True),
    ]
    rows = []
    for feature in results.features:
        mine = [row for row in results.rows if row.feature == feature]
        if mine:
            encoders = [row.encoder_ms for row in mine if not math.isnan(row.encoder_ms)]
            encoder = sum(encoders) / len(encoders) if encoders else math.nan
            rows.append(
                [
                    feature,
                    format_number(encoder, 1),
                    format_number(max(row.peak_memory for row in mine) / 1e9, 2),
                    format_number(sum(row.seconds for row in mine) / len(mine) / 60, 2),
                ]
            )
    found = element("div", table(columns, rows), class_="narrow")
    return section("Costs", found, note="Peak of the GPU, or of the whole process on a CPU")


def _scenes(results: Results, pages: dict[str, str]) -> Html | None:
    columns = [Column(name="Scene"), Column(name="Mode"), Column(name="Best feature")]
    columns += [Column(name="PSNR", unit="dB", is_number=True)]
    columns += [Column(name="Pixels scored", unit="%", is_number=True)]
    rows = []
    for scene in results.scenes:
        for mode in results.modes:
            mine = [r for r in results.rows if r.scene == scene and r.mode == mode]
            best = _best(mine)
            link = element("a", scene, href=pages[scene])
            if best is None:
                if mine:  # inference only
                    rows.append([link, mode, "no test views", "\u2013", "\u2013"])
                continue
            mask = best.mean("mask")
            rows.append(
                [
                    link,
                    mode,
                    best.feature,
                    format_number(best.mean("psnr"), 2),
                    format_number(100 * mask, 0),
                ]
            )
    return (
        section("Scenes", element("div", table(columns, rows), class_="narrow")) if rows else None
    )


def _best(rows: Sequence[Row]) -> Row | None:
    known = [row for row in rows if not math.isnan(row.mean("psnr"))]
    return max(known, key=lambda row: row.mean("psnr")) if known else None


def _facts(results: Results) -> Html | None:
    protocol = results.grid["protocol"]
    on = [name for name, value in protocol["quirks"].items() if value]
    facts = [
        ("Protocol", protocol["name"]),
        ("Long side", f"{protocol['long_side']} px"),
        ("Steps", f"{protocol['warm_steps']} warm, {protocol['steps']} photometric"),
        ("Components", "at most " + str(protocol["components"])),
        ("Quirks that are on", ", ".join(on) or "none"),
        ("Geometry", results.grid["config"]["geometry"]),
        *((name, str(value)) for name, value in results.grid["versions"].items()),
    ]
    files = [element("a", name, href=name) for name in ("scores.csv", "summary.csv", "table.tex")]
    columns = [Column(name=""), Column(name="")]
    return section(
        "Protocol and files",
        element("div", table(columns, facts, kind="facts"), class_="narrow"),
        element("p", *[part for file in files for part in (file, " ")], class_="summary"),
    )
