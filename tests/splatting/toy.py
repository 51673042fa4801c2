"""A small scene with exact cameras, drawn by the rasteriser."""

import math

import torch

from sightline.geometry.pose import look_at
from sightline.splatting.render import render_gaussians
from sightline.types import Cameras, Gaussians, PointCloud, Views


def make_cameras(count=8, height=40, width=48, radius=3.0, arc=2.0):
    angle = torch.linspace(-arc / 2, arc / 2, count)
    eye = torch.stack([radius * angle.sin(), torch.full((count,), -0.5), -radius * angle.cos()], 1)
    c2w = look_at(eye, torch.zeros(count, 3), torch.tensor([0.0, -1.0, 0.0]).expand(count, 3))
    focal = 0.9 * width
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    w2c = torch.linalg.inv(c2w.double()).float()
    return Cameras(w2c=w2c, K=K.expand(count, 3, 3).clone(), height=height, width=width)


def make_gaussians(count=150, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sh = torch.zeros(count, 1, 3)
    sh[:, 0] = (torch.rand(count, 3, generator=generator) - 0.5) / 0.2820948
    return Gaussians(
        means=torch.randn(count, 3, generator=generator) * 0.5,
        quats=torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1),
        scales=torch.rand(count, 3, generator=generator) * 0.12 + 0.05,
        opacities=torch.rand(count, generator=generator) * 0.5 + 0.5,
        sh=sh,
    )


def make_views(cameras=None, gaussians=None, masks=None):
    cameras = cameras if cameras is not None else make_cameras()
    gaussians = gaussians if gaussians is not None else make_gaussians()
    images = (render_gaussians(gaussians, cameras, with_depth=False).rgb * 255).round().byte()
    count = len(cameras)
    return Views(
        images=images,
        names=tuple(f"{i:03d}.png" for i in range(count)),
        from_original=torch.eye(3).expand(count, 3, 3),
        sizes=torch.tensor([[cameras.height, cameras.width]]).expand(count, 2),
        cameras=cameras,
        masks=masks,
    )


def make_cloud(gaussians, noise=0.02, seed=1):
    generator = torch.Generator().manual_seed(seed)
    points = gaussians.means + noise * torch.randn(gaussians.means.shape, generator=generator)
    colors = (gaussians.sh[:, 0] * 0.2820948 + 0.5).clamp(0, 1)
    return PointCloud(points=points, colors=colors)


def psnr(a, b):
    return -10 * math.log10((a - b).square().mean().item())
