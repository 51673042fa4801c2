"""Rotations as matrices, quaternions, rotation vectors and 6D columns.

Quaternions are ``wxyz`` in the Hamilton convention; matrices act on column vectors. Every function
is batched, keeps the input's dtype, and has finite values and gradients everywhere, the identity
and half turns included.
"""

import torch
from jaxtyping import Float
from torch import Tensor

_SMALL = 1e-4
"""Squared angle below which series replace quotients: their error is then under 1e-15."""


def sinc_of_square(squared: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Return sin(x)/x given x squared: smooth at zero, where a square root is not."""
    small = squared < _SMALL
    x = torch.where(small, 1.0, squared).sqrt()
    series = 1 - squared / 6 + squared.square() / 120
    return torch.where(small, series, torch.sin(x) / x)


def normalize_quat(quats: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Scale quaternions to unit length; a zero quaternion stays zero."""
    tiny = torch.finfo(quats.dtype).tiny
    return quats * quats.square().sum(-1, keepdim=True).clamp_min(tiny).rsqrt()


def quat_to_matrix(quats: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Convert ``wxyz`` quaternions of any length to rotation matrices.

    ``q`` and ``-q`` give the same matrix; the zero quaternion gives the identity.

    >>> quat_to_matrix(torch.tensor([0.0, 0.0, 0.0, 2.0])).diagonal().tolist()  # half a turn about z
    [-1.0, -1.0, 1.0]
    """
    w, x, y, z = normalize_quat(quats).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def matrix_to_quat(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Convert rotation matrices to unit ``wxyz`` quaternions with w >= 0.

    All four rows of ``4 q q^T`` follow linearly from the matrix; the row with the largest diagonal
    is far from zero for every rotation, so that half turns lose no accuracy (Shepperd 1978).
    """
    m = rotation
    m00, m11, m22 = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    wx, wy, wz = (
        m[..., 2, 1] - m[..., 1, 2],
        m[..., 0, 2] - m[..., 2, 0],
        m[..., 1, 0] - m[..., 0, 1],
    )
    xy, xz, yz = (
        m[..., 1, 0] + m[..., 0, 1],
        m[..., 0, 2] + m[..., 2, 0],
        m[..., 2, 1] + m[..., 1, 2],
    )
    outer = torch.stack(
        [
            torch.stack([1 + m00 + m11 + m22, wx, wy, wz], -1),
            torch.stack([wx, 1 + m00 - m11 - m22, xy, xz], -1),
            torch.stack([wy, xy, 1 - m00 + m11 - m22, yz], -1),
            torch.stack([wz, xz, yz, 1 - m00 - m11 + m22], -1),
        ],
        -2,
    )  # [*batch, 4, 4]
    best = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None].expand(*m.shape[:-2], 1, 4)
    quat = normalize_quat(outer.gather(-2, best)[..., 0, :])
    return torch.where(quat[..., :1] < 0, -quat, quat)


def quat_multiply(
    a: Float[Tensor, "*#batch 4"], b: Float[Tensor, "*#batch 4"]
) -> Float[Tensor, "*#batch 4"]:
    """Return the Hamilton product: the rotation ``b`` followed by ``a``."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        -1,
    )


def quat_conjugate(quats: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Return the conjugate: for unit quaternions, the inverse rotation."""
    return torch.cat([quats[..., :1], -quats[..., 1:]], -1)


def quat_slerp(
    a: Float[Tensor, "*#batch 4"],
    b: Float[Tensor, "*#batch 4"],
    t: Float[Tensor, "*#batch"] | float,
) -> Float[Tensor, "*#batch 4"]:
    """Interpolate at constant angular speed along the shorter arc (Shoemake 1985).

    Args:
        a: Rotation at ``t`` = 0.
        b: Rotation at ``t`` = 1; its sign does not matter.
        t: Position on the arc; values outside [0, 1] extrapolate.

    Returns:
        Unit quaternions.
    """
    a, b = normalize_quat(a), normalize_quat(b)
    b = torch.where((a * b).sum(-1, keepdim=True) < 0, -b, b)
    t = torch.as_tensor(t, dtype=a.dtype, device=a.device)[..., None]
    # Angle between the two on the 3-sphere, at most pi/2; exact for small angles, unlike acos.
    distance = torch.linalg.vector_norm(b - a, dim=-1, keepdim=True)
    angle = 2 * torch.atan2(distance, torch.linalg.vector_norm(b + a, dim=-1, keepdim=True))
    squared = angle.square()
    whole = sinc_of_square(squared)
    weight_a = (1 - t) * sinc_of_square((1 - t).square() * squared) / whole
    weight_b = t * sinc_of_square(t.square() * squared) / whole
    return normalize_quat(weight_a * a + weight_b * b)


def cross_matrix(v: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Return the matrix that takes ``u`` to the cross product ``v x u``."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    rows = ((zero, -z, y), (z, zero, -x), (-y, x, zero))
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def so3_exp(omega: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Turn rotation vectors (axis times angle in radians) into matrices (Rodrigues)."""
    squared = omega.square().sum(-1)[..., None, None]
    cross = cross_matrix(omega)
    # 1 - cos a = 2 sin^2(a/2): no cancellation for small angles.
    half = sinc_of_square(squared / 4)
    eye = torch.eye(3, dtype=omega.dtype, device=omega.device)
    return eye + sinc_of_square(squared) * cross + 0.5 * half.square() * (cross @ cross)


def so3_log(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Turn matrices into rotation vectors with an angle in [0, pi].

    At exactly half a turn both axis signs are right; either may come back.
    """
    quat = matrix_to_quat(rotation)
    w, v = quat[..., 0], quat[..., 1:]
    squared = v.square().sum(-1)
    small = squared < _SMALL
    length = torch.where(small, 1.0, squared).sqrt()
    ratio = squared / torch.where(small, w, 1.0).square()
    series = 2 / torch.where(small, w, 1.0) * (1 - ratio / 3 + ratio.square() / 5)
    factor = torch.where(small, series, 2 * torch.atan2(length, w) / length)
    return factor[..., None] * v


def rotation_angle(
    a: Float[Tensor, "*#batch 3 3"], b: Float[Tensor, "*#batch 3 3"]
) -> Float[Tensor, "*#batch"]:
    """Return the angle in radians, 0 to pi, of the rotation that takes ``a`` to ``b``."""
    quat = matrix_to_quat(a.mT @ b)
    return 2 * torch.atan2(torch.linalg.vector_norm(quat[..., 1:], dim=-1), quat[..., 0])


def rotation_6d_to_matrix(columns: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 3 3"]:
    """Build rotations from their first two columns, orthonormalised by Gram-Schmidt.

    The six numbers are the first column, then the second (Zhou et al., arXiv:1812.07035).
    PyTorch3D stores rows instead: transpose the result to use its numbers.
    """
    first = torch.nn.functional.normalize(columns[..., :3], dim=-1)
    second = columns[..., 3:]
    second = second - (first * second).sum(-1, keepdim=True) * first
    second = torch.nn.functional.normalize(second, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], -1)


def matrix_to_rotation_6d(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 6"]:
    """Return the first column, then the second."""
    return torch.cat([rotation[..., :, 0], rotation[..., :, 1]], -1)
