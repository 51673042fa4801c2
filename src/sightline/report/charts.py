"""Curves over training steps, drawn as SVG.

Colours come from the page's stylesheet (classes ``axis``, ``line``, ``tick``, ...), so a drawing
follows the page into dark mode.
"""

import math
from dataclasses import dataclass

import numpy as np

from sightline.report.markup import Html, element
from sightline.report.numbers import format_tick

_WIDTH, _HEIGHT = 420, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 20, 12, 24
_MOST_VERTICES = 400


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """One quantity over training steps."""

    name: str
    unit: str = ""
    steps: tuple[float, ...]
    values: tuple[float, ...]
    """As many as steps; NaN leaves a gap out."""
    digits: int = 2
    """Behind the decimal point, for the last value."""
    logarithmic: bool = False
    reference: float | None = None
    """What to beat, drawn as a dashed line."""


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round values (1, 2 or 5 times a power of ten apart) within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def line_chart(curve: Curve) -> Html | None:
    """Draw one curve with its axes and last value; None when it has fewer than two values."""
    kept = [
        (step, value)
        for step, value in zip(curve.steps, curve.values, strict=True)
        if math.isfinite(value) and (value > 0 or not curve.logarithmic)
    ]
    if len(kept) < 2:
        return None
    # Evenly thinned, the last one kept: it is the one that is named.
    take = sorted(set(np.linspace(0, len(kept) - 1, _MOST_VERTICES).round().astype(int)))
    steps = np.array([kept[i][0] for i in take], np.float64)
    values = np.array([kept[i][1] for i in take], np.float64)
    heights = np.log10(values) if curve.logarithmic else values
    low, high = float(heights.min()), float(heights.max())
    reference = _height(curve, curve.reference)
    if reference is not None:
        low, high = min(low, reference), max(high, reference)
    margin = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    low, high = low - margin, high + margin

    span = max(float(steps[-1] - steps[0]), 1e-12)

    def x(step: float) -> float:
        return _LEFT + (step - float(steps[0])) / span * (_WIDTH - _LEFT - _RIGHT)

    def y(height: float) -> float:
        return _TOP + (high - height) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    if curve.logarithmic:
        steps_of_ten = (1,) if high - low > 2.5 else (1, 2, 5)
        exponents = range(math.floor(low), math.ceil(high) + 1)
        values_at = [m * 10.0**e for e in exponents for m in steps_of_ten]
        ticks = [(math.log10(v), v) for v in values_at if low <= math.log10(v) <= high]
    else:
        ticks = [(v, v) for v in nice_ticks(low, high)]
    grid, labels = [], []
    for height, value in ticks:
        level = f"{y(height):.1f}"
        grid.append(f"M{_LEFT} {level}H{_WIDTH - _RIGHT}")
        labels.append(
            element("text", format_tick(value), x=_LEFT - 6, y=level, class_="tick", dy="0.32em")
        )
    for step in nice_ticks(float(steps[0]), float(steps[-1])):
        labels.append(
            element(
                "text",
                format_tick(step),
                x=f"{x(step):.1f}",
                y=_HEIGHT - 6,
                class_="tick middle",
            )
        )
    at = [(x(a), y(b)) for a, b in zip(steps.tolist(), heights.tolist(), strict=True)]
    trace = " ".join(f"{a:.1f},{b:.1f}" for a, b in at)
    return element(
        "svg",
        element("path", d="".join(grid), class_="axis"),
        labels,
        None
        if reference is None
        else element(
            "path", d=f"M{_LEFT} {y(reference):.1f}H{_WIDTH - _RIGHT}", class_="reference"
        ),
        element("polyline", points=trace, class_="line"),
        element("circle", cx=f"{at[-1][0]:.1f}", cy=f"{at[-1][1]:.1f}", r=3.5, class_="dot"),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=f"{curve.name} over training steps",
    )


def _height(curve: Curve, value: float | None) -> float | None:
    """Return where a value lies on the upright axis, if it can be drawn."""
    if value is None or not math.isfinite(value) or (curve.logarithmic and value <= 0):
        return None
    return math.log10(value) if curve.logarithmic else value
