"""Kernels for colours by real spherical harmonics up to degree 3 (3D Gaussian splatting's basis)."""

import math

import numpy as np

from sightline.splatting.rasterize.jit import kernel

f4 = np.float32

_C0 = f4(0.28209479177387814)
_C1 = f4(0.4886025119029199)
_C2A = f4(1.0925484305920792)
_C2B = f4(0.31539156525252005)
_C2C = f4(0.5462742152960396)
_C3A = f4(0.5900435899266435)
_C3B = f4(2.890611442640554)
_C3C = f4(0.4570457994644658)
_C3D = f4(0.3731763325901154)
_C3E = f4(1.445305721320277)
_0 = f4(0)
_HALF = f4(0.5)
_1 = f4(1)
_2 = f4(2)
_3 = f4(3)
_4 = f4(4)
_6 = f4(6)
_8 = f4(8)
_HUGE = f4(1e30)


@kernel
def _fill_basis(degree, x, y, z, basis):
    basis[0] = _C0
    if degree >= 1:
        basis[1] = -_C1 * y
        basis[2] = _C1 * z
        basis[3] = -_C1 * x
    if degree >= 2:
        xx = x * x
        yy = y * y
        zz = z * z
        basis[4] = _C2A * x * y
        basis[5] = -_C2A * y * z
        basis[6] = _C2B * (_2 * zz - xx - yy)
        basis[7] = -_C2A * x * z
        basis[8] = _C2C * (xx - yy)
        if degree >= 3:
            basis[9] = -_C3A * y * (_3 * xx - yy)
            basis[10] = _C3B * x * y * z
            basis[11] = -_C3C * y * (_4 * zz - xx - yy)
            basis[12] = _C3D * z * (_2 * zz - _3 * xx - _3 * yy)
            basis[13] = -_C3C * x * (_4 * zz - xx - yy)
            basis[14] = _C3E * z * (xx - yy)
            basis[15] = -_C3A * x * (xx - _3 * yy)


@kernel
def sh_color(degree, sh, i, dx, dy, dz, basis, colors):
    """Write the colour of Gaussian ``i`` seen along (dx, dy, dz); False when it is not finite.

    ``sh`` is ``[N K 3]``, ``colors`` ``[N 3]``, ``basis`` scratch of 16; the direction may have any
    length.
    """
    inverse = _1 / math.sqrt(dx * dx + dy * dy + dz * dz)
    _fill_basis(degree, dx * inverse, dy * inverse, dz * inverse, basis)
    red = _HALF
    green = _HALF
    blue = _HALF
    for k in range((degree + 1) * (degree + 1)):
        red += basis[k] * sh[i, k, 0]
        green += basis[k] * sh[i, k, 1]
        blue += basis[k] * sh[i, k, 2]
    colors[i, 0] = max(red, _0)
    colors[i, 1] = max(green, _0)
    colors[i, 2] = max(blue, _0)
    return abs(red) < _HUGE and abs(green) < _HUGE and abs(blue) < _HUGE


@kernel
def sh_gradient(degree, sh, i, dx, dy, dz, red, green, blue, basis, weight, grad_sh):
    """Add the gradient of a colour to ``grad_sh[i]``; return that to the direction.

    ``red, green, blue`` is dL/dcolour, already zero where the colour was clamped; ``basis`` and
    ``weight`` are scratch of 16. ``grad_sh`` may be empty: then only the direction's is computed.
    """
    inverse = _1 / math.sqrt(dx * dx + dy * dy + dz * dz)
    x = dx * inverse
    y = dy * inverse
    z = dz * inverse
    count = (degree + 1) * (degree + 1)
    if grad_sh.shape[0] > 0:
        _fill_basis(degree, x, y, z, basis)
        for k in range(count):
            grad_sh[i, k, 0] += basis[k] * red
            grad_sh[i, k, 1] += basis[k] * green
            grad_sh[i, k, 2] += basis[k] * blue
    if degree == 0:
        return _0, _0, _0
    w = weight
    for k in range(1, count):
        w[k] = red * sh[i, k, 0] + green * sh[i, k, 1] + blue * sh[i, k, 2]
    gx = -_C1 * w[3]
    gy = -_C1 * w[1]
    gz = _C1 * w[2]
    if degree >= 2:
        gx += _C2A * (y * w[4] - z * w[7]) + _2 * x * (_C2C * w[8] - _C2B * w[6])
        gy += _C2A * (x * w[4] - z * w[5]) - _2 * y * (_C2C * w[8] + _C2B * w[6])
        gz += -_C2A * (y * w[5] + x * w[7]) + _4 * _C2B * z * w[6]
    if degree >= 3:
        xx = x * x
        yy = y * y
        zz = z * z
        xy = x * y
        xz = x * z
        yz = y * z
        gx += (
            -_6 * _C3A * xy * w[9]
            + _C3B * yz * w[10]
            + _2 * _C3C * xy * w[11]
            - _6 * _C3D * xz * w[12]
            - _C3C * (_4 * zz - _3 * xx - yy) * w[13]
            + _2 * _C3E * xz * w[14]
            - _3 * _C3A * (xx - yy) * w[15]
        )
        gy += (
            -_3 * _C3A * (xx - yy) * w[9]
            + _C3B * xz * w[10]
            - _C3C * (_4 * zz - xx - _3 * yy) * w[11]
            - _6 * _C3D * yz * w[12]
            + _2 * _C3C * xy * w[13]
            - _2 * _C3E * yz * w[14]
            + _6 * _C3A * xy * w[15]
        )
        gz += (
            _C3B * xy * w[10]
            - _8 * _C3C * yz * w[11]
            + _3 * _C3D * (_2 * zz - xx - yy) * w[12]
            - _8 * _C3C * xz * w[13]
            + _C3E * (xx - yy) * w[14]
        )
    along = gx * x + gy * y + gz * z
    return (gx - along * x) * inverse, (gy - along * y) * inverse, (gz - along * z) * inverse
