"""The definition of what ``rasterization`` computes: every pixel against every Gaussian.

Plain torch, any floating dtype, differentiable by autograd in every tensor argument, ``Ks`` included
(except through the bounds within which the Jacobian follows a point). Memory is pixels times
Gaussians: for tests and small scenes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.geometry.rotation import quat_to_matrix
from sightline.geometry.sh import evaluate_sh

ALPHA_MIN = 1 / 255
ALPHA_MAX = 0.99
TRANSMITTANCE_MIN = 1e-4
EXTENT = 3.33
COMPENSATION_MIN = 0.005


@dataclass(frozen=True)
class _Projected:
    """All Gaussians on the plane of one camera."""

    means2d: Float[Tensor, "n 2"]
    depths: Float[Tensor, " n"]
    conics: Float[Tensor, "n 3"]
    opacities: Float[Tensor, " n"]
    radii: Float[Tensor, "n 2"]
    """Zero when culled."""


def _project(
    means: Tensor,
    covars: Tensor,
    opacities: Tensor,
    w2c: Tensor,
    k: Tensor,
    options: dict[str, Any],
) -> _Projected:
    size = torch.tensor([options["width"], options["height"]], dtype=means.dtype)
    rotation = w2c[:3, :3]
    inside = means @ rotation.mT + w2c[:3, 3]
    depths = inside[:, 2]
    behind = ~((depths >= options["near_plane"]) & (depths <= options["far_plane"]))
    z = torch.where(behind, 1.0, depths)[:, None]
    focal, centre = k[[0, 1], [0, 1]], k[[0, 1], [2, 2]]
    slope = inside[:, :2] / z
    margin = 0.15 * size / focal
    low, high = (-centre / focal - margin).detach(), ((size - centre) / focal + margin).detach()
    bounded = slope.clamp(low, high)
    # T = J W, row by row: focal / z (W_row - bounded W_2)
    to_plane = (focal / z)[..., None] * (rotation[:2] - bounded[..., None] * rotation[2])
    covars = (covars + covars.mT) / 2
    sharp = to_plane @ covars @ to_plane.mT
    xx, xy, yy = sharp[:, 0, 0], sharp[:, 0, 1], sharp[:, 1, 1]
    det_sharp = xx * yy - xy * xy
    xx, yy = xx + options["eps2d"], yy + options["eps2d"]
    det = xx * yy - xy * xy
    flat = ~(det > 0)
    det = torch.where(flat, 1.0, det)
    if options["rasterize_mode"] == "antialiased":
        opacities = opacities * (det_sharp / det).clamp_min(COMPENSATION_MIN**2).sqrt()
    means2d = focal * slope + centre
    with torch.no_grad():
        reach = (2 * (opacities / ALPHA_MIN).log()).clamp_min(0).sqrt().clamp_max(EXTENT)
        radii = (reach[:, None] * torch.stack([xx, yy], -1).sqrt()).ceil()
        seen = (means2d + radii > 0) & (means2d - radii < size)
        drawn = seen.all(-1) & (radii > options["radius_clip"]).any(-1)
        drawn &= ~behind & ~flat & (opacities >= ALPHA_MIN)
        radii = torch.where(drawn[:, None], radii, 0)
    conics = torch.stack([yy / det, -xy / det, xx / det], -1)
    return _Projected(means2d, depths, conics, opacities, radii)


class _PerPixel(torch.autograd.Function):
    """Repeat means for every pixel; on the way back, note the sums of absolute gradients."""

    @staticmethod
    def forward(ctx: Any, means2d: Tensor, pixels: int, sums: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.sums = sums
        return means2d.expand(pixels, *means2d.shape).clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        if ctx.sums is not None:
            ctx.sums += grads[0].abs().sum(0)
        return grads[0].sum(0), None, None


def _blend(
    projected: _Projected,
    means2d: Tensor,
    colors: Tensor,
    background: Tensor | None,
    options: dict[str, Any],
    sums: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the picture [H W D] and its alpha [H W 1]; ``sums [N 2]`` collects absgrad."""
    width, height = options["width"], options["height"]
    drawn = (projected.radii > 0).all(-1).nonzero()[:, 0]
    order = projected.depths.detach()[drawn].float().sort(stable=True).indices
    chosen = drawn[order]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([x, y], -1).reshape(-1, 2).to(means2d.dtype) + 0.5
    centres = _PerPixel.apply(means2d, len(pixels), sums)[:, chosen]  # type: ignore[index]
    dx, dy = (centres - pixels[:, None]).unbind(-1)
    a, b, c = projected.conics[chosen].unbind(-1)
    sigma = (a * dx * dx + c * dy * dy) / 2 + b * dx * dy
    alpha = (projected.opacities[chosen] * (-sigma).exp()).clamp_max(ALPHA_MAX)
    alpha = torch.where((sigma >= 0) & (alpha >= ALPHA_MIN), alpha, 0)
    after = (1 - alpha).cumprod(1)
    before = torch.cat([torch.ones_like(after[:, :1]), after], 1)[:, :-1]
    weights = torch.where(after > TRANSMITTANCE_MIN, alpha * before, 0)
    total = weights.sum(1, keepdim=True)
    picture = weights @ colors[chosen]
    if background is not None:
        picture = picture + (1 - total) * background
    return picture.view(height, width, -1), total.view(height, width, 1)


def rasterization(
    means: Float[Tensor, "*batch n 3"],
    quats: Float[Tensor, "*batch n 4"] | None,
    scales: Float[Tensor, "*batch n 3"] | None,
    opacities: Float[Tensor, "*batch n"],
    colors: Float[Tensor, "..."] | None,
    viewmats: Float[Tensor, "*batch c 4 4"],
    Ks: Float[Tensor, "*batch c 3 3"],
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    backgrounds: Float[Tensor, "*batch c d"] | None = None,
    render_mode: str = "RGB",
    absgrad: bool = False,
    rasterize_mode: str = "classic",
    covars: Float[Tensor, "*batch n 3 3"] | None = None,
    packed: bool = False,
) -> tuple[Float[Tensor, "*batch c h w x"], Float[Tensor, "*batch c h w 1"], dict[str, Any]]:
    """Draw by definition; see :func:`sightline.splatting.rasterize.rasterization`.

    The dictionary holds ``means2d`` (a node of the graph; ``absgrad`` is set on it), ``radii``,
    ``depths``, ``conics`` and ``opacities``, never packed, whatever ``packed`` says.
    """
    options = {
        "width": width,
        "height": height,
        "near_plane": near_plane,
        "far_plane": far_plane,
        "radius_clip": radius_clip,
        "eps2d": eps2d,
        "rasterize_mode": rasterize_mode,
    }
    batch, cameras, number = means.shape[:-2], viewmats.shape[-3], means.shape[-2]
    shape = (*batch, cameras)
    if covars is None:
        assert quats is not None
        assert scales is not None
        factor = quat_to_matrix(quats) * scales[..., None, :]
        covars = factor @ factor.mT

    def per_picture(tensor: Tensor, tail: int) -> Tensor:
        """Bring ``[*batch, tail ...]`` or ``[*batch, c, tail ...]`` to ``[pictures, tail ...]``."""
        lead = tensor.shape[: tensor.ndim - tail]
        if lead == batch and lead != shape:
            tensor = tensor.unsqueeze(len(batch))
        return tensor.expand(*shape, *tensor.shape[tensor.ndim - tail :]).flatten(0, len(batch))

    w2c, k = viewmats.flatten(0, len(batch)), Ks.flatten(0, len(batch))
    centres = -(w2c[:, :3, :3].mT @ w2c[:, :3, 3:])[..., 0]
    points = per_picture(means, 2)
    planes = [
        _project(*inputs, options)
        for inputs in zip(points, per_picture(covars, 3), per_picture(opacities, 1), w2c, k)
    ]

    def stack(name: str) -> Tensor:
        values = torch.stack([getattr(plane, name) for plane in planes])
        return values.view(*shape, *values.shape[1:])

    means2d = stack("means2d")
    sums = torch.zeros_like(means2d) if absgrad else None
    if sums is not None:
        means2d.absgrad = sums  # type: ignore[attr-defined]
    pictures, alphas = [], []
    rgb = render_mode.startswith("RGB")
    for i, plane in enumerate(planes):
        shown = means.new_zeros(number, 0)
        if rgb:
            assert colors is not None
            shown = per_picture(colors, 2 if sh_degree is None else 3)[i]
            if sh_degree is not None:
                shown = evaluate_sh(shown[:, : (sh_degree + 1) ** 2], points[i] - centres[i])
        background = None
        if rgb and backgrounds is not None:
            background = backgrounds.flatten(0, len(batch))[i]
        if render_mode != "RGB":
            shown = torch.cat([shown, plane.depths[:, None]], -1)
            if background is not None:
                background = torch.cat([background, background.new_zeros(1)])
        picture, alpha = _blend(
            plane,
            means2d.flatten(0, len(batch))[i],
            shown,
            background,
            options,
            None if sums is None else sums.flatten(0, len(batch))[i],
        )
        if render_mode.endswith("ED"):
            expected = picture[..., -1:] / alpha.clamp_min(1e-10)
            picture = torch.cat([picture[..., :-1], expected], -1)
        pictures.append(picture)
        alphas.append(alpha)
    meta = {name: stack(name) for name in ("depths", "conics", "opacities")}
    meta |= {"means2d": means2d, "radii": stack("radii").int()}
    picture, alpha = torch.stack(pictures), torch.stack(alphas)
    return picture.view(*shape, *picture.shape[1:]), alpha.view(*shape, *alpha.shape[1:]), meta
