"""The compiled readout: hidden values of a few pixels at a time, which never leave the cache.

A *line* is a row of pixels of one view. Its hidden values before ReLU are ``X^T W`` with the line's
inputs ``X [C columns]`` and the weights ``W [C S]`` of all S hidden units. Where features are one a
pixel, X holds the features (and a row of ones, for the bias) and W the first layers. On a token
grid, X holds each pixel's bilinear weights along the line and W the first layers' outputs at the
tokens, interpolated to the line's height: both are the same kernel, and the second is exact because
bilinear interpolation and a linear layer commute.
"""

# ruff: noqa: ANN001, ANN202 - numba infers the types of compiled kernels

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sightline.probing.products import add_product, gate_product, relu_product
from sightline.probing.tokens import TokenGrid
from sightline.splatting.rasterize.jit import aligned_empty, kernel, run_chunks

_TILE = 32
"""Pixels at a time."""
_UNITS = 64
"""Hidden units at a time."""
_PIECES = 16
"""About how many parts the backward pass has, each with sums of its own: a fixed number, so that
no result depends on the number of threads."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each Gaussian's pixel lies, and what it reads; made once a probe.

    Attributes:
        inputs: ``[lines or 1, C, columns]``, columns padded with zeros to whole tiles.
        down: ``[H h]`` share of each row of weights in each line; ``[H 1]`` ones for pixels.
        spans: ``[tiles 2]`` first and last + 1 input that is not zero in a tile of a line.
        rows: ``[lines columns]`` the Gaussian of each pixel, -1 where there is none.
        count: Gaussians.
    """

    inputs: np.ndarray
    down: np.ndarray
    spans: np.ndarray
    rows: np.ndarray
    count: int


def lay_out(tokens: TokenGrid, pixels: Tensor) -> Layout:
    """Prepare reading ``pixels``, indices into the flattened ``[V H W]`` of the working pictures."""
    views, height = len(tokens.grid), len(tokens.down)
    width = len(tokens.across)
    columns = -(-width // _TILE) * _TILE
    if tokens.is_pixels:
        grid = tokens.grid.reshape(views * height, width, -1)
        ones = torch.ones(*grid.shape[:2], 1)
        lines = torch.cat([grid, ones], -1).mT
        down = torch.ones(height, 1)
    else:
        lines, down = tokens.across.mT[None], tokens.down
    inputs = torch.zeros(*lines.shape[:2], columns)
    inputs[..., :width] = lines
    rows = torch.full((views * height, columns), -1, dtype=torch.int32)
    at = pixels.long()
    rows[at // width, at % width] = torch.arange(len(at), dtype=torch.int32)
    used = (inputs != 0).any(0).view(inputs.shape[1], -1, _TILE).any(-1)
    channels = torch.arange(len(used))[:, None]
    first = torch.where(used, channels, len(used)).amin(0)
    last = torch.where(used, channels + 1, 0).amax(0)
    spans = torch.stack([torch.minimum(first, last), last], -1)
    return Layout(
        inputs=inputs.numpy(),
        down=down.contiguous().numpy(),
        spans=spans.numpy(),
        rows=rows.numpy(),
        count=len(pixels),
    )


def padded_units(hidden: int) -> int:
    """Return the hidden units of a head with room for whole blocks."""
    return -(-hidden // _UNITS) * _UNITS


def forward(
    layout: Layout, before: np.ndarray, second: np.ndarray, bias: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """Return ``[N K]`` raw values, the outputs of all heads side by side.

    Args:
        layout: Of the pixels.
        before: ``[views or 1, h, C, S]`` weights of the hidden values, heads side by side.
        second: ``[K units]`` weights of the second layers.
        bias: ``[K]`` of the second layers.
        ends: ``[heads]`` where each head's outputs end in K.
    """
    out = torch.empty(layout.count, len(bias)).numpy()
    run_chunks(
        _forward_lines, len(layout.rows), 4, layout.inputs, before, layout.down, layout.spans,
        layout.rows, second, bias, ends, out,
    )  # fmt: skip
    return out


def backward(
    layout: Layout, before: np.ndarray, second: np.ndarray, ends: np.ndarray, grad: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients of ``before`` and ``second``; see `forward`. Tiles without any are free."""
    height = len(layout.down)
    views = len(layout.rows) // height
    bands = min(max(1, _PIECES // views), height)
    edges = np.linspace(0, height, bands + 1).astype(np.int64)
    # Each band of lines touches few rows of tokens.
    touched = [np.flatnonzero(layout.down[a:b].any(0)) for a, b in pairwise(edges)]
    starts = np.array([rows[0] if len(rows) else 0 for rows in touched])
    deep = max(int(rows[-1] - rows[0]) + 1 if len(rows) else 1 for rows in touched)
    shape = (views * bands, deep, *before.shape[2:])
    partial = torch.zeros(shape).numpy()
    slopes = torch.zeros(views * bands, *second.shape).numpy()
    run_chunks(
        _backward_bands, views * bands, 1, layout.inputs, before, layout.down, layout.spans,
        layout.rows, second, ends, grad, edges, starts, partial, slopes,
    )  # fmt: skip
    total = np.zeros_like(before)
    for piece in range(views * bands):
        view, start = piece // bands, starts[piece % bands]
        rows = total[view if len(before) > 1 else 0, start : start + deep]
        rows += partial[piece, : len(rows)]
    return total, slopes.sum(0)


@kernel
def _weights_of_line(before, down, weights):
    """Interpolate weights to one line; ``weights [C S]`` is filled."""
    weights[:] = np.float32(0)
    for i in range(before.shape[0]):
        share = down[i]
        if share != 0:
            for c in range(weights.shape[0]):
                source, target = before[i, c], weights[c]
                for s in range(target.shape[0]):
                    target[s] += share * source[s]


@kernel
def _forward_lines(l0, l1, inputs, before, down, spans, rows, second, bias, ends, out):
    channels, columns = inputs.shape[1], inputs.shape[2]
    units, height = second.shape[1], down.shape[0]
    total = before.shape[3]
    outputs = len(bias)
    weights = aligned_empty(channels * total)
    hidden = aligned_empty(_UNITS * _TILE)
    found = aligned_empty(outputs * _TILE)
    lines, flat_second = inputs.reshape(-1), second.reshape(-1)
    for line in range(l0, l1):
        view = line // height if before.shape[0] > 1 else 0
        _weights_of_line(before[view], down[line % height], weights.reshape(channels, total))
        start = line * channels * columns if inputs.shape[0] > 1 else 0
        for tile in range(columns // _TILE):
            column = tile * _TILE
            index = rows[line, column : column + _TILE]
            wanted = False
            for p in range(_TILE):
                wanted = wanted or index[p] >= 0
            if not wanted:
                continue
            first, depth = spans[tile, 0], spans[tile, 1] - spans[tile, 0]
            x = start + first * columns + column
            found[:] = np.float32(0)
            begin = 0
            for head in range(len(ends)):
                for u in range(0, units, _UNITS):
                    w = first * total + head * units + u
                    relu_product(
                        hidden, 0, _TILE, weights, w, 1, total, lines, x, columns,
                        _UNITS, _TILE, depth,
                    )  # fmt: skip
                    add_product(
                        found, begin * _TILE, _TILE, flat_second, begin * units + u, units, 1,
                        hidden, 0, _TILE, ends[head] - begin, _TILE, _UNITS,
                    )  # fmt: skip
                begin = ends[head]
            for p in range(_TILE):
                if index[p] >= 0:
                    row = out[index[p]]
                    for k in range(outputs):
                        row[k] = found[k * _TILE + p] + bias[k]


@kernel
def _backward_bands(
    b0, b1, inputs, before, down, spans, rows, second, ends, grad, edges, starts, partial, slopes
):
    channels, columns = inputs.shape[1], inputs.shape[2]
    units, height = second.shape[1], down.shape[0]
    total = before.shape[3]
    outputs = grad.shape[1]
    bands = len(edges) - 1
    weights, slope_of_line = aligned_empty(channels * total), aligned_empty(channels * total)
    hidden = aligned_empty(_TILE * _UNITS)
    given = aligned_empty(_TILE * outputs)
    lines, flat_second = inputs.reshape(-1), second.reshape(-1)
    for band in range(b0, b1):
        view, part = band // bands, band % bands
        slope = slopes[band].reshape(-1)
        for y in range(edges[part], edges[part + 1]):
            line = view * height + y
            start = line * channels * columns if inputs.shape[0] > 1 else 0
            touched = False
            for tile in range(columns // _TILE):
                column = tile * _TILE
                index = rows[line, column : column + _TILE]
                some = False
                for p in range(_TILE):
                    if index[p] >= 0:
                        for k in range(outputs):
                            value = grad[index[p], k]
                            given[p * outputs + k] = value
                            some = some or value != 0
                    else:
                        given[p * outputs : (p + 1) * outputs] = np.float32(0)
                if not some:
                    continue
                if not touched:
                    touched = True
                    source = before[view if before.shape[0] > 1 else 0]
                    _weights_of_line(source, down[y], weights.reshape(channels, total))
                    slope_of_line[:] = np.float32(0)
                first, depth = spans[tile, 0], spans[tile, 1] - spans[tile, 0]
                x = start + first * columns + column
                begin = 0
                for head in range(len(ends)):
                    width = ends[head] - begin
                    for u in range(0, units, _UNITS):
                        w = first * total + head * units + u
                        v = begin * units + u
                        relu_product(
                            hidden, 0, _UNITS, lines, x, 1, columns, weights, w, total,
                            _TILE, _UNITS, depth,
                        )  # fmt: skip
                        add_product(
                            slope, v, units, given, begin, 1, outputs, hidden, 0, _UNITS,
                            width, _UNITS, _TILE,
                        )  # fmt: skip
                        gate_product(
                            hidden, 0, _UNITS, given, begin, outputs, 1, flat_second, v, units,
                            _TILE, _UNITS, width,
                        )  # fmt: skip
                        add_product(
                            slope_of_line, w, total, lines, x, columns, 1, hidden, 0, _UNITS,
                            depth, _UNITS, _TILE,
                        )  # fmt: skip
                    begin = ends[head]
            if touched:
                for i in range(before.shape[1]):
                    share = down[y, i]
                    if share != 0:
                        to = partial[band, i - starts[part]].reshape(-1)
                        for s in range(channels * total):
                            to[s] += share * slope_of_line[s]
