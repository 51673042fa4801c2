"""Kernels that blend the Gaussians of a tile front to back, and their transpose.

The state of a tile lies in one flat array, block by block, ``LANES`` values a quantity, so that every
inner loop below becomes a handful of vector instructions. A negative transmittance marks a pixel
that takes no more (or lies outside the picture).

The backward pass walks front to back too and repeats the forward pass exactly, with the same stop
decisions. With q_i = g . c_i + g_alpha for a contributing Gaussian and R_i the part of the loss
behind it, R_0 is known from the finished picture and R_i = R_{i-1} - w_i q_i; then
dL/dalpha_i = T_i q_i - R_i / (1 - alpha_i).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from sightline.splatting.rasterize.jit import (
    add_products,
    add_scaled,
    aligned_empty,
    any_positive,
    inlined,
    kernel,
    lowest_bit,
    prefetch,
    scale_by_power,
    sum_lanes,
)
from sightline.splatting.rasterize.project import FACTOR, FLAT, MEAN, OPACITY, REACH
from sightline.splatting.rasterize.tiles import (
    BLOCK_HEIGHT,
    BLOCK_WIDTH,
    BLOCKS,
    COLUMNS,
    TILE_HEIGHT,
    TILE_WIDTH,
)

f4 = np.float32

LANES = BLOCK_WIDTH * BLOCK_HEIGHT
MOMENTS = 6
"""Sums of s, s u, s v, s u^2, s u v, s v^2 over a tile's pixels, with s = dL/dsigma."""

_LOOK = 31
"""Finished blocks are looked for after this many Gaussians plus one (a bit mask)."""
_AHEAD = 4
_AHEAD_SUMS = 24
"""How many Gaussians ahead records are fetched, and how many pairs ahead their sums."""

_0 = f4(0)
_1 = f4(1)
_2 = f4(2)
_HALF = f4(0.5)
_AMAX = f4(0.99)
_STOP = f4(1e-4)
_TINY = f4(1e-10)
_MAGIC = f4(1.5 * 2**23)
_P0, _P1, _P2, _P3, _P4, _P5 = (
    f4(1.0000001192092896),
    f4(0.6931469440460205),
    f4(0.24022121727466583),
    f4(0.05550742521882057),
    f4(0.009675459936261177),
    f4(0.0013266970636323094),
)
"""2**f on [-0.5, 0.5] to 8e-8 relative: a least-squares fit of the relative error at Chebyshev
nodes."""
_INV_K2 = f4(2.0 / math.log2(math.e))
_MINUS_HALF_K4 = f4(-0.5 * (2.0 / math.log2(math.e)) ** 2)
_ALL = np.uint64(2**BLOCKS - 1)
_BIT = np.uint64(1)


@inlined
def _power(s):
    """2**-s for 0 <= s < 126; beyond that, anything."""
    shifted = _MAGIC - s
    f = (_MAGIC - shifted) - s
    e = _P4 + f * _P5
    e = _P3 + f * e
    e = _P2 + f * e
    e = _P1 + f * e
    e = _P0 + f * e
    return scale_by_power(e, shifted)


@inlined
def _alive(state, step, blocks):
    """Mask of the blocks of ``blocks`` in which any pixel still takes colour."""
    alive = np.uint64(0)
    for block in range(BLOCKS):
        alive |= np.uint64(any_positive(state, block * step, LANES)) << np.uint64(block)
    return alive & blocks


@kernel
def _start(state, step, y_tile, x_tile, width, height):
    """Set the transmittance of a tile: 1 in the picture, -1 outside."""
    for block in range(BLOCKS):
        y0 = y_tile + (block // COLUMNS) * BLOCK_HEIGHT
        x0 = x_tile + (block % COLUMNS) * BLOCK_WIDTH
        for lane in range(LANES):
            y = y0 + lane // BLOCK_WIDTH
            x = x0 + lane % BLOCK_WIDTH
            state[block * step + lane] = _1 if y < height and x < width else -_1


@kernel
def _write(state, t, pixel, width, rows, columns, channels, background, expected, image, alphas):
    """Finish the pixels of a block; ``pixel`` is the number of the first in the picture.

    Unsigned numbers spare the check for negative indices at every access, here and in ``_read``.
    """
    for row in range(rows):
        for column in range(columns):
            lane = t + np.uint64(row * BLOCK_WIDTH + column)
            here = pixel + np.uint64(row) * width + np.uint64(column)
            rest = abs(state[lane])
            alphas[here] = _1 - rest
            out = here * np.uint64(channels)
            for d in range(channels):
                value = state[lane + np.uint64((1 + d) * LANES)] + rest * background[d]
                image[out + np.uint64(d)] = value
            if expected:
                image[out + np.uint64(channels - 1)] /= max(_1 - rest, _TINY)


@functools.cache
def blend_kernel(channels: int) -> Callable[..., Any]:
    """Return the forward kernel for 3 or 4 channels, or for any number when ``channels`` is 0.

    The first keep their colours in registers; the last loops over them.
    """
    fixed = channels

    @kernel
    def blend(
        first, last, tiles_x, width, height, given, offsets, lists, records,
        background, expected, image, alphas,
    ):  # fmt: skip
        count = fixed if fixed > 0 else given
        step = (1 + count) * LANES
        state = aligned_empty(BLOCKS * step)
        weights = aligned_empty(LANES)
        for tile in range(first, last):
            y_tile = (tile // tiles_x) * TILE_HEIGHT
            x_tile = (tile % tiles_x) * TILE_WIDTH
            state[:] = _0
            _start(state, step, y_tile, x_tile, width, height)
            alive = _ALL
            begin = offsets[tile]
            end = offsets[tile + 1]
            for k in range(begin, end):
                if (k - begin) & _LOOK == _LOOK:
                    alive = _alive(state, step, alive)
                    if alive == 0:
                        break
                prefetch(records, lists[min(k + _AHEAD, end - 1), 1])
                todo = lists[k, 0] & alive
                if todo == 0:
                    continue
                p = lists[k, 1]
                a = records[p, FACTOR]
                b = records[p, FACTOR + 1]
                c = records[p, FACTOR + 2]
                opacity = records[p, OPACITY]
                reach = records[p, REACH]
                c0 = records[p, FLAT]
                c1 = records[p, FLAT + 1] if fixed > 0 else _0
                c2 = records[p, FLAT + 2] if fixed > 0 else _0
                c3 = records[p, FLAT + 3] if fixed > 3 else _0
                dx = f4(x_tile) + _HALF - records[p, MEAN]
                dy = f4(y_tile) + _HALF - records[p, MEAN + 1]
                while todo != 0:
                    block = lowest_bit(todo)
                    todo &= todo - _BIT
                    y = dy + f4((block // COLUMNS) * BLOCK_HEIGHT)
                    u0 = a * (dx + f4((block % COLUMNS) * BLOCK_WIDTH)) + b * y
                    v0 = c * y
                    t = block * step
                    for lane in range(LANES):
                        row = f4(np.int32(lane // BLOCK_WIDTH))
                        u = u0 + b * row + a * f4(np.int32(lane % BLOCK_WIDTH))
                        v = v0 + c * row
                        s = u * u + v * v
                        alpha = min(opacity * _power(s), _AMAX)
                        alpha = alpha if s <= reach else _0
                        before = state[t + lane]
                        w = before * alpha
                        after = before - w
                        goes_on = after > _STOP
                        w = w if goes_on else _0
                        state[t + lane] = after if goes_on else -abs(before)
                        if fixed > 0:
                            state[t + LANES + lane] += w * c0
                            state[t + 2 * LANES + lane] += w * c1
                            state[t + 3 * LANES + lane] += w * c2
                            if fixed > 3:
                                state[t + 4 * LANES + lane] += w * c3
                        else:
                            weights[lane] = w
                    if fixed == 0:
                        for d in range(count):
                            color = records[p, FLAT + d]
                            add_scaled(state, t + (1 + d) * LANES, weights, 0, color, LANES)
            for block in range(BLOCKS):
                t = np.uint64(block * step)
                y0 = y_tile + (block // COLUMNS) * BLOCK_HEIGHT
                x0 = x_tile + (block % COLUMNS) * BLOCK_WIDTH
                pixel = np.uint64(y0 * width + x0)
                rows = height - y0
                columns = width - x0
                if rows >= BLOCK_HEIGHT and columns >= BLOCK_WIDTH:
                    _write(
                        state, t, pixel, np.uint64(width), BLOCK_HEIGHT, BLOCK_WIDTH, count, background, expected,
                        image, alphas,
                    )  # fmt: skip
                else:
                    _write(
                        state, t, pixel, np.uint64(width), min(rows, BLOCK_HEIGHT), min(columns, BLOCK_WIDTH),
                        count, background, expected, image, alphas,
                    )  # fmt: skip

    return blend


@kernel
def _read(
    state, t, pixel, width, rows, columns, channels, expected, image, alphas, grad_image,
    grad_alpha, grad_background,
):  # fmt: skip
    """Begin the pixels of a block: R and the gradients; add up the background's gradient."""
    for row in range(rows):
        for column in range(columns):
            lane = t + np.uint64(row * BLOCK_WIDTH + column)
            here = pixel + np.uint64(row) * width + np.uint64(column)
            covered = alphas[here]
            ga = grad_alpha[here]
            behind = _0
            first = here * np.uint64(channels)
            for d in range(channels):
                g = grad_image[first + np.uint64(d)]
                behind += g * image[first + np.uint64(d)]
                state[lane + np.uint64((3 + d) * LANES)] = g
            if expected:
                # the last value is depth / max(alpha, tiny); its product with g is that of the sums
                d = np.uint64(channels - 1)
                state[lane + np.uint64((2 + channels) * LANES)] /= max(covered, _TINY)
                if covered > _TINY:
                    ga -= grad_image[first + d] * image[first + d] / covered
            for d in range(grad_background.shape[0]):
                grad_background[d] += (_1 - covered) * grad_image[first + np.uint64(d)]
            state[lane + np.uint64(LANES)] = behind + ga * covered
            state[lane + np.uint64(2 * LANES)] = ga


@functools.cache
def blend_backward_kernel(channels: int, absolute: bool) -> Callable[..., Any]:
    """Return the backward kernel; ``absolute`` adds the sums of |dL/dmean|, for ``absgrad``."""
    fixed = channels
    extra = MOMENTS + (2 if absolute else 0)

    @kernel
    def blend_backward(
        first, last, tiles_x, width, height, given, offsets, lists, records,
        expected, image, alphas, grad_image, grad_alpha, sums, grad_background,
    ):  # fmt: skip
        count = fixed if fixed > 0 else given
        # a block's state: T, R, g_alpha, g_0, g_1, ...
        step = (3 + count) * LANES
        state = aligned_empty(BLOCKS * step)
        weights = aligned_empty(LANES)
        products = aligned_empty(LANES)
        m = aligned_empty((extra + count) * LANES)
        for tile in range(first, last):
            y_tile = (tile // tiles_x) * TILE_HEIGHT
            x_tile = (tile % tiles_x) * TILE_WIDTH
            state[:] = _0
            _start(state, step, y_tile, x_tile, width, height)
            grad_background[tile, :] = _0
            for block in range(BLOCKS):
                t = np.uint64(block * step)
                y0 = y_tile + (block // COLUMNS) * BLOCK_HEIGHT
                x0 = x_tile + (block % COLUMNS) * BLOCK_WIDTH
                pixel = np.uint64(y0 * width + x0)
                rows = height - y0
                columns = width - x0
                if rows >= BLOCK_HEIGHT and columns >= BLOCK_WIDTH:
                    _read(
                        state, t, pixel, np.uint64(width), BLOCK_HEIGHT, BLOCK_WIDTH, count, expected, image,
                        alphas, grad_image, grad_alpha, grad_background[tile],
                    )  # fmt: skip
                else:
                    _read(
                        state, t, pixel, np.uint64(width), min(rows, BLOCK_HEIGHT), min(columns, BLOCK_WIDTH),
                        count, expected, image, alphas, grad_image, grad_alpha,
                        grad_background[tile],
                    )  # fmt: skip
            alive = _ALL
            begin = offsets[tile]
            end = offsets[tile + 1]
            for k in range(begin, end):
                if (k - begin) & _LOOK == _LOOK:
                    alive = _alive(state, step, alive)
                prefetch(records, lists[min(k + _AHEAD, end - 1), 1])
                todo = lists[k, 0] & alive
                if todo == 0:
                    for j in range(extra + count):
                        sums[k, j] = _0
                    continue
                p = lists[k, 1]
                a = records[p, FACTOR]
                b = records[p, FACTOR + 1]
                c = records[p, FACTOR + 2]
                opacity = records[p, OPACITY]
                reach = records[p, REACH]
                c0 = records[p, FLAT]
                c1 = records[p, FLAT + 1] if fixed > 0 else _0
                c2 = records[p, FLAT + 2] if fixed > 0 else _0
                c3 = records[p, FLAT + 3] if fixed > 3 else _0
                dx = f4(x_tile) + _HALF - records[p, MEAN]
                dy = f4(y_tile) + _HALF - records[p, MEAN + 1]
                for j in range((extra + count) * LANES):
                    m[j] = _0
                while todo != 0:
                    block = lowest_bit(todo)
                    todo &= todo - _BIT
                    y = dy + f4((block // COLUMNS) * BLOCK_HEIGHT)
                    u0 = a * (dx + f4((block % COLUMNS) * BLOCK_WIDTH)) + b * y
                    v0 = c * y
                    t = block * step
                    if fixed == 0:
                        for lane in range(LANES):
                            products[lane] = state[t + 2 * LANES + lane]
                        for d in range(count):
                            color = records[p, FLAT + d]
                            add_scaled(products, 0, state, t + (3 + d) * LANES, color, LANES)
                    for lane in range(LANES):
                        row = f4(np.int32(lane // BLOCK_WIDTH))
                        u = u0 + b * row + a * f4(np.int32(lane % BLOCK_WIDTH))
                        v = v0 + c * row
                        s = u * u + v * v
                        raw = opacity * _power(s)
                        alpha = min(raw, _AMAX)
                        alpha = alpha if s <= reach else _0
                        before = state[t + lane]
                        w = before * alpha
                        after = before - w
                        goes_on = after > _STOP
                        w = w if goes_on else _0
                        state[t + lane] = after if goes_on else -abs(before)
                        if fixed > 0:
                            g0 = state[t + 3 * LANES + lane]
                            g1 = state[t + 4 * LANES + lane]
                            g2 = state[t + 5 * LANES + lane]
                            q = state[t + 2 * LANES + lane] + c0 * g0 + c1 * g1 + c2 * g2
                            m[extra * LANES + lane] += w * g0
                            m[(extra + 1) * LANES + lane] += w * g1
                            m[(extra + 2) * LANES + lane] += w * g2
                            if fixed > 3:
                                g3 = state[t + 6 * LANES + lane]
                                q += c3 * g3
                                m[(extra + 3) * LANES + lane] += w * g3
                        else:
                            weights[lane] = w
                            q = products[lane]
                        rest = state[t + LANES + lane] - w * q
                        state[t + LANES + lane] = rest
                        # dL/dsigma = -alpha dL/dalpha, zero where alpha is clamped or not used
                        slope = alpha * (rest / (_1 - alpha) - before * q)
                        slope = slope if goes_on and raw <= _AMAX else _0
                        su = slope * u
                        sv = slope * v
                        m[lane] += slope
                        m[LANES + lane] += su
                        m[2 * LANES + lane] += sv
                        m[3 * LANES + lane] += su * u
                        m[4 * LANES + lane] += su * v
                        m[5 * LANES + lane] += sv * v
                        if absolute:
                            m[6 * LANES + lane] += abs(a * su)
                            m[7 * LANES + lane] += abs(b * su + c * sv)
                    if fixed == 0:
                        for d in range(count):
                            here = t + (3 + d) * LANES
                            add_products(m, (extra + d) * LANES, weights, 0, state, here, LANES)
                for j in range(extra + count):
                    sums[k, j] = sum_lanes(m, j * LANES, LANES)

    return blend_backward


@kernel
def sum_pairs(
    first, last, channels, has_depth, absolute, records, start, count, where, sums, ids, base, packed,
    grad_records, grad_means2d, abs_means2d,
):  # fmt: skip
    """Add up each Gaussian's sums over tiles and finish what is common to its pixels.

    With d = mean - pixel and L d = (u, v) up to the factor that makes the exponent a power of two,
    dL/dmean = L^t M1 and dL/dcov = -L^t M2 L / 2, M1 and M2 being the first and second moments.
    """
    extra = MOMENTS + (2 if absolute else 0)
    total = np.empty(extra + channels, np.float32)
    most = where.shape[0] - 1
    for p in range(first, last):
        total[:] = _0
        for e in range(start[p], start[p] + count[p]):
            prefetch(sums, where[min(e + _AHEAD_SUMS, most)])
            for j in range(extra + channels):
                total[j] += sums[where[e], j]
        a = records[p, FACTOR]
        b = records[p, FACTOR + 1]
        c = records[p, FACTOR + 2]
        muu = total[3]
        muv = total[4]
        mvv = total[5]
        grad = grad_records[p]
        grad[:] = _0
        grad[0] = _MINUS_HALF_K4 * (a * a * muu)
        grad[1] = _MINUS_HALF_K4 * (a * (b * muu + c * muv))
        grad[2] = _MINUS_HALF_K4 * (b * b * muu + _2 * b * c * muv + c * c * mvv)
        grad[3] = -total[0] / records[p, OPACITY]
        if has_depth:
            grad[4] = total[extra + channels - 1]
        for d in range(channels):
            grad[FLAT + d] = total[extra + d]
        row = base + (p if packed else ids[p])
        grad_means2d[row, 0] = -_INV_K2 * (a * total[1])
        grad_means2d[row, 1] = -_INV_K2 * (b * total[1] + c * total[2])
        if absolute:
            abs_means2d[row, 0] = _INV_K2 * total[6]
            abs_means2d[row, 1] = _INV_K2 * total[7]
