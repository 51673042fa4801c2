"""Procedural materials: functions of chart place and position that return linear RGB.

Each maker returns an ``Albedo``. Detail spans several octaves, so that the pictures look alive and
feature detectors find corners at every scale.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sightline.datasets.raycast.light import Albedo
from sightline.datasets.raycast.shapes import compiled

_LATTICE = np.random.default_rng(20).random((32, 32, 32))
Color = Float[ndarray, "3"] | Float[ndarray, "M 3"]


@compiled
def _octaves(lattice, points, octaves):  # noqa: ANN001, ANN202
    values = np.empty(len(points))
    for i in range(len(points)):
        total, weight = 0.0, 0.0
        for k in range(octaves):
            f, share = 2.0**k, 0.5**k
            x, y, z = (points[i, 0] * f + 7.3 * k), (points[i, 1] * f + 3.1 * k), points[i, 2] * f
            a, b, c = math.floor(x), math.floor(y), math.floor(z)
            u, v, w = x - a, y - b, z - c
            u, v, w = u * u * (3 - 2 * u), v * v * (3 - 2 * v), w * w * (3 - 2 * w)
            a0, b0, c0 = int(a) & 31, int(b) & 31, int(c) & 31
            a1, b1, c1 = (a0 + 1) & 31, (b0 + 1) & 31, (c0 + 1) & 31
            low = (1 - v) * ((1 - u) * lattice[c0, b0, a0] + u * lattice[c0, b0, a1]) + v * (
                (1 - u) * lattice[c0, b1, a0] + u * lattice[c0, b1, a1]
            )
            high = (1 - v) * ((1 - u) * lattice[c1, b0, a0] + u * lattice[c1, b0, a1]) + v * (
                (1 - u) * lattice[c1, b1, a0] + u * lattice[c1, b1, a1]
            )
            total += share * ((1 - w) * low + w * high)
            weight += share
        values[i] = total / weight
    return values


def fractal(points: Float[ndarray, "M 3"], octaves: int = 4) -> Float[ndarray, " M"]:
    """Sum octaves of smooth value noise, each half as large and half as strong; in [0, 1]."""
    return _octaves(_LATTICE, np.ascontiguousarray(points, np.float64), octaves)


def rgb(code: str) -> Float[ndarray, "3"]:
    """Turn an sRGB code such as ``c0ffee`` into linear light."""
    value = np.array([int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def blend(a: Color, b: Color, share: Float[ndarray, " M"]) -> Float[ndarray, "M 3"]:
    """Mix from ``a`` at 0 to ``b`` at 1."""
    return a + (b - a) * np.clip(share, 0, 1)[:, None]


def step(value: Float[ndarray, " M"], edge: float, width: float) -> Float[ndarray, " M"]:
    """Rise from 0 to 1 within ``width`` around ``edge``."""
    return np.clip((value - edge) / width + 0.5, 0, 1)


def _hash(*keys: ndarray | float) -> ndarray:
    """Return repeatable random numbers in [0, 1) of whole-valued keys."""
    mixed = sum(k * f for k, f in zip(keys, (127.1, 311.7, 74.7), strict=False))
    return np.abs(np.sin(mixed) * 43758.5453) % 1.0


def _pick(colors: Sequence[str], value: ndarray) -> Float[ndarray, "M 3"]:
    table = np.stack([rgb(c) for c in colors])
    return table[np.clip((value * len(colors)).astype(int), 0, len(colors) - 1)]


def _tile(value: ndarray) -> ndarray:
    """Return the distance from the centre of the unit cell, in [0, 0.5]."""
    return np.abs(value % 1.0 - 0.5)


def planks(tones: Sequence[str], width: float, length: float) -> Albedo:
    """Return wooden boards along y: grain, year lines, and dark joints."""

    def albedo(face: int, uv: ndarray, points: ndarray) -> ndarray:
        a, b = points[:, 0], points[:, 1]
        board = np.floor(a / width)
        b = b + length * _hash(board)
        number = _hash(board, np.floor(b / length))
        warp = np.stack([a * 9 + 40 * number, b * 1.2, number * 30], -1)
        grain = fractal(warp * [4.0, 1.5, 1.0], 4)
        lines = _tile(fractal(warp, 1) * 9 + a * 12)
        joint = np.minimum((0.5 - _tile(a / width)) * width, (0.5 - _tile(b / length)) * length)
        shade = (0.74 + 0.4 * grain + 0.16 * lines) * (0.3 + 0.7 * step(joint, 0.004, 0.006))
        return _pick(tones, number) * shade[:, None]

    return albedo


def rings(tones: tuple[str, str]) -> Albedo:
    """Return a slab of wood with year rings about an axis outside it."""

    def albedo(face: int, uv: ndarray, points: ndarray) -> ndarray:
        bent = points + 0.12 * np.stack([fractal(points * 2.3 + 9 * i, 2) for i in range(3)], -1)
        ring = np.hypot(bent[:, 0] + 0.9, 0.35 * bent[:, 1]) * 16 % 1.0
        line = ring**3 * (1 - step(ring, 0.93, 0.1))
        fibre = fractal(points * [60.0, 9.0, 60.0], 3)
        color = blend(rgb(tones[0]), rgb(tones[1]), 0.65 * line + 0.7 * (fibre - 0.35))
        return color * (0.85 + 0.3 * fractal(points * 3, 3))[:, None]

    return albedo


def rug(tones: Sequence[str], radius: float) -> Albedo:
    """Return woven circles with toothed borders."""

    def albedo(face: int, uv: ndarray, points: ndarray) -> ndarray:
        r = np.hypot(points[:, 0], points[:, 1]) / radius
        turn = np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi)
        band = np.floor((r + _tile(turn * 28) * 0.16 * (1 - 0.4 * r)) * 6.5)
        weave = np.sin(points[:, 0] * 380) * np.sin(points[:, 1] * 380)
        wool = 0.72 + 0.08 * weave + 0.5 * fractal(points * 30, 3)
        return _pick(tones, _hash(band + 3)) * wool[:, None]

    return albedo


def plaster(color: str) -> Albedo:
    """Return a plain, slightly uneven paint."""

    def albedo(face: int, uv: ndarray, points: ndarray) -> ndarray:
        return rgb(color) * (0.85 + 0.3 * fractal(points * 4, 4))[:, None]

    return albedo


def papered_wall(ground: str, motif: str, panel: str, paintings: float) -> Albedo:
    """Return walls with panels below z = 0, leaf paper above, and paintings at the given height."""

    def albedo(face: int, uv: ndarray, points: ndarray) -> ndarray:
        along, height = points[:, 1 if face < 2 else 0], points[:, 2]
        flat = np.stack([along, height, np.full_like(along, 3.1 * face)], -1)
        # Leaves: lens shapes in a grid whose odd columns are shifted by half a cell.
        u = along / 0.34
        w = height / 0.42 + 0.5 * (np.floor(u) % 2)
        x, y = (u % 1.0 - 0.5) * 2, (w % 1.0 - 0.5) * 2
        leaf = step(0.62 * np.maximum(1 - y**2, 0) - np.abs(x), 0.0, 0.04)
        vein = step(-np.abs(x), -0.03, 0.02) + step(-((y * 7 + np.abs(x) * 4) % 1.0), -0.12, 0.1)
        paper = blend(rgb(ground), rgb(motif), leaf * (1 - 0.45 * vein))
        paper = paper * (0.8 + 0.4 * fractal(flat * 6, 4))[:, None]
        boards = 0.75 + 0.25 * step(_tile(along / 0.42), 0.03, 0.03)
        boards = boards * (0.85 + 0.3 * fractal(flat * [14.0, 2.0, 1.0], 4))
        color = np.where((height < 0)[:, None], rgb(panel) * boards[:, None], paper)
        color = blend(color, 1.2 * rgb(panel), step(-np.abs(height + 0.02), -0.03, 0.01))
        return _hang(color, face, along, height - paintings)

    return albedo


def _hang(color: ndarray, face: int, along: ndarray, y: ndarray) -> ndarray:
    """Paint framed pictures over a wall's colour, two a wall."""
    column = np.floor(along / 1.9)
    x = (along / 1.9 - column - 0.5) * 1.9
    number = _hash(column + 7, face + 1.0)
    half_u, half_v = 0.42 + 0.16 * number, 0.34 + 0.14 * (number * 7 % 1.0)
    rim = np.maximum(np.abs(x) / half_u, np.abs(y) / half_v)
    here = (rim < 1).nonzero()[0]
    x, y, rim, number = x[here], y[here], rim[here], number[here]
    p = np.stack([x * 2.2, y * 2.2, 50 * number], -1)
    field = fractal(p + 0.8 * fractal(p * 1.7, 3)[:, None], 5)
    tones = ("14213d", "1b4965", "5fa8d3", "f2c57c", "e76f51", "9b2226", "f1faee", "2a9d8f")
    strokes = 0.75 + 0.5 * ((field * 9 + number * 5) % 1.0)
    canvas = _pick(tones, (field * 2.3 + number) % 1.0) * strokes[:, None]
    canvas = np.where((rim < 0.76)[:, None], canvas, rgb("f4efe4"))
    wood = rgb("6b4423") * (0.6 + 0.8 * fractal(p * 9, 3))[:, None]
    color[here] = np.where((rim < 0.88)[:, None], canvas, wood)
    return color


def globe() -> Albedo:
    """Return a map of no planet: seas, land with mountains, and a grid of degrees."""

    def albedo(face: int, uv: ndarray, points: ndarray) -> ndarray:
        n = points / np.linalg.norm(points, axis=-1, keepdims=True)
        land = fractal(n * 1.9 + 4, 6)
        sea = blend(rgb("0b3c5d"), rgb("328cc1"), (land - 0.25) * 4)
        ground = blend(rgb("7a9e3f"), rgb("e0c58f"), (land - 0.52) * 6)
        ground = blend(ground, rgb("7d5a3c"), (land - 0.62) * 8 + fractal(n * 14, 3) - 0.6)
        color = np.where((land > 0.515)[:, None], ground, sea)
        color = blend(color, rgb("fff3d6"), 0.7 * step(-np.abs(land - 0.515), -0.006, 0.006))
        meridian = (0.5 - _tile(uv[:, 0] * 18)) * np.hypot(n[:, 0], n[:, 1])
        lines = np.minimum(meridian, 0.5 - _tile(uv[:, 1] * 9))
        return blend(color, rgb("f7ead0"), 0.55 * step(-lines, -0.03, 0.02))

    return albedo


def glazed_ring(dough: str, glaze: str, sprinkles: Sequence[str]) -> Albedo:
    """Return a doughnut: glaze with a wavy rim on the upper side, strewn with sprinkles."""

    def albedo(face: int, uv: ndarray, points: ndarray) -> ndarray:
        ring = blend(rgb(dough), rgb("f3c98b"), (fractal(points * 9, 3) - 0.3) * 1.6)
        ring = ring * (0.75 + 0.5 * fractal(points * 40, 4))[:, None]
        wave = 0.035 * np.sin(uv[:, 0] * 2 * np.pi * 9) + 0.03 * fractal(points * 25, 1)
        top = 0.5 - _tile(uv[:, 1] - 0.25) + wave
        color = blend(ring, rgb(glaze), step(-top, -0.235, 0.02))
        u, v = uv[:, 0] * 44, uv[:, 1] * 22
        a, b = np.floor(u), np.floor(v)
        turn = 2 * np.pi * _hash(a, b)
        x = u - a - 0.5 + 0.3 * (_hash(a + 31, b) - 0.5)
        y = v - b - 0.5 + 0.3 * (_hash(a, b + 17) - 0.5)
        along = np.abs(x * np.cos(turn) + y * np.sin(turn)) - 0.24
        off = np.hypot(np.maximum(along, 0), x * np.sin(turn) - y * np.cos(turn))
        here = step(-off, -0.13, 0.05) * (_hash(a + 5, b + 3) > 0.35) * (top < 0.2)
        return blend(color, _pick(sprinkles, _hash(a + 2, b + 11)), here)

    return albedo


def striped_egg(tones: Sequence[str]) -> Albedo:
    """Return bands around an egg: dotted, zigzag and plain in turn."""

    def albedo(face: int, uv: ndarray, points: ndarray) -> ndarray:
        height = uv[:, 1] * 11
        zigzag = 0.7 * (_tile(uv[:, 0] * 16) - 0.25) * (np.floor(height) % 3 == 1)
        band = np.floor(height + zigzag)
        x = (uv[:, 0] * 20 + 0.5 * (band % 2)) % 1.0 - 0.5
        dot = np.hypot(x, ((height + zigzag) % 1.0 - 0.5) * 0.8)
        color = _pick(tones, _hash(band + 2))
        color = blend(color, rgb("fffaf0"), step(-dot, -0.24, 0.05) * (band % 3 == 0))
        return color * (0.85 + 0.3 * fractal(points * 60, 3))[:, None]

    return albedo


def toy_block(ground: str, ink: str, seed: int) -> Albedo:
    """Return a wooden block with a frame and another sign on every face."""

    def sign(number: int, x: ndarray, y: ndarray) -> ndarray:
        r, square = np.hypot(x, y), np.maximum(np.abs(x), np.abs(y))
        if number == 0:  # star
            return 0.45 + 0.14 * np.cos(5 * np.arctan2(y, x)) - r
        if number == 1:  # cross
            return np.minimum(0.5 - square, 0.16 - np.minimum(np.abs(x), np.abs(y)))
        if number == 2:  # ring
            return 0.13 - np.abs(r - 0.4)
        if number == 3:  # stripes
            return np.minimum(0.52 - square, 0.3 - (x + y) % 0.6)
        if number == 4:  # house
            return np.minimum(np.minimum(0.42 - np.abs(x), 0.55 - y - np.abs(x)), y + 0.45)
        return np.minimum(0.5 - square, np.sin(9 * x) * np.sin(9 * y))  # chequers

    def albedo(face: int, uv: ndarray, points: ndarray) -> ndarray:
        x, y = 2 * uv[:, 0] - 1, 2 * uv[:, 1] - 1
        square = np.maximum(np.abs(x), np.abs(y))
        frame = np.minimum(square - 0.72, 0.86 - square)
        inked = np.maximum(step(sign((face + seed) % 6, x, y), 0.0, 0.04), step(frame, 0.0, 0.04))
        grain = fractal(points * [30.0, 30.0, 140.0], 4)
        wood = rgb(ground) * (0.75 + 0.5 * grain)[:, None]
        return blend(wood, rgb(ink) * (0.85 + 0.3 * grain)[:, None], inked)

    return albedo


def book(cover: str, ink: str) -> Albedo:
    """Return a closed book: cloth with a title, and paper on three edges."""

    def albedo(face: int, uv: ndarray, points: ndarray) -> ndarray:
        if face in (1, 2, 3):
            sheets = 0.65 + 0.45 * fractal(points * [4.0, 4.0, 900.0], 1)
            return rgb("efe6d0") * sheets[:, None]
        cloth = rgb(cover) * (0.7 + 0.6 * fractal(points * 150, 2))[:, None]
        border = np.minimum(uv, 1 - uv).min(-1)
        row = uv[:, 1] * 12
        title = (_hash(np.floor(uv[:, 0] * 26), np.floor(row)) > 0.35) & (row % 1.0 > 0.35)
        title &= (np.abs(uv[:, 1] - 0.55) < 0.16) & (border > 0.15)
        return blend(
            cloth, rgb(ink), np.maximum(step(-np.abs(border - 0.07), -0.012, 0.006), title)
        )

    return albedo


def marble(ground: str, vein: str, scale: float) -> Albedo:
    """Return stone with warped veins."""

    def albedo(face: int, uv: ndarray, points: ndarray) -> ndarray:
        p = points / scale
        bent = p + 1.3 * np.stack([fractal(p + 3 * i, 4) for i in range(3)], -1)
        line = (1 - np.abs(np.sin(bent.sum(-1) * 5))) ** 5
        stone = rgb(ground) * (0.7 + 0.5 * fractal(p * 2 + 9, 4))[:, None]
        return blend(stone, rgb(vein), line)

    return albedo


def label_tin(metal: str, label: str, ink: str) -> Albedo:
    """Return a tin with a printed label: a row of suns, and fine print between two lines."""

    def albedo(face: int, uv: ndarray, points: ndarray) -> ndarray:
        ribs = 0.8 + 0.2 * np.sin(np.hypot(points[:, 0], points[:, 1]) * 420)
        tin = rgb(metal) * (ribs * (0.8 + 0.3 * fractal(points * 50, 3)))[:, None]
        if face > 0:
            return tin
        v = uv[:, 1]
        x, y = uv[:, 0] * 5 % 1.0 - 0.5, (v - 0.56) * 1.9
        r, turn = np.hypot(x, y), np.arctan2(y, x)
        sun = np.maximum(0.2 - r, np.minimum(0.4 - r, np.cos(12 * turn) * 0.1 - 0.02))
        lines = step(-np.abs(np.abs(v - 0.2) - 0.05), -0.012, 0.006)
        text = _hash(np.floor(uv[:, 0] * 70), np.floor(v * 34)) > 0.45
        text &= np.abs(v - 0.2) < 0.03
        paper = blend(rgb(label), rgb(ink), step(sun, 0.0, 0.02))
        paper = blend(paper, rgb("fdf6e3"), np.maximum(lines, text))
        return np.where((np.abs(v - 0.5) < 0.42)[:, None], paper, tin)

    return albedo
