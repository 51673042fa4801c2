"""Means with error bars, paired differences and ranks, over scenes and seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Table = Float[np.ndarray, "features scenes seeds"]
"""One score a feature, scene and seed; NaN where a probe is missing."""

RESAMPLES = 4000
LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean with its bootstrap interval."""

    mean: float
    low: float
    high: float
    scenes: int
    seeds: int
    seed_spread: float
    """Standard deviation over seeds of the mean over scenes; NaN for one seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much one feature is better than another, on the same scenes and seeds."""

    mean: float
    low: float
    high: float
    tied: bool
    """The interval holds zero."""
    wins: float
    """Share of scenes (means over seeds) on which the first is better."""


def resample_means(table: Table, seed: int = 0, count: int = RESAMPLES) -> Float[np.ndarray, "n f"]:
    """Return bootstrap means of all features.

    Scenes are drawn with replacement, and for each drawn scene seeds with replacement (a nested
    bootstrap: Davison and Hinkley 1997, section 3.8). All features share the drawings, so
    differences between columns are paired. Missing probes are left out of the means.
    """
    _, scenes, seeds = table.shape
    generator = np.random.default_rng(seed)
    rows = generator.integers(scenes, size=(count, scenes))
    picks = generator.integers(seeds, size=(count, scenes, seeds))
    drawn = table[:, rows[:, :, None], picks]  # [features, count, scenes, seeds]
    return _mean_of_means(drawn).T


def _mean_of_means(values: np.ndarray) -> np.ndarray:
    """Mean over seeds, then over scenes (the last two axes), without what is missing."""
    return _nanmean(_nanmean(values))


def _nanmean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(-1)
    number = known.sum(-1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _interval(values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(known, [tail, 100 - tail])
    return float(low), float(high)


def estimate(table: Table, seed: int = 0) -> list[Estimate]:
    """Return each feature's mean over scenes (of means over seeds), with its interval."""
    means = _mean_of_means(table)
    drawn = resample_means(table, seed)
    by_seed = _nanmean(table.transpose(0, 2, 1))  # [features, seeds]
    results = []
    for i, mean in enumerate(means):
        low, high = _interval(drawn[:, i])
        known = by_seed[i][np.isfinite(by_seed[i])]
        has_scene = np.isfinite(table[i]).any(1)
        results.append(
            Estimate(
                mean=float(mean),
                low=low,
                high=high,
                scenes=int(has_scene.sum()),
                seeds=int(np.isfinite(table[i]).any(0).sum()),
                seed_spread=float(known.std(ddof=1)) if len(known) > 1 else float("nan"),
            )
        )
    return results


def differences(table: Table, *, higher: bool, seed: int = 0) -> list[list[Difference | None]]:
    """Return how much better each feature (row) is than each other (column); None on the diagonal.

    Only scenes and seeds that both have count. Positive is better.
    """
    sign = 1.0 if higher else -1.0
    number = len(table)
    result: list[list[Difference | None]] = [[None] * number for _ in range(number)]
    for i in range(number):
        for j in range(number):
            if i == j:
                continue
            gap = sign * (table[i] - table[j])[None]
            low, high = _interval(resample_means(gap, seed)[:, 0])
            by_scene = _nanmean(gap[0])
            known = by_scene[np.isfinite(by_scene)]
            result[i][j] = Difference(
                mean=float(_mean_of_means(gap)[0]),
                low=low,
                high=high,
                tied=bool(not (low > 0 or high < 0)),
                wins=float((known > 0).mean()) if len(known) else float("nan"),
            )
    return result


def tied_ranks(
    table: Table, pairs: Sequence[Sequence[Difference | None]], *, higher: bool
) -> list[tuple[int, int]]:
    """Return each feature's possible ranks, best first: ``(1, 3)`` shares places 1 to 3.

    A feature ranks behind all that beat it for certain, and before all that it beats for certain.
    """
    number = len(table)
    ranks = []
    for i in range(number):
        better = sum(_beats(pairs[j][i]) for j in range(number) if j != i)
        worse = sum(_beats(pairs[i][j]) for j in range(number) if j != i)
        ranks.append((1 + better, number - worse))
    return ranks


def _beats(pair: Difference | None) -> bool:
    return pair is not None and pair.low > 0


def rank_stability(table: Table, *, higher: bool, seed: int = 0) -> Float[np.ndarray, "f ranks"]:
    """Return how often each feature takes each rank over bootstrap samples; rows sum to 1."""
    drawn = resample_means(table, seed)
    drawn = np.where(np.isfinite(drawn), drawn if higher else -drawn, -np.inf)
    order = np.argsort(-drawn, axis=1, kind="stable")
    ranks = np.argsort(order, axis=1, kind="stable")
    number = table.shape[0]
    return np.stack([np.bincount(ranks[:, i], minlength=number) for i in range(number)]) / len(
        drawn
    )


def seed_agreement(table: Table) -> float:
    """Return the mean Spearman correlation of rankings between seeds; NaN for fewer than two."""
    from scipy.stats import spearmanr

    by_seed = _nanmean(table.transpose(0, 2, 1)).T  # [seeds, features]
    if by_seed.shape[0] < 2 or by_seed.shape[1] < 2 or not np.isfinite(by_seed).all():
        return float("nan")
    values = [
        float(spearmanr(by_seed[i], by_seed[j]).statistic)  # pyright: ignore[reportAttributeAccessIssue]
        for i in range(len(by_seed))
        for j in range(i)
        if np.ptp(by_seed[i]) > 0 and np.ptp(by_seed[j]) > 0
    ]
    return float(np.mean(values)) if values else float("nan")


def dense_ranks(values: Sequence[float], *, higher: bool) -> list[int]:
    """Return dense ranks from 1 (equal values share one), as the published tables colour them."""
    known = sorted({v for v in values if np.isfinite(v)}, reverse=higher)
    place = {value: i + 1 for i, value in enumerate(known)}
    return [place.get(value, len(known) + 1) for value in values]


def topsis(columns: Mapping[str, Sequence[float]], costs: Sequence[str]) -> list[float]:
    """Score rows by their distance to the best and worst of each column, equal weights.

    Hwang and Yoon 1981: columns are divided by their length, then the score is
    ``worst / (worst + best)`` of the Euclidean distances.

    Args:
        columns: Measure -> value of each row.
        costs: Measures of which less is better.
    """
    matrix = np.array(list(columns.values()), float).T
    matrix = matrix / np.maximum(np.linalg.norm(matrix, axis=0), 1e-12)
    sign = np.array([-1.0 if name in costs else 1.0 for name in columns])
    signed = matrix * sign
    best, worst = signed.max(0), signed.min(0)
    to_best = np.linalg.norm(signed - best, axis=1)
    to_worst = np.linalg.norm(signed - worst, axis=1)
    return (to_worst / np.maximum(to_best + to_worst, 1e-12)).tolist()


def radar(values: Sequence[float], *, higher: bool) -> list[float]:
    """Map a column to 0.1 (worst) to 1 (best), as the published radar charts do."""
    array = np.array(values, float)
    span = float(array.max() - array.min()) or 1.0
    share = (array - array.min()) / span
    return (0.1 + 0.9 * (share if higher else 1 - share)).tolist()
