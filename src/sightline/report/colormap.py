"""Colours for numbers: turbo for depth, magma for errors."""

import numpy as np
from jaxtyping import Float, UInt8

# 33 equally spaced colours of each map, joined by straight lines: within 2/255 of the full tables.
# Turbo is by Anton Mikhailov (Google, 2019), magma by Stefan van der Walt and Nathaniel Smith.
_TURBO = (
    "30123b392a734040a14456c7466be3467ff64293ff37a7fa29bbec1dcdd818dcc31ee8b031f2994cf97e6bfd64"
    "8aff4da3fd3cb8f735cced34dee037edd03af8c03afdae35fe982cfb8022f56817ec520fe04009d23105c02302"
    "ac1701950d017a0403"
)
_MAGMA = (
    "0000040303110a0822130d331d114628115a36106a430f7650127c5d177f691c817621818226818f2a819c2e7f"
    "a9327db63779c33b75cf4170db486ae65163ee5c5ef5695cf9785dfb8761fd9668fea571feb47bfec387fed194"
    "fde0a2fceeb0fcfdbf"
)


def _table(colors: str) -> UInt8[np.ndarray, "256 3"]:
    knots = np.frombuffer(bytes.fromhex(colors), np.uint8).reshape(-1, 3).astype(np.float64)
    at = np.linspace(0, len(knots) - 1, 256)
    channels = [np.interp(at, np.arange(len(knots)), knots[:, c]) for c in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


TURBO = _table(_TURBO)
"""Dark blue, green, red."""
MAGMA = _table(_MAGMA)
"""Black, purple, pale yellow."""


def apply_colormap(
    values: Float[np.ndarray, "*shape"], table: UInt8[np.ndarray, "256 3"]
) -> UInt8[np.ndarray, "*shape 3"]:
    """Colour values in [0, 1]; those outside take the end colours, NaN becomes mid grey."""
    index = np.nan_to_num(values * 255.0, nan=0.0, posinf=255.0, neginf=0.0)
    colors = table[np.clip(index.round(), 0, 255).astype(np.uint8)]
    colors[np.isnan(values)] = 128
    return colors


def css_gradient(table: UInt8[np.ndarray, "256 3"], stops: int = 17) -> str:
    """Return the map as a CSS gradient from left to right, for scale bars."""
    rows = table[np.linspace(0, 255, stops).round().astype(int)]
    return f"linear-gradient(to right,{','.join(f'#{r:02x}{g:02x}{b:02x}' for r, g, b in rows)})"
