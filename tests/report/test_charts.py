import dataclasses
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.report.charts import Curve, line_chart, nice_ticks


@given(
    st.floats(-1e6, 1e6),
    st.floats(1e-6, 1e6),
)
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    high = low + span
    if high <= low:
        return
    ticks = nice_ticks(low, high)
    slack = 1e-6 * (abs(low) + span)
    assert all(low - slack <= t <= high + slack for t in ticks)
    assert 2 <= len(ticks) <= 6


def test_ticks_are_round() -> None:
    assert nice_ticks(0.0, 3000.0) == [0, 1000, 2000, 3000]
    assert nice_ticks(12.3, 26.0) == [15, 20, 25]
    assert nice_ticks(5.0, 5.0) == [5.0]


def test_chart_names_its_quantity_and_ends_at_the_last_value() -> None:
    curve = Curve(name="Loss <b>", steps=(0.0, 10.0, 20.0), values=(3.0, 2.0, 1.0))
    chart = line_chart(curve)
    assert chart is not None
    assert 'aria-label="Loss &lt;b&gt; over training steps"' in chart
    trace = re.search(r'points="([^"]*)"', chart)
    dot = re.search(r'cx="([\d.]+)" cy="([\d.]+)"', chart)
    assert trace
    assert dot
    assert trace[1].split()[-1] == f"{dot[1]},{dot[2]}"
    heights = [float(p.split(",")[1]) for p in trace[1].split()]
    assert heights == sorted(heights)  # falling values go down the page


def test_long_curves_are_thinned() -> None:
    steps = tuple(float(i) for i in range(30000))
    chart = line_chart(Curve(name="x", steps=steps, values=steps))
    assert chart is not None
    assert len(chart) < 15_000


def test_logarithmic_axis_has_round_ticks() -> None:
    curve = Curve(name="x", steps=(0.0, 1.0, 2.0), values=(0.3, 0.1, 0.02), logarithmic=True)
    chart = line_chart(curve)
    assert chart is not None
    labels = re.findall(r'class="tick" dy[^>]*>([^<]*)<', chart)
    assert labels == ["0.02", "0.05", "0.1", "0.2"]


@pytest.mark.parametrize("values", [(), (1.0,), (math.nan, 2.0), (-1.0, 5.0)])
def test_nothing_to_draw(values: tuple[float, ...]) -> None:
    steps = tuple(float(i) for i in range(len(values)))
    assert line_chart(Curve(name="x", steps=steps, values=values, logarithmic=True)) is None


def test_flat_curve_is_drawn() -> None:
    assert line_chart(Curve(name="x", steps=(0.0, 1.0), values=(0.0, 0.0))) is not None


def test_reference_is_drawn_and_widens_the_picture() -> None:
    curve = Curve(name="x", steps=(0.0, 1.0), values=(1.0, 2.0), reference=10.0)
    chart = line_chart(curve)
    assert chart is not None
    line = re.search(r'd="M\d+ ([\d.]+)H\d+" class="reference"', chart)
    trace = re.search(r'points="([^"]+)"', chart)
    assert line
    assert trace
    heights = [float(p.split(",")[1]) for p in trace[1].split()]
    assert 0 < float(line[1]) < min(heights)  # a larger value, which is further up
    for nothing in (None, math.nan):
        chart = line_chart(dataclasses.replace(curve, reference=nothing))
        assert chart is not None
        assert "reference" not in chart
