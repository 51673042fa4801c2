"""Means with their intervals as one drawing, best at the top."""

import math
from collections.abc import Sequence

from sightline.probing.stats import Estimate
from sightline.report.charts import nice_ticks
from sightline.report.markup import Html, element
from sightline.report.numbers import format_number, format_tick

_WIDTH, _ROW, _LEFT, _RIGHT = 760, 26, 190, 80


def forest_plot(
    names: Sequence[str], found: Sequence[Estimate], *, unit: str, digits: int, higher: bool
) -> Html | None:
    """Draw one row a feature; None when nothing is known."""
    known = [(n, e) for n, e in zip(names, found, strict=True) if math.isfinite(e.mean)]
    if not known:
        return None
    known.sort(key=lambda pair: pair[1].mean, reverse=higher)
    low = min(e.low for _, e in known)
    high = max(e.high for _, e in known)
    margin = 0.06 * (high - low) or 0.5
    low, high = low - margin, high + margin
    bottom = 10 + _ROW * len(known)

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    marks: list[Html] = []
    for tick in nice_ticks(low, high, 6):
        marks.append(element("path", d=f"M{x(tick):.1f} 6V{bottom}", class_="axis"))
        marks.append(
            element(
                "text", format_tick(tick), x=f"{x(tick):.1f}", y=bottom + 18, class_="tick middle"
            )
        )
    for row, (name, e) in enumerate(known):
        y = 10 + _ROW * (row + 0.5)
        shown = name if len(name) < 27 else name[:25] + "\u2026"
        marks.append(element("text", shown, x=_LEFT - 12, y=y, class_="tick", dy="0.32em"))
        marks.append(element("path", d=f"M{x(e.low):.1f} {y}H{x(e.high):.1f}", class_="line"))
        marks.append(element("circle", cx=f"{x(e.mean):.1f}", cy=y, r=4, class_="dot"))
        value = format_number(e.mean, digits)
        marks.append(element("text", value, x=_WIDTH - 8, y=y, class_="tick", dy="0.32em"))
    drawing = element(
        "svg",
        marks,
        viewBox=f"0 0 {_WIDTH} {bottom + 26}",
        role="img",
        aria_label=f"means with intervals {unit}",
        style="min-width:520px",
    )
    # On a phone it scrolls, because shrunk numbers could not be read.
    return element("div", drawing, style="overflow-x:auto")
