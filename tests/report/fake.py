"""A made-up scene: a bumpy, striped ring of splats over a floor, with cameras around it."""

import math

import numpy as np
import torch
from torch import Tensor

from sightline.geometry.pose import look_at
from sightline.geometry.sh import rgb_to_sh0
from sightline.types import Cameras, Gaussians, PointCloud


def ring_points(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return positions, colours and outward normals; y points down, as in COLMAP's worlds."""
    rng = np.random.default_rng(seed)
    ring = int(count * 0.7)
    u, v = rng.uniform(0, 2 * math.pi, (2, ring))
    radius = 0.38 * (1 + 0.12 * np.cos(9 * u) * np.cos(4 * v))
    normal = np.stack([np.cos(u) * np.cos(v), -np.sin(v), np.sin(u) * np.cos(v)], 1)
    center = np.stack([np.cos(u), np.zeros_like(u), np.sin(u)], 1)
    body = center + radius[:, None] * normal
    hue = (u / (2 * math.pi) * 2 + v / (2 * math.pi)) % 1
    shade = 0.72 + 0.28 * np.sign(np.sin(6 * u + 3 * v))
    wheel = 0.5 + 0.45 * np.cos(2 * math.pi * (hue[:, None] + np.array([0.0, 0.33, 0.67])))
    floor = count - ring
    r, a = 2.4 * np.sqrt(rng.uniform(0, 1, floor)), rng.uniform(0, 2 * math.pi, floor)
    ground = np.stack([r * np.cos(a), np.full(floor, 0.55), r * np.sin(a)], 1)
    checks = (np.floor(ground[:, 0] * 2) + np.floor(ground[:, 2] * 2)) % 2
    tile = np.where(checks[:, None] > 0, [0.82, 0.80, 0.74], [0.34, 0.38, 0.42])
    points = np.concatenate([body, ground])
    colors = np.concatenate([wheel * shade[:, None], tile])
    normals = np.concatenate([normal, np.tile([0.0, -1.0, 0.0], (floor, 1))])
    return tuple(torch.from_numpy(a).float() for a in (points, colors, normals))


def ring_gaussians(count: int = 6000, degree: int = 1, seed: int = 0) -> Gaussians:
    """Return flat splats lying on the ring and the floor."""
    generator = torch.Generator().manual_seed(seed)
    points, colors, normals = ring_points(count, seed)
    # The rotation that takes z to the normal: half way between them.
    half = torch.nn.functional.normalize(normals + torch.tensor([0.0, 0.0, 1.0 + 1e-4]), dim=1)
    w = (half[:, 2:3]).clamp(-1, 1)
    xyz = torch.cross(torch.tensor([0.0, 0.0, 1.0]).expand_as(half), half, dim=1)
    quats = torch.nn.functional.normalize(torch.cat([w, xyz], 1), dim=1)
    size = 3.0 / math.sqrt(count)
    scales = torch.rand(count, 3, generator=generator) * 0.6 * size + 0.7 * size
    scales[:, 2] *= 0.15
    sh = torch.zeros(count, (degree + 1) ** 2, 3)
    sh[:, 0] = rgb_to_sh0(colors)
    if degree:
        sh[:, 1:] = torch.randn(count, sh.shape[1] - 1, 3, generator=generator) * 0.03
    return Gaussians(
        means=points,
        quats=quats,
        scales=scales,
        opacities=torch.rand(count, generator=generator) * 0.35 + 0.6,
        sh=sh,
    )


def ring_cameras(count: int = 24, height: int = 120, width: int = 160) -> Cameras:
    """Return cameras on an uneven path around the ring."""
    angle = torch.linspace(0, 2 * math.pi * 0.92, count)
    radius = 3.4 + 0.4 * torch.sin(3 * angle)
    eye = torch.stack(
        [radius * angle.cos(), -1.5 + 0.4 * torch.cos(2 * angle), radius * angle.sin()], 1
    )
    target = torch.tensor([0.0, 0.1, 0.0]).expand_as(eye)
    c2w = look_at(eye, target, torch.tensor([0.0, -1.0, 0.0]).expand_as(eye))
    focal = 1.1 * max(height, width)
    intrinsics = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    rotation = c2w[:, :3, :3].mT
    w2c = torch.eye(4).repeat(count, 1, 1)
    w2c[:, :3, :3] = rotation
    w2c[:, :3, 3] = -(rotation @ c2w[:, :3, 3:])[..., 0]
    return Cameras(w2c=w2c, K=intrinsics.expand(count, 3, 3).clone(), height=height, width=width)


def ring_cloud(count: int = 4000) -> PointCloud:
    """Return the surface points with a made-up confidence."""
    points, colors, _ = ring_points(count, seed=1)
    return PointCloud(
        points=points, colors=colors.clamp(0, 1), confidence=1 + points.norm(dim=1) ** 2
    )


def paint(points: Tensor, colors: Tensor, cameras: Cameras, size: int = 3) -> tuple[Tensor, Tensor]:
    """Splash points into the cameras, nearest last; return pictures [V 3 H W] and depth."""
    pictures, depths = [], []
    height, width = cameras.height, cameras.width
    for w2c, intrinsics in zip(cameras.w2c, cameras.K, strict=True):
        local = points @ w2c[:3, :3].T + w2c[:3, 3]
        order = local[:, 2].argsort(descending=True)
        order = order[local[order, 2] > 0.05]
        pixel = local[order] @ intrinsics.T
        pixel = (pixel[:, :2] / pixel[:, 2:]).floor().long()
        picture = torch.full((height, width, 3), 0.92)
        picture *= torch.linspace(1.05, 0.8, height)[:, None, None]
        depth = torch.zeros(height, width)
        image, z = picture.clamp(0, 1).numpy(), depth.numpy()
        for dy in range(size):
            for dx in range(size):
                x, y = pixel[:, 0] + dx, pixel[:, 1] + dy
                inside = ((x >= 0) & (x < width) & (y >= 0) & (y < height)).numpy()
                xs, ys = x.numpy()[inside], y.numpy()[inside]
                image[ys, xs] = colors[order].numpy()[inside]
                z[ys, xs] = local[order, 2].numpy()[inside]
        pictures.append(torch.from_numpy(image.copy()).permute(2, 0, 1))
        depths.append(torch.from_numpy(z.copy()))
    return torch.stack(pictures), torch.stack(depths)
