"""A corner of a room with painted walls, drawn by intersecting rays: quick and exact."""

import functools
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from sightline.geometry.pose import invert_se3, look_at
from sightline.types import Cameras, Views

SIZE = (240, 320)
FOCAL = 300.0


@functools.cache
def paint(seed: int, size: int = 1024) -> np.ndarray:
    """Noise at several scales, which SIFT finds features in from near and far."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size, size, 3), np.float32)
    for cells in (16, 48, 128, 300):
        noise = rng.random((cells, cells, 3), dtype=np.float32)
        total += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    total = (total - total.min()) / (total.max() - total.min())
    return np.clip((total - 0.5) * 2.2 + 0.5, 0, 1)


# Point on the plane, its two axes (the texture spans 6 units): floor, back wall, side wall, box.
PLANES = [
    ((0.0, 1.0, 4.0), (1, 0, 0), (0, 0, 1)),
    ((0.0, -1.0, 5.0), (1, 0, 0), (0, 1, 0)),
    ((-2.0, -1.0, 4.0), (0, 0, 1), (0, 1, 0)),
    ((0.4, 0.6, 3.6), (1, 0, 0.25), (0, 1, 0)),
]
BOX_HALF = 0.45


@dataclass(frozen=True)
class Lens:
    """fx, fy, cx, cy and OpenCV's first two radial coefficients."""

    K: np.ndarray
    bend: tuple[float, float] = (0.0, 0.0)


def lens(focal: float = FOCAL, cx: float = 160.0, cy: float = 120.0, bend=(0.0, 0.0)) -> Lens:
    return Lens(np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1.0]]), bend)


def draw(w2c: np.ndarray, taken: Lens, size=SIZE, seed: int = 0, blur: float = 0.0) -> np.ndarray:
    """Return the picture [H, W, 3] in [0, 1] and nothing else."""
    height, width = size
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    pixels = np.stack([x, y], -1).reshape(-1, 1, 2)
    distortion = np.array([*taken.bend, 0, 0], float)
    flat = cv2.undistortPoints(pixels, taken.K, distortion)[:, 0]
    rays = np.concatenate([flat, np.ones((len(flat), 1))], 1) @ w2c[:3, :3]
    eye = -w2c[:3, :3].T @ w2c[:3, 3]
    nearest = np.full(len(rays), np.inf)
    colors = np.full((len(rays), 3), 0.5, np.float32)
    for i, (origin, first, second) in enumerate(PLANES):
        first, second = np.array(first, float), np.array(second, float)
        first /= np.linalg.norm(first)
        normal = np.cross(first, second)
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = ((origin - eye) @ normal) / (rays @ normal)
        hit = eye + distance[:, None] * rays - origin
        u, v = hit @ first, hit @ second
        seen = (distance > 0.05) & (distance < nearest)
        if i == 3:
            seen &= (np.abs(u) < BOX_HALF) & (np.abs(v) < BOX_HALF)
        nearest[seen] = distance[seen]
        image = paint(seed * 10 + i)
        scale = len(image) / 6
        u, v = np.nan_to_num(u), np.nan_to_num(v)
        map_u = ((u * scale + len(image) / 2) % (len(image) - 1)).astype(np.float32)
        map_v = ((v * scale + len(image) / 2) % (len(image) - 1)).astype(np.float32)
        sampled = cv2.remap(image, map_u.reshape(size), map_v.reshape(size), cv2.INTER_LINEAR)
        colors[seen] = sampled.reshape(-1, 3)[seen]
    picture = colors.reshape(height, width, 3)
    return cv2.GaussianBlur(picture, (0, 0), blur) if blur else picture


def orbit(count: int, span: float = 1.6) -> torch.Tensor:
    """Cameras on an arc in front of the corner, looking into it."""
    along = torch.linspace(-0.5, 0.5, count, dtype=torch.float64)
    eye = torch.stack([span * along, -0.15 + 0.5 * along**2, 0.3 * along.abs()], -1)
    target = torch.tensor([0.1, 0.35, 4.0], dtype=torch.float64)
    up = torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64)
    return invert_se3(look_at(eye, target.expand(count, 3), up.expand(count, 3)))


def views(w2c: torch.Tensor, taken: Lens | None = None, size=SIZE, seed: int = 0) -> Views:
    """Draw views that know nothing of their cameras."""
    taken = taken or lens()
    pictures = [draw(pose.numpy(), taken, size, seed) for pose in w2c]
    images = (torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) * 255).round()
    count = len(w2c)
    return Views(
        images=images.to(torch.uint8),
        names=tuple(f"view{i:02d}.png" for i in range(count)),
        from_original=torch.eye(3).expand(count, 3, 3),
        sizes=torch.tensor([size] * count),
    )


def cameras(w2c: torch.Tensor, taken: Lens | None = None, size=SIZE) -> Cameras:
    """Return the true pinhole cameras."""
    K = torch.from_numpy((taken or lens()).K).expand(len(w2c), 3, 3)
    return Cameras(w2c=w2c, K=K, height=size[0], width=size[1])
