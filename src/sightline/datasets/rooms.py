"""Furnished rooms without end: an endless set of scenes with exact cameras and depth.

Every sample is a room of its own, with painted walls, things that stand on the floor, a lamp, and
cameras that look at one part of it. A sample costs a few milliseconds a view at training size.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64
from numpy import ndarray

from sightline.datasets.raycast.shapes import box, cylinder, ellipsoid, room
from sightline.datasets.raycast.solid import (
    CHECKS,
    CLOUDS,
    DOTS,
    STRIPES,
    Paint,
    Set,
    Solid,
    assemble,
    free_sphere,
    look,
)
from sightline.types import MultiView

Range = tuple[float, float]
Color = tuple[float, float, float]
_TRIES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """The family of scenes; each range is drawn from evenly. Lengths are metres, angles degrees."""

    side: Range = (4.0, 6.0)
    """Of the floor, along each axis."""
    ceiling: Range = (2.4, 3.2)
    objects: tuple[int, int] = (4, 8)
    """Fewest and most things in the room."""
    field_of_view: Range = (50.0, 70.0)
    """Along the longer side of the image."""
    eye: Range = (1.2, 1.8)
    """Height of the first camera."""
    aim: Range = (1.5, 2.5)
    """How far away the place is that all cameras look at."""
    baseline: Range = (0.2, 0.9)
    """Distance of every other camera from the first."""
    jitter: float = 6.0
    """How far other cameras look off that place."""
    paints: Literal["free", "house"] = "free"
    """Any paint anywhere, or a house style: each wall, floor and ceiling keeps its hue from room to
    room, so that a picture alone tells much of where one looks. The latter is learned far sooner.
    """
    views: Literal["walk", "orbit"] = "walk"
    """How cameras stand: near the first one, which is anywhere; or each by itself on an arc before
    one corner of the room, which keeps its place from room to room (``eye``, ``aim`` and
    ``baseline`` do not count then).
    """
    arc: float = 40.0
    """Of ``orbit``: largest angle to either side."""
    height: Range = (0.9, 2.0)
    """Of ``orbit``: of the cameras, which are all at one, as when someone walks around. Floor and horizon
    then tell how far each stands beside the others, which bare walls would not.
    """
    distance: Range = (1.8, 3.0)
    """Of ``orbit``: from the place before the corner, along the floor."""
    rays: int = 2
    """Through a pixel, along each side; with 1 edges are stairs and a view costs a third."""
    num_context: int = 0
    """See `MultiView`."""

    def draw(self, rng: np.random.Generator, num_views: int, height: int, width: int) -> MultiView:
        """Make a room and look at it."""
        scene, half = _furnish(self, rng)
        stand = _orbit if self.views == "orbit" else _walk
        c2w = stand(self, rng, scene, half, num_views)
        angle = math.radians(rng.uniform(*self.field_of_view))
        focal = max(width, height) / (2 * math.tan(angle / 2))
        K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
        looks = [look(scene, pose, K, height, width, self.rays) for pose in c2w]
        images, depth = (np.stack(part) for part in list(zip(*looks, strict=True))[:2])
        w2c = torch.linalg.inv(torch.from_numpy(c2w)).float()
        known = torch.from_numpy(depth)
        return MultiView(
            images=torch.from_numpy(images).movedim(-1, 1).contiguous().float(),
            w2c=w2c,
            K=torch.from_numpy(K).float().expand(num_views, 3, 3).clone(),
            depth=known,
            valid=known > 0,
            metric=torch.tensor(True),
            scenes=(f"room-{int(rng.integers(2**31))}",),
            names=(tuple(f"view_{v:03d}" for v in range(num_views)),),
            num_context=self.num_context,
        )


_HOUSE: tuple[Color, ...] = (
    (0.75, 0.12, 0.1),
    (0.1, 0.55, 0.15),
    (0.1, 0.2, 0.75),
    (0.8, 0.65, 0.08),
    (0.3, 0.22, 0.16),
    (0.85, 0.85, 0.85),
)
"""Walls -x, +x, -y, +y, floor and ceiling of the house style."""


def _color(rng: np.random.Generator, about: Color | None = None) -> Color:
    if about is None:
        r, g, b = rng.uniform(0.05, 0.9, 3)
    else:
        r, g, b = np.clip(
            np.array(about) * rng.uniform(0.6, 1.2) * rng.uniform(0.85, 1.15, 3), 0, 1
        )
    return float(r), float(g), float(b)


def _paint(
    rng: np.random.Generator,
    patterns: tuple[int, ...],
    period: Range,
    about: Color | None = None,
) -> Paint:
    x, y, z = rng.uniform(0, 10, 3)
    return Paint(
        pattern=int(rng.choice(patterns)),
        colors=(_color(rng, about), _color(rng, about)),
        period=float(rng.uniform(*period)),
        offset=(float(x), float(y), float(z)),
    )


def _furnish(family: Rooms, rng: np.random.Generator) -> tuple[Set, Float64[ndarray, "3"]]:
    """Return the painted room, its floor at z = 0, and its half sides."""
    half = np.array(
        [
            rng.uniform(*family.side) / 2,
            rng.uniform(*family.side) / 2,
            rng.uniform(*family.ceiling) / 2,
        ]
    )
    hues = _HOUSE if family.paints == "house" else (None,) * 6
    walls = [_paint(rng, (CHECKS, STRIPES, CLOUDS, DOTS), (0.5, 1.2), hue) for hue in hues[:4]]
    floor = _paint(rng, (CHECKS, CLOUDS), (0.6, 1.2), hues[4])
    ceiling = _paint(rng, (CLOUDS,), (1.0, 2.0), hues[5])
    eye = np.eye(3)
    solids = [
        Solid(
            shape=room(*half),
            position=(0.0, 0.0, float(half[2])),
            rotation=eye,
            paints=(*walls, floor, ceiling),
        )
    ]
    for _ in range(int(rng.integers(family.objects[0], family.objects[1] + 1))):
        kind = rng.integers(3)
        wide, high = rng.uniform(0.15, 0.45), rng.uniform(0.2, 0.7)
        shape = (
            box(wide, rng.uniform(0.15, 0.45), high)
            if kind == 0
            else ellipsoid(wide, wide, high)
            if kind == 1
            else cylinder(wide, high)
        )
        turn = rng.uniform(0, 2 * math.pi)
        cos, sin = math.cos(turn), math.sin(turn)
        x, y = rng.uniform(-1, 1, 2) * (half[:2] - 0.5)
        solids.append(
            Solid(
                shape=shape,
                position=(float(x), float(y), float(high)),
                rotation=np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]]),
                paints=(_paint(rng, (CHECKS, STRIPES, CLOUDS, DOTS), (0.2, 0.6)),),
            )
        )
    x, y = rng.uniform(-1, 1, 2) * half[:2] * 0.6
    lamp = (float(x), float(y), float(2 * half[2] - 0.1))
    return assemble(solids, lamp, ambient=float(rng.uniform(0.3, 0.6))), half


def _walk(
    family: Rooms,
    rng: np.random.Generator,
    scene: Set,
    half: Float64[ndarray, "3"],
    num_views: int,
) -> Float64[ndarray, "S 4 4"]:
    """Return poses, camera to world, that look at one place from free places."""
    # Where no free place turns up, the last one stands: things are not seen from inside them.
    first, heading = np.zeros(3), 0.0
    for _ in range(_TRIES):
        x, y = rng.uniform(-1, 1, 2) * (half[:2] - 0.4)
        first = np.array([x, y, rng.uniform(*family.eye)])
        # Looks across the middle of the room, not into the nearest wall.
        heading = math.atan2(-y, -x) + rng.uniform(-0.6, 0.6)
        if _is_free(scene, half, first):
            break
    reach = rng.uniform(*family.aim)
    drop = rng.uniform(0.3, 1.0)
    target = first + [reach * math.cos(heading), reach * math.sin(heading), -drop]
    poses = [_look_at(first, target)]
    while len(poses) < num_views:
        eye = first
        for _ in range(_TRIES):
            step = rng.normal(size=3) * [1, 1, 0.4]
            eye = first + step / np.linalg.norm(step) * rng.uniform(*family.baseline)
            if _is_free(scene, half, eye):
                break
        poses.append(_look_at(eye, _off(family, rng, eye, target)))
    return np.stack(poses)


def _orbit(
    family: Rooms,
    rng: np.random.Generator,
    scene: Set,
    half: Float64[ndarray, "3"],
    num_views: int,
) -> Float64[ndarray, "S 4 4"]:
    """Return poses, camera to world, that look at a place before the corner +x, +y."""
    target = np.array([half[0] - 0.8, half[1] - 0.8, 0.5])
    level = rng.uniform(*family.height)
    poses = []
    for _ in range(num_views):
        eye = target
        for _ in range(_TRIES):
            turn = math.radians(225 + rng.uniform(-family.arc, family.arc))
            reach = rng.uniform(*family.distance)
            eye = target + [reach * math.cos(turn), reach * math.sin(turn), 0.0]
            eye[2] = level
            if _is_free(scene, half, eye):
                break
        poses.append(_look_at(eye, _off(family, rng, eye, target)))
    return np.stack(poses)


def _is_free(scene: Set, half: Float64[ndarray, "3"], eye: Float64[ndarray, "3"]) -> bool:
    inside = (np.abs(eye[:2]) < half[:2] - 0.3).all() and 0.3 < eye[2] < 2 * half[2] - 0.3
    return bool(inside) and free_sphere(scene, eye, 0.2)


def _off(
    family: Rooms,
    rng: np.random.Generator,
    eye: Float64[ndarray, "3"],
    target: Float64[ndarray, "3"],
) -> Float64[ndarray, "3"]:
    """Return a place near the target, as far off as the family's jitter allows."""
    reach = math.tan(math.radians(family.jitter)) * np.linalg.norm(target - eye)
    return target + rng.uniform(-1, 1, 3) * reach


def _look_at(eye: Float64[ndarray, "3"], target: Float64[ndarray, "3"]) -> Float64[ndarray, "4 4"]:
    """Return an upright camera to world, OpenCV axes, with z up in the world."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, 3] = eye
    return pose
