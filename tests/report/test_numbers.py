import math

import pytest

from sightline.report.numbers import (
    format_bytes,
    format_count,
    format_number,
    format_seconds,
    format_tick,
)


def plain(text: str) -> str:
    return text.replace("\u202f", " ").replace("\u2212", "-")


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(24.6, 2, "24.60"), (-0.5, 1, "-0.5"), (1234567.0, 0, "1 234 567"), (None, 2, "\u2013"),
     (math.nan, 2, "\u2013"), (math.inf, 2, "\u221e"), (-math.inf, 1, "-\u221e")],
)  # fmt: skip
def test_numbers(value: float | None, digits: int, text: str) -> None:
    assert plain(format_number(value, digits)) == text


def test_counts() -> None:
    assert plain(format_count(43210)) == "43 210"
    assert format_count(None) == "\u2013"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (8.26, "8.3 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"),
     (272.4, "4 min 32 s"), (3599.6, "1 h 00 min"), (7530.0, "2 h 05 min")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert plain(format_seconds(seconds)) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (742_000, "742 kB"), (999_700, "1.00 MB"),
     (12_340_000, "12.3 MB"), (2_810_000_000, "2.81 GB"), (5 * 10**15, "5000 TB"),
     (None, "\u2013")],
)  # fmt: skip
def test_sizes(size: int | None, text: str) -> None:
    assert plain(format_bytes(size)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.05, "0.05"), (12.0, "12"), (2000.0, "2000"), (30000.0, "30k"), (1.5e6, "1.5M"),
     (-20000.0, "-20k")],
)  # fmt: skip
def test_ticks(value: float, text: str) -> None:
    assert plain(format_tick(value)) == text
