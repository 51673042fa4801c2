"""The feed-forward layers of all transformer families."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sightline.nn.options import Device, DType, Number


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


class Mlp(nn.Module):
    """Linear, activation, linear (keys ``fc1``, ``fc2``)."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        drop: Number = 0.0,
        bias: bool = True,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the layers; widths default to ``in_features``."""
        super().__init__()
        hidden = hidden_features or in_features
        self.fc1 = nn.Linear(in_features, hidden, bias=bias, device=device, dtype=dtype)
        self.act = act_layer()
        self.fc2 = nn.Linear(
            hidden, out_features or in_features, bias=bias, device=device, dtype=dtype
        )
        self.drop = nn.Dropout(drop)

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch e"]:
        """Apply the layers to the last axis."""
        hidden = self.fc1(x)
        if type(self.act) is nn.GELU and not torch.is_grad_enabled():
            hidden = torch.ops.aten.gelu_(hidden, approximate=self.act.approximate)
        else:
            hidden = self.act(hidden)
        return self.drop(self.fc2(self.drop(hidden)))


class SwiGLUFFN(nn.Module):
    """``w3(silu(gate) * value)`` with gate and value in one matrix ``w12`` (Shazeer 2020)."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] | None = None,
        drop: Number = 0.0,
        bias: bool = True,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the layers; ``act_layer`` and ``drop`` exist for the common signature only."""
        super().__init__()
        hidden = hidden_features or in_features
        self.w12 = nn.Linear(in_features, 2 * hidden, bias=bias, device=device, dtype=dtype)
        self.w3 = nn.Linear(
            hidden, out_features or in_features, bias=bias, device=device, dtype=dtype
        )

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch e"]:
        """Apply the layers to the last axis."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(functional.silu(gate) * value)


class SwiGLUFFNFused(SwiGLUFFN):
    """DINOv2's giant variant: two thirds of the hidden width, rounded up to a multiple of 8."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] | None = None,
        drop: Number = 0.0,
        bias: bool = True,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the layers for a nominal ``hidden_features``."""
        hidden = round_up(int((hidden_features or in_features) * 2 / 3), 8)
        super().__init__(
            in_features, hidden, out_features, act_layer, drop, bias, device=device, dtype=dtype
        )


class SwiGLUSplit(nn.Module):
    """DINOv3's SwiGLU: gate ``w1`` and value ``w2`` are two matrices, output ``w3``."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] | None = None,
        drop: Number = 0.0,
        bias: bool = True,
        align_to: int = 8,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the layers: 2/3 of the nominal hidden width, up to a multiple of ``align_to``."""
        super().__init__()
        hidden = round_up(int((hidden_features or in_features) * 2 / 3), align_to)
        self.w1 = nn.Linear(in_features, hidden, bias=bias, device=device, dtype=dtype)
        self.w2 = nn.Linear(in_features, hidden, bias=bias, device=device, dtype=dtype)
        self.w3 = nn.Linear(
            hidden, out_features or in_features, bias=bias, device=device, dtype=dtype
        )

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch e"]:
        """Apply the layers to the last axis."""
        return self.w3(functional.silu(self.w1(x)) * self.w2(x))
