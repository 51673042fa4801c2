"""Values over training steps, as float64 arrays: learning rates, momenta, weight decay, weights."""

import numpy as np
from jaxtyping import Float64

from sightline.errors import InputError

Schedule = Float64[np.ndarray, " steps"]


def cosine_schedule(
    base: float,
    final: float,
    total: int,
    *,
    warmup: int = 0,
    warmup_start: float = 0.0,
    freeze: int = 0,
    trunc_extra: float = 0.0,
) -> Schedule:
    """Return DINOv2's schedule: zeros, a linear rise that reaches ``base``, a cosine to ``final``.

    Args:
        base: Value after the warm-up.
        final: Value that the cosine approaches; it would be reached one step after the last.
        total: Number of steps.
        warmup: Steps of the rise, its end included.
        warmup_start: Where it starts.
        freeze: Steps at zero before it.
        trunc_extra: Draw the cosine this fraction longer, cut it, and stretch what is left in
            height so that it ends at ``final``.

    Raises:
        InputError: If the parts are longer than the whole.
    """
    count = _rest(total, warmup + freeze)
    if trunc_extra:
        angles = np.linspace(0, np.pi, int((1 + trunc_extra) * count))[:count]
        shape = (np.cos(angles) + 1) / 2
        if count > 1:
            shape = (shape - shape[-1]) / (1 - shape[-1])
    else:
        shape = (np.cos(np.pi * np.arange(count) / max(1, count)) + 1) / 2
    rise = np.linspace(warmup_start, base, warmup)
    return np.concatenate([np.zeros(freeze), rise, final + (base - final) * shape])


def linear_cosine_constant(
    start: float, peak: float, end: float, total: int, *, warmup: int, cosine: int
) -> Schedule:
    """Return DINOv3's schedule: a linear rise, a cosine through both its ends, then constant.

    Args:
        start: First value.
        peak: What the rise leads to; the cosine starts with it.
        end: Last value of the cosine, and all that follow.
        total: Number of steps.
        warmup: Steps of the rise, its end excluded.
        cosine: Steps of the cosine.

    Raises:
        InputError: If the parts are longer than the whole.
    """
    rest = _rest(total, warmup + cosine)
    rise = np.linspace(start, peak, warmup, endpoint=False)
    fall = end + (peak - end) * (np.cos(np.linspace(0, np.pi, cosine)) + 1) / 2
    return np.concatenate([rise, fall, np.full(rest, end, dtype=np.float64)])


def _rest(total: int, used: int) -> int:
    if used > total:
        raise InputError(
            f"a schedule of {total} steps has no room for {used} steps of warm-up and the like; "
            "train longer or warm up for less"
        )
    return total - used
