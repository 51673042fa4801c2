"""Shapes at their places, and the rays that meet them, compiled by numba."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

from sightline.datasets.raycast.shapes import chart, compiled, hit, normal


class Stage(NamedTuple):
    """Surfaces with their outgoing light, packed for the compiled functions."""

    kinds: Int64[ndarray, " S"]
    sizes: Float64[ndarray, "S 3"]
    turns: Float64[ndarray, "S 3 3"]
    places: Float64[ndarray, "S 3"]
    radii: Float64[ndarray, " S"]
    gloss: Float64[ndarray, " S"]
    maps: Int64[ndarray, "S 6 3"]
    """First texel, rows and columns of each face's map, its border of one texel included."""
    texels: Float32[ndarray, "T 4"]
    """Outgoing linear RGB, and the share of the first lamp that is seen."""


@compiled
def turned(stage, s, v):  # noqa: ANN001, ANN201
    """Turn a world vector into the axes of surface ``s``."""
    t = stage.turns[s]
    return (
        t[0, 0] * v[0] + t[1, 0] * v[1] + t[2, 0] * v[2],
        t[0, 1] * v[0] + t[1, 1] * v[1] + t[2, 1] * v[2],
        t[0, 2] * v[0] + t[1, 2] * v[1] + t[2, 2] * v[2],
    )


@compiled
def own_axes(stage, s, p):  # noqa: ANN001, ANN201
    """Move a world point into the axes of surface ``s``."""
    c = stage.places[s]
    return turned(stage, s, (p[0] - c[0], p[1] - c[1], p[2] - c[2]))


@compiled
def size_of(stage, s):  # noqa: ANN001, ANN201
    """Return the three numbers of the shape of surface ``s``."""
    return stage.sizes[s, 0], stage.sizes[s, 1], stage.sizes[s, 2]


@compiled
def first_hit(stage, o, d):  # noqa: ANN001, ANN201
    """Return the distance and the surface of a ray's first hit; infinity and -1 if none."""
    best, surface = np.inf, -1
    for s in range(len(stage.kinds)):
        c = stage.places[s]
        x, y, z = c[0] - o[0], c[1] - o[1], c[2] - o[2]
        ahead = x * d[0] + y * d[1] + z * d[2]
        radius = 1.001 * stage.radii[s]
        # Most rays pass a small thing by: look closer only at those that come near it.
        if x * x + y * y + z * z - ahead * ahead > radius * radius:
            continue
        if ahead < -radius or ahead - radius > best:
            continue
        t = hit(stage.kinds[s], size_of(stage, s), own_axes(stage, s, o), turned(stage, s, d))
        if t < best:
            best, surface = t, s
    return best, surface


@compiled
def world_normal(stage, s, p):  # noqa: ANN001, ANN201
    """Return the unit normal of surface ``s`` at a world point."""
    q = own_axes(stage, s, p)
    size = size_of(stage, s)
    face, _, _ = chart(stage.kinds[s], size, q)
    n = normal(stage.kinds[s], size, face, q)
    t = stage.turns[s]
    return (
        t[0, 0] * n[0] + t[0, 1] * n[1] + t[0, 2] * n[2],
        t[1, 0] * n[0] + t[1, 1] * n[1] + t[1, 2] * n[2],
        t[2, 0] * n[0] + t[2, 1] * n[1] + t[2, 2] * n[2],
    )


@compiled
def ray(c2w, K, x, y):  # noqa: ANN001, ANN201
    """Return the unit world direction through a pixel place, and its length at unit depth."""
    a, b = (x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1]
    length = math.sqrt(a * a + b * b + 1)
    a, b, c = a / length, b / length, 1 / length
    d = (
        c2w[0, 0] * a + c2w[0, 1] * b + c2w[0, 2] * c,
        c2w[1, 0] * a + c2w[1, 1] * b + c2w[1, 2] * c,
        c2w[2, 0] * a + c2w[2, 1] * b + c2w[2, 2] * c,
    )
    return d, length
