"""Compiled loops: greedy suppression and overlaps of bit-packed masks."""

# ruff: noqa: ANN001, ANN201, ANN202 - numba infers the types of compiled kernels

import inspect
from collections.abc import Callable
from typing import Any

import numba
import numpy as np


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function, with its machine code kept on disk where that can be written."""
    plain = inspect.unwrap(function)  # the test suite's type checker wraps every function
    try:
        return numba.njit(plain, nogil=True, error_model="numpy", cache=True)
    except RuntimeError:  # numba found no folder to write to
        return numba.njit(plain, nogil=True, error_model="numpy")


@kernel
def suppress(boxes, groups, threshold, kept):
    """Write rows kept by greedy suppression into ``kept``; boxes come best first.

    A box goes when an earlier kept one of its group overlaps it by more than ``threshold``.
    """
    count = 0
    for i in range(len(boxes)):
        x0, y0, x1, y1 = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
        area = (x1 - x0) * (y1 - y0)
        keep = True
        for n in range(count):
            j = kept[n]
            if groups[j] != groups[i]:
                continue
            w = min(x1, boxes[j, 2]) - max(x0, boxes[j, 0])
            h = min(y1, boxes[j, 3]) - max(y0, boxes[j, 1])
            if w <= 0 or h <= 0:
                continue
            inter = w * h
            other = (boxes[j, 2] - boxes[j, 0]) * (boxes[j, 3] - boxes[j, 1])
            if inter > threshold * (area + other - inter):
                keep = False
                break
        if keep:
            kept[count] = i
            count += 1
    return count


@kernel
def _bits(x):
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (x * np.uint64(0x0101010101010101)) >> np.uint64(56)


@kernel
def areas(words, out):
    """Count the pixels of packed masks ``[N, H, W/64]``."""
    for i in range(words.shape[0]):
        total = np.uint64(0)
        for y in range(words.shape[1]):
            for x in range(words.shape[2]):
                total += _bits(words[i, y, x])
        out[i] = total


@kernel
def pair_overlaps(a, b, spans_a, spans_b, groups_a, groups_b, earlier, out):
    """Write ``|A_i and B_j|`` where groups are equal and boxes overlap; zero elsewhere.

    ``spans`` are inclusive ``x0 y0 x1 y1`` in pixels. With ``earlier``, only ``j < i`` counts.
    """
    for i in range(a.shape[0]):
        for j in range(i if earlier else b.shape[0]):
            if groups_a[i] != groups_b[j]:
                continue
            y0 = max(spans_a[i, 1], spans_b[j, 1])
            y1 = min(spans_a[i, 3], spans_b[j, 3])
            x0 = max(spans_a[i, 0], spans_b[j, 0])
            x1 = min(spans_a[i, 2], spans_b[j, 2])
            if y1 < y0 or x1 < x0:
                continue
            total = np.uint64(0)
            for y in range(y0, y1 + 1):
                for x in range(x0 >> 6, (x1 >> 6) + 1):
                    total += _bits(a[i, y, x] & b[j, y, x])
            out[i, j] = total


@kernel
def match_detections(ious, ignored, crowd, thresholds, matched, passed):
    """Assign detections (by falling score) to objects (counted ones first), as COCO does.

    ``matched [T, D]`` becomes 1 where a detection has an object, ``passed [T, D]`` where that
    object is an ignored one. A crowd can be matched any number of times.
    """
    taken = np.empty(len(ignored), np.bool_)
    for t in range(len(thresholds)):
        taken[:] = False
        for d in range(ious.shape[0]):
            best = min(thresholds[t], 1 - 1e-10)
            m = -1
            for g in range(len(ignored)):
                if taken[g] and not crowd[g]:
                    continue
                if m >= 0 and not ignored[m] and ignored[g]:
                    break
                if ious[d, g] < best:
                    continue
                best = ious[d, g]
                m = g
            if m >= 0:
                taken[m] = True
                matched[t, d] = 1
                passed[t, d] = ignored[m]


@kernel
def pack_resized(logits, rows, boxes, y_first, y_weights, x_first, x_weights, line, words, spans):
    """Resize chosen logits and write where they are positive, one bit a pixel.

    Only pixels that a positive cell can reach are computed. ``boxes [N, 4]`` are inclusive
    ``x0 y0 x1 y1`` of the positive cells of every logit map; an output pixel is the sum over its
    taps, ``first + t`` with ``weights[t]``. ``spans`` receives inclusive boxes of the result;
    those of empty ones stay as they are.
    """
    height, width = len(y_first), len(x_first)
    for n in range(len(rows)):
        source = rows[n]
        bx0, by0, bx1, by1 = boxes[n, 0], boxes[n, 1], boxes[n, 2], boxes[n, 3]
        x_low, x_high = 0, width
        while x_low < width and x_first[x_low] + x_weights.shape[1] <= bx0:
            x_low += 1
        while x_high > x_low and x_first[x_high - 1] > bx1:
            x_high -= 1
        if x_low >= x_high:
            continue
        c_low = x_first[x_low]
        c_high = min(x_first[x_high - 1] + x_weights.shape[1], logits.shape[2])
        left, top, right, bottom = width, height, -1, -1
        for y in range(height):
            if y_first[y] + y_weights.shape[1] <= by0:
                continue
            if y_first[y] > by1:
                break
            for c in range(c_low, c_high):
                value = np.float32(0)
                for t in range(y_weights.shape[1]):
                    r = y_first[y] + t
                    if r < logits.shape[1]:
                        value += y_weights[y, t] * logits[source, r, c]
                line[c] = value
            for x in range(x_low, x_high):
                value = np.float32(0)
                for t in range(x_weights.shape[1]):
                    c = x_first[x] + t
                    if c < c_high:
                        value += x_weights[x, t] * line[c]
                if value > 0:
                    words[n, y, x >> 6] |= np.uint64(1) << np.uint64(x & 63)
                    left, right = min(left, x), max(right, x)
                    top, bottom = min(top, y), y
        if right >= 0:
            spans[n, 0], spans[n, 1], spans[n, 2], spans[n, 3] = left, top, right, bottom


@kernel
def scan_logits(logits, y_first, y_weights, x_first, x_weights, line, weights, areas, boxes):
    """Pool where logits are positive to a coarser grid, in one pass over them.

    ``weights [N, h, w]`` receives the sum over positive cells of the products of their taps on the
    grid, ``areas`` their number, ``boxes`` the inclusive ``x0 y0 x1 y1`` around them.
    """
    height, width = logits.shape[1], logits.shape[2]
    for n in range(len(logits)):
        left, top, right, bottom, total = width, height, -1, -1, 0
        for y in range(height):
            count = 0
            for x in range(width):
                if logits[n, y, x] > 0:
                    if count == 0:
                        line[:] = 0
                        left = min(left, x)
                    count += 1
                    right = max(right, x)
                    for t in range(x_weights.shape[1]):
                        c = x_first[x] + t
                        if c < len(line):
                            line[c] += x_weights[x, t]
            if count == 0:
                continue
            total += count
            top, bottom = min(top, y), y
            for t in range(y_weights.shape[1]):
                r = y_first[y] + t
                if r < weights.shape[1]:
                    for c in range(len(line)):
                        weights[n, r, c] += y_weights[y, t] * line[c]
        areas[n] = total
        if total:
            boxes[n, 0], boxes[n, 1], boxes[n, 2], boxes[n, 3] = left, top, right, bottom
