"""Surfaces with materials: tracing, baking of diffuse light, and pictures.

Light is baked once a chart texel: soft shadows from rectangular lamps, then diffuse bounces that
gather the light of what each texel sees. The light that leaves a surface is therefore the same in
every view, up to a small gloss that the eye expects of glazed things.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64
from numpy import ndarray

from sightline.datasets.raycast.shapes import Shape, chart, compiled, patch_points
from sightline.datasets.raycast.trace import (
    Stage,
    first_hit,
    own_axes,
    ray,
    size_of,
    world_normal,
)

Albedo = Callable[[int, ndarray, ndarray], ndarray]
"""``albedo(face, uv [M 2], points [M 3])`` with points in the surface's axes: linear RGB [M 3]."""

_LIFT = 2e-4
"""Rays leave this far above a surface, in metres."""
_STEP_U, _STEP_V = 0.7548776662466927, 0.5698402909980532
"""Steps of the R2 sequence (Roberts 2018), which fills the square evenly."""
_SHININESS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """A shape at a place, with a material."""

    name: str
    shape: Shape
    albedo: Albedo
    position: tuple[float, float, float]
    rotation: Float64[ndarray, "3 3"]
    """Own axes to world."""
    gloss: float = 0.0
    """Strength of the highlight of the first lamp."""
    detail: float = 1.0
    """Texels per length, relative to the scene's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lamp:
    """A rectangle that shines to the side of ``across x along``."""

    corner: tuple[float, float, float]
    across: tuple[float, float, float]
    along: tuple[float, float, float]
    power: tuple[float, float, float]
    """Radiance, linear RGB."""

    @property
    def packed(self) -> Float64[ndarray, "4 3"]:
        """Corner, sides and radiance for the compiled functions."""
        return np.array([self.corner, self.across, self.along, self.power])


@compiled
def _leaving(stage, s, p):  # noqa: ANN001, ANN202
    """Look up the light that leaves surface ``s`` at a world point, bilinearly."""
    face, u, v = chart(stage.kinds[s], size_of(stage, s), own_axes(stage, s, p))
    start, rows, columns = stage.maps[s, face, 0], stage.maps[s, face, 1], stage.maps[s, face, 2]
    x = min(max(u, 0.0), 1.0) * (columns - 2) + 0.5
    y = min(max(v, 0.0), 1.0) * (rows - 2) + 0.5
    column, row = min(int(x), columns - 2), min(int(y), rows - 2)
    x, y = x - column, y - row
    a = start + row * columns + column
    b = a + columns
    t = stage.texels
    red = (1 - y) * ((1 - x) * t[a, 0] + x * t[a + 1, 0]) + y * (
        (1 - x) * t[b, 0] + x * t[b + 1, 0]
    )
    green = (1 - y) * ((1 - x) * t[a, 1] + x * t[a + 1, 1]) + y * (
        (1 - x) * t[b, 1] + x * t[b + 1, 1]
    )
    blue = (1 - y) * ((1 - x) * t[a, 2] + x * t[a + 1, 2]) + y * (
        (1 - x) * t[b, 2] + x * t[b + 1, 2]
    )
    return red, green, blue, t[a, 3]


@compiled
def _direct(stage, points, normals, shifts, lamp, count):  # noqa: ANN001, ANN202
    """Return each texel's light from a lamp (irradiance over pi) and the lamp's seen share."""
    corner, across, along, power = lamp[0], lamp[1], lamp[2], lamp[3]
    facing = np.cross(across, along)
    area = math.sqrt(np.sum(facing * facing))
    light = np.zeros((len(points), 4))
    for i in range(len(points)):
        o = (points[i, 0], points[i, 1], points[i, 2])
        total, seen = 0.0, 0.0
        for k in range(count):
            u, v = (shifts[i, 0] + k * _STEP_U) % 1.0, (shifts[i, 1] + k * _STEP_V) % 1.0
            x = corner[0] + u * across[0] + v * along[0] - o[0]
            y = corner[1] + u * across[1] + v * along[1] - o[1]
            z = corner[2] + u * across[2] + v * along[2] - o[2]
            r = math.sqrt(x * x + y * y + z * z)
            cosine = (normals[i, 0] * x + normals[i, 1] * y + normals[i, 2] * z) / r
            leaving = -(facing[0] * x + facing[1] * y + facing[2] * z) / (r * area)
            if cosine > 0 and leaving > 0:
                t, _ = first_hit(stage, o, (x / r, y / r, z / r))
                if t > r - 0.01:
                    total += cosine * leaving / (r * r)
                    seen += 1.0
        for c in range(3):
            light[i, c] = total * area / (math.pi * count) * power[c]
        light[i, 3] = seen / count
    return light


@compiled
def _gather(stage, points, normals, shifts, count):  # noqa: ANN001, ANN202
    """Return the mean light that reaches each texel, weighted by the cosine."""
    light = np.zeros((len(points), 3))
    for i in range(len(points)):
        n = normals[i]
        helper = np.zeros(3)
        helper[np.argmin(np.abs(n))] = 1.0
        across = np.cross(helper, n)
        across /= math.sqrt(np.sum(across * across))
        along = np.cross(n, across)
        o = (points[i, 0], points[i, 1], points[i, 2])
        for k in range(count):
            u, v = (shifts[i, 0] + k * _STEP_U) % 1.0, (shifts[i, 1] + k * _STEP_V) % 1.0
            r, h, angle = math.sqrt(u), math.sqrt(1 - u), 2 * math.pi * v
            a, b = r * math.cos(angle), r * math.sin(angle)
            d = (
                a * across[0] + b * along[0] + h * n[0],
                a * across[1] + b * along[1] + h * n[1],
                a * across[2] + b * along[2] + h * n[2],
            )
            t, s = first_hit(stage, o, d)
            if s >= 0:
                p = (o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2])
                red, green, blue, _ = _leaving(stage, s, p)
                light[i, 0] += red / count
                light[i, 1] += green / count
                light[i, 2] += blue / count
    return light


@compiled
def _gleam(stage, s, p, d, lamp):  # noqa: ANN001, ANN202
    """Return the Blinn-Phong highlight of a lamp's centre."""
    n = world_normal(stage, s, p)
    x = lamp[0, 0] + (lamp[1, 0] + lamp[2, 0]) / 2 - p[0]
    y = lamp[0, 1] + (lamp[1, 1] + lamp[2, 1]) / 2 - p[1]
    z = lamp[0, 2] + (lamp[1, 2] + lamp[2, 2]) / 2 - p[2]
    r = math.sqrt(x * x + y * y + z * z)
    x, y, z = x / r - d[0], y / r - d[1], z / r - d[2]
    cosine = (n[0] * x + n[1] * y + n[2] * z) / math.sqrt(x * x + y * y + z * z)
    return max(cosine, 0.0) ** _SHININESS * stage.gloss[s]


@compiled
def _picture(stage, c2w, K, height, width, side, lamp):  # noqa: ANN001, ANN202
    image = np.zeros((height, width, 3), np.float32)
    o = (c2w[0, 3], c2w[1, 3], c2w[2, 3])
    for row in range(height):
        for column in range(width):
            red, green, blue = 0.0, 0.0, 0.0
            for k in range(side * side):
                x = column + (k % side + 0.5) / side
                y = row + (k // side + 0.5) / side
                d, _ = ray(c2w, K, x, y)
                t, s = first_hit(stage, o, d)
                if s < 0:
                    continue
                p = (o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2])
                r, g, b, share = _leaving(stage, s, p)
                shine = 0.0
                if stage.gloss[s] > 0 and share > 0:
                    shine = share * _gleam(stage, s, p, d, lamp)
                red, green, blue = red + r + shine, green + g + shine, blue + b + shine
            image[row, column, 0] = red / (side * side)
            image[row, column, 1] = green / (side * side)
            image[row, column, 2] = blue / (side * side)
    return image


@compiled
def _maps(stage, c2w, K, height, width):  # noqa: ANN001, ANN202
    depth, index = np.empty((height, width)), np.empty((height, width), np.int64)
    points, normals = np.empty((height, width, 3)), np.zeros((height, width, 3))
    o = (c2w[0, 3], c2w[1, 3], c2w[2, 3])
    for row in range(height):
        for column in range(width):
            d, length = ray(c2w, K, column + 0.5, row + 0.5)
            t, s = first_hit(stage, o, d)
            p = (o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2])
            depth[row, column], index[row, column] = t / length, s
            if s >= 0:
                n = world_normal(stage, s, p)
                for i in range(3):
                    points[row, column, i] = p[i]
                    # Into camera axes: the columns of c2w are the camera's axes.
                    normals[row, column, i] = c2w[0, i] * n[0] + c2w[1, i] * n[1] + c2w[2, i] * n[2]
    return depth, points, normals, index


@compiled
def _sees(stage, center, points):  # noqa: ANN001, ANN202
    seen = np.zeros(len(points), np.bool_)
    o = (center[0], center[1], center[2])
    for i in range(len(points)):
        x, y, z = points[i, 0] - o[0], points[i, 1] - o[1], points[i, 2] - o[2]
        r = math.sqrt(x * x + y * y + z * z)
        t, _ = first_hit(stage, o, (x / r, y / r, z / r))
        seen[i] = t > r - 1e-5
    return seen


@compiled
def _light_at(stage, surfaces, points):  # noqa: ANN001, ANN202
    light = np.zeros((len(points), 3))
    for i in range(len(points)):
        p = (points[i, 0], points[i, 1], points[i, 2])
        light[i, 0], light[i, 1], light[i, 2], _ = _leaving(stage, surfaces[i], p)
    return light


def picture(
    stage: Stage,
    c2w: Float64[ndarray, "4 4"],
    K: Float64[ndarray, "3 3"],
    height: int,
    width: int,
    supersampling: int,
    lamp: Lamp,
) -> Float[ndarray, "height width 3"]:
    """Return one camera's view in display colours, ``supersampling`` squared rays a pixel."""
    return encode(_picture(stage, c2w, K, height, width, supersampling, lamp.packed))


def exact_maps(
    stage: Stage,
    c2w: Float64[ndarray, "4 4"],
    K: Float64[ndarray, "3 3"],
    height: int,
    width: int,
) -> tuple[
    Float64[ndarray, "height width"],
    Float64[ndarray, "height width 3"],
    Float64[ndarray, "height width 3"],
    Int64[ndarray, "height width"],
]:
    """Cast one ray through every pixel's centre.

    Returns:
        z-depth, world points, normals in camera axes, and the surface hit.
    """
    return _maps(stage, c2w, K, height, width)


def sees(
    stage: Stage, center: Float64[ndarray, "3"], points: Float64[ndarray, "M 3"]
) -> Bool[ndarray, " M"]:
    """Return which surface points nothing hides from ``center``."""
    return _sees(stage, center, points)


def colors_at(
    stage: Stage, surfaces: Int64[ndarray, " M"], points: Float64[ndarray, "M 3"]
) -> Float[ndarray, "M 3"]:
    """Return the display colours of surface points, without gloss."""
    return encode(_light_at(stage, surfaces, points))


def encode(light: Float[ndarray, "*batch 3"]) -> Float[ndarray, "*batch 3"]:
    """Turn linear light into display colours in [0, 1): a soft shoulder, then the sRGB curve."""
    linear = 1 - np.exp(-light)
    curved = 1.055 * np.maximum(linear, 1e-6) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, 12.92 * linear, curved).astype(light.dtype)


def _grid(rows: int, columns: int, fine: int = 1) -> Float64[ndarray, "M 2"]:
    """Return (u, v) of bordered texels, ``fine`` x ``fine`` samples in each, row by row."""
    v = ((np.arange((rows + 2) * fine) + 0.5) / fine - 1) / rows
    u = ((np.arange((columns + 2) * fine) + 0.5) / fine - 1) / columns
    return np.stack(np.meshgrid(u, v), -1).reshape(-1, 2)


def _resolution(shape: Shape, face: int, texel: float, most: int) -> tuple[int, int]:
    """Return rows and columns of a face's map, without its border."""
    u, v = shape.extent(face)
    return tuple(min(max(math.ceil(s / texel), 2), most) for s in (v, u))  # pyright: ignore[reportReturnType]


def _bake_albedo(surface: Surface, face: int, texel: float) -> Float32[ndarray, "rows columns 3"]:
    """Average 2 x 2 samples of the material in each texel."""
    rows, columns = _resolution(surface.shape, face, texel / surface.detail, 1024)
    uv = _grid(rows, columns, fine=2)
    points, _ = patch_points(surface.shape, face, uv)
    color = surface.albedo(face, uv, points).reshape(rows + 2, 2, columns + 2, 2, 3)
    return color.mean((1, 3)).astype(np.float32)


class _Patch(NamedTuple):
    """The light map of one face: texels that know where they are."""

    rows: int
    columns: int
    points: Float64[ndarray, "M 3"]
    normals: Float64[ndarray, "M 3"]
    shifts: Float64[ndarray, "M 2"]
    """Random numbers that decorrelate the texels' sample patterns."""


def _patch(surface: Surface, face: int, texel: float, rng: np.random.Generator) -> _Patch:
    # Coarse surfaces are far ones: their light is soft in the pictures, too.
    rows, columns = _resolution(surface.shape, face, texel / surface.detail**2, 128)
    uv = _grid(rows, columns)
    # Texels outside a face take the light of its rim.
    points, normals = patch_points(surface.shape, face, uv, 0.25 / max(rows, columns))
    points, normals = points @ surface.rotation.T, normals @ surface.rotation.T
    points = points + surface.position + _LIFT * normals
    return _Patch(rows, columns, points, normals, rng.random((len(uv), 2)))


def _smooth(light: ndarray, patch: _Patch) -> Float64[ndarray, "rows columns C"]:
    """Blur a light map by a 3 x 3 binomial filter: the noise of sampling, not the shadows."""
    image = light.reshape(patch.rows + 2, patch.columns + 2, -1)
    for axis in (0, 1):
        padded = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        size = image.shape[axis]
        before, at, after = (padded.take(range(i, i + size), axis) for i in range(3))
        image = 0.25 * before + 0.5 * at + 0.25 * after
    return image


def _enlarge(image: ndarray, rows: int, columns: int) -> Float64[ndarray, "rows columns C"]:
    """Resample a bordered light map bilinearly to a bordered map of other resolution."""
    for axis, size in ((0, rows), (1, columns)):
        coarse = image.shape[axis] - 2
        at = np.clip((np.arange(size + 2) - 0.5) / size, 0, 1) * coarse + 0.5
        low = np.minimum(at.astype(int), coarse)
        share = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        image = (1 - share) * image.take(low, axis) + share * image.take(low + 1, axis)
    return image


def bake(
    surfaces: Sequence[Surface],
    lamps: Sequence[Lamp],
    *,
    texel: float,
    ambient: float = 0.0,
    bounces: int = 2,
    samples: int = 48,
    seed: int = 0,
    threads: int = 1,
) -> Stage:
    """Compute the light that leaves every surface.

    Args:
        surfaces: Everything in the scene.
        lamps: The first one also makes highlights.
        texel: Side of a colour texel in metres; light texels are four times as large.
        ambient: Light added everywhere, in place of bounces.
        bounces: Rounds of diffuse light between surfaces.
        samples: Rays a texel, per lamp and per bounce.
        seed: Of the sample patterns.
        threads: Used at once; the result does not depend on it.
    """
    rng = np.random.default_rng(seed)
    faces = [(s, f) for s, surface in enumerate(surfaces) for f in range(surface.shape.faces)]
    colors = [_bake_albedo(surfaces[s], f, texel) for s, f in faces]
    patches = [_patch(surfaces[s], f, 4 * texel, rng) for s, f in faces]
    maps = np.zeros((len(surfaces), 6, 3), np.int64)
    start = 0
    for (s, f), color in zip(faces, colors, strict=True):
        maps[s, f] = start, color.shape[0], color.shape[1]
        start += color.shape[0] * color.shape[1]

    def stage(light: list[ndarray]) -> Stage:
        texels = np.empty((start, 4), np.float32)
        for (s, f), color, values in zip(faces, colors, light, strict=True):
            fine = _enlarge(values, color.shape[0] - 2, color.shape[1] - 2)
            fine[..., :3] *= color
            first = maps[s, f, 0]
            texels[first : first + fine.shape[0] * fine.shape[1]] = fine.reshape(-1, 4)
        return Stage(
            kinds=np.array([s.shape.kind for s in surfaces]),
            sizes=np.array([s.shape.size for s in surfaces]),
            turns=np.stack([s.rotation for s in surfaces]),
            places=np.array([s.position for s in surfaces]),
            radii=np.array([s.shape.radius for s in surfaces]),
            gloss=np.array([s.gloss for s in surfaces]),
            maps=maps,
            texels=texels,
        )

    dark = stage([np.zeros((p.rows + 2, p.columns + 2, 4)) for p in patches])

    def lit(patch: _Patch) -> ndarray:
        parts = [
            _direct(dark, patch.points, patch.normals, patch.shifts, lamp.packed, samples)
            for lamp in lamps
        ]
        total = np.sum(parts, axis=0)
        total[:, :3] += ambient
        total[:, 3] = parts[0][:, 3]
        return _smooth(total, patch)

    with ThreadPoolExecutor(threads) as pool:
        light = direct = list(pool.map(lit, patches))
        for _ in range(bounces):
            current = stage(light)

            def bounced(patch: _Patch, first: ndarray, source: Stage = current) -> ndarray:
                more = _gather(source, patch.points, patch.normals, patch.shifts, samples)
                return first + np.pad(_smooth(more, patch), ((0, 0), (0, 0), (0, 1)))

            light = list(pool.map(bounced, patches, direct))
    return stage(light)
