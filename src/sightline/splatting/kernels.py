"""Small fused CPU kernels of splat training: Adam over rows, and affine colour maps."""

# ruff: noqa: ANN001, ANN201 - numba infers the types of compiled kernels

import numpy as np

from sightline.splatting.rasterize.jit import kernel


@kernel
def adam_rows(
    r0, r1, param, grad, m, v, visible, everything, head, beta1, beta2, first, others, eps
):
    """Update the visible rows; the first ``head`` columns have a rate of their own."""
    one = np.float32(1)
    width = param.shape[1]
    for row in range(r0, r1):
        if not everything and not visible[row]:
            continue
        for k in range(width):
            g = grad[row, k]
            a = beta1 * m[row, k] + (one - beta1) * g
            b = beta2 * v[row, k] + (one - beta2) * g * g
            m[row, k] = a
            v[row, k] = b
            rate = first if k < head else others
            param[row, k] -= rate * a / (np.sqrt(b) + eps)


AFFINE_CHUNK = 16384
"""Pixels summed together."""


@kernel
def affine_forward(first, last, pixels, offset, out):
    """Map colours ``pixels [N 3]`` by identity plus ``offset [3 4]``."""
    for i in range(first, last):
        r, g, b = pixels[i, 0], pixels[i, 1], pixels[i, 2]
        for c in range(3):
            out[i, c] = (
                pixels[i, c] + offset[c, 0] * r + offset[c, 1] * g + offset[c, 2] * b + offset[c, 3]
            )


@kernel
def affine_backward(first, last, pixels, offset, grad, grad_image, sums):
    """Derivatives by pixels and offset, the latter by chunk: no thread adds to another's."""
    for start in range(first, last, AFFINE_CHUNK):
        stop = min(start + AFFINE_CHUNK, last)
        row = sums[start // AFFINE_CHUNK]
        for c in range(3):
            # Four chains of additions at once; one would wait for itself.
            s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
            for i in range(start, stop):
                g = np.float64(grad[i, c])
                s0 += g * pixels[i, 0]
                s1 += g * pixels[i, 1]
                s2 += g * pixels[i, 2]
                s3 += g
            row[4 * c], row[4 * c + 1], row[4 * c + 2], row[4 * c + 3] = s0, s1, s2, s3
        for i in range(start, stop):
            r, g, b = grad[i, 0], grad[i, 1], grad[i, 2]
            for k in range(3):
                grad_image[i, k] = (
                    grad[i, k] + offset[0, k] * r + offset[1, k] * g + offset[2, k] * b
                )
