"""The kernel that takes 3D Gaussians to the picture plane.

The maths is that of EWA splatting (Zwicker et al. 2001) as 3D Gaussian splatting uses it (Kerbl et
al. 2023, arXiv:2308.04079), with the constants of gsplat 1.6. One deviation improves float32: the
determinant of the projected covariance is a sum of squared minors of its factor, which is exact to
rounding for needles, where ``ac - bb`` cancels.

The kernel works on ``BATCH`` Gaussians at a time, as its transpose in ``project_backward`` does:
numbers are laid out quantity by quantity in scratch memory, so that the long loops of arithmetic
without branches become vector instructions; loops with decisions come before and after them.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from sightline.splatting.rasterize.jit import inlined, kernel, split_exponent
from sightline.splatting.rasterize.sh import sh_color

f4 = np.float32

ALPHA_MIN = 1.0 / 255.0
EXTENT = 3.33
COMPENSATION_MIN = 0.005

CHUNK = 1024
"""Gaussians a piece of work. Sums over Gaussians (the view matrix) are kept one a chunk and added
in order, so that they do not depend on the number of threads."""
BATCH = 64
MEAN, CONIC, OPACITY, DEPTH, FACTOR, REACH, FLAT = 0, 2, 5, 6, 7, 10, 11
"""First columns of what is kept of a projected Gaussian: mean (2), conic xx, xy, yy, opacity, depth,
factor a, b, c, reach; FLAT is their number, and in records the first column of the colours. The
factor L = [[a, b], [0, c]] gives the exponent in powers of two, ``|L d|^2``; a Gaussian shows where
that is at most ``reach = log2(255 opacity)``."""

_K1 = f4(math.sqrt(0.5 * math.log2(math.e)))
_LOG2_255 = f4(math.log2(255.0))
_EXTENT = f4(EXTENT)
_2LN2 = f4(2 * math.log(2.0))
_HUGE = f4(1e30)
_INF = f4(math.inf)
_INT_MAX = f4(2.0e9)
_AMIN = f4(ALPHA_MIN)
_RHO2_MIN = f4(COMPENSATION_MIN**2)
_0 = f4(0)
_1 = f4(1)
_2 = f4(2)
_HALF = f4(0.5)
_MARGIN = f4(0.15)
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7 = (
    f4(1.4426953792572021),
    f4(-0.7213499546051025),
    f4(0.48083609342575073),
    f4(-0.3603706657886505),
    f4(0.2903917133808136),
    f4(-0.2504841387271881),
    f4(0.20130398869514465),
    f4(-0.09285881370306015),
)
"""log2(1 + x) / x on [-0.25, 0.5], to 1e-7 absolute after multiplication by x: a least-squares fit
at Chebyshev nodes."""


@inlined
def _log2(value):
    """Logarithm that the compiler can vectorise; positive normal numbers only."""
    mantissa, exponent = split_exponent(value)
    x = mantissa - _1
    y = _L6 + x * _L7
    y = _L5 + x * y
    y = _L4 + x * y
    y = _L3 + x * y
    y = _L2 + x * y
    y = _L1 + x * y
    y = _L0 + x * y
    return exponent + x * y


@inlined
def _ceil(value):
    """Ceiling of a number that is not negative, at most 2e9; math.ceil is a call."""
    value = min(value, _INT_MAX)
    whole = f4(np.int32(value))
    return whole + _1 if whole < value else whole


@inlined
def rotation(w, x, y, z):
    """Matrix of a unit quaternion, row by row."""
    return (
        _1 - _2 * (y * y + z * z), _2 * (x * y - w * z), _2 * (x * z + w * y),
        _2 * (x * y + w * z), _1 - _2 * (x * x + z * z), _2 * (y * z - w * x),
        _2 * (x * z - w * y), _2 * (y * z + w * x), _1 - _2 * (x * x + y * y),
    )  # fmt: skip


@inlined
def clamp_bounds(focal, centre, size):
    """Range of x/z within which the projection's Jacobian follows the point."""
    margin = _MARGIN * size / focal
    return -(centre / focal + margin), (size - centre) / focal + margin


@inlined
def _flatten_covars(covars, n, t):
    """Project a covariance: T Sigma T^t (xx, xy, yy) and its determinant, in double precision."""
    xx = np.float64(covars[n, 0, 0])
    yy = np.float64(covars[n, 1, 1])
    zz = np.float64(covars[n, 2, 2])
    xy = 0.5 * (np.float64(covars[n, 0, 1]) + covars[n, 1, 0])
    xz = 0.5 * (np.float64(covars[n, 0, 2]) + covars[n, 2, 0])
    yz = 0.5 * (np.float64(covars[n, 1, 2]) + covars[n, 2, 1])
    h0 = xx * t[0] + xy * t[1] + xz * t[2]
    h1 = xy * t[0] + yy * t[1] + yz * t[2]
    h2 = xz * t[0] + yz * t[1] + zz * t[2]
    k0 = xx * t[3] + xy * t[4] + xz * t[5]
    k1 = xy * t[3] + yy * t[4] + yz * t[5]
    k2 = xz * t[3] + yz * t[4] + zz * t[5]
    a = t[0] * h0 + t[1] * h1 + t[2] * h2
    b = t[3] * h0 + t[4] * h1 + t[5] * h2
    c = t[3] * k0 + t[4] * k1 + t[5] * k2
    return f4(a), f4(b), f4(c), f4(a * c - b * b)


@inlined
def _flatten_factor(quats, scales, n, t):
    """Project a rotated, scaled unit ball: its covariance (xx, xy, yy) and determinant."""
    w, x, y, z = quats[n, 0], quats[n, 1], quats[n, 2], quats[n, 3]
    unit = _1 / math.sqrt(w * w + x * x + y * y + z * z)
    r = rotation(w * unit, x * unit, y * unit, z * unit)
    g00 = (t[0] * r[0] + t[1] * r[3] + t[2] * r[6]) * scales[n, 0]
    g01 = (t[0] * r[1] + t[1] * r[4] + t[2] * r[7]) * scales[n, 1]
    g02 = (t[0] * r[2] + t[1] * r[5] + t[2] * r[8]) * scales[n, 2]
    g10 = (t[3] * r[0] + t[4] * r[3] + t[5] * r[6]) * scales[n, 0]
    g11 = (t[3] * r[1] + t[4] * r[4] + t[5] * r[7]) * scales[n, 1]
    g12 = (t[3] * r[2] + t[4] * r[5] + t[5] * r[8]) * scales[n, 2]
    d0 = g00 * g11 - g01 * g10
    d1 = g00 * g12 - g02 * g10
    d2 = g01 * g12 - g02 * g11
    return (
        g00 * g00 + g01 * g01 + g02 * g02,
        g00 * g10 + g01 * g11 + g02 * g12,
        g10 * g10 + g11 * g11 + g12 * g12,
        d0 * d0 + d1 * d1 + d2 * d2,
    )


@functools.cache
def project_kernel(from_covars: bool) -> Callable[..., Any]:
    """Return the forward kernel, from covariances or from quaternions and scales."""

    @kernel
    def project(
        first, last, means, quats, scales, covars, opacities, features, sh, view, intrinsics,
        width, height, near, far, clip, eps, antialiased, degree, flat, radii, colors, counts,
    ):  # fmt: skip
        """Project pieces ``[first, last)`` of ``CHUNK`` Gaussians of one camera.

        Writes ``radii [N 2]`` (zero when culled) and, for visible ones, ``flat [N FLAT]`` and, when
        ``degree >= 0``, ``colors [N 3]`` from spherical harmonics; ``counts[p]`` is the number of
        visible ones in piece ``p``. ``features`` are colours given as they are. A Gaussian with any non-finite value is culled.
        """
        fx = intrinsics[0, 0]
        fy = intrinsics[1, 1]
        cx = intrinsics[0, 2]
        cy = intrinsics[1, 2]
        wf = f4(width)
        hf = f4(height)
        x_low, x_high = clamp_bounds(fx, cx, wf)
        y_low, y_high = clamp_bounds(fy, cy, hf)
        r00, r01, r02, t0 = view[0, 0], view[0, 1], view[0, 2], view[0, 3]
        r10, r11, r12, t1 = view[1, 0], view[1, 1], view[1, 2], view[1, 3]
        r20, r21, r22, t2 = view[2, 0], view[2, 1], view[2, 2], view[2, 3]
        eye_x = -(r00 * t0 + r10 * t1 + r20 * t2)
        eye_y = -(r01 * t0 + r11 * t1 + r21 * t2)
        eye_z = -(r02 * t0 + r12 * t1 + r22 * t2)
        basis = np.empty(16, np.float32)
        s = np.empty(13 * BATCH, np.float32)
        for piece in range(first, last):
            seen = 0
            stop = min((piece + 1) * CHUNK, means.shape[0])
            for begin in range(piece * CHUNK, stop, BATCH):
                end = min(begin + BATCH, stop)
                m = means[begin:end]
                op = opacities[begin:end]
                shape = covars[begin:end]
                q = quats[begin:end]
                size = scales[begin:end]
                for n in range(end - begin):
                    x = r00 * m[n, 0] + r01 * m[n, 1] + r02 * m[n, 2] + t0
                    y = r10 * m[n, 0] + r11 * m[n, 1] + r12 * m[n, 2] + t1
                    z = r20 * m[n, 0] + r21 * m[n, 1] + r22 * m[n, 2] + t2
                    inv = _1 / z
                    u = min(max(x * inv, x_low), x_high)
                    v = min(max(y * inv, y_low), y_high)
                    jx = fx * inv
                    jy = fy * inv
                    t = (
                        jx * (r00 - u * r20),
                        jx * (r01 - u * r21),
                        jx * (r02 - u * r22),
                        jy * (r10 - v * r20),
                        jy * (r11 - v * r21),
                        jy * (r12 - v * r22),
                    )
                    if from_covars:
                        cxx, cxy, cyy, sharp = _flatten_covars(shape, n, t)
                    else:
                        cxx, cxy, cyy, sharp = _flatten_factor(q, size, n, t)
                    s[n] = x
                    s[BATCH + n] = y
                    s[2 * BATCH + n] = z
                    s[3 * BATCH + n] = cxx
                    s[4 * BATCH + n] = cxy
                    s[5 * BATCH + n] = cyy
                    s[6 * BATCH + n] = sharp
                for n in range(end - begin):
                    cxx = s[3 * BATCH + n]
                    cxy = s[4 * BATCH + n]
                    cyy = s[5 * BATCH + n]
                    sharp = s[6 * BATCH + n]
                    det = sharp + eps * (cxx + cyy) + eps * eps
                    cxx += eps
                    cyy += eps
                    o = op[n]
                    dimmed = o * math.sqrt(max(_RHO2_MIN, sharp / det))
                    o = dimmed if antialiased else o
                    reach = _log2(o) + _LOG2_255
                    extent = min(_EXTENT, math.sqrt(max(_0, _2LN2 * reach)))
                    inv = _1 / s[2 * BATCH + n]
                    idet = _1 / det
                    xx = cyy * idet
                    xy = -cxy * idet
                    factor = math.sqrt(xx)
                    s[n] = fx * s[n] * inv + cx
                    s[BATCH + n] = fy * s[BATCH + n] * inv + cy
                    s[3 * BATCH + n] = xx
                    s[4 * BATCH + n] = xy
                    s[5 * BATCH + n] = cxx * idet
                    s[6 * BATCH + n] = o
                    s[7 * BATCH + n] = _K1 * factor
                    s[8 * BATCH + n] = _K1 * xy / factor
                    s[9 * BATCH + n] = _K1 / math.sqrt(cyy)
                    s[10 * BATCH + n] = reach
                    # two quantities to judge by: how far it reaches, where that is meaningful
                    fine = det > _0 and det < _HUGE and cxx < _HUGE and cyy < _HUGE
                    s[11 * BATCH + n] = extent * math.sqrt(cxx) if fine else -_1
                    s[12 * BATCH + n] = extent * math.sqrt(cyy)
                for n in range(end - begin):
                    i = begin + n
                    radii[i, 0] = 0
                    radii[i, 1] = 0
                    z = s[2 * BATCH + n]
                    o = s[6 * BATCH + n]
                    reach_x = s[11 * BATCH + n]
                    if not (z >= near and z <= far and o >= _AMIN and o < _HUGE and reach_x >= _0):
                        continue
                    rx = _ceil(reach_x)
                    ry = _ceil(s[12 * BATCH + n])
                    px = s[n]
                    py = s[BATCH + n]
                    if not (rx > clip or ry > clip):
                        continue
                    if not (px + rx > _0 and px - rx < wf and py + ry > _0 and py - ry < hf):
                        continue
                    if degree >= 0:
                        finite = sh_color(
                            degree, sh, i, m[n, 0] - eye_x, m[n, 1] - eye_y, m[n, 2] - eye_z, basis,
                            colors,
                        )  # fmt: skip
                    else:
                        finite = True
                        for d in range(features.shape[1]):
                            finite = finite and abs(features[i, d]) < _INF
                    if not finite:
                        continue
                    seen += 1
                    radii[i, 0] = np.int32(rx)
                    radii[i, 1] = np.int32(ry)
                    flat[i, MEAN] = px
                    flat[i, MEAN + 1] = py
                    flat[i, CONIC] = s[3 * BATCH + n]
                    flat[i, CONIC + 1] = s[4 * BATCH + n]
                    flat[i, CONIC + 2] = s[5 * BATCH + n]
                    flat[i, OPACITY] = o
                    flat[i, DEPTH] = z
                    flat[i, FACTOR] = s[7 * BATCH + n]
                    flat[i, FACTOR + 1] = s[8 * BATCH + n]
                    flat[i, FACTOR + 2] = s[9 * BATCH + n]
                    flat[i, REACH] = s[10 * BATCH + n]
            counts[piece] = seen

    return project
