"""Kernels that sort Gaussians by depth and list, for every tile, those that touch it.

A tile has ``ROWS`` x ``COLUMNS`` blocks of ``BLOCK_HEIGHT`` x ``BLOCK_WIDTH`` pixels; a block is what
one vector instruction covers. Each pair of a tile and a Gaussian carries a bit mask of the blocks
that the Gaussian's ellipse really touches, so that no work is spent on the corners of boxes.
"""

import math

import numpy as np

from sightline.splatting.rasterize.jit import inlined, kernel, prefetch
from sightline.splatting.rasterize.project import (
    CONIC,
    DEPTH,
    FACTOR,
    FLAT,
    MEAN,
    OPACITY,
    REACH,
)

f4 = np.float32

BLOCK_WIDTH = 4
BLOCK_HEIGHT = 4
COLUMNS = 8
ROWS = 8
BLOCKS = ROWS * COLUMNS
"""At most 64: the bits of a mask."""
TILE_WIDTH = BLOCK_WIDTH * COLUMNS
TILE_HEIGHT = BLOCK_HEIGHT * ROWS
TILE_WIDTH_BITS = TILE_WIDTH.bit_length() - 1
TILE_HEIGHT_BITS = TILE_HEIGHT.bit_length() - 1

_0 = f4(0)
_1 = f4(1)
_HALF = f4(0.5)
_LAST_ROW = f4(BLOCK_HEIGHT - 1)
_SLACK = f4(1e-3)
"""Widening of every bound, in pixels and in powers of two: rounding must never lose a pixel."""
_ONE_BIT = np.uint64(1)


@kernel
def collect(
    first, last, chunk, at, packed, radii, flat, colors, use_depth,
    ids, records, means2d, conics, opacities, depths, packed_radii,
):  # fmt: skip
    """Gather the visible Gaussians of pieces ``[first, last)`` of ``chunk`` Gaussians.

    Those of piece ``p`` go to places ``at[p]`` onwards of ``ids`` and ``records`` (the columns of
    ``flat``, then the colours, then the depth once more when ``use_depth``) and, as what callers
    may look at, to the row of that place (``packed``) or of their index.
    """
    channels = colors.shape[1]
    for piece in range(first, last):
        p = at[piece]
        for i in range(piece * chunk, min((piece + 1) * chunk, radii.shape[0])):
            if radii[i, 0] == 0:
                continue
            ids[p] = i
            for j in range(FLAT):
                records[p, j] = flat[i, j]
            for d in range(channels):
                records[p, FLAT + d] = colors[i, d]
            if use_depth:
                records[p, FLAT + channels] = flat[i, DEPTH]
            if packed:
                packed_radii[p, 0] = radii[i, 0]
                packed_radii[p, 1] = radii[i, 1]
            row = p if packed else i
            means2d[row, 0] = flat[i, MEAN]
            means2d[row, 1] = flat[i, MEAN + 1]
            conics[row, 0] = flat[i, CONIC]
            conics[row, 1] = flat[i, CONIC + 1]
            conics[row, 2] = flat[i, CONIC + 2]
            opacities[row] = flat[i, OPACITY]
            depths[row] = flat[i, DEPTH]
            p += 1


@kernel
def sort_by_depth(records, order):
    """Write to ``order`` the rows of ``records``, nearest first, equal depths in row order.

    A radix sort of the float32 bits of the depth, which are positive and so order like integers.
    """
    n = records.shape[0]
    keys = np.empty(n, np.uint32)
    other_keys = np.empty(n, np.uint32)
    items = np.empty(n, np.int32)
    depth = np.empty(1, np.float32)
    bits = depth.view(np.uint32)
    counts = np.zeros((3, 2048), np.int64)
    for p in range(n):
        depth[0] = records[p, DEPTH]
        key = bits[0]
        keys[p] = key
        order[p] = p
        counts[0, key & 2047] += 1
        counts[1, (key >> 11) & 2047] += 1
        counts[2, key >> 22] += 1
    for digit in range(3):
        total = 0
        for value in range(2048):
            here = counts[digit, value]
            counts[digit, value] = total
            total += here
    source, target = order, items
    for digit in range(3):
        for p in range(n):
            key = keys[p]
            value = (key >> (11 * digit)) & 2047
            q = counts[digit, value]
            counts[digit, value] = q + 1
            other_keys[q] = key
            target[q] = source[p]
        keys, other_keys = other_keys, keys
        source, target = target, source
    for p in range(n):
        order[p] = source[p]


@inlined
def _floor(value):
    """Floor of a number that is not negative; math.floor is a call."""
    return np.int64(np.int32(value))


@inlined
def _ceil(value):
    """Ceiling of a number that is not negative."""
    whole = np.int32(value)
    return np.int64(whole) + np.int64(f4(whole) < value)


@inlined
def _box(record, width, height):
    """First and last pixel column and row that the ellipse can touch."""
    mx, my = record[MEAN], record[MEAN + 1]
    a, b, c, reach = record[FACTOR], record[FACTOR + 1], record[FACTOR + 2], record[REACH]
    root = math.sqrt(reach + _SLACK)
    ry = root / c
    rx = root * math.sqrt(b * b + c * c) / (a * c)
    x0 = _ceil(min(max(mx - rx - _HALF - _SLACK, _0), f4(width)))
    x1 = _floor(min(max(mx + rx + _HALF + _SLACK, _0), f4(width))) - 1
    y0 = _ceil(min(max(my - ry - _HALF - _SLACK, _0), f4(height)))
    y1 = _floor(min(max(my + ry + _HALF + _SLACK, _0), f4(height))) - 1
    return x0, x1, y0, y1


@kernel
def bound_tiles(first, last, records, width, height, bound):
    """Write how many tiles the box of each Gaussian touches."""
    for p in range(first, last):
        x0, x1, y0, y1 = _box(records[p], width, height)
        across = (x1 >> TILE_WIDTH_BITS) - (x0 >> TILE_WIDTH_BITS) + 1
        down = (y1 >> TILE_HEIGHT_BITS) - (y0 >> TILE_HEIGHT_BITS) + 1
        bound[p] = across * down if x1 >= x0 and y1 >= y0 else 0


@kernel
def bound_pieces(first, last, grain, order, bound, capacity):
    """Write how many pairs the Gaussians of each piece of ``grain`` can have together."""
    for piece in range(first, last):
        total = 0
        for rank in range(piece * grain, min((piece + 1) * grain, order.shape[0])):
            total += bound[order[rank]]
        capacity[piece] = total


@kernel
def cover(
    first, last, grain, order, records, width, height, tiles_x, begin, pairs, count, counts, stopped,
):  # fmt: skip
    """List the tiles and block masks of each Gaussian of pieces ``[first, last)`` of ``grain``.

    Gaussians come in ``order``. Piece ``i`` writes ``pairs`` (mask, tile, Gaussian) from
    ``begin[i]`` on; ``count[p]`` is the number of pairs of Gaussian ``p``; row ``i`` of ``counts``
    says how many pairs of piece ``i`` fall on each tile.

    Within rows of pixels ``[low, high]`` (relative to the mean) the ellipse spans x from the least
    of ``(-b y - h) / a`` to the greatest of ``(-b y + h) / a`` with ``h^2 = reach - (c y)^2``; these
    are taken at ``-peak`` and ``peak``, or at the end of the rows that is nearest to them.
    """
    spans = np.empty(2 * ROWS, np.int32)
    for piece in range(first, last):
        tally = counts[piece]
        tally[:] = 0
        e = begin[piece]
        stop = min((piece + 1) * grain, order.shape[0])
        for rank in range(piece * grain, stop):
            prefetch(records, order[min(rank + 12, stop - 1)])
            p = order[rank]
            count[p] = 0
            x0, x1, y0, y1 = _box(records[p], width, height)
            if x1 < x0 or y1 < y0:
                continue
            mx = records[p, MEAN]
            my = records[p, MEAN + 1]
            a = records[p, FACTOR]
            b = records[p, FACTOR + 1]
            c = records[p, FACTOR + 2]
            reach = records[p, REACH] + _SLACK
            cc = c * c
            inv = _1 / a
            slope = -b * inv
            ry = math.sqrt(reach) / c
            peak = -b * ry / math.sqrt(b * b + cc)
            left = f4(x0)
            end = f4(x1 + 1)
            begins = mx - _HALF - _SLACK
            ends = mx + _HALF + _SLACK
            before = e
            for tile_y in range(y0 >> TILE_HEIGHT_BITS, (y1 >> TILE_HEIGHT_BITS) + 1):
                top = f4(tile_y * TILE_HEIGHT) + _HALF - my
                for strip in range(ROWS):
                    low = top + f4(np.int32(strip * BLOCK_HEIGHT))
                    high = min(low + _LAST_ROW, ry)
                    low = max(low, -ry)
                    y = min(max(peak, low), high)
                    most = slope * y + math.sqrt(max(_0, reach - cc * y * y)) * inv
                    y = min(max(-peak, low), high)
                    least = slope * y - math.sqrt(max(_0, reach - cc * y * y)) * inv
                    first_x = min(max(begins + least, left), end)
                    whole = np.int32(first_x)
                    spans[strip] = whole + np.int32(f4(whole) < first_x)
                    last_x = np.int32(min(max(ends + most, left), end)) - np.int32(1)
                    spans[ROWS + strip] = last_x if low <= high else np.int32(-1)
                strip_first = max(y0 // BLOCK_HEIGHT, tile_y * ROWS) - tile_y * ROWS
                strip_last = min(y1 // BLOCK_HEIGHT - tile_y * ROWS, ROWS - 1)
                for tile_x in range(x0 >> TILE_WIDTH_BITS, (x1 >> TILE_WIDTH_BITS) + 1):
                    x_tile = tile_x * TILE_WIDTH
                    mask = np.uint64(0)
                    for strip in range(strip_first, strip_last + 1):
                        first_block = max(np.int64(spans[strip]) - x_tile, 0) // BLOCK_WIDTH
                        last_x = min(np.int64(spans[ROWS + strip]) - x_tile, TILE_WIDTH - 1)
                        until = (last_x + BLOCK_WIDTH) // BLOCK_WIDTH
                        if spans[strip] <= spans[ROWS + strip] and until > first_block:
                            bits = (_ONE_BIT << np.uint64(until)) - (
                                _ONE_BIT << np.uint64(first_block)
                            )
                            mask |= bits << np.uint64(strip * COLUMNS)
                    if mask != 0:
                        tile = tile_y * tiles_x + tile_x
                        pairs[e, 0] = mask
                        pairs[e, 1] = np.uint64(tile)
                        pairs[e, 2] = np.uint64(p)
                        tally[tile] += 1
                        e += 1
            count[p] = e - before
        stopped[piece] = e


@kernel
def place(first, last, begin, stopped, pairs, start, position, lists, where):
    """Move the pairs of pieces ``[first, last)`` to their tile's list.

    An entry of ``lists`` is (mask, Gaussian); ``where[start[p]]`` and on tell the places of the
    pairs of Gaussian ``p``. Row ``i`` of ``position`` is where piece ``i`` continues each tile's
    list; it is used up.
    """
    for piece in range(first, last):
        cursor = position[piece]
        last_p = np.uint64(0)
        next_slot = 0
        for e in range(begin[piece], stopped[piece]):
            tile = pairs[e, 1]
            p = pairs[e, 2]
            if e == begin[piece] or p != last_p:
                next_slot = start[p]
                last_p = p
            q = cursor[tile]
            cursor[tile] = q + 1
            lists[q, 0] = pairs[e, 0]
            lists[q, 1] = p
            where[next_slot] = q
            next_slot += 1


@kernel
def scatter_colors(first, last, ids, grad_records, columns, grad_colors):
    """Add the colours' gradients of one picture to the rows of its Gaussians."""
    for p in range(first, last):
        i = ids[p]
        for d in range(columns):
            grad_colors[i, d] += grad_records[p, FLAT + d]
