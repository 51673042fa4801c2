"""Normalisations that torch lacks or computes in another order."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sightline.nn.options import Device, DType, Number


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps)`` in float32, cast back, then times ``weight``.

    The cast before the product is what the DINOv3 networks do in half precision.
    """

    def __init__(
        self,
        dim: int,
        eps: Number = 1e-5,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the weight (ones) for ``dim`` channels."""
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Normalise the last axis."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).to(x.dtype) * self.weight


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a map ``[B, C, H, W]`` (ConvNeXt, SAM 2)."""

    def __init__(
        self,
        dim: int,
        eps: Number = 1e-6,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create weight and bias for ``dim`` channels."""
        super().__init__(dim, eps=eps, device=device, dtype=dtype)

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalise every pixel over its channels."""
        last = input.permute(0, 2, 3, 1)
        last = functional.layer_norm(last, self.normalized_shape, self.weight, self.bias, self.eps)
        return last.permute(0, 3, 1, 2)
