"""Closed-form shapes about their own origin: hits, normals and charts, compiled by numba.

A chart covers a shape by rectangular faces with coordinates u, v in [0, 1]; colour and light live
on it. The compiled functions work on one ray or point, as tuples of three numbers in the shape's
own axes; directions are unit vectors.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from jaxtyping import Float64

BOX, ROOM, ELLIPSOID, CYLINDER, TORUS = range(5)
NEAR = 1e-6
"""Hits closer than this do not count, in metres."""


def compiled(function: Callable[..., Any]) -> Any:  # noqa: ANN401
    """Compile a function for numba, without the wrapper that the tests' type checker adds."""
    compiler = numba.njit(cache=True, nogil=True, error_model="numpy")
    return compiler(inspect.unwrap(function))


@dataclass(frozen=True, slots=True)
class Shape:
    """One of five shapes; make it with ``box``, ``room``, ``ellipsoid``, ``cylinder``, ``torus``."""

    kind: int
    size: tuple[float, float, float]
    faces: int

    @property
    def radius(self) -> float:
        """Of a sphere about the origin that holds the shape."""
        x, y, z = self.size
        return (math.hypot(x, y, z), math.hypot(x, y, z), max(x, y, z), math.hypot(x, y), x + y)[
            self.kind
        ]

    def extent(self, face: int) -> tuple[float, float]:
        """Return the longest length along u and along v on a face."""
        x, y, z = self.size
        if self.kind in (BOX, ROOM):
            return ((2 * y, 2 * z), (2 * x, 2 * z), (2 * x, 2 * y))[face // 2]
        if self.kind == ELLIPSOID:
            return math.pi * (x + y), math.pi * (max(x, y) + z) / 2
        if self.kind == CYLINDER:
            return (2 * math.pi * x, 2 * y) if face == 0 else (2 * x, 2 * x)
        return 2 * math.pi * (x + y), 2 * math.pi * y


def box(x: float, y: float, z: float) -> Shape:
    """Return a box with these half sides. Faces: -x, +x, -y, +y, -z, +z."""
    return Shape(BOX, (x, y, z), 6)


def room(x: float, y: float, z: float) -> Shape:
    """Return a box that is seen from inside."""
    return Shape(ROOM, (x, y, z), 6)


def ellipsoid(x: float, y: float, z: float) -> Shape:
    """Return an ellipsoid with these half axes. One face: turn about z, angle from +z."""
    return Shape(ELLIPSOID, (x, y, z), 1)


def cylinder(radius: float, half_height: float) -> Shape:
    """Return a solid cylinder about z. Faces: side, top, bottom."""
    return Shape(CYLINDER, (radius, half_height, 0.0), 3)


def torus(ring: float, tube: float) -> Shape:
    """Return a ring about z. One face: turn about z, turn about the tube from the outside."""
    return Shape(TORUS, (ring, tube, 0.0), 1)


@compiled
def _enter(near, far):  # noqa: ANN001, ANN202
    return near if near < far and near > NEAR else np.inf


@compiled
def _torus_distance(ring, tube, x, y, z):  # noqa: ANN001, ANN202
    return math.hypot(math.hypot(x, y) - ring, z) - tube


@compiled
def _hit_torus(ring, tube, o, d):  # noqa: ANN001, ANN202
    """March by the exact distance, which cannot pass a hit, then polish by Newton's method."""
    middle = -(o[0] * d[0] + o[1] * d[1] + o[2] * d[2])
    miss = o[0] ** 2 + o[1] ** 2 + o[2] ** 2 - middle**2
    reach = (ring + tube) ** 2 - miss
    if reach <= 0.0:
        return np.inf
    reach = math.sqrt(reach)
    t, end = max(middle - reach, NEAR), middle + reach
    for _ in range(200):
        rest = _torus_distance(ring, tube, o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2])
        if rest < 1e-7:
            break
        t += rest
        if t >= end:
            return np.inf
    for _ in range(3):
        x, y, z = o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2]
        n = normal(TORUS, (ring, tube, 0.0), 0, (x, y, z))
        slope = n[0] * d[0] + n[1] * d[1] + n[2] * d[2]
        if slope < -1e-3:
            t -= _torus_distance(ring, tube, x, y, z) / slope
    return t if t > 2 * NEAR else np.inf


@compiled
def hit(kind, size, o, d):  # noqa: ANN001, ANN201
    """Return the distance of a ray's first hit, infinite where there is none."""
    if kind in (BOX, ROOM):
        near, far = -np.inf, np.inf
        for i in range(3):
            a, b = (-size[i] - o[i]) / d[i], (size[i] - o[i]) / d[i]
            near, far = max(near, min(a, b)), min(far, max(a, b))
        if kind == ROOM:
            return far if far > NEAR else np.inf
        return _enter(near, far)
    if kind == ELLIPSOID:
        ox, oy, oz = o[0] / size[0], o[1] / size[1], o[2] / size[2]
        dx, dy, dz = d[0] / size[0], d[1] / size[1], d[2] / size[2]
        square = dx * dx + dy * dy + dz * dz
        middle = -(ox * dx + oy * dy + oz * dz) / square
        inside = 1 - (ox + middle * dx) ** 2 - (oy + middle * dy) ** 2 - (oz + middle * dz) ** 2
        if inside <= 0.0:
            return np.inf
        reach = math.sqrt(inside / square)
        return _enter(middle - reach, middle + reach)
    if kind == CYLINDER:
        square = max(d[0] ** 2 + d[1] ** 2, 1e-300)
        middle = -(o[0] * d[0] + o[1] * d[1]) / square
        inside = size[0] ** 2 - (o[0] + middle * d[0]) ** 2 - (o[1] + middle * d[1]) ** 2
        if inside <= 0.0:
            return np.inf
        reach = math.sqrt(inside / square)
        a, b = (-size[1] - o[2]) / d[2], (size[1] - o[2]) / d[2]
        return _enter(max(middle - reach, min(a, b)), min(middle + reach, max(a, b)))
    return _hit_torus(size[0], size[1], o, d)


@compiled
def chart(kind, size, p):  # noqa: ANN001, ANN201
    """Return the face of a surface point and its place (u, v) there."""
    x, y, z = p
    turn = math.atan2(y, x) / (2 * math.pi) % 1.0
    if kind in (BOX, ROOM):
        a, b, c = x / size[0], y / size[1], z / size[2]
        if abs(a) >= abs(b) and abs(a) >= abs(c):
            return int(a > 0), (b + 1) / 2, (c + 1) / 2
        if abs(b) >= abs(c):
            return 2 + int(b > 0), (a + 1) / 2, (c + 1) / 2
        return 4 + int(c > 0), (a + 1) / 2, (b + 1) / 2
    if kind == ELLIPSOID:
        a, b, c = x / size[0], y / size[1], z / size[2]
        return 0, math.atan2(b, a) / (2 * math.pi) % 1.0, math.atan2(math.hypot(a, b), c) / math.pi
    if kind == CYLINDER:
        # On a cap when nearer to its plane than to the side.
        if size[1] - abs(z) < size[0] - math.hypot(x, y):
            return (1 if z > 0 else 2), (x / size[0] + 1) / 2, (y / size[0] + 1) / 2
        return 0, turn, (z / size[1] + 1) / 2
    return 0, turn, math.atan2(z, math.hypot(x, y) - size[0]) / (2 * math.pi) % 1.0


@compiled
def point(kind, size, face, u, v):  # noqa: ANN001, ANN201
    """Return the surface point at a place of the chart: the inverse of ``chart``."""
    a, b = 2 * u - 1, 2 * v - 1
    if kind in (BOX, ROOM):
        side = 2.0 * (face % 2) - 1.0
        if face < 2:
            return side * size[0], a * size[1], b * size[2]
        if face < 4:
            return a * size[0], side * size[1], b * size[2]
        return a * size[0], b * size[1], side * size[2]
    cos, sin = math.cos(2 * math.pi * u), math.sin(2 * math.pi * u)
    if kind == ELLIPSOID:
        r, h = math.sin(math.pi * v), math.cos(math.pi * v)
        return size[0] * r * cos, size[1] * r * sin, size[2] * h
    if kind == CYLINDER:
        if face == 0:
            return size[0] * cos, size[0] * sin, b * size[1]
        return a * size[0], b * size[0], size[1] if face == 1 else -size[1]
    r = size[0] + size[1] * math.cos(2 * math.pi * v)
    return r * cos, r * sin, size[1] * math.sin(2 * math.pi * v)


@compiled
def normal(kind, size, face, p):  # noqa: ANN001, ANN201
    """Return the unit normal of a surface point, towards the side that is seen."""
    x, y, z = p
    if kind in (BOX, ROOM):
        side = (2.0 * (face % 2) - 1.0) * (1.0 if kind == BOX else -1.0)
        x, y, z = 0.0, 0.0, 0.0
        if face < 2:
            x = side
        elif face < 4:
            y = side
        else:
            z = side
        return x, y, z
    if kind == ELLIPSOID:
        x, y, z = x / size[0] ** 2, y / size[1] ** 2, z / size[2] ** 2
    elif kind == CYLINDER:
        if face > 0:
            return 0.0, 0.0, 1.0 if face == 1 else -1.0
        z = 0.0
    else:
        out = 1 - size[0] / max(math.hypot(x, y), 1e-300)
        x, y = x * out, y * out
    length = max(math.sqrt(x * x + y * y + z * z), 1e-300)
    return x / length, y / length, z / length


@compiled
def _patch_points(kind, size, face, uv, margin):  # noqa: ANN001, ANN202
    points, normals = np.empty((len(uv), 3)), np.empty((len(uv), 3))
    for i in range(len(uv)):
        u, v = uv[i, 0], uv[i, 1]
        if kind == CYLINDER and face > 0:
            length = math.hypot(2 * u - 1, 2 * v - 1)
            if length > 1 - 2 * margin:
                shrink = (1 - 2 * margin) / length
                u, v = ((2 * u - 1) * shrink + 1) / 2, ((2 * v - 1) * shrink + 1) / 2
        elif margin > 0:
            u, v = min(max(u, margin), 1 - margin), min(max(v, margin), 1 - margin)
        p = point(kind, size, face, u, v)
        n = normal(kind, size, face, p)
        points[i, 0], points[i, 1], points[i, 2] = p
        normals[i, 0], normals[i, 1], normals[i, 2] = n
    return points, normals


def patch_points(
    shape: Shape, face: int, uv: Float64[np.ndarray, "M 2"], margin: float = 0.0
) -> tuple[Float64[np.ndarray, "M 3"], Float64[np.ndarray, "M 3"]]:
    """Return points and normals at chart places, kept ``margin`` off the face's rim.

    Args:
        shape: The shape.
        face: One of its faces.
        uv: Places; a little outside [0, 1] is allowed, where it continues the surface.
        margin: As a fraction of the face; 0 keeps places as they are.
    """
    return _patch_points(shape.kind, shape.size, face, uv, margin)
