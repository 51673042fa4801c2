"""The readout: one small network a parameter, first layer on the token grid, all heads at once."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.probing.tokens import TokenGrid

WIDTHS = {"xyz": 3, "scaling": 3, "rotation": 4, "opacity": 1, "f_dc": 3, "f_rest": 45}
"""Outputs of each head; all are raw, absolute values."""

_BLOCK = 1 << 17
"""Hidden values that are alive at a time, so that they stay in the cache."""


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

    def forward(self, tokens: TokenGrid) -> dict[str, Float[Tensor, "V H W k"]]:
        """Return the raw parameters of every pixel.

        The same numbers as `per_pixel`: bilinear interpolation and a linear layer commute, so the
        first layers run on tokens, joined in one product, and their outputs are interpolated in
        blocks of rows, before ReLU. Nothing of the size pixels times hidden units is kept; the
        backward pass makes it again.
        """
        heads = [self.head(name) for name in self.names]
        first = [head.first() for head in heads]
        weight = torch.cat([layer.weight for layer in first])
        bias = torch.cat([layer.bias for layer in first])
        second = [p for head in heads for p in (head.second().weight, head.second().bias)]
        if tokens.is_pixels:
            out = _PixelReadout.apply(tokens.grid, weight, bias, *second)
        else:
            before = nn.functional.linear(tokens.grid, weight, bias)
            out = _GridReadout.apply(before, tokens.down, tokens.across, *second)
        widths = [WIDTHS[name] for name in self.names]
        return dict(zip(self.names, cast(Tensor, out).split(widths, -1), strict=True))

    def per_pixel(self, features: Float[Tensor, "*n C"]) -> dict[str, Float[Tensor, "*n k"]]:
        """Return the raw parameters of features at pixels: the plain reference.

        ``f_rest`` reads a copy through which no gradient flows back to the features.
        """
        return {
            name: self.head(name)(features.detach() if name == "f_rest" else features)
            for name in self.names
        }


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch from sharing out products this small: two threads take three times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _GridReadout(torch.autograd.Function):
    """Interpolate, ReLU and second layers, in blocks of rows."""

    @staticmethod
    @_one_thread()
    def forward(
        ctx: Any,  # noqa: ANN401
        before: Tensor,
        down: Tensor,
        across: Tensor,
        *second: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(before, down, across, *second)
        rows, cols = len(down), len(across)
        weight, bias = _joined(second)
        out = before.new_empty(len(before), rows, cols, len(bias))
        spare = _Spare(before)
        for view, start, stop in _blocks(before.shape[0], rows, cols * before.shape[-1]):
            hidden = _interpolated(before[view], down[start:stop], across, spare).relu_()
            out[view, start:stop] = hidden @ weight + bias
        return out

    @staticmethod
    @_one_thread()
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        before, down, across, *second = ctx.saved_tensors
        grad = grads[0].contiguous()
        weight, _ = _joined(second)
        slope = torch.zeros_like(weight)
        grad_before = torch.zeros_like(before)
        spare = _Spare(before)
        for view, start, stop in _blocks(len(before), len(down), len(across) * before.shape[-1]):
            hidden = _interpolated(before[view], down[start:stop], across, spare).relu_()
            flow = _backward_rows(hidden, weight, grad[view, start:stop], slope, spare)
            flow = torch.matmul(
                across.mT, flow, out=spare.get("flow", (len(flow), *before.shape[2:]))
            )
            grad_before[view].flatten(1).addmm_(down[start:stop].mT, flow.flatten(1))
        return grad_before, None, None, *_slopes(slope, grad, second)


class _PixelReadout(torch.autograd.Function):
    """Both layers on pixels, in blocks of rows; the features get no gradient."""

    @staticmethod
    @_one_thread()
    def forward(
        ctx: Any,  # noqa: ANN401
        grid: Tensor,
        weight: Tensor,
        bias: Tensor,
        *second: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(grid, weight, bias, *second)
        last, last_bias = _joined(second)
        out = grid.new_empty(*grid.shape[:3], len(last_bias))
        for view, start, stop in _blocks(len(grid), grid.shape[1], grid.shape[2] * len(bias)):
            hidden = nn.functional.linear(grid[view, start:stop], weight, bias).relu_()
            out[view, start:stop] = hidden @ last + last_bias
        return out

    @staticmethod
    @_one_thread()
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        grid, weight, bias, *second = ctx.saved_tensors
        grad = grads[0].contiguous()
        last, _ = _joined(second)
        slope = torch.zeros_like(last)
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        spare = _Spare(grid)
        for view, start, stop in _blocks(len(grid), grid.shape[1], grid.shape[2] * len(bias)):
            rows = grid[view, start:stop]
            hidden = nn.functional.linear(rows, weight, bias).relu_()
            flow = _backward_rows(hidden, last, grad[view, start:stop], slope, spare)
            flow = flow.flatten(0, 1)
            grad_weight += flow.mT @ rows.flatten(0, 1)
            grad_bias += flow.sum(0)
        return None, grad_weight, grad_bias, *_slopes(slope, grad, second)


def _blocks(views: int, rows: int, per_row: int) -> list[tuple[int, int, int]]:
    step = max(1, _BLOCK // per_row)
    return [
        (view, start, min(start + step, rows))
        for view in range(views)
        for start in range(0, rows, step)
    ]


class _Spare:
    """Buffers that blocks share; fresh ones would cost more than the sums in them."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.buffers: dict[str, Tensor] = {}

    def get(self, name: str, shape: Sequence[int]) -> Tensor:
        size = math.prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = self.like.new_empty(size)
        return self.buffers[name][:size].view(*shape)


def _interpolated(
    tokens: Float[Tensor, "h w S"],
    down: Float[Tensor, "r h"],
    across: Float[Tensor, "W w"],
    spare: _Spare,
) -> Float[Tensor, "r W S"]:
    rows, cols, units = tokens.shape
    lines = spare.get("lines", (len(down), cols * units))
    torch.mm(down, tokens.reshape(rows, cols * units), out=lines)
    hidden = spare.get("hidden", (len(down), len(across), units))
    return torch.matmul(across, lines.view(len(down), cols, units), out=hidden)


def _joined(second: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the second layers as one: a block-diagonal weight ``[S, k]`` and a bias ``[k]``.

    One product with zeros in it is faster than a skinny one for each head.
    """
    return torch.block_diag(*second[::2]).mT.contiguous(), torch.cat(list(second[1::2]))


def _backward_rows(
    hidden: Tensor, weight: Tensor, grad: Tensor, slope: Tensor, spare: _Spare
) -> Tensor:
    """Return the gradient before ReLU, and add that of the second layers to ``slope [S, k]``."""
    flat, flow = hidden.flatten(0, 1), grad.flatten(0, 1)
    slope.addmm_(flat.mT, flow)
    back = torch.mm(flow, weight.mT, out=spare.get("back", flat.shape))
    torch.ops.aten.threshold_backward.grad_input(back, flat, 0, grad_input=back)
    return back.view_as(hidden)


def _slopes(slope: Tensor, grad: Tensor, second: Sequence[Tensor]) -> list[Tensor]:
    """Cut the joined gradient into those of each head's weight and bias."""
    bias = grad.flatten(0, 2).sum(0)
    slopes: list[Tensor] = []
    row = column = 0
    for weight in second[::2]:
        outputs, units = weight.shape
        slopes.append(slope[row : row + units, column : column + outputs].mT)
        slopes.append(bias[column : column + outputs])
        row, column = row + units, column + outputs
    return slopes


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
