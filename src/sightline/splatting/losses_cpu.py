"""The fused CPU kernels of :mod:`sightline.splatting.losses`.

Three passes: masked planes of both pictures; the blurred moments, and from them the derivatives of
the loss; and the blur of those back onto pixels (the window is symmetric). The last two go over
blocks of rows that stay in the second-level cache. Sums are kept by block and column, so that no
result depends on the number of threads.
"""

# ruff: noqa: ANN001, ANN202 - numba infers the types of compiled kernels

import math

import numpy as np

from sightline.splatting.rasterize.jit import kernel, run_chunks

WINDOW = 11
SIGMA = 1.5
C1 = 0.01**2
C2 = 0.03**2

_HALF = WINDOW // 2
_WEIGHTS = [math.exp(-((i - _HALF) ** 2) / (2 * SIGMA**2)) for i in range(WINDOW)]
TAPS = tuple(w / sum(_WEIGHTS) for w in _WEIGHTS)
"""The Gaussian window of Wang et al. 2004, normalised."""

_BLOCK = 24
_T0, _T1, _T2, _T3, _T4, _T5 = (np.float32(t) for t in TAPS[: _HALF + 1])
_C1, _C2 = np.float32(C1), np.float32(C2)
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
_TINY = np.float32(1e-8)


def loss_and_gradient(
    rendered: np.ndarray, target: np.ndarray, mask: np.ndarray | None, ssim_weight: float
) -> tuple[float, np.ndarray]:
    """Return the loss and its derivative by ``rendered [H W 3]``.

    ``target [3 H W]`` is float32, or uint8 standing for [0, 1]; ``mask [H W]`` is bool.
    """
    height, width = rendered.shape[:2]
    unit = np.float32(1 / 255 if target.dtype == np.uint8 else 1)
    if mask is None:
        mask, valid = np.ones((1, 1), bool), height * width
    else:
        valid = int(np.count_nonzero(mask))
    count = 3 * max(valid, 1)
    l1_scale = np.float32((1 - ssim_weight) / count)
    ssim_scale = np.float32(-ssim_weight / count)
    blocks = math.ceil(height / _BLOCK)
    sums = np.zeros((blocks, 2, width), np.float32)
    # Planes are masked, and have a margin of zeros on both sides for the taps.
    weight = np.empty((height, width + 2 * _HALF), np.float32)
    planes = np.empty((2, 3, height, width + 2 * _HALF), np.float32)
    run_chunks(_split_rows, height, _BLOCK, rendered, target, unit, mask, weight, planes)
    slopes = np.zeros((3, 3, height, width + 2 * _HALF), np.float32)
    if ssim_weight > 0:
        run_chunks(_slope_blocks, blocks, 1, planes, weight, ssim_scale, slopes, sums)
    gradient = np.empty_like(rendered)
    run_chunks(
        _gradient_blocks, blocks, 1, planes, weight, slopes, ssim_weight > 0, l1_scale, gradient,
        sums,
    )  # fmt: skip
    l1, similarity = (sums.sum((0, 2), dtype=np.float64) / count).tolist()
    dissimilarity = 1 - similarity if valid else 0.0
    return (1 - ssim_weight) * l1 + ssim_weight * dissimilarity, gradient


@kernel
def _blur_row(padded, out):
    """Horizontal taps; ``padded`` has five zeros at both ends."""
    for x in range(out.shape[0]):
        out[x] = (
            _T5 * padded[x + 5]
            + _T4 * (padded[x + 4] + padded[x + 6])
            + _T3 * (padded[x + 3] + padded[x + 7])
            + _T2 * (padded[x + 2] + padded[x + 8])
            + _T1 * (padded[x + 1] + padded[x + 9])
            + _T0 * (padded[x] + padded[x + 10])
        )


@kernel
def _blur_column(rows, y, out):
    """Vertical taps of rows ``y .. y + 10``."""
    for x in range(out.shape[0]):
        out[x] = (
            _T5 * rows[y + 5, x]
            + _T4 * (rows[y + 4, x] + rows[y + 6, x])
            + _T3 * (rows[y + 3, x] + rows[y + 7, x])
            + _T2 * (rows[y + 2, x] + rows[y + 8, x])
            + _T1 * (rows[y + 1, x] + rows[y + 9, x])
            + _T0 * (rows[y, x] + rows[y + 10, x])
        )


# The loops below touch few arrays each: with more, LLVM gives up on proving that they do not
# overlap, and the loop stays scalar.


@kernel
def _split_rows(y0, y1, rendered, target, unit, mask, weight, planes):
    """Copy both pictures to masked planes."""
    height, width, _ = rendered.shape
    masked = mask.shape[0] == height and mask.shape[1] == width
    for y in range(y0, y1):
        w = weight[y]
        w[:_HALF] = _ZERO
        w[_HALF + width :] = _ZERO
        for x in range(width):
            w[x + _HALF] = _ONE if not masked or mask[y, x] else _ZERO
        for channel in range(3):
            a = planes[0, channel, y]
            b = planes[1, channel, y]
            for row in (a, b):
                row[:_HALF] = _ZERO
                row[_HALF + width :] = _ZERO
            for x in range(width):
                a[x + _HALF] = rendered[y, x, channel]
            for x in range(width):
                b[x + _HALF] = np.float32(target[channel, y, x]) * unit
            if masked:
                for x in range(width):
                    # Not a product: what a masked pixel holds may be infinite.
                    a[x + _HALF] = a[x + _HALF] if w[x + _HALF] > _ZERO else _ZERO
                for x in range(width):
                    b[x + _HALF] = b[x + _HALF] if w[x + _HALF] > _ZERO else _ZERO


@kernel
def _square_sum(a, b, out):
    for x in range(out.shape[0]):
        out[x] = a[x] * a[x] + b[x] * b[x]


@kernel
def _product(a, b, out):
    for x in range(out.shape[0]):
        out[x] = a[x] * b[x]


@kernel
def _moments(mean_a, mean_b, squares, products, norm):
    """Turn blurred values into means, ``B2`` and ``A2`` of SSIM, in place."""
    for x in range(norm.shape[0]):
        mean_a[x] *= norm[x]
    for x in range(norm.shape[0]):
        mean_b[x] *= norm[x]
    for x in range(norm.shape[0]):
        squares[x] = squares[x] * norm[x] + _C2
    for x in range(norm.shape[0]):
        squares[x] -= mean_a[x] * mean_a[x] + mean_b[x] * mean_b[x]
    for x in range(norm.shape[0]):
        products[x] = _TWO * products[x] * norm[x] + _C2
    for x in range(norm.shape[0]):
        products[x] -= _TWO * mean_a[x] * mean_b[x]


@kernel
def _similarity(mean_a, mean_b, b2, a2, inverse, value):
    """SSIM, and the inverse of its denominator."""
    for x in range(value.shape[0]):
        b1 = mean_a[x] * mean_a[x] + mean_b[x] * mean_b[x] + _C1
        inverse[x] = _ONE / (b1 * b2[x])
    for x in range(value.shape[0]):
        a1 = _TWO * mean_a[x] * mean_b[x] + _C1
        value[x] = a1 * a2[x] * inverse[x]


@kernel
def _slopes(mean_a, mean_b, b2, a2, inverse, value, factor, by_mean, by_square, by_product):
    """Derivatives of ``factor * value`` by the blurred x, xx and xy."""
    n = factor.shape[0]
    for x in range(n):
        by_product[x] = _TWO * (_TWO * mean_a[x] * mean_b[x] + _C1) * inverse[x] * factor[x]
    for x in range(n):
        by_square[x] = -value[x] / b2[x] * factor[x]
    for x in range(n):
        by_mean[x] = _TWO * (mean_b[x] * a2[x] - mean_a[x] * value[x] * b2[x]) * inverse[x]
    for x in range(n):
        by_mean[x] = by_mean[x] * factor[x] - mean_b[x] * by_product[x]
    for x in range(n):
        by_mean[x] -= _TWO * mean_a[x] * by_square[x]


@kernel
def _slope_blocks(b0, b1, planes, weight, scale, slopes, sums):
    """Fill the derivatives of the loss by the blurred x, xx and xy; add up SSIM by column."""
    height = weight.shape[0]
    width = weight.shape[1] - 2 * _HALF
    squares = np.empty(width + 2 * _HALF, np.float32)
    products = np.empty(width + 2 * _HALF, np.float32)
    rows = np.zeros((5, _BLOCK + 2 * _HALF, width), np.float32)
    blurred = np.empty((4, width), np.float32)
    norms = np.empty((_BLOCK, width), np.float32)
    inverse = np.empty(width, np.float32)
    value = np.empty(width, np.float32)
    factor = np.empty(width, np.float32)
    for block in range(b0, b1):
        top = block * _BLOCK
        bottom = min(top + _BLOCK, height)
        first = max(top - _HALF, 0)
        last = min(bottom + _HALF, height)
        rows[:] = _ZERO
        for y in range(first, last):
            _blur_row(weight[y], rows[4, y - top + _HALF])
        for y in range(top, bottom):
            norm = norms[y - top]
            _blur_column(rows[4], y - top, norm)
            for x in range(width):
                norm[x] = _ONE / max(norm[x], _TINY)
        for channel in range(3):
            for y in range(first, last):
                slot = y - top + _HALF
                a = planes[0, channel, y]
                b = planes[1, channel, y]
                _square_sum(a, b, squares)
                _product(a, b, products)
                _blur_row(a, rows[0, slot])
                _blur_row(b, rows[1, slot])
                _blur_row(squares, rows[2, slot])
                _blur_row(products, rows[3, slot])
            for y in range(top, bottom):
                for plane in range(4):
                    _blur_column(rows[plane], y - top, blurred[plane])
                w = weight[y, _HALF : _HALF + width]
                norm = norms[y - top]
                ma, mb, b2, a2 = blurred[0], blurred[1], blurred[2], blurred[3]
                _moments(ma, mb, b2, a2, norm)
                _similarity(ma, mb, b2, a2, inverse, value)
                for x in range(width):
                    sums[block, 1, x] += w[x] * value[x]
                for x in range(width):
                    factor[x] = scale * w[x] * norm[x]
                _slopes(
                    ma, mb, b2, a2, inverse, value, factor,
                    slopes[0, channel, y, _HALF : _HALF + width],
                    slopes[1, channel, y, _HALF : _HALF + width],
                    slopes[2, channel, y, _HALF : _HALF + width],
                )  # fmt: skip


@kernel
def _gradient_blocks(b0, b1, planes, weight, slopes, with_ssim, l1_scale, gradient, sums):
    """Blur the slopes back, and add L1 and its gradient."""
    height = weight.shape[0]
    width = weight.shape[1] - 2 * _HALF
    rows = np.zeros((3, _BLOCK + 2 * _HALF, width), np.float32)
    blurred = np.zeros((3, width), np.float32)
    total = np.empty(width, np.float32)
    for block in range(b0, b1):
        top = block * _BLOCK
        bottom = min(top + _BLOCK, height)
        rows[:] = _ZERO
        for channel in range(3):
            if with_ssim:
                for y in range(max(top - _HALF, 0), min(bottom + _HALF, height)):
                    for plane in range(3):
                        _blur_row(slopes[plane, channel, y], rows[plane, y - top + _HALF])
            for y in range(top, bottom):
                a = planes[0, channel, y, _HALF : _HALF + width]
                b = planes[1, channel, y, _HALF : _HALF + width]
                w = weight[y, _HALF : _HALF + width]
                for x in range(width):
                    sums[block, 0, x] += abs(a[x] - b[x])
                for x in range(width):
                    step = a[x] - b[x]
                    total[x] = l1_scale if step > _ZERO else (-l1_scale if step < _ZERO else _ZERO)
                if with_ssim:
                    for plane in range(3):
                        _blur_column(rows[plane], y - top, blurred[plane])
                    for x in range(width):
                        total[x] += blurred[0, x] + _TWO * a[x] * blurred[1, x]
                    for x in range(width):
                        total[x] += b[x] * blurred[2, x]
                for x in range(width):
                    total[x] *= w[x]
                for x in range(width):
                    gradient[y, x, channel] = total[x]
