"""Surfaces painted through and through: pictures without baking, a few milliseconds each.

Where ``light`` bakes soft light into charts, which takes seconds and suits one scene seen from many
places, here colour is a closed form of the place in a surface's own axes and light comes from one
point. That suits many scenes seen from few places: data to train on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64
from numpy import ndarray

from sightline.datasets.raycast.light import encode
from sightline.datasets.raycast.shapes import ROOM, Shape, chart, compiled
from sightline.datasets.raycast.trace import (
    Stage,
    first_hit,
    own_axes,
    ray,
    size_of,
    world_normal,
)

CHECKS, STRIPES, DOTS, CLOUDS = range(4)
"""Patterns of two colours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paint:
    """Two colours and how they alternate."""

    pattern: int
    colors: tuple[tuple[float, float, float], tuple[float, float, float]]
    """Linear RGB in [0, 1]."""
    period: float
    """Length after which the pattern repeats, in metres."""
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Shift of the pattern."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solid:
    """A shape at a place, painted; a room and a box may have a paint a face."""

    shape: Shape
    position: tuple[float, float, float]
    rotation: Float64[ndarray, "3 3"]
    """Own axes to world."""
    paints: tuple[Paint, ...]
    """One for all faces, or one each."""


class Set(NamedTuple):
    """Solids and their light, packed for the compiled functions."""

    stage: Stage
    """The shapes; its light maps are empty."""
    patterns: Int64[ndarray, "S 6"]
    colors: Float64[ndarray, "S 6 2 3"]
    periods: Float64[ndarray, "S 6"]
    offsets: Float64[ndarray, "S 6 3"]
    lamp: Float64[ndarray, "3"]
    """Place of the light."""
    ambient: float
    """Share of the light that reaches everything, from 0 to 1."""


def assemble(
    solids: Sequence[Solid], lamp: tuple[float, float, float], ambient: float = 0.4
) -> Set:
    """Pack solids and a lamp."""
    faces = [[s.paints[min(f, len(s.paints) - 1)] for f in range(6)] for s in solids]
    stage = Stage(
        kinds=np.array([s.shape.kind for s in solids]),
        sizes=np.array([s.shape.size for s in solids]),
        turns=np.stack([s.rotation for s in solids]),
        places=np.array([s.position for s in solids]),
        radii=np.array([s.shape.radius for s in solids]),
        gloss=np.zeros(len(solids)),
        maps=np.zeros((len(solids), 6, 3), np.int64),
        texels=np.zeros((0, 4), np.float32),
    )
    return Set(
        stage=stage,
        patterns=np.array([[p.pattern for p in row] for row in faces]),
        colors=np.array([[p.colors for p in row] for row in faces]),
        periods=np.array([[p.period for p in row] for row in faces]),
        offsets=np.array([[p.offset for p in row] for row in faces]),
        lamp=np.array(lamp, np.float64),
        ambient=float(ambient),
    )


@compiled
def _lattice(i, j, k):  # noqa: ANN001, ANN202
    """Return a fixed pseudo-random number in [0, 1) for a lattice point."""
    h = (i * 374761393 + j * 668265263 + k * 1274126177) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1103515245) & 0xFFFFFFFF
    return ((h ^ (h >> 16)) & 0xFFFF) / 65536.0


@compiled
def _cloud(x, y, z):  # noqa: ANN001, ANN202
    """Return smooth noise in [0, 1): trilinear between lattice points."""
    i, j, k = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
    a, b, c = x - i, y - j, z - k
    a, b, c = a * a * (3 - 2 * a), b * b * (3 - 2 * b), c * c * (3 - 2 * c)
    total = 0.0
    for corner in range(8):
        p, q, r = corner & 1, (corner >> 1) & 1, corner >> 2
        weight = (a if p else 1 - a) * (b if q else 1 - b) * (c if r else 1 - c)
        total += weight * _lattice(i + p, j + q, k + r)
    return total


@compiled
def _share(pattern, x, y, z):  # noqa: ANN001, ANN202
    """Return the share of the second colour at a place in units of the period."""
    if pattern == CHECKS:
        return (np.floor(2 * x) + np.floor(2 * y) + np.floor(2 * z)) % 2.0
    if pattern == STRIPES:
        return np.floor(2 * (x + y + z)) % 2.0
    if pattern == DOTS:
        a, b, c = x % 1.0 - 0.5, y % 1.0 - 0.5, z % 1.0 - 0.5
        return 1.0 if a * a + b * b + c * c < 0.12 else 0.0
    return _cloud(2 * x, 2 * y, 2 * z)


@compiled
def _color(scene, s, p):  # noqa: ANN001, ANN202
    """Return the light that leaves solid ``s`` at a world point."""
    q = own_axes(scene.stage, s, p)
    face, _, _ = chart(scene.stage.kinds[s], size_of(scene.stage, s), q)
    period, offset = scene.periods[s, face], scene.offsets[s, face]
    share = _share(
        scene.patterns[s, face],
        q[0] / period + offset[0],
        q[1] / period + offset[1],
        q[2] / period + offset[2],
    )
    n = world_normal(scene.stage, s, p)
    x, y, z = scene.lamp[0] - p[0], scene.lamp[1] - p[1], scene.lamp[2] - p[2]
    facing = (n[0] * x + n[1] * y + n[2] * z) / np.sqrt(x * x + y * y + z * z)
    light = scene.ambient + (1 - scene.ambient) * max(facing, 0.0)
    first, second = scene.colors[s, face, 0], scene.colors[s, face, 1]
    return (
        light * ((1 - share) * first[0] + share * second[0]),
        light * ((1 - share) * first[1] + share * second[1]),
        light * ((1 - share) * first[2] + share * second[2]),
    )


@compiled
def _look(scene, c2w, K, height, width, side):  # noqa: ANN001, ANN202
    """Return linear light, and z-depth and solid at pixel centres."""
    image = np.zeros((height, width, 3), np.float32)
    depth = np.zeros((height, width), np.float32)
    index = np.full((height, width), -1, np.int64)
    o = (c2w[0, 3], c2w[1, 3], c2w[2, 3])
    for row in range(height):
        for column in range(width):
            red, green, blue = 0.0, 0.0, 0.0
            for k in range(side * side):
                x = column + (k % side + 0.5) / side
                y = row + (k // side + 0.5) / side
                d, _ = ray(c2w, K, x, y)
                t, s = first_hit(scene.stage, o, d)
                if s < 0:
                    continue
                r, g, b = _color(scene, s, (o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2]))
                red, green, blue = red + r, green + g, blue + b
            image[row, column, 0] = red / (side * side)
            image[row, column, 1] = green / (side * side)
            image[row, column, 2] = blue / (side * side)
            d, length = ray(c2w, K, column + 0.5, row + 0.5)
            t, s = first_hit(scene.stage, o, d)
            if s >= 0:
                depth[row, column], index[row, column] = t / length, s
    return image, depth, index


def look(
    scene: Set,
    c2w: Float64[ndarray, "4 4"],
    K: Float64[ndarray, "3 3"],
    height: int,
    width: int,
    supersampling: int = 2,
) -> tuple[
    Float[ndarray, "height width 3"],
    Float32[ndarray, "height width"],
    Int64[ndarray, "height width"],
]:
    """Return one camera's view in display colours, its z-depth, and the solid at each pixel.

    Depth is of the pixel's centre, and 0 with solid -1 where the ray meets nothing.
    """
    image, depth, index = _look(scene, c2w, K, height, width, supersampling)
    return encode(2 * image), depth, index


def free_sphere(scene: Set, center: Float64[ndarray, "3"], radius: float) -> bool:
    """Return whether a sphere touches no solid, as judged by the solids' bounding spheres."""
    solid = scene.stage.kinds != ROOM
    apart = np.linalg.norm(scene.stage.places[solid] - center, axis=1)
    return bool((apart > scene.stage.radii[solid] + radius).all())
