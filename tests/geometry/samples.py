"""Random rotations and cameras for the tests, from a seed."""

import math

import torch

from sightline.geometry.camera import intrinsics_matrix
from sightline.geometry.pose import invert_se3, look_at
from sightline.geometry.rotation import so3_exp
from sightline.types import Cameras

D = torch.float64


def generator(seed):
    return torch.Generator().manual_seed(seed)


def randn(seed, *shape, dtype=D):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def rotations(seed, *batch, kind="uniform", dtype=D):
    """Uniform directions; angles anywhere, tiny, or within a hair of half a turn."""
    axis = torch.nn.functional.normalize(randn(seed, *batch, 3, dtype=dtype), dim=-1)
    u = torch.rand(*batch, 1, generator=generator(seed + 1), dtype=dtype)
    angle = {"uniform": math.pi * u, "tiny": 1e-5 * u, "half": math.pi - 1e-5 * u}[kind]
    return so3_exp(axis * angle)


def ring(num_views=8, radius=4.0, height=1.5, degrees=360.0, dtype=D, target=(0.0, 0.0, 0.0)):
    """Cameras on a circle about the z axis (up), looking at the target; 64 x 48 pixels."""
    t = torch.arange(num_views, dtype=dtype) / num_views * math.radians(degrees)
    eyes = torch.stack([radius * t.cos(), radius * t.sin(), torch.full_like(t, height)], -1)
    center = torch.tensor(target, dtype=dtype)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=dtype)
    K = intrinsics_matrix(*(torch.full_like(t, v) for v in (60.0, 61.0, 32.5, 23.5)))
    return Cameras(w2c=invert_se3(look_at(eyes + center, center, up)), K=K, height=48, width=64)
