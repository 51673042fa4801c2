"""Numbers as people read them: fixed digits, thin gaps between thousands, units that fit."""

import math

_GAP = "\u202f"  # narrow no-break space
_MINUS = "\u2212"


def format_number(value: float | None, digits: int) -> str:
    """Return a number with a fixed count of digits behind the point; a dash when not known."""
    if value is None or math.isnan(value):
        return "\u2013"
    if math.isinf(value):
        return "\u221e" if value > 0 else f"{_MINUS}\u221e"
    text = f"{value:,.{digits}f}"
    return text.replace(",", _GAP).replace("-", _MINUS)


def format_count(count: int | None) -> str:
    """Return a whole number; a dash when not known."""
    return "\u2013" if count is None else format_number(float(count), 0)


def format_seconds(seconds: float) -> str:
    """Return a duration: ``8.3 s``, ``4 min 32 s``, ``2 h 05 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f}{_GAP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{_GAP}min {rest:02d}{_GAP}s"
    return f"{minutes // 60}{_GAP}h {minutes % 60:02d}{_GAP}min"


def format_bytes(size: int | None) -> str:
    """Return a size in decimal units, three digits: ``742 kB``, ``2.81 GB``."""
    if size is None:
        return "\u2013"
    if size < 1000:
        return f"{size}{_GAP}B"
    value, unit = float(size), "B"
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.5:
            break
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f}{_GAP}{unit}"


def format_tick(value: float) -> str:
    """Return a short axis label: ``0.05``, ``12``, ``30k``, ``1.5M``."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scale = 1e3 if suffix == "k" else limit
            return f"{value / scale:.6g}{suffix}".replace("-", _MINUS)
    return f"{value:.4g}".replace("-", _MINUS)
