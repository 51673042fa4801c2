"""Small random scenes for the rasteriser's tests."""

import math

import torch
from torch import Tensor


def random_scene(
    number: int = 40,
    *,
    batch: tuple[int, ...] = (),
    cameras: int = 2,
    width: int = 33,
    height: int = 21,
    channels: int = 3,
    sh_degree: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Gaussians of one to six pixels spread over the view of cameras near the origin."""
    g = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(*batch, *shape, generator=g) * (high - low) + low

    def normal(*shape: int) -> Tensor:
        return torch.randn(*batch, *shape, generator=g)

    focal = 0.9 * max(width, height)
    depth = uniform(number, low=1.5, high=8.0)
    x = uniform(number, low=-0.6, high=0.6) * width / focal * depth
    y = uniform(number, low=-0.6, high=0.6) * height / focal * depth
    size = torch.exp(uniform(number, low=0.0, high=math.log(6.0))) * depth / focal
    viewmats = torch.eye(4).expand(*batch, cameras, 4, 4).clone()
    viewmats[..., :3, :3] = torch.linalg.matrix_exp(0.1 * (a := normal(cameras, 3, 3)) - 0.1 * a.mT)
    viewmats[..., :3, 3] = 0.2 * normal(cameras, 3)
    intrinsics = torch.zeros(*batch, cameras, 3, 3)
    intrinsics[..., 0, 0] = focal * uniform(cameras, low=0.9, high=1.1)
    intrinsics[..., 1, 1] = focal * uniform(cameras, low=0.9, high=1.1)
    intrinsics[..., 0, 2] = width * uniform(cameras, low=0.4, high=0.6)
    intrinsics[..., 1, 2] = height * uniform(cameras, low=0.4, high=0.6)
    intrinsics[..., 2, 2] = 1
    if sh_degree is None:
        colors = uniform(number, channels)
    else:
        colors = 0.4 * torch.randn(number, (sh_degree + 1) ** 2, 3, generator=g)
    scene = {
        "means": torch.stack([x, y, depth], -1),
        "quats": normal(number, 4),
        "scales": size[..., None] * uniform(number, 3, low=0.4, high=1.6),
        "opacities": torch.sigmoid(1.5 * normal(number)),
        "colors": colors,
        "viewmats": viewmats,
        "Ks": intrinsics,
        "backgrounds": uniform(cameras, channels),
    }
    return {name: tensor.to(dtype) for name, tensor in scene.items()}


def random_covars(scene: dict[str, Tensor]) -> Tensor:
    """Covariances of the scene's Gaussians, with an asymmetric part that must not count."""
    from sightline.geometry.rotation import quat_to_matrix

    factor = quat_to_matrix(scene["quats"]) * scene["scales"][..., None, :]
    covars = factor @ factor.mT
    twist = 0.01 * torch.ones(3, 3, dtype=covars.dtype).triu(1)
    return covars + twist - twist.mT
