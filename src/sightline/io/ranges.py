"""Bring counts, floats and deep colour to 8 or 16 bits, and keep the numbers that undo it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Shaped

Rule = Literal["none", "percentile", "full", "exposure", "fixed"]

_MAX_SAMPLES = 4_000_000  # per picture, for float percentiles; every k-th pixel beyond it


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueRange:
    """How stored values became 8-bit ones: ``minimum`` is black and ``maximum`` is white.

    Rules: ``none`` (8-bit already); ``percentile`` (linear between the percentiles ``low`` and
    ``high``); ``full`` (the whole range of 16-bit colour); ``exposure`` (linear light from zero
    to the percentile ``high``, then the sRGB curve); ``fixed`` (linear between given values).
    """

    rule: Rule
    low: float = 0.0
    high: float = 100.0
    minimum: tuple[float, ...]
    """One value for all channels, or one a channel."""
    maximum: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's ``range`` object."""
        record = asdict(self)
        low, high = list(record.pop("minimum")), list(record.pop("maximum"))
        single = len(low) == 1
        return record | {"min": low[0] if single else low, "max": high[0] if single else high}


EIGHT_BIT = ValueRange(rule="none", minimum=(0.0,), maximum=(255.0,))


def measure_range(
    pictures: Sequence[Shaped[np.ndarray, "..."]],
    *,
    valid: Sequence[Bool[np.ndarray, "..."] | None] | None = None,
    satellite: bool = False,
) -> ValueRange:
    """Choose one range for pictures [H W C] of one kind, so that brightness does not flicker.

    One channel of 16-bit counts or floats: percentiles 1 and 99. Satellite bands: percentiles
    2 and 98, each band by itself. 16-bit colour: the whole range of the type, or percentiles when
    the pictures fill less than a quarter of it (12-bit sensors in 16-bit files). Float colour is
    linear light: exposed so that percentile 99 is white.

    Args:
        pictures: At least one; the same dtype and number of channels each.
        valid: What to look at; None is everything. Values that are not finite never count.
        satellite: Use the rule for satellite bands.
    """
    first = pictures[0]
    if first.dtype == np.uint8:
        return EIGHT_BIT
    masks = valid or [None] * len(pictures)
    samples = [_samples(p, m) for p, m in zip(pictures, masks, strict=True)]
    pooled = np.concatenate(samples)  # [N C]
    if satellite:
        return _percentiles(pooled, 2.0, 98.0, per_channel=True)
    if first.shape[-1] == 1:
        return _percentiles(pooled, 1.0, 99.0)
    if first.dtype == np.uint16:
        if pooled.size and np.percentile(pooled, 99.9) < 2**14:
            return _percentiles(pooled, 1.0, 99.0)
        return ValueRange(rule="full", minimum=(0.0,), maximum=(65535.0,))
    white = float(np.percentile(pooled, 99.0)) if pooled.size else 1.0
    return ValueRange(
        rule="exposure", high=99.0, minimum=(0.0,), maximum=(white if white > 0 else 1.0,)
    )


def apply_range(
    picture: Shaped[np.ndarray, "height width channels"],
    value_range: ValueRange,
    levels: int = 255,
) -> Shaped[np.ndarray, "height width channels"]:
    """Map stored values to whole numbers from 0 to ``levels``; what is not finite becomes 0.

    Args:
        picture: uint8, uint16 or float32.
        value_range: With the rule ``none``, 8-bit values stay as they are.
        levels: 255 gives uint8, 65535 gives uint16.
    """
    if picture.dtype == np.uint8 and value_range.rule == "none" and levels == 255:
        return picture
    if picture.dtype in (np.uint8, np.uint16) and picture.size > 2**16:
        # A table of all values: several times faster, and no float copy of the picture.
        count = np.iinfo(picture.dtype).max + 1
        values = np.arange(count, dtype=np.float32)[:, None]
        values = np.broadcast_to(values, (count, picture.shape[-1]))
        table = _to_levels(values, value_range, levels)
        channels = [table[picture[..., c], c] for c in range(picture.shape[-1])]
        return np.stack(channels, axis=-1)
    return _to_levels(picture.astype(np.float32), value_range, levels)


def _to_levels(
    picture: Shaped[np.ndarray, "*shape channels"], value_range: ValueRange, levels: int
) -> Shaped[np.ndarray, "*shape channels"]:
    low = np.asarray(value_range.minimum, np.float32)
    high = np.asarray(value_range.maximum, np.float32)
    scaled = (picture - low) / np.maximum(high - low, 1e-12)
    scaled = np.clip(np.nan_to_num(scaled, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)
    if value_range.rule == "exposure":
        scaled = _srgb(scaled)
    return np.rint(scaled * levels).astype(np.uint8 if levels == 255 else np.uint16)


def _samples(
    picture: Shaped[np.ndarray, "height width channels"], valid: np.ndarray | None
) -> Shaped[np.ndarray, "count channels"]:
    flat = picture.reshape(-1, picture.shape[-1])
    keep = np.ones(len(flat), bool) if valid is None else valid.reshape(-1)
    if np.issubdtype(flat.dtype, np.floating):
        keep = keep & np.isfinite(flat).all(1)
    flat = flat[keep]
    return flat[:: len(flat) // _MAX_SAMPLES + 1]


def _percentiles(
    samples: Shaped[np.ndarray, "count channels"],
    low: float,
    high: float,
    *,
    per_channel: bool = False,
) -> ValueRange:
    if not samples.size:
        return ValueRange(rule="percentile", low=low, high=high, minimum=(0.0,), maximum=(1.0,))
    axis = 0 if per_channel else None
    bottom, top = (np.atleast_1d(v) for v in np.percentile(samples, (low, high), axis=axis))
    top = np.where(top > bottom, top, bottom + 1.0)  # a flat picture becomes black, not NaN
    return ValueRange(
        rule="percentile",
        low=low,
        high=high,
        minimum=tuple(float(v) for v in bottom),
        maximum=tuple(float(v) for v in top),
    )


def _srgb(linear: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Encode linear light in [0, 1] (IEC 61966-2-1)."""
    return np.where(
        linear <= 0.0031308,
        linear * 12.92,
        1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055,
    )
