"""The photometric loss of splat training: L1 and structural similarity, with masks.

Two implementations of one function: :func:`photometric_loss_reference` in plain torch (also what
runs on a GPU), and a fused CPU kernel with the analytic gradient, chosen by
:func:`photometric_loss`.
"""

from typing import Any, cast

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from sightline.splatting import losses_cpu
from sightline.splatting.losses_cpu import C1, C2, WINDOW

Target = Float[Tensor, "3 height width"] | UInt8[Tensor, "3 height width"]


def gaussian_window() -> Float[Tensor, " 11"]:
    """Return the 11 taps (sigma 1.5 px, sum 1) of Wang et al. 2004."""
    return torch.tensor(losses_cpu.TAPS)


def photometric_loss(
    rendered: Float[Tensor, "height width 3"],
    target: Target,
    mask: Bool[Tensor, "height width"] | None = None,
    *,
    ssim_weight: float = 0.2,
) -> Float[Tensor, ""]:
    """``(1 - w) L1 + w (1 - SSIM)`` over the pixels that count; differentiable in ``rendered``.

    Args:
        rendered: Picture in [0, 1] (not clamped), channels last as the rasteriser returns it.
        target: Photo; uint8 stands for [0, 1].
        mask: True where a pixel counts.
        ssim_weight: ``w`` in [0, 1].

    Returns:
        The loss; 0 when no pixel counts.

    SSIM's window is an 11-tap Gaussian (Wang et al. 2004) whose weights are renormalised over the
    pixels that exist and count, so neither the border nor a masked region leaks into its
    neighbours, and the mean is taken over counting pixels: a masked pixel neither counts nor
    counts as perfect.
    """
    if rendered.device.type == "cpu" and rendered.dtype == torch.float32:
        return cast(Tensor, _FusedLoss.apply(rendered, target, mask, ssim_weight))
    return photometric_loss_reference(rendered, target, mask, ssim_weight=ssim_weight)


def photometric_loss_reference(
    rendered: Float[Tensor, "height width 3"],
    target: Target,
    mask: Bool[Tensor, "height width"] | None = None,
    *,
    ssim_weight: float = 0.2,
) -> Float[Tensor, ""]:
    """:func:`photometric_loss` in plain torch, on any device and dtype."""
    x = rendered.permute(2, 0, 1)
    y = target.to(x.dtype) / 255 if target.dtype == torch.uint8 else target.to(x.dtype)
    weight = torch.ones_like(x[:1]) if mask is None else mask[None].to(x.dtype)
    count = 3 * weight.sum().clamp(min=1)
    l1 = ((x - y).abs() * weight).sum() / count
    dissimilarity = ((1 - ssim_map(x, y, weight)) * weight).sum() / count
    return (1 - ssim_weight) * l1 + ssim_weight * dissimilarity


def ssim_map(
    x: Float[Tensor, "3 height width"],
    y: Float[Tensor, "3 height width"],
    weight: Float[Tensor, "1 height width"],
) -> Float[Tensor, "3 height width"]:
    """SSIM at every pixel, with windows renormalised over ``weight``."""
    taps = gaussian_window().to(x)
    half = WINDOW // 2

    def blur(planes: Tensor) -> Tensor:
        planes = functional.conv2d(planes[:, None], taps[None, None, None, :], padding=(0, half))
        return functional.conv2d(planes, taps[None, None, :, None], padding=(half, 0))[:, 0]

    norm = 1 / blur(weight).clamp(min=1e-8)
    mean_x, mean_y, xx, yy, xy = (
        blur(torch.cat([x, y, x * x, y * y, x * y]) * weight) * norm
    ).chunk(5)
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    return ((2 * mean_x * mean_y + C1) * (2 * cov + C2)) / (
        (mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2)
    )


class _FusedLoss(torch.autograd.Function):
    """Value and gradient in one go; the gradient waits for ``backward``."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        rendered: Tensor,
        target: Tensor,
        mask: Tensor | None,
        ssim_weight: float,
    ) -> Tensor:
        value, gradient = losses_cpu.loss_and_gradient(
            rendered.detach().contiguous().numpy(),
            target.detach().contiguous().numpy(),
            None if mask is None else mask.contiguous().numpy(),
            ssim_weight,
        )
        ctx.save_for_backward(torch.from_numpy(gradient))
        return torch.tensor(value, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None, None
