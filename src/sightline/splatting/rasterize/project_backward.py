"""The transpose of ``project``: gradients from the picture plane back to 3D Gaussians.

With the projected factor g = T M, T = J W and M = R diag(scales), the covariance is g g^t: dL/dg =
2 (dL/dcov) g, dL/dM = T^t dL/dg and dL/dT = dL/dg M^t; the rest is the chain rule.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from sightline.splatting.rasterize.jit import inlined, kernel
from sightline.splatting.rasterize.project import (
    BATCH,
    CHUNK,
    COMPENSATION_MIN,
    CONIC,
    FLAT,
    OPACITY,
    clamp_bounds,
    rotation,
)
from sightline.splatting.rasterize.sh import sh_gradient

f4 = np.float32

_RHO_MIN = f4(COMPENSATION_MIN * (1 + 1e-5))
_0 = f4(0)
_1 = f4(1)
_2 = f4(2)
_HALF = f4(0.5)

# columns of the scratch matrix of the backward kernel: what comes in ...
_M, _Q, _S, _O = 0, 3, 7, 10
_CONIC, _BLENDED, _PLANE, _GO, _GZ, _GM2 = 11, 14, 15, 18, 19, 20
_V = 3  # six entries of a covariance, in place of quats and scales
# ... and what goes out: to the means, quats, scales (or covariance) in their places, and
_POSE = 22
_POSE_SUMS = 16
_LANES = 16


@inlined
def _add_conic_gradient(s, n, grad):
    """Add a gradient to the conic, as one to the covariance: -conic grad conic."""
    a, b, c = s[_CONIC, n], s[_CONIC + 1, n], s[_CONIC + 2, n]
    xx, xy, yy = grad[0], _HALF * grad[1], grad[2]
    p00 = a * xx + b * xy
    p01 = a * xy + b * yy
    p10 = b * xx + c * xy
    p11 = b * xy + c * yy
    s[_PLANE, n] -= p00 * a + p01 * b
    s[_PLANE + 1, n] -= p00 * b + p01 * c
    s[_PLANE + 2, n] -= p10 * b + p11 * c


@inlined
def _compensation_gradient(s, n, eps):
    """Split the gradient to the dimmed opacity between opacity and covariance.

    With rho^2 = det(sharp) / det(blurred) and the conic of the blurred covariance,
    2 rho drho/dcov = (1 - rho^2) conic - eps det(conic) I; and 1 - rho^2 is
    eps (trace of the conic - eps det(conic)), which does not cancel.
    """
    a, b, c = s[_CONIC, n], s[_CONIC + 1, n], s[_CONIC + 2, n]
    o = s[_O, n]
    rho = s[_BLENDED, n] / o
    det = a * c - b * b
    blur = eps * (a + c - eps * det)
    share = s[_GO, n] * o / (_2 * rho)
    share = share if rho > _RHO_MIN else _0
    s[_PLANE, n] += share * (blur * a - eps * det)
    s[_PLANE + 1, n] += share * blur * b
    s[_PLANE + 2, n] += share * (blur * c - eps * det)
    s[_GO, n] *= rho


@inlined
def _covars_gradient(s, n, t, g):
    """Replace a covariance by its gradient T^t G T; return dL/dT = 2 G T Sigma."""
    w00 = g[0] * t[0] + g[1] * t[3]
    w01 = g[0] * t[1] + g[1] * t[4]
    w02 = g[0] * t[2] + g[1] * t[5]
    w10 = g[1] * t[0] + g[2] * t[3]
    w11 = g[1] * t[1] + g[2] * t[4]
    w12 = g[1] * t[2] + g[2] * t[5]
    xx, xy, xz = s[_V, n], s[_V + 1, n], s[_V + 2, n]
    yy, yz, zz = s[_V + 3, n], s[_V + 4, n], s[_V + 5, n]
    s[_V, n] = t[0] * w00 + t[3] * w10
    s[_V + 1, n] = t[0] * w01 + t[3] * w11
    s[_V + 2, n] = t[0] * w02 + t[3] * w12
    s[_V + 3, n] = t[1] * w01 + t[4] * w11
    s[_V + 4, n] = t[1] * w02 + t[4] * w12
    s[_V + 5, n] = t[2] * w02 + t[5] * w12
    return (
        _2 * (w00 * xx + w01 * xy + w02 * xz),
        _2 * (w00 * xy + w01 * yy + w02 * yz),
        _2 * (w00 * xz + w01 * yz + w02 * zz),
        _2 * (w10 * xx + w11 * xy + w12 * xz),
        _2 * (w10 * xy + w11 * yy + w12 * yz),
        _2 * (w10 * xz + w11 * yz + w12 * zz),
    )


@inlined
def _factor_gradient(s, n, t, g):
    """Replace a quaternion and scales by their gradients; return dL/dT.

    The projected factor is K diag(scales) with K = T R, and its gradient 2 G K diag(scales).
    """
    qw, qx, qy, qz = s[_Q, n], s[_Q + 1, n], s[_Q + 2, n], s[_Q + 3, n]
    unit = _1 / math.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
    qw *= unit
    qx *= unit
    qy *= unit
    qz *= unit
    r = rotation(qw, qx, qy, qz)
    s0, s1, s2 = s[_S, n], s[_S + 1, n], s[_S + 2, n]
    k00 = t[0] * r[0] + t[1] * r[3] + t[2] * r[6]
    k01 = t[0] * r[1] + t[1] * r[4] + t[2] * r[7]
    k02 = t[0] * r[2] + t[1] * r[5] + t[2] * r[8]
    k10 = t[3] * r[0] + t[4] * r[3] + t[5] * r[6]
    k11 = t[3] * r[1] + t[4] * r[4] + t[5] * r[7]
    k12 = t[3] * r[2] + t[4] * r[5] + t[5] * r[8]
    f00 = _2 * s0 * (g[0] * k00 + g[1] * k10)
    f10 = _2 * s0 * (g[1] * k00 + g[2] * k10)
    f01 = _2 * s1 * (g[0] * k01 + g[1] * k11)
    f11 = _2 * s1 * (g[1] * k01 + g[2] * k11)
    f02 = _2 * s2 * (g[0] * k02 + g[1] * k12)
    f12 = _2 * s2 * (g[1] * k02 + g[2] * k12)
    s[_S, n] = f00 * k00 + f10 * k10
    s[_S + 1, n] = f01 * k01 + f11 * k11
    s[_S + 2, n] = f02 * k02 + f12 * k12
    f00 *= s0
    f10 *= s0
    f01 *= s1
    f11 *= s1
    f02 *= s2
    f12 *= s2
    # dL/dR = T^t dL/dK
    q00 = t[0] * f00 + t[3] * f10
    q01 = t[0] * f01 + t[3] * f11
    q02 = t[0] * f02 + t[3] * f12
    q10 = t[1] * f00 + t[4] * f10
    q11 = t[1] * f01 + t[4] * f11
    q12 = t[1] * f02 + t[4] * f12
    q20 = t[2] * f00 + t[5] * f10
    q21 = t[2] * f01 + t[5] * f11
    q22 = t[2] * f02 + t[5] * f12
    gw = qx * (q21 - q12) + qy * (q02 - q20) + qz * (q10 - q01)
    gx = qw * (q21 - q12) - _2 * qx * (q11 + q22) + qy * (q01 + q10) + qz * (q02 + q20)
    gy = qw * (q02 - q20) + qx * (q01 + q10) - _2 * qy * (q00 + q22) + qz * (q12 + q21)
    gz = qw * (q10 - q01) + qx * (q02 + q20) + qy * (q12 + q21) - _2 * qz * (q00 + q11)
    along = gw * qw + gx * qx + gy * qy + gz * qz
    unit *= _2
    s[_Q, n] = (gw - along * qw) * unit
    s[_Q + 1, n] = (gx - along * qx) * unit
    s[_Q + 2, n] = (gy - along * qy) * unit
    s[_Q + 3, n] = (gz - along * qz) * unit
    # dL/dT = dL/dK R^t
    return (
        f00 * r[0] + f01 * r[1] + f02 * r[2],
        f00 * r[3] + f01 * r[4] + f02 * r[5],
        f00 * r[6] + f01 * r[7] + f02 * r[8],
        f10 * r[0] + f11 * r[1] + f12 * r[2],
        f10 * r[3] + f11 * r[4] + f12 * r[5],
        f10 * r[6] + f11 * r[7] + f12 * r[8],
    )


@functools.cache
def project_backward_kernel(from_covars: bool) -> Callable[..., Any]:
    """Return the transpose of ``project_kernel(from_covars)``."""

    @kernel
    def project_backward(
        first, last, ids, base, packed, means, quats, scales, covars, opacities, sh, view, intrinsics,
        width, height, eps, antialiased, degree, posed, records,
        grad_records, grad_means2d, grad_conics, grad_opacities2d, grad_depths,
        grad_means, grad_quats, grad_scales, grad_covars, grad_opacities, grad_sh, partial,
    ):  # fmt: skip
        """Add the gradients of one camera's visible Gaussians; the transpose of ``project``.

        Works on pieces ``[first, last)`` of ``CHUNK`` visible Gaussians: ``ids`` gives their index, and
        ``base`` plus place or index (``packed`` or not) their row in the gradients of what was
        published, of which those to conics, opacities and depths may be empty. ``grad_records`` holds
        dL/dcov (xx, xy, yy), dL/dopacity, dL/ddepth and, from column ``FLAT``, dL/dcolor. When
        ``posed``, row ``p`` of ``partial [pieces 16]`` receives piece ``p``'s share of the gradient to
        the rotation (9), translation (3) and fx, fy, cx, cy.
        """
        fx = intrinsics[0, 0]
        fy = intrinsics[1, 1]
        x_low, x_high = clamp_bounds(fx, intrinsics[0, 2], f4(width))
        y_low, y_high = clamp_bounds(fy, intrinsics[1, 2], f4(height))
        r00, r01, r02, t0 = view[0, 0], view[0, 1], view[0, 2], view[0, 3]
        r10, r11, r12, t1 = view[1, 0], view[1, 1], view[1, 2], view[1, 3]
        r20, r21, r22, t2 = view[2, 0], view[2, 1], view[2, 2], view[2, 3]
        eye_x = -(r00 * t0 + r10 * t1 + r20 * t2)
        eye_y = -(r01 * t0 + r11 * t1 + r21 * t2)
        eye_z = -(r02 * t0 + r12 * t1 + r22 * t2)
        basis = np.empty(16, np.float32)
        weight = np.empty(16, np.float32)
        s = np.empty((_POSE + _POSE_SUMS, BATCH), np.float32)
        sums = np.empty((_POSE_SUMS, _LANES), np.float32)
        for piece in range(first, last):
            sums[:] = _0
            e0 = e1 = e2 = _0
            stop = min((piece + 1) * CHUNK, ids.shape[0])
            for begin in range(piece * CHUNK, stop, BATCH):
                count = min(begin + BATCH, stop) - begin
                for n in range(count):
                    p = begin + n
                    i = ids[p]
                    row = base + (p if packed else i)
                    for j in range(3):
                        s[_M + j, n] = means[i, j]
                        s[_CONIC + j, n] = records[p, CONIC + j]
                        s[_PLANE + j, n] = grad_records[p, j]
                    if from_covars:
                        s[_V, n] = covars[i, 0, 0]
                        s[_V + 1, n] = _HALF * (covars[i, 0, 1] + covars[i, 1, 0])
                        s[_V + 2, n] = _HALF * (covars[i, 0, 2] + covars[i, 2, 0])
                        s[_V + 3, n] = covars[i, 1, 1]
                        s[_V + 4, n] = _HALF * (covars[i, 1, 2] + covars[i, 2, 1])
                        s[_V + 5, n] = covars[i, 2, 2]
                    else:
                        for j in range(4):
                            s[_Q + j, n] = quats[i, j]
                        for j in range(3):
                            s[_S + j, n] = scales[i, j]
                    s[_O, n] = opacities[i]
                    s[_BLENDED, n] = records[p, OPACITY]
                    go = grad_records[p, 3]
                    gz = grad_records[p, 4]
                    if grad_opacities2d.shape[0] > 0:
                        go += grad_opacities2d[row]
                    if grad_depths.shape[0] > 0:
                        gz += grad_depths[row]
                    s[_GO, n] = go
                    s[_GZ, n] = gz
                    s[_GM2, n] = grad_means2d[row, 0]
                    s[_GM2 + 1, n] = grad_means2d[row, 1]
                    if grad_conics.shape[0] > 0:
                        _add_conic_gradient(s, n, grad_conics[row])
                if antialiased:
                    for n in range(count):
                        _compensation_gradient(s, n, eps)
                for n in range(count):
                    mx = s[_M, n]
                    my = s[_M + 1, n]
                    mz = s[_M + 2, n]
                    x = r00 * mx + r01 * my + r02 * mz + t0
                    y = r10 * mx + r11 * my + r12 * mz + t1
                    z = r20 * mx + r21 * my + r22 * mz + t2
                    inv = _1 / z
                    ux = x * inv
                    vy = y * inv
                    u = min(max(ux, x_low), x_high)
                    v = min(max(vy, y_low), y_high)
                    jx = fx * inv
                    jy = fy * inv
                    n00 = r00 - u * r20
                    n01 = r01 - u * r21
                    n02 = r02 - u * r22
                    n10 = r10 - v * r20
                    n11 = r11 - v * r21
                    n12 = r12 - v * r22
                    t = (jx * n00, jx * n01, jx * n02, jy * n10, jy * n11, jy * n12)
                    g = (s[_PLANE, n], s[_PLANE + 1, n], s[_PLANE + 2, n])
                    d00, d01, d02, d10, d11, d12 = (
                        _covars_gradient(s, n, t, g)
                        if from_covars
                        else _factor_gradient(s, n, t, g)
                    )
                    # row 0 of T is jx (r0 - u r2), row 1 is jy (r1 - v r2)
                    djx = d00 * n00 + d01 * n01 + d02 * n02
                    djy = d10 * n10 + d11 * n11 + d12 * n12
                    du = -jx * (d00 * r20 + d01 * r21 + d02 * r22)
                    dv = -jy * (d10 * r20 + d11 * r21 + d12 * r22)
                    du = du if u == ux else _0
                    dv = dv if v == vy else _0
                    vmx = s[_GM2, n]
                    vmy = s[_GM2 + 1, n]
                    gx = vmx * jx
                    gy = vmy * jy
                    gz = s[_GZ, n] - (gx * ux + gy * vy) - (djx * jx + djy * jy) * inv
                    gz -= (du * ux + dv * vy) * inv
                    gx += du * inv
                    gy += dv * inv
                    s[_M, n] = r00 * gx + r10 * gy + r20 * gz
                    s[_M + 1, n] = r01 * gx + r11 * gy + r21 * gz
                    s[_M + 2, n] = r02 * gx + r12 * gy + r22 * gz
                    d00 *= jx
                    d01 *= jx
                    d02 *= jx
                    d10 *= jy
                    d11 *= jy
                    d12 *= jy
                    s[_POSE, n] = gx * mx + d00
                    s[_POSE + 1, n] = gx * my + d01
                    s[_POSE + 2, n] = gx * mz + d02
                    s[_POSE + 3, n] = gy * mx + d10
                    s[_POSE + 4, n] = gy * my + d11
                    s[_POSE + 5, n] = gy * mz + d12
                    s[_POSE + 6, n] = gz * mx - u * d00 - v * d10
                    s[_POSE + 7, n] = gz * my - u * d01 - v * d11
                    s[_POSE + 8, n] = gz * mz - u * d02 - v * d12
                    s[_POSE + 9, n] = gx
                    s[_POSE + 10, n] = gy
                    s[_POSE + 11, n] = gz
                    s[_POSE + 12, n] = vmx * ux + djx * inv
                    s[_POSE + 13, n] = vmy * vy + djy * inv
                    s[_POSE + 14, n] = vmx
                    s[_POSE + 15, n] = vmy
                if posed:
                    for j in range(_POSE_SUMS):
                        for n in range(count, BATCH):
                            s[_POSE + j, n] = _0
                        for n in range(0, BATCH, _LANES):
                            for lane in range(_LANES):
                                sums[j, lane] += s[_POSE + j, n + lane]
                for n in range(count):
                    p = begin + n
                    i = ids[p]
                    if degree >= 0:
                        red = grad_records[p, FLAT] if records[p, FLAT] > _0 else _0
                        green = grad_records[p, FLAT + 1] if records[p, FLAT + 1] > _0 else _0
                        blue = grad_records[p, FLAT + 2] if records[p, FLAT + 2] > _0 else _0
                        dx = means[i, 0] - eye_x
                        dy = means[i, 1] - eye_y
                        dz = means[i, 2] - eye_z
                        h0, h1, h2 = sh_gradient(
                            degree, sh, i, dx, dy, dz, red, green, blue, basis, weight, grad_sh
                        )
                        s[_M, n] += h0
                        s[_M + 1, n] += h1
                        s[_M + 2, n] += h2
                        e0 += h0
                        e1 += h1
                        e2 += h2
                    for j in range(3):
                        grad_means[i, j] += s[_M + j, n]
                    grad_opacities[i] += s[_GO, n]
                    if from_covars:
                        grad_covars[i, 0, 0] += s[_V, n]
                        grad_covars[i, 0, 1] += s[_V + 1, n]
                        grad_covars[i, 1, 0] += s[_V + 1, n]
                        grad_covars[i, 0, 2] += s[_V + 2, n]
                        grad_covars[i, 2, 0] += s[_V + 2, n]
                        grad_covars[i, 1, 1] += s[_V + 3, n]
                        grad_covars[i, 1, 2] += s[_V + 4, n]
                        grad_covars[i, 2, 1] += s[_V + 4, n]
                        grad_covars[i, 2, 2] += s[_V + 5, n]
                    else:
                        for j in range(4):
                            grad_quats[i, j] += s[_Q + j, n]
                        for j in range(3):
                            grad_scales[i, j] += s[_S + j, n]
            if posed:
                # the camera centre is -R^t t; e is minus its gradient
                e = (e0, e1, e2)
                for j in range(_POSE_SUMS):
                    total = _0
                    for lane in range(_LANES):
                        total += sums[j, lane]
                    partial[piece, j] = total
                for j in range(3):
                    for k in range(3):
                        partial[piece, 3 * j + k] += view[j, 3] * e[k]
                        partial[piece, 9 + j] += view[j, k] * e[k]

    return project_backward
