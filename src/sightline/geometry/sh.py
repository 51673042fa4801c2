"""Real spherical harmonics as used by Gaussian splatting, degrees 0 to 4.

Coefficients are ordered by degree, then by order m = -l..l, with the signs of the original 3D
Gaussian splatting (a Condon-Shortley phase on odd m). All files and rasterisers here agree on it.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.errors import ShapeError

C0 = 0.28209479177387814
"""The constant basis function, ``1 / (2 sqrt(pi))``."""
MAX_DEGREE = 4


def _band(degree: int, d: Float[Tensor, "*batch 3"]) -> list[Float[Tensor, "*batch"]]:
    """Return the ``2 degree + 1`` functions of one band at unit directions."""
    x, y, z = d.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    if degree == 0:
        return [torch.full_like(x, C0)]
    if degree == 1:
        c = 0.4886025119029199
        return [-c * y, c * z, -c * x]
    if degree == 2:
        c = 1.0925484305920792
        return [
            c * x * y,
            -c * y * z,
            0.31539156525252005 * (2 * zz - xx - yy),
            -c * x * z,
            c / 2 * (xx - yy),
        ]
    if degree == 3:
        a, b, c = 0.5900435899266435, 0.4570457994644658, 2.890611442640554
        return [
            -a * y * (3 * xx - yy),
            c * x * y * z,
            -b * y * (4 * zz - xx - yy),
            0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
            -b * x * (4 * zz - xx - yy),
            c / 2 * z * (xx - yy),
            -a * x * (xx - 3 * yy),
        ]
    a, b, c, e = 2.5033429417967046, 1.7701307697799304, 0.9461746957575601, 0.6690465435572892
    return [
        a * x * y * (xx - yy),
        -b * y * z * (3 * xx - yy),
        c * x * y * (7 * zz - 1),
        -e * y * z * (7 * zz - 3),
        0.10578554691520431 * (zz * (35 * zz - 30) + 3),
        -e * x * z * (7 * zz - 3),
        c / 2 * (xx - yy) * (7 * zz - 1),
        -b * x * z * (xx - 3 * yy),
        a / 4 * (xx * (xx - 3 * yy) - yy * (3 * xx - yy)),
    ]


def sh_basis(degree: int, directions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch K"]:
    """Evaluate all basis functions up to ``degree``.

    Args:
        degree: 0 to 4.
        directions: From the camera towards the splat; any length but zero.

    Returns:
        K = (degree + 1)^2 values a direction.

    Raises:
        ShapeError: If the degree is not supported.
    """
    if not 0 <= degree <= MAX_DEGREE:
        msg = f"spherical harmonics have degree 0 to {MAX_DEGREE} here, got {degree}; truncate them"
        raise ShapeError(msg)
    unit = torch.nn.functional.normalize(directions, dim=-1)
    return torch.stack([f for band in range(degree + 1) for f in _band(band, unit)], -1)


def _degree_of(sh: Tensor) -> int:
    count = sh.shape[-2]
    degree = math.isqrt(count) - 1
    if (degree + 1) ** 2 != count or degree > MAX_DEGREE:
        msg = (
            f"sh must be [..., K, 3] with K one of 1, 4, 9, 16, 25, got {list(sh.shape)}; "
            "pass whole bands"
        )
        raise ShapeError(msg)
    return degree


def evaluate_sh(
    sh: Float[Tensor, "*#batch K 3"], directions: Float[Tensor, "*#batch 3"]
) -> Float[Tensor, "*#batch 3"]:
    """Return colours seen along ``directions``: ``max(0, 0.5 + basis . sh)``.

    Args:
        sh: Coefficients; the degree follows from K.
        directions: From the camera towards the splat; any length but zero.
    """
    basis = sh_basis(_degree_of(sh), directions)
    return ((basis[..., None] * sh).sum(-2) + 0.5).clamp_min(0)


def rgb_to_sh0(rgb: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Return the constant coefficient that shows as ``rgb`` from everywhere.

    >>> grey = torch.full((3,), 0.5)
    >>> rgb_to_sh0(grey).tolist()
    [0.0, 0.0, 0.0]
    """
    return (rgb - 0.5) / C0


def sh0_to_rgb(sh0: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Return the colour of a constant coefficient; not clamped."""
    return sh0 * C0 + 0.5


def _band_solver(degree: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return fixed directions [M 3] and the pseudo-inverse [2l+1 M] of the band there, float64."""
    count = 4 * (2 * degree + 1)
    index = torch.arange(count, dtype=torch.float64, device=device)
    # A Fibonacci sphere: so even that the band's columns stay nearly orthogonal.
    z = 1 - (2 * index + 1) / count
    azimuth = index * (math.pi * (3 - math.sqrt(5)))
    radius = (1 - z * z).sqrt()
    points = torch.stack([radius * azimuth.cos(), radius * azimuth.sin(), z], -1)
    return points, torch.linalg.pinv(torch.stack(_band(degree, points), -1))


def rotate_sh(
    sh: Float[Tensor, "*batch K 3"], rotation: Float[Tensor, "3 3"]
) -> Float[Tensor, "*batch K 3"]:
    """Rotate coefficients with the world: colour along ``rotation d`` becomes what it was along d.

    Bands do not mix under rotation, so each band's matrix follows exactly from its values at a few
    fixed directions.

    Args:
        sh: Coefficients.
        rotation: Applied to the scene; reflections are not rotations and give wrong colours.
    """
    bands = []
    start = 0
    for degree in range(_degree_of(sh) + 1):
        size = 2 * degree + 1
        points, solver = _band_solver(degree, sh.device)
        turned = torch.stack(_band(degree, points @ rotation.to(torch.float64)), -1)
        wigner = (solver @ turned).to(sh.dtype)
        bands.append(torch.einsum("ij,...jc->...ic", wigner, sh[..., start : start + size, :]))
        start += size
    return torch.cat(bands, -2)
