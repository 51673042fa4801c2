import math

import numpy as np
import pytest

from sightline.probing.stats import (
    dense_ranks,
    differences,
    estimate,
    radar,
    rank_stability,
    seed_agreement,
    tied_ranks,
    topsis,
)


def table(*levels: float, scenes: int = 12, seeds: int = 3, noise: float = 0.1) -> np.ndarray:
    random = np.random.default_rng(0)
    scene = random.normal(0, 2, (1, scenes, 1))  # scenes differ much more than features
    jitter = random.normal(0, noise, (len(levels), scenes, seeds))
    return np.array(levels)[:, None, None] + scene + jitter


def test_means_and_intervals() -> None:
    found = estimate(table(20, 21))
    assert found[1].mean - found[0].mean == pytest.approx(1, abs=0.1)
    assert found[0].low < found[0].mean < found[0].high
    assert (found[0].scenes, found[0].seeds) == (12, 3)
    # About 1.96 sigma / sqrt(12) of the scenes' spread.
    half = (found[0].high - found[0].low) / 2
    spread = table(20, 21)[0].mean(1).std(ddof=1)
    assert half == pytest.approx(1.96 * spread / math.sqrt(12), rel=0.25)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(1)
    hits = 0
    for trial in range(60):
        values = random.normal(5, 1, (1, 20, 1))
        found = estimate(values, seed=trial)[0]
        hits += found.low < 5 < found.high
    assert hits >= 50


def test_paired_differences_see_what_means_hide() -> None:
    values = table(20.0, 20.5, 20.5)
    found = estimate(values)
    assert found[0].high > found[1].low  # the intervals overlap by far
    pairs = differences(values, higher=True)
    assert pairs[0][0] is None
    gap, tie = pairs[1][0], pairs[2][1]
    assert gap is not None
    assert tie is not None
    assert not gap.tied
    assert gap.mean == pytest.approx(0.5, abs=0.1)
    assert gap.wins == 1
    assert tie.tied
    assert tied_ranks(values, pairs, higher=True) == [(3, 3), (1, 2), (1, 2)]


def test_less_is_better_where_it_is() -> None:
    pairs = differences(table(0.2, 0.9), higher=False)
    assert pairs[0][1] is not None
    assert pairs[0][1].mean > 0


def test_missing_probes_are_left_out() -> None:
    values = table(20, 21)
    values[0, :4] = np.nan
    found = estimate(values)
    assert found[0].scenes == 8
    pair = differences(values, higher=True)[1][0]
    assert pair is not None
    assert pair.mean == pytest.approx(1, abs=0.1)
    values[0] = np.nan
    assert math.isnan(estimate(values)[0].mean)


def test_rank_stability_and_agreement() -> None:
    shares = rank_stability(table(20, 22, 21), higher=True)
    assert shares.sum(1).tolist() == pytest.approx([1, 1, 1])
    assert shares[1, 0] > 0.99
    assert shares[0, 2] > 0.99
    assert seed_agreement(table(20, 22, 21)) == pytest.approx(1)
    assert math.isnan(seed_agreement(table(20, 22, seeds=1)))


def test_published_rankings() -> None:
    assert dense_ranks([3.0, 5.0, 5.0, 1.0], higher=True) == [2, 1, 1, 3]
    assert radar([1.0, 2.0, 3.0], higher=True) == pytest.approx([0.1, 0.55, 1])
    assert radar([1.0, 3.0], higher=False) == pytest.approx([1, 0.1])
    scores = topsis({"psnr": [20.0, 10.0], "lpips": [0.1, 0.4]}, costs=["lpips"])
    assert scores == pytest.approx([1, 0])
