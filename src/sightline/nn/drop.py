"""Layer scale and stochastic depth."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sightline.nn.options import Device, DType, Number


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual (Touvron et al. 2021)."""

    def __init__(
        self,
        dim: int,
        init_values: Number = 1e-5,
        inplace: bool = False,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create ``gamma`` filled with ``init_values``; ``inplace`` overwrites the input."""
        super().__init__()
        self.inplace = inplace
        self.gamma = nn.Parameter(
            torch.full((dim,), float(init_values), device=device, dtype=dtype)
        )

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Scale the last axis."""
        return x.mul_(self.gamma) if self.inplace else x * self.gamma


def add_scaled(
    x: Float[Tensor, "b n d"], scale: nn.Module, residual: Float[Tensor, "b n d"]
) -> Float[Tensor, "b n d"]:
    """Return ``x + scale(residual)``, in one pass where ``scale`` is a `LayerScale`."""
    if isinstance(scale, LayerScale) and x.dtype == residual.dtype == scale.gamma.dtype:
        return torch.addcmul(x, residual, scale.gamma)
    return x + scale(residual)


class DropPath(nn.Module):
    """Drop a whole residual for some samples while training (Huang et al. 2016)."""

    def __init__(self, drop_prob: Number | None = None) -> None:
        """Drop each sample's residual with probability ``drop_prob``."""
        super().__init__()
        self.drop_prob = drop_prob or 0.0

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Zero some samples and scale the others so that the mean stays."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1.0 - self.drop_prob
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * (mask.div_(keep) if keep > 0.0 else mask)


def add_residual_of_subset(
    x: Float[Tensor, "b n d"],
    residual: Callable[[Tensor, Int64[Tensor, " s"]], Tensor],
    ratio: Number,
) -> Float[Tensor, "b n d"]:
    """Run a residual on a random part of the batch only, and add it scaled by batch/part.

    The DINO networks save the work of dropped samples this way. ``residual`` gets the chosen
    samples and their indices; ``max(int(b * (1 - ratio)), 1)`` samples are chosen.
    """
    batch = x.shape[0]
    count = max(int(batch * (1.0 - ratio)), 1)
    chosen = torch.randperm(batch, device=x.device)[:count]
    added = residual(x[chosen], chosen).to(x.dtype)
    return x.index_add(0, chosen, added, alpha=batch / count)
