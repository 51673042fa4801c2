"""The readout: one small network a parameter, first layer on the token grid, all heads at once."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.probing.tokens import TokenGrid

WIDTHS = {"xyz": 3, "scaling": 3, "rotation": 4, "opacity": 1, "f_dc": 3, "f_rest": 45}
"""Outputs of each head; all are raw, absolute values."""

_BLOCK = 1 << 18
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


class _GridReadout(torch.autograd.Function):
    """Interpolate, ReLU and second layers, in blocks of rows."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        before: Tensor,
        down: Tensor,
        across: Tensor,
        *second: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(before, down, across, *second)
        rows, cols = len(down), len(across)
        total = sum(len(bias) for bias in second[1::2])
        out = before.new_empty(len(before), rows, cols, total)
        for view, start, stop in _blocks(before.shape[0], rows, cols * before.shape[-1]):
            hidden = _interpolated(before[view], down[start:stop], across).relu_()
            _second_layers(hidden, second, out[view, start:stop])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        before, down, across, *second = ctx.saved_tensors
        grad = grads[0].contiguous()
        slopes = [torch.zeros_like(p) for p in second]
        grad_before = torch.zeros_like(before)
        for view, start, stop in _blocks(len(before), len(down), len(across) * before.shape[-1]):
            hidden = _interpolated(before[view], down[start:stop], across).relu_()
            flow = _second_layers_backward(hidden, second, grad[view, start:stop], slopes)
            flow = across.mT @ flow  # [rows, w, S]
            grad_before[view] += (down[start:stop].mT @ flow.flatten(1)).view(before.shape[1:])
        return grad_before, None, None, *slopes


class _PixelReadout(torch.autograd.Function):
    """Both layers on pixels, in blocks of rows; the features get no gradient."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        grid: Tensor,
        weight: Tensor,
        bias: Tensor,
        *second: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(grid, weight, bias, *second)
        total = sum(len(b) for b in second[1::2])
        out = grid.new_empty(*grid.shape[:3], total)
        for view, start, stop in _blocks(len(grid), grid.shape[1], grid.shape[2] * len(bias)):
            hidden = nn.functional.linear(grid[view, start:stop], weight, bias).relu_()
            _second_layers(hidden, second, out[view, start:stop])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        grid, weight, bias, *second = ctx.saved_tensors
        grad = grads[0].contiguous()
        slopes = [torch.zeros_like(p) for p in second]
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        for view, start, stop in _blocks(len(grid), grid.shape[1], grid.shape[2] * len(bias)):
            rows = grid[view, start:stop]
            hidden = nn.functional.linear(rows, weight, bias).relu_()
            flow = _second_layers_backward(hidden, second, grad[view, start:stop], slopes)
            flow = flow.flatten(0, 1)
            grad_weight += flow.mT @ rows.flatten(0, 1)
            grad_bias += flow.sum(0)
        return None, grad_weight, grad_bias, *slopes


def _blocks(views: int, rows: int, per_row: int) -> list[tuple[int, int, int]]:
    step = max(1, _BLOCK // per_row)
    return [
        (view, start, min(start + step, rows))
        for view in range(views)
        for start in range(0, rows, step)
    ]


def _interpolated(
    tokens: Float[Tensor, "h w S"], down: Float[Tensor, "r h"], across: Float[Tensor, "W w"]
) -> Float[Tensor, "r W S"]:
    rows, cols, units = tokens.shape
    lines = (down @ tokens.reshape(rows, cols * units)).view(len(down), cols, units)
    return across @ lines


def _second_layers(hidden: Tensor, second: Sequence[Tensor], out: Tensor) -> None:
    units = hidden.shape[-1] // (len(second) // 2)
    flat, result = hidden.flatten(0, 1), out.flatten(0, 1)
    column = 0
    for i, (weight, bias) in enumerate(zip(second[::2], second[1::2], strict=True)):
        part = flat[:, i * units : (i + 1) * units]
        result[:, column : column + len(bias)] = nn.functional.linear(part, weight, bias)
        column += len(bias)


def _second_layers_backward(
    hidden: Tensor, second: Sequence[Tensor], grad: Tensor, slopes: list[Tensor]
) -> Float[Tensor, "r W S"]:
    """Return the gradient before ReLU, and add those of the layers to ``slopes``."""
    units = hidden.shape[-1] // (len(second) // 2)
    flat, flow = hidden.flatten(0, 1), grad.flatten(0, 1)
    back = torch.empty_like(flat)
    column = 0
    for i, (weight, bias) in enumerate(zip(second[::2], second[1::2], strict=True)):
        mine = flow[:, column : column + len(bias)]
        part = slice(i * units, (i + 1) * units)
        slopes[2 * i] += mine.mT @ flat[:, part]
        slopes[2 * i + 1] += mine.sum(0)
        torch.mm(mine, weight, out=back[:, part])
        column += len(bias)
    # ReLU's slope: hidden values of exactly zero came from below.
    back *= flat > 0
    return back.view_as(hidden)


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
