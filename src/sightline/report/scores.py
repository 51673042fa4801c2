"""Names, units and digits of the picture metrics, and the views worth looking at."""

import math
from collections.abc import Iterable, Mapping, Sequence

from sightline.report.data import Comparison

_METRICS = {
    "psnr": ("PSNR", "dB", 2),
    "cc_psnr": ("PSNR, colours matched", "dB", 2),
    "ssim": ("SSIM", "", 3),
    "lpips": ("LPIPS", "", 3),
}

Scores = Mapping[str, Mapping[str, float]]


def describe_metric(metric: str) -> tuple[str, str, int]:
    """Return a metric's label, unit and digits behind the point."""
    return _METRICS.get(metric, (metric, "", 3))


def mean(values: Iterable[float]) -> float:
    """Return the mean of the known values; NaN when there is none."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def rank(comparisons: Sequence[Comparison], scores: Scores) -> list[Comparison]:
    """Return the views from worst to best by PSNR; those without come first, in their order."""
    psnr = scores.get("psnr", {})

    def key(comparison: Comparison) -> float:
        value = psnr.get(comparison.name, math.nan)
        return -math.inf if math.isnan(value) else value

    return sorted(comparisons, key=key)


def spread(count: int, most: int) -> list[int]:
    """Return at most ``most`` of ``count`` indices, evenly spaced, with the first and the last."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
