import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.datasets.raycast.light import Lamp, Surface, bake, colors_at, encode, sees
from sightline.datasets.raycast.shapes import (
    box,
    chart,
    cylinder,
    ellipsoid,
    hit,
    normal,
    patch_points,
    room,
    torus,
)

SHAPES = {
    "box": box(0.5, 0.7, 0.3),
    "room": room(3.0, 2.0, 1.5),
    "ellipsoid": ellipsoid(0.4, 0.6, 0.5),
    "cylinder": cylinder(0.5, 0.8),
    "torus": torus(0.7, 0.25),
}
seeds = st.integers(0, 2**31)


def implicit(shape, p):
    """Zero on the surface, positive outside; first order a distance."""
    x, y, _ = shape.size
    if shape.faces == 6:
        return np.max(np.abs(p) - np.array(shape.size))
    if shape is SHAPES["ellipsoid"]:
        return np.linalg.norm(p / np.array(shape.size)) - 1
    if shape.faces == 3:
        return max(np.hypot(p[0], p[1]) - x, abs(p[2]) - y)
    return np.hypot(np.hypot(p[0], p[1]) - x, p[2]) - y


@pytest.mark.parametrize("name", SHAPES)
@given(seed=seeds)
def test_hits_are_first_and_exact(name, seed):
    shape = SHAPES[name]
    rng = np.random.default_rng(seed)
    origin = rng.normal(size=3)
    origin *= 0.2 if name == "room" else 2.5 / np.linalg.norm(origin)
    direction = 0.5 * rng.normal(size=3) - origin
    direction /= np.linalg.norm(direction)
    t = hit(shape.kind, shape.size, tuple(origin), tuple(direction))
    inside = -1 if name == "room" else 1
    walked = np.linspace(1e-4, min(t, 5.0) - 1e-3, 500)
    before = [inside * implicit(shape, origin + w * direction) for w in walked]
    assert min(before) > -1e-9
    if math.isfinite(t):
        p = origin + t * direction
        assert abs(implicit(shape, p)) < 1e-9
        face, u, v = chart(shape.kind, shape.size, tuple(p))
        n = np.array(normal(shape.kind, shape.size, face, tuple(p)))
        assert n @ direction < 1e-6
        again, _ = patch_points(shape, face, np.array([[u, v]]))
        np.testing.assert_allclose(again[0], p, atol=1e-9)


@pytest.mark.parametrize("name", SHAPES)
def test_charts_cover_the_surface_with_its_normals(name):
    shape = SHAPES[name]
    uv = np.random.default_rng(0).uniform(0.02, 0.98, (50, 2))
    for face in range(shape.faces):
        points, normals = patch_points(shape, face, uv, margin=0.1)
        for p, n in zip(points, normals, strict=True):
            assert abs(implicit(shape, p)) < 1e-12
            assert np.linalg.norm(n) == pytest.approx(1)
            gradient = [
                (implicit(shape, p + e) - implicit(shape, p - e)) / 2e-6 for e in 1e-6 * np.eye(3)
            ]
            side = -1 if name == "room" else 1
            np.testing.assert_allclose(
                side * np.array(gradient) / np.linalg.norm(gradient), n, atol=1e-4
            )
        longest = shape.extent(face)
        u_line, _ = patch_points(shape, face, np.stack([uv[:, 0].copy(), np.full(50, 0.5)], -1))
        steps = np.linalg.norm(np.diff(u_line[np.argsort(uv[:, 0])], axis=0), axis=-1)
        assert steps.sum() <= longest[0] * (1 + 1e-9)


def white(face, uv, points):
    return np.ones((len(points), 3))


def surface(name, shape, position, **options):
    return Surface(
        name=name, shape=shape, albedo=white, position=position, rotation=np.eye(3), **options
    )


LAMP = Lamp(
    corner=(-0.1, -0.1, 2.0), across=(0.0, 0.2, 0.0), along=(0.2, 0.0, 0.0), power=(5.0, 5.0, 5.0)
)


def test_direct_light_matches_the_closed_form_and_shadows_are_dark():
    ball = surface("ball", ellipsoid(0.3, 0.3, 0.3), (0.6, 0.0, 1.0))
    floor = surface("floor", box(2.0, 2.0, 0.1), (0.0, 0.0, -0.1))
    stage = bake([floor, ball], [LAMP], texel=0.05, bounces=0, samples=64)
    points = np.array([[0.0, 0.0, 0.0], [0.0, -1.0, 0.0], [1.2, 0.0, 0.0]])
    seen = colors_at(stage, np.zeros(3, np.int64), points)[:, 0]
    # A small lamp facing down: radiance * area * cos^2 / (pi r^2).
    for value, point in zip(seen[:2], points[:2], strict=True):
        r2 = 4 + point @ point
        light = 5 * 0.04 * (4 / r2) / (math.pi * r2)
        assert value == pytest.approx(float(encode(np.full((1, 3), light))[0, 0]), rel=0.03)
    assert seen[2] < 0.005
    assert sees(stage, np.array([0.0, 0.0, 2.0]), points).tolist() == [True, True, False]


def test_bounces_brighten_the_shadow_and_threads_do_not_matter():
    things = [
        surface("room", room(1.5, 1.5, 1.25), (0.0, 0.0, 1.0)),
        surface("ball", ellipsoid(0.3, 0.3, 0.3), (0.0, 0.0, 1.0)),
    ]
    point = np.array([[0.0, 0.0, -0.25]])
    light = []
    for bounces, threads in ((0, 1), (1, 1), (2, 1), (2, 2)):
        stage = bake(things, [LAMP], texel=0.1, bounces=bounces, samples=16, threads=threads)
        light.append(float(colors_at(stage, np.zeros(1, np.int64), point)[0, 0]))
    assert light[0] < light[1] < light[2]
    assert light[2] == light[3]


def test_encoding_is_the_srgb_curve_with_a_shoulder():
    assert encode(np.zeros((1, 3))).max() == 0
    assert encode(np.full((1, 3), 50.0)).max() <= 1
    half = -math.log(1 - 0.2140411)
    assert encode(np.full((1, 3), half))[0, 0] == pytest.approx(0.5, abs=1e-4)
