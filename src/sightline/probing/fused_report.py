"""The page and the tables of a comparison of fused backbones."""

import csv
import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sightline.io.atomic import atomic_write_text
from sightline.io.images import read_image
from sightline.probing.forest import forest_plot
from sightline.probing.fused import MEASURES, START, VariantRun, scores_table
from sightline.probing.stats import Difference, differences, estimate, tied_ranks
from sightline.report.charts import nice_ticks
from sightline.report.figures import encode_jpegs
from sightline.report.markup import Html, data_uri, element
from sightline.report.numbers import format_count, format_number, format_seconds, format_tick
from sightline.report.theme import Column, brand, command_block, page, section, table, tiles
from sightline.run import RunFolder
from sightline.training.splatt3r.settings import Splatt3rSettings

LABELS = {
    "psnr": ("PSNR", "dB", 2, True),
    "ssim": ("SSIM", "", 3, True),
    "lpips": ("LPIPS", "", 3, False),
    "points": ("Points' error", "of distance", 3, False),
}
_PANELS = 5
"""Pictures in a row that training leaves: two contexts, the target, what is drawn, and masked."""
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 330, 64, 150, 18, 40
_LINE = 16  # from one name to the next


def write_comparison(
    settings: Splatt3rSettings, runs: Sequence[VariantRun], output: Path, *, command: str = ""
) -> Path:
    """Write ``report.html``, ``pairs.csv`` and ``summary.csv``, and return the page."""
    atomic_write_text(output / "pairs.csv", pairs_csv(runs))
    atomic_write_text(output / "summary.csv", summary_csv(runs))
    path = output / "report.html"
    atomic_write_text(path, _page(settings, runs, output, command))
    return path


def pairs_csv(runs: Sequence[VariantRun]) -> str:
    """Return one line a pair, variant and seed."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["variant", "seed", "moment", "scene", *MEASURES, "coverage"])
    for run in runs:
        for moment, scores in (("start", run.start), ("end", run.end)):
            for score in scores:
                values = [getattr(score, name) for name in (*MEASURES, "coverage")]
                out.writerow([run.variant, run.seed, moment, score.scene, *map(_cell, values)])
    return text.getvalue()


def summary_csv(runs: Sequence[VariantRun]) -> str:
    """Return one line a variant: means with intervals, gains over the start, costs."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    head = ["variant"]
    for name in MEASURES:
        head += [name, f"{name}_low", f"{name}_high", f"{name}_gain", f"{name}_gain_low"]
        head += [f"{name}_gain_high"]
    names, _ = scores_table(runs, "psnr")
    costs = ("backbone_parameters", "trained_parameters", "backbone_ms", "network_ms", "memory")
    out.writerow([*head, *costs, "seconds"])
    columns = {}
    for name in MEASURES:
        _, scores = scores_table(runs, name)
        gaps = differences(scores, higher=LABELS[name][3])
        columns[name] = (estimate(scores), [row[0] for row in gaps])
    for i, variant in enumerate(names):
        cells: list[str] = [variant]
        for name in MEASURES:
            found, gains = columns[name]
            e, gain = found[i], gains[i]
            cells += [_cell(e.mean), _cell(e.low), _cell(e.high)]
            known = (gain.mean, gain.low, gain.high) if gain else (math.nan,) * 3
            cells += [_cell(value) for value in known]
        cells += [_cell(_cost(runs, variant, name)) for name in (*costs, "seconds")]
        out.writerow(cells)
    return text.getvalue()


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _cost(runs: Sequence[VariantRun], variant: str, name: str) -> float:
    """Return the median over seeds."""
    values = [run.costs[name] for run in runs if run.variant == variant]
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def _page(
    settings: Splatt3rSettings, runs: Sequence[VariantRun], output: Path, command: str
) -> str:
    names, psnr = scores_table(runs, "psnr")
    seeds = len({run.seed for run in runs})
    scenes = psnr.shape[1]
    title = "Which backbone helps Splatt3R"
    main = element(
        "main",
        brand("train splatt3r"),
        element("h1", title),
        element(
            "p",
            f"{_counted(len(names) - 1, 'variant')}, {_counted(scenes, 'held-out scene')}, "
            f"{_counted(seeds, 'seed')}, {settings.steps or settings.epochs} "
            f"{'steps' if settings.steps else 'epochs'} each, trained: {settings.train}.",
            class_="summary",
        ),
        _notes(runs, scenes, seeds),
        _headline(names, psnr),
        section(
            "Quality",
            _quality(runs),
            element(
                "figure",
                element("figcaption", element("b", "PSNR, mean and 95 % interval"), "dB"),
                forest_plot(names, estimate(psnr), unit="dB", digits=2, higher=True),
                class_="card",
            ),
            _pairs(runs),
            note="Bootstrap over scenes and seeds; variants whose intervals do not part share ranks",
        ),
        section(
            "Quality against cost",
            element("div", _costs(runs, names), class_="grid"),
            _scatter(runs, names, psnr),
            note="Medians over seeds; memory of a pass beyond the weights",
        ),
        _pictures(runs),
        _facts(settings, runs),
        command_block(command) if command else None,
    )
    return page(title, main)


def _counted(number: int, what: str) -> str:
    return f"{format_count(number)} {what}{'' if number == 1 else 's'}"


def _notes(runs: Sequence[VariantRun], scenes: int, seeds: int) -> Html | None:
    notes = []
    looks = {RunFolder.open(run.folder).state["facts"]["perceptual_loss"] for run in runs}
    for look in sorted(looks):
        if not look.startswith("LPIPS"):
            text = "Perceptual loss: " + look
            notes.append(text[:1].upper() + text[1:] + ".")
    if scenes < 3 or seeds < 3:
        notes.append(
            f"{_counted(scenes, 'scene')} and {_counted(seeds, 'seed')} are narrow grounds: "
            "intervals over so few understate what another scene would change."
        )
    rows = [element("li", note) for note in notes]
    return element("ul", rows, class_="notes") if rows else None


def _headline(names: Sequence[str], psnr: np.ndarray) -> Html | None:
    found = estimate(psnr)
    rows = [i for i in range(1, len(names)) if not math.isnan(found[i].mean)]
    if not rows:
        return None
    best = max(rows, key=lambda i: found[i].mean)
    gains = differences(psnr, higher=True)
    gain = gains[best][0]
    entries = [(f"Best: {names[best]}", format_number(found[best].mean, 2), "dB")]
    if gain is not None:
        entries.append(("Over its start", f"{gain.mean:+.2f}", "dB"))
    certain = sum(1 for i in rows if (row := gains[i][0]) is not None and row.low > 0)
    entries.append(("Better than their start for certain", f"{certain} of {len(rows)}", ""))
    return tiles(entries)


def _quality(runs: Sequence[VariantRun]) -> Html:
    columns = [Column(name="Variant")]
    parts = []
    for measure in MEASURES:
        names, scores = scores_table(runs, measure)
        if not np.isfinite(scores).any():
            continue
        label, unit, digits, higher = LABELS[measure]
        arrow = "\u2191" if higher else "\u2193"
        columns += [
            Column(name=f"{label} {arrow}", unit=unit, is_number=True),
            Column(name="95 %", is_number=True),
            Column(name="Gain", is_number=True),
            Column(name="Rank", is_number=True),
        ]
        gaps = differences(scores, higher=higher)
        parts.append((digits, estimate(scores), gaps, tied_ranks(scores, gaps, higher=higher)))
    names, _ = scores_table(runs, MEASURES[0])
    first = parts[0][1]
    order = sorted(range(len(names)), key=lambda i: (math.isnan(first[i].mean), -first[i].mean))
    rows = []
    for i in order:
        cells: list[str] = [names[i]]
        for digits, found, gaps, ranks in parts:
            e = found[i]
            low, high = ranks[i]
            cells += [
                format_number(e.mean, digits),
                f"{format_number(e.low, digits)} \u2013 {format_number(e.high, digits)}",
                _difference(gaps[i][0], digits),
                str(low) if low == high else f"{low}\u2013{high}",
            ]
        rows.append(cells)
    return table(columns, rows)


def _difference(pair: Difference | None, digits: int) -> Html | str:
    if pair is None or math.isnan(pair.mean):
        return "\u2013"
    half = format_number((pair.high - pair.low) / 2, digits)
    tie = element("small", " tie") if pair.tied else None
    return element("span", f"{pair.mean:+.{digits}f}", element("small", f" \u00b1{half}"), tie)


def _pairs(runs: Sequence[VariantRun]) -> Html | None:
    names, scores = scores_table(runs, "psnr")
    gaps = differences(scores, higher=True)
    columns = [Column(name="Better by, dB"), *(Column(name=n, is_number=True) for n in names)]
    rows = [
        [name, *(_difference(pair, 2) for pair in row)]
        for name, row in zip(names, gaps, strict=True)
    ]
    return element(
        "details",
        element("summary", "Paired differences: row minus column, on the same scenes and seeds"),
        table(columns, rows),
    )


def _costs(runs: Sequence[VariantRun], names: Sequence[str]) -> Html:
    columns = [
        Column(name="Variant"),
        Column(name="Backbone", unit="M parameters", is_number=True),
        Column(name="Trained", unit="M parameters", is_number=True),
        Column(name="Backbone", unit="ms a picture", is_number=True),
        Column(name="All", unit="ms a pair", is_number=True),
        Column(name="Memory", unit="GB", is_number=True),
        Column(name="Training", unit="min", is_number=True),
    ]
    scales = (
        ("backbone_parameters", 1e-6, 2),
        ("trained_parameters", 1e-6, 2),
        ("backbone_ms", 1.0, 1),
        ("network_ms", 1.0, 1),
        ("memory", 1e-9, 3),
        ("seconds", 1 / 60, 2),
    )
    rows = [
        [name, *(format_number(_cost(runs, name, key) * by, digits) for key, by, digits in scales)]
        for name in names
        if name != START
    ]
    return table(columns, rows)


def _scatter(runs: Sequence[VariantRun], names: Sequence[str], psnr: np.ndarray) -> Html | None:
    """Draw quality over time; the area of a dot is the count of the backbone's parameters."""
    rows = []
    for name, found in zip(names, estimate(psnr), strict=True):
        ms = _cost(runs, name, "network_ms")
        if name != START and math.isfinite(ms) and math.isfinite(found.mean):
            rows.append((name, ms, found, _cost(runs, name, "backbone_parameters")))
    if len(rows) < 2:
        return None
    most = max(ms for _, ms, _, _ in rows) * 1.1
    low = min(e.low for _, _, e, _ in rows)
    high = max(e.high for _, _, e, _ in rows)
    margin = 0.08 * (high - low) or 0.5
    low, high = low - margin, high + margin
    largest = max(max(size for *_, size in rows), 1.0)

    def x(value: float) -> float:
        return _LEFT + value / most * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    marks: list[Html] = []
    for tick in nice_ticks(low, high, 5):
        marks.append(element("path", d=f"M{_LEFT} {y(tick):.1f}H{_WIDTH - _RIGHT}", class_="axis"))
        marks.append(
            element("text", format_tick(tick), x=_LEFT - 8, y=f"{y(tick):.1f}", class_="tick",
                    dy="0.32em")
        )  # fmt: skip
    for tick in nice_ticks(0.0, most, 6):
        marks.append(
            element("text", format_tick(tick), x=f"{x(tick):.1f}", y=_HEIGHT - 20,
                    class_="tick middle")
        )  # fmt: skip
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    marks.append(element("text", "ms a pair", x=middle, y=_HEIGHT - 3, class_="tick middle"))
    label = -math.inf  # the last name, which the next must not run into
    for name, ms, e, size in sorted(rows, key=lambda row: -row[2].mean):
        at, level = f"{x(ms):.1f}", f"{y(e.mean):.1f}"
        marks.append(element("path", d=f"M{at} {y(e.low):.1f}V{y(e.high):.1f}", class_="line"))
        radius = 4 + 10 * math.sqrt(max(size, 0.0) / largest)
        marks.append(element("circle", cx=at, cy=level, r=f"{radius:.1f}", class_="cam"))
        shown = name if len(name) < 22 else name[:20] + "\u2026"
        label = max(y(e.mean), label + _LINE)
        marks.append(
            element("text", shown, x=f"{x(ms) + radius + 5:.1f}", y=f"{label:.1f}",
                    class_="tick start", dy="0.32em")
        )  # fmt: skip
    drawing = element(
        "svg", marks, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img",
        aria_label="PSNR over milliseconds a pair",
    )  # fmt: skip
    caption = element(
        "figcaption", element("b", "PSNR over time"), "dB; area: the backbone's parameters"
    )
    return element("figure", caption, drawing, class_="card")


def _pictures(runs: Sequence[VariantRun]) -> Html | None:
    """Show held-out targets, and what each variant's first run draws of them."""
    first = [run for run in runs if run.seed == runs[0].seed]
    rows = []
    for number in range(3):
        name = f"contexts_target_drawn_masked_{number}.png"
        panels: list[np.ndarray] = []
        captions: list[str] = []
        for run in first:
            steps = sorted((run.folder / "pictures").glob("step-*"))
            files = [step / name for step in (steps[0], steps[-1])] if steps else []
            if not files or not all(file.is_file() for file in files):
                continue
            start, end = (_panels(file) for file in files)
            if not panels:
                panels += [start[0], start[1], start[2], start[3]]
                captions += ["view 1", "view 2", "target", START]
            panels.append(end[3])
            captions.append(run.variant)
        if not panels:
            continue
        packed = encode_jpegs(panels, long_side=256, budget=400_000, quality=88)
        cards = [
            element(
                "figure",
                element("img", src=data_uri(jpeg, "image/jpeg"), alt=f"{caption}, pair {number}"),
                element("figcaption", caption),
            )
            for jpeg, caption in zip(packed, captions, strict=True)
        ]
        rows.append(element("div", cards, class_="grid"))
    return section("Held-out targets", rows, note="First seed") if rows else None


def _panels(file: Path) -> list[np.ndarray]:
    pixels = read_image(file).pixels
    return [np.ascontiguousarray(part) for part in np.split(pixels, _PANELS, axis=1)]


def _facts(settings: Splatt3rSettings, runs: Sequence[VariantRun]) -> Html | None:
    state = RunFolder.open(runs[0].folder).state
    total = format_seconds(sum(run.costs["seconds"] for run in runs))
    rows = [
        ("Data", str(settings.data or "synthetic rooms")),
        ("Start", str(settings.checkpoint or f"drawn weights, {settings.size}")),
        ("Trained", settings.train),
        ("Pictures", f"{settings.resolution} x {settings.resolution} pixels"),
        ("Time in training", total),
        ("Machine", str(state["machine"].get("processor", ""))),
        ("PyTorch", str(state["versions"].get("torch", ""))),
    ]
    return section("Setting", table([Column(name=""), Column(name="")], rows, kind="facts"))
