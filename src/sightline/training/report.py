"""``report.html`` of a training: curves, validation, pictures before and after."""

from pathlib import Path
from typing import Any

from sightline.io.atomic import atomic_write_text
from sightline.io.images import read_image
from sightline.report.charts import Curve, line_chart
from sightline.report.figures import encode_jpegs
from sightline.report.markup import Html, data_uri, element, file_name, relative_link
from sightline.report.numbers import format_bytes, format_number, format_seconds
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
from sightline.run import RunFolder
from sightline.training.log import MEAN, Table

_MOST_PICTURES = 12
_BUDGET = 3_000_000  # bytes of pictures
_MOST_FACTS = 100


def write_training_report(folder: RunFolder, command: str = "") -> Path:
    """Write the report from what the run folder holds, and return its path.

    Raises:
        OutputError: If it cannot be written.
    """
    state = folder.state
    logs = {
        kind: Table(folder.file("logs", f"{kind}.csv"), keep_until=2**62)
        for kind in ("train", "validation")
    }
    title = folder.path.resolve().name or "training"
    main = element(
        "main",
        brand(f"train {state['config'].get('task', '')}"),
        element("h1", title),
        element("p", _summary(state), class_="summary"),
        _headline(logs["validation"], state),
        _notes(state),
        _curves("Validation", logs["validation"]),
        _curves("Training", logs["train"]),
        _pictures(folder.file("pictures")),
        _facts(state),
        _files(folder),
        command_block(command) if command else None,
    )
    path = folder.file("report.html")
    atomic_write_text(path, page(title, main, script=read_asset("report.js")))
    return path


def _summary(state: dict[str, Any]) -> str:
    train = state["stages"].get("train", {})
    parts = [f"{train.get('steps', 0)} steps", format_seconds(train.get("seconds", 0.0))]
    return " \u00b7 ".join(parts)


def _headline(validation: Table, state: dict[str, Any]) -> Html | None:
    entries = []
    for name in _measures(validation):
        values = validation.column(name)[1]
        if not values:
            continue
        change = f"was {_number(values[0])}" if len(values) > 1 else ""
        if (reference := _reference(validation, name)) is not None:
            change = f"mean {_number(reference)}"
        entries.append((_words(name), _number(values[-1]), change))
    loss = state["metrics"].get("train", {}).get("loss")
    if loss is not None:
        entries.append(("Loss", _number(loss), ""))
    return tiles(entries[:8]) if entries else None


def _notes(state: dict[str, Any]) -> Html | None:
    rows = [element("li", text) for text in state["warnings"]]
    return element("ul", rows, class_="notes") if rows else None


def _curves(heading: str, log: Table) -> Html | None:
    cards = []
    for name in _measures(log):
        steps, values = log.column(name)
        digits = _digits(values[-1]) if values else 2
        reference = _reference(log, name)
        curve = Curve(
            name=_words(name),
            steps=tuple(steps),
            values=tuple(values),
            digits=digits,
            reference=reference,
        )
        chart = line_chart(curve)
        if chart is not None:
            beside = "" if reference is None else f"; mean predictor {_number(reference)}, dashed"
            last = element("span", format_number(values[-1], digits) + beside)
            caption = element("figcaption", element("b", curve.name), last)
            cards.append(element("figure", caption, chart, class_="card"))
    return section(heading, element("div", cards, class_="grid charts") if cards else None)


def _measures(log: Table) -> list[str]:
    """Return what was measured of the network itself."""
    names = [name for name in log.columns if name != "step"]
    return [n for n in names if not (n.startswith(MEAN) and n.removeprefix(MEAN) in names)]


def _reference(log: Table, name: str) -> float | None:
    """Return what the mean predictor scores, if that was measured too."""
    values = log.column(MEAN + name)[1] if MEAN + name in log.columns else []
    return values[-1] if values else None


def _pictures(folder: Path) -> Html | None:
    """Show the pictures of the first and of the last validation side by side."""
    steps = sorted(p for p in folder.glob("step-*") if p.is_dir()) if folder.is_dir() else []
    if not steps:
        return None
    ends = steps[:1] if len(steps) == 1 else [steps[0], steps[-1]]
    names = [p.name for p in sorted(ends[-1].iterdir()) if p.suffix in (".png", ".jpg")]
    files = [
        end / name for name in names[:_MOST_PICTURES] for end in ends if (end / name).is_file()
    ]
    pixels = [read_image(file).pixels for file in files]
    packed = encode_jpegs(pixels, long_side=640, budget=_BUDGET, quality=88)
    cards = []
    for file, image, jpeg in zip(files, pixels, packed, strict=True):
        step = int(file.parent.name.removeprefix("step-"))
        picture = element(
            "img",
            src=data_uri(jpeg, "image/jpeg"),
            alt=f"{file.stem} after {step} steps",
            width=image.shape[1],
            height=image.shape[0],
        )
        caption = element(
            "figcaption", file_name(_words(file.stem)), element("span", f"step {step}")
        )
        cards.append(element("figure", picture, caption))
    return section("Pictures", element("div", cards, class_="grid charts"))


def _facts(state: dict[str, Any]) -> Html | None:
    facts = {**state.get("facts", {}), **state["config"], **state["versions"]}
    rows = [(_words(name), _plain(value)) for name, value in facts.items() if value is not None]
    columns = [Column(name=""), Column(name="")]
    return section("Run", table(columns, rows[:_MOST_FACTS], kind="facts") if rows else None)


def _files(folder: RunFolder) -> Html | None:
    rows = []
    for name in [*folder.state.get("exports", []), "logs/train.csv", "logs/validation.csv"]:
        file = folder.file(name)
        if file.is_file():
            address = relative_link(name)
            link = element("a", file_name(name), href=address) if address else file_name(name)
            rows.append((link, format_bytes(file.stat().st_size)))
    columns = [Column(name="File"), Column(name="Size", is_number=True)]
    files = element("div", table(columns, rows), class_="narrow") if rows else None
    return section("Files", files, note="Beside this page")


def _words(name: str) -> str:
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]


def _digits(value: float) -> int:
    return 5 if abs(value) < 0.01 else 3 if abs(value) < 100 else 1


def _number(value: float) -> str:
    return format_number(value, _digits(value))


def _plain(value: Any) -> str:  # noqa: ANN401
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
