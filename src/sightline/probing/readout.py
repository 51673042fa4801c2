"""The readout: one small network a parameter, first layer on the token grid, all heads at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sightline.probing import readout_cpu
from sightline.probing.readout_cpu import Layout, lay_out
from sightline.probing.tokens import TokenGrid

WIDTHS = {"xyz": 3, "scaling": 3, "rotation": 4, "opacity": 1, "f_dc": 3, "f_rest": 45}
"""Outputs of each head; all are raw, absolute values."""


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """Which pixels are read, out of which features; made once a probe.

    Attributes:
        tokens: Features of the training views.
        pixels: Indices into the flattened ``[V H W]`` of the working pictures, one a Gaussian.
        layout: For the compiled readout; None is read in plain torch.
    """

    tokens: TokenGrid
    pixels: Int64[Tensor, " N"]
    layout: Layout | None

    @staticmethod
    def of(tokens: TokenGrid, pixels: Int64[Tensor, " N"]) -> "Reading":
        """Prepare reading; float32 on the CPU is compiled."""
        compiled = tokens.grid.device.type == "cpu" and tokens.grid.dtype == torch.float32
        return Reading(tokens, pixels, lay_out(tokens, pixels) if compiled else None)


class _Head(nn.Module):
    """Linear, ReLU, Linear; parameters carry the published names."""

    def __init__(self, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.mlp_warp = nn.ModuleList([nn.Linear(width, hidden), nn.Linear(hidden, outputs)])

    def first(self) -> nn.Linear:
        return cast(nn.Linear, self.mlp_warp[0])

    def second(self) -> nn.Linear:
        return cast(nn.Linear, self.mlp_warp[1])

    def forward(self, features: Tensor) -> Tensor:
        return self.second()(self.first()(features).relu())


class Readout(nn.Module):
    """Heads that read raw Gaussian parameters out of features (Feat2GS, section 3.2).

    State: ``head_NAME.mlp_warp.0.weight``, ``.bias`` and ``head_NAME.mlp_warp.1.*``.
    """

    def __init__(
        self, names: Sequence[str], width: int, hidden: int, generator: torch.Generator
    ) -> None:
        """Draw torch's default initial weights from a generator.

        Args:
            names: Heads, some of `WIDTHS`.
            width: Channels of the features.
            hidden: Units between the layers.
            generator: On the CPU.
        """
        super().__init__()
        self.names = tuple(names)
        for name in self.names:
            head = _Head(width, hidden, WIDTHS[name])
            with torch.no_grad():
                for layer in (head.first(), head.second()):
                    bound = layer.in_features**-0.5
                    for parameter in layer.parameters():
                        parameter.uniform_(-bound, bound, generator=generator)
            self.add_module(f"head_{name}", head)

    def head(self, name: str) -> _Head:
        """Return a parameter's head."""
        return cast(_Head, getattr(self, f"head_{name}"))

    def forward(self, reading: Reading) -> dict[str, Float[Tensor, "N k"]]:
        """Return the raw parameters of the pixels.

        The same numbers as `per_pixel`: bilinear interpolation and a linear layer commute, so the
        first layers run on tokens, joined in one product, and their outputs are interpolated
        before ReLU. Nothing of the size pixels times hidden units is kept; the backward pass makes
        it again.
        """
        tokens = reading.tokens
        if reading.layout is None:
            return {name: self._read_head(name, reading) for name in self.names}
        heads = [self.head(name) for name in self.names]
        weight = torch.cat([_with_room(head.first().weight, 0) for head in heads])
        bias = torch.cat([_with_room(head.first().bias, 0) for head in heads])
        second = torch.cat([_with_room(head.second().weight, 1) for head in heads])
        last = torch.cat([head.second().bias for head in heads])
        if tokens.is_pixels:
            before = torch.cat([weight.mT, bias[None]])[None, None]
        else:
            before = nn.functional.linear(tokens.grid, weight, bias)
        widths = [WIDTHS[name] for name in self.names]
        apply: Callable[..., Any] = _CompiledReadout.apply
        out: Tensor = apply(before, second, last, widths, reading.layout)
        return dict(zip(self.names, out.split(widths, -1), strict=True))

    def _read_head(self, name: str, reading: Reading) -> Tensor:
        """Read one parameter in plain torch, on any device; what is as large as pixels is not kept."""

        def read() -> Tensor:
            tokens, head = reading.tokens, self.head(name)
            before = head.first()(tokens.grid)
            if not tokens.is_pixels:
                rows = torch.einsum("Hh,vhws->vHws", tokens.down, before)
                before = torch.einsum("Ww,vHws->vHWs", tokens.across, rows)
            hidden = before.flatten(0, 2).index_select(0, reading.pixels).relu()
            return head.second()(hidden)

        return cast(Tensor, checkpoint(read, use_reentrant=False, preserve_rng_state=False))

    def per_pixel(self, features: Float[Tensor, "*n C"]) -> dict[str, Float[Tensor, "*n k"]]:
        """Return the raw parameters of features at pixels: the plain reference.

        ``f_rest`` reads a copy through which no gradient flows back to the features.
        """
        return {
            name: self.head(name)(features.detach() if name == "f_rest" else features)
            for name in self.names
        }


def _with_room(parameter: Tensor, axis: int) -> Tensor:
    """Add units without weights up to whole blocks; they are zero and stay so."""
    size = parameter.shape[axis]
    missing = readout_cpu.padded_units(size) - size
    if not missing:
        return parameter
    last = axis == parameter.dim() - 1
    return nn.functional.pad(parameter, (0, missing) if last else (0, 0, 0, missing))


class _CompiledReadout(torch.autograd.Function):
    """`readout_cpu` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        before: Tensor,
        second: Tensor,
        bias: Tensor,
        widths: Sequence[int],
        layout: Layout,
    ) -> Tensor:
        ctx.save_for_backward(before, second)
        ctx.layout, ctx.ends = layout, np.cumsum(widths)
        weights = (before.detach().contiguous().numpy(), second.detach().contiguous().numpy())
        return torch.from_numpy(
            readout_cpu.forward(layout, *weights, bias.detach().numpy(), ctx.ends)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        before, second = (value.detach().contiguous().numpy() for value in ctx.saved_tensors)
        grad = grads[0].contiguous()
        slopes = readout_cpu.backward(ctx.layout, before, second, ctx.ends, grad.numpy())
        return *(torch.from_numpy(slope) for slope in slopes), grad.sum(0), None, None


def gaussians_from(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Activate raw parameters and name them as `rasterization` does."""
    sh = torch.cat([raw["f_dc"].view(-1, 1, 3), raw["f_rest"].view(-1, 15, 3)], 1)
    return {
        "means": raw["xyz"],
        "quats": raw["rotation"],
        "scales": raw["scaling"].exp(),
        "opacities": raw["opacity"].sigmoid().squeeze(-1),
        "colors": sh,
    }
