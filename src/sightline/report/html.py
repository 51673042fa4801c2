"""The report of a run: one self-contained page, pictures first and large.

It works offline and without scripts, in light and dark, on paper and on a phone. Its size is
bounded whatever the number of views: see the budgets in `sightline.report.sections`.
"""

from pathlib import Path

from sightline.io.atomic import atomic_write_text
from sightline.report import sections
from sightline.report.charts import line_chart
from sightline.report.data import ReportData
from sightline.report.markup import Html, element, file_name, relative_link
from sightline.report.numbers import (
    format_bytes,
    format_count,
    format_number,
    format_seconds,
)
from sightline.report.scores import describe_metric, mean
from sightline.report.theme import (
    Column,
    brand,
    command_block,
    page,
    read_asset,
    section,
    table,
    tiles,
)

_MOST_ROWS = 1000  # of any table or list


def write_report(data: ReportData, path: Path) -> Path:
    """Write the report of a run and return its path.

    Args:
        data: What to show; see `ReportData`.
        path: The ``.html`` file; replaced when it exists.

    Raises:
        OutputError: If the file cannot be written.
    """
    atomic_write_text(path, render_report(data))
    return path


def render_report(data: ReportData) -> str:
    """Return the report as an HTML document."""
    main = element(
        "main",
        brand(data.kind),
        element("h1", data.title),
        element("p", _summary(data), class_="summary"),
        sections.hero(data.comparisons, data.scores),
        _headline(data),
        _warnings(data),
        sections.compared_views(data.comparisons, data.scores),
        sections.cameras_from_above(data.plan),
        sections.depth_pictures(data.depths, metric=data.metric),
        sections.feature_pictures(data.features),
        sections.contact_sheet(data.photos),
        _training(data),
        _score_table(data),
        _run(data),
        _files(data),
        command_block(data.command),
    )
    return page(data.title, main, script=read_asset("report.js"))


def _summary(data: ReportData) -> str:
    parts = []
    if data.photos:
        kept = sum(photo.registered for photo in data.photos)
        parts.append(f"{kept} of {len(data.photos)} pictures registered")
    if data.num_splats is not None:
        parts.append(f"{format_count(data.num_splats)} splats")
    psnr = data.scores.get("psnr", {})
    if psnr:
        value = format_number(mean(psnr.values()), 2)
        views = "1 held-out view" if len(psnr) == 1 else f"{len(psnr)} held-out views"
        parts.append(f"{value} dB on {views}")
    if data.stages:
        parts.append(format_seconds(sum(stage.seconds for stage in data.stages)))
    return " \u00b7 ".join(parts)


def _headline(data: ReportData) -> Html | None:
    entries = []
    for metric, values in data.scores.items():
        name, unit, digits = describe_metric(metric)
        entries.append((name, format_number(mean(values.values()), digits), unit))
    if data.photos:
        kept = sum(photo.registered for photo in data.photos)
        entries.append(("Pictures registered", f"{kept}", f"of {len(data.photos)}"))
    if data.num_splats is not None:
        entries.append(("Splats", format_count(data.num_splats), ""))
    if data.stages:
        entries.append(("Time", format_seconds(sum(s.seconds for s in data.stages)), ""))
        peaks = [s.peak_memory for s in data.stages if s.peak_memory is not None]
        if peaks:
            entries.append(("Peak memory", format_bytes(max(peaks)), ""))
    return tiles(entries) if entries else None


def _warnings(data: ReportData) -> Html | None:
    if not data.warnings:
        return None
    shown = [element("li", text) for text in data.warnings[:_MOST_ROWS]]
    return element("ul", shown, class_="notes")


def _training(data: ReportData) -> Html | None:
    cards = []
    for curve in data.curves:
        chart = line_chart(curve)
        if chart is None:
            continue
        last = format_number(curve.values[-1], curve.digits)
        caption = element(
            "figcaption",
            element("b", curve.name),
            element("span", f"{last} {curve.unit}".rstrip()),
        )
        cards.append(element("figure", caption, chart, class_="card"))
    return section("Training", element("div", cards, class_="grid charts") if cards else None)


def _score_table(data: ReportData) -> Html | None:
    if not data.scores:
        return None
    names = sorted({name for values in data.scores.values() for name in values})
    columns = [Column(name="View")]
    cells: list[list[str]] = [[file_name(name) for name in names]]
    totals = ["Mean"]
    for metric, values in data.scores.items():
        label, unit, digits = describe_metric(metric)
        columns.append(Column(name=label, unit=unit, is_number=True))
        cells.append([format_number(values.get(name), digits) for name in names])
        totals.append(format_number(mean(values.values()), digits))
    rows = list(zip(*cells, strict=True))
    note = "Held out: never seen while the splats were fitted"
    if len(rows) > _MOST_ROWS:
        note += f"; the first {_MOST_ROWS} of {len(rows)} views, the mean is of all"
    scores = table(columns, rows[:_MOST_ROWS], totals)
    return section("Scores", element("div", scores, class_="narrow"), note=note)


def _run(data: ReportData) -> Html | None:
    parts = []
    if data.stages:
        columns = [
            Column(name="Stage"),
            Column(name="Time", unit="s", is_number=True),
            Column(name="Peak memory", unit="GB", is_number=True),
        ]
        rows = [
            (s.name, format_number(s.seconds, 1), _gigabytes(s.peak_memory)) for s in data.stages
        ]
        peaks = [s.peak_memory for s in data.stages if s.peak_memory is not None]
        total = format_number(sum(s.seconds for s in data.stages), 1)
        parts.append(table(columns, rows, ("All", total, _gigabytes(max(peaks, default=None)))))
    if data.facts:
        columns = [Column(name=""), Column(name="")]
        parts.append(table(columns, data.facts[:_MOST_ROWS], kind="facts"))
    return section("Run", element("div", parts, class_="split") if parts else None)


def _gigabytes(size: int | None) -> str:
    return format_number(None if size is None else size / 1e9, 2)


def _files(data: ReportData) -> Html | None:
    if not data.exports:
        return None
    columns = [Column(name="File"), Column(name="What"), Column(name="Size", is_number=True)]
    rows = []
    for export in data.exports[:_MOST_ROWS]:
        address = relative_link(export.path)
        name = file_name(export.path)
        link = element("a", name, href=address) if address else name
        rows.append((link, export.what, format_bytes(export.size)))
    files = element("div", table(columns, rows), class_="narrow")
    return section("Files", files, note="Beside this page")
