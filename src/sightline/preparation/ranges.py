"""One value range for all pictures of a sequence, without holding them: counts, then percentiles."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64, Shaped

from sightline.io.ranges import EIGHT_BIT, ValueRange
from sightline.preparation.options import RangeChoice

_SAMPLED = 4_000_000  # float values that a range is measured on, all pictures together
_TWELVE_BITS = 2**14  # 16-bit colour below this fills less than a quarter of its type


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tally:
    """The values of one or more pictures: exact counts of whole numbers, a sample of floats."""

    counts: Int64[np.ndarray, "channels levels"] | None = None
    sample: Float32[np.ndarray, "n channels"] | None = None

    def __add__(self, other: "Tally") -> "Tally":
        """Return both together."""
        if self.counts is not None and other.counts is not None:
            return Tally(counts=self.counts + other.counts)
        assert self.sample is not None
        assert other.sample is not None
        return Tally(sample=np.concatenate([self.sample, other.sample]))

    def percentiles(self, low: float, high: float, *, per_channel: bool = False) -> ValueRange:
        """Return the range between two percentiles, of all channels together or of each."""
        if self.counts is not None:
            rows = self.counts if per_channel else self.counts.sum(0, keepdims=True)
            pairs = [(_percentile(row, low), _percentile(row, high)) for row in rows]
        else:
            assert self.sample is not None
            columns = self.sample.T if per_channel else self.sample.reshape(1, -1)
            pairs = [
                tuple(np.percentile(c, (low, high)).tolist()) if c.size else (0.0, 1.0)
                for c in columns
            ]
        bottom = tuple(float(pair[0]) for pair in pairs)
        # A flat picture becomes black, not NaN.
        top = tuple(float(pair[1]) if pair[1] > pair[0] else pair[0] + 1.0 for pair in pairs)
        return ValueRange(rule="percentile", low=low, high=high, minimum=bottom, maximum=top)


def tally(
    samples: Shaped[np.ndarray, "height width channels"],
    valid: Bool[np.ndarray, "height width"] | None = None,
    *,
    budget: int = _SAMPLED,
) -> Tally:
    """Count a picture's values.

    Args:
        samples: uint8 and uint16 are counted, every one; of floats an even sample is kept.
        valid: What to look at; None is everything. Values that are not finite never count.
        budget: Most float pixels kept.
    """
    flat = samples.reshape(-1, samples.shape[-1])
    if valid is not None:
        flat = flat[valid.reshape(-1)]
    if flat.dtype in (np.uint8, np.uint16):
        levels = np.iinfo(flat.dtype).max + 1
        return Tally(counts=np.stack([np.bincount(c, minlength=levels) for c in flat.T]))
    flat = flat[np.isfinite(flat).all(1)]
    return Tally(sample=flat[:: len(flat) // max(budget, 1) + 1].astype(np.float32))


def float_budget(pictures: int) -> int:
    """Return how many pixels each of so many float pictures may keep."""
    return max(500, min(200_000, _SAMPLED // max(pictures, 1)))


def choose_range(
    values: Tally, *, dtype: np.dtype, channels: int, satellite: bool, choice: RangeChoice
) -> ValueRange:
    """Choose the range of pictures of one kind.

    Asked for percentiles: those. Satellite bands: percentiles 2 and 98, each band by itself.
    8-bit pictures: as they are. One channel: percentiles 1 and 99. 16-bit colour: the whole range
    of the type, or percentiles when it fills less than a quarter of it. Float colour: linear light,
    exposed so that percentile 99 is white.
    """
    if choice.kind == "percentile" and (satellite or dtype != np.uint8):
        return values.percentiles(choice.low, choice.high, per_channel=satellite)
    if satellite:
        return values.percentiles(2.0, 98.0, per_channel=True)
    if dtype == np.uint8:
        return EIGHT_BIT
    if channels == 1:
        return values.percentiles(1.0, 99.0)
    if dtype == np.uint16:
        if values.percentiles(0.0, 99.9).maximum[0] < _TWELVE_BITS:
            return values.percentiles(1.0, 99.0)
        return ValueRange(rule="full", minimum=(0.0,), maximum=(65535.0,))
    white = values.percentiles(0.0, 99.0).maximum[0]
    return ValueRange(
        rule="exposure", high=99.0, minimum=(0.0,), maximum=(white if white > 0 else 1.0,)
    )


def stated_range(choice: RangeChoice, gain: float | None, offset: float | None) -> ValueRange:
    """Return a range given as raw values, or in degrees = value x gain + offset."""
    low, high = choice.low, choice.high
    if choice.kind == "celsius":
        assert gain is not None
        assert offset is not None
        low, high = (low - offset) / gain, (high - offset) / gain
    return ValueRange(rule="fixed", minimum=(low,), maximum=(high,))


def _percentile(counts: Int64[np.ndarray, " levels"], percent: float) -> float:
    """Return a percentile of counted whole numbers, between neighbours as `numpy.percentile`."""
    total = int(counts.sum())
    if not total:
        return 0.0 if percent < 50 else 1.0
    place = percent / 100 * (total - 1)
    below = int(place)
    upto = np.cumsum(counts)
    first, second = np.searchsorted(upto, (below, min(below + 1, total - 1)), side="right")
    return float(first + (place - below) * (second - first))
