"""VGGT's nine numbers for a camera, and its way from depth to points.

Encoding ``absT_quaR_FoV``: translation, quaternion ``xyzw``, vertical and horizontal field of view
in radians. Extrinsics are OpenCV camera-from-world ``[3, 4]``. Principal points are the image
centre ``(W / 2, H / 2)``, yet depth is unprojected at integer pixels: half a pixel apart, as in the
original; adapters correct it.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def encode_cameras(
    extrinsics: Float[Tensor, "*batch 3 4"],
    intrinsics: Float[Tensor, "*batch 3 3"],
    image_size: tuple[int, int],
) -> Float[Tensor, "*batch 9"]:
    """Return the encoding of cameras for images of ``(height, width)`` pixels."""
    height, width = image_size
    fov_h = 2 * torch.atan(height / 2 / intrinsics[..., 1, 1])
    fov_w = 2 * torch.atan(width / 2 / intrinsics[..., 0, 0])
    quaternion = matrix_to_quaternion(extrinsics[..., :3])
    fov = torch.stack((fov_h, fov_w), -1)
    return torch.cat((extrinsics[..., 3], quaternion, fov), -1).float()


def decode_cameras(
    encoding: Float[Tensor, "*batch 9"], image_size: tuple[int, int]
) -> tuple[Float[Tensor, "*batch 3 4"], Float[Tensor, "*batch 3 3"]]:
    """Return extrinsics and intrinsics of an encoding; its quaternion may have any length."""
    height, width = image_size
    rotation = quaternion_to_matrix(encoding[..., 3:7])
    extrinsics = torch.cat((rotation, encoding[..., :3].unsqueeze(-1)), -1)
    intrinsics = encoding.new_zeros(*encoding.shape[:-1], 3, 3)
    intrinsics[..., 0, 0] = width / 2 / torch.tan(encoding[..., 8] / 2)
    intrinsics[..., 1, 1] = height / 2 / torch.tan(encoding[..., 7] / 2)
    intrinsics[..., 0, 2] = width / 2
    intrinsics[..., 1, 2] = height / 2
    intrinsics[..., 2, 2] = 1.0
    return extrinsics, intrinsics


def quaternion_to_matrix(
    quaternion: Float[Tensor, "*batch 4"], eps: float = 0.0
) -> Float[Tensor, "*batch 3 3"]:
    """Return the rotation of a quaternion ``xyzw`` of any length; ``eps`` allows for zero."""
    i, j, k, r = quaternion.unbind(-1)
    s = 2.0 / (quaternion.square().sum(-1) + eps)
    rows = (
        (1 - s * (j * j + k * k), s * (i * j - k * r), s * (i * k + j * r)),
        (s * (i * j + k * r), 1 - s * (i * i + k * k), s * (j * k - i * r)),
        (s * (i * k - j * r), s * (j * k + i * r), 1 - s * (i * i + j * j)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def matrix_to_quaternion(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Return the quaternion ``xyzw`` of a rotation, its scalar part not negative.

    Each component in turn is taken as the divisor; the result of the largest one is kept.
    """
    (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = (
        row.unbind(-1) for row in matrix.unbind(-2)
    )
    signs = (
        1 + m00 + m11 + m22,
        1 + m00 - m11 - m22,
        1 - m00 + m11 - m22,
        1 - m00 - m11 + m22,
    )
    size = torch.stack([x.clamp(min=0.0) for x in signs], -1)
    # The gradient of the square root at 0 is infinite; such a component is never the divisor.
    size = torch.where(size > 0, size, 1.0).sqrt() * (size > 0)
    forms = (
        (size[..., 0].square(), m21 - m12, m02 - m20, m10 - m01),
        (m21 - m12, size[..., 1].square(), m10 + m01, m02 + m20),
        (m02 - m20, m10 + m01, size[..., 2].square(), m12 + m21),
        (m10 - m01, m20 + m02, m21 + m12, size[..., 3].square()),
    )
    candidates = torch.stack([torch.stack(form, -1) for form in forms], -2)
    candidates = candidates / (2.0 * size.unsqueeze(-1).clamp(min=0.1))
    best = size.argmax(-1, keepdim=True).unsqueeze(-1).expand(*size.shape[:-1], 1, 4)
    real, *imaginary = candidates.gather(-2, best).squeeze(-2).unbind(-1)
    quaternion = torch.stack((*imaginary, real), -1)
    return torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)


def invert_extrinsics(extrinsics: Float[Tensor, "*batch 3 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Return world-from-camera of camera-from-world."""
    rotation = extrinsics[..., :3].transpose(-1, -2)
    inverse = extrinsics.new_zeros(*extrinsics.shape[:-2], 4, 4)
    inverse[..., :3, :3] = rotation
    inverse[..., :3, 3:] = -rotation @ extrinsics[..., 3:]
    inverse[..., 3, 3] = 1.0
    return inverse


def unproject_depth(
    depth: Float[Tensor, "*batch h w 1"],
    extrinsics: Float[Tensor, "*batch 3 4"],
    intrinsics: Float[Tensor, "*batch 3 3"],
) -> Float[Tensor, "*batch h w 3"]:
    """Return world points of depth maps, with pixel (0, 0) at coordinate 0 as VGGT has it.

    Raises:
        ValueError: A camera has skew.
    """
    if (intrinsics[..., 0, 1] != 0).any() or (intrinsics[..., 1, 0] != 0).any():
        msg = "expected cameras without skew; undistort the images first"
        raise ValueError(msg)
    height, width = depth.shape[-3:-1]
    u = torch.arange(width, device=depth.device, dtype=depth.dtype)
    v = torch.arange(height, device=depth.device, dtype=depth.dtype).unsqueeze(1)
    fx, fy, cx, cy = (
        intrinsics[..., r, c, None, None] for r, c in ((0, 0), (1, 1), (0, 2), (1, 2))
    )
    z = depth[..., 0]
    points = torch.stack(((u - cx) * z / fx, (v - cy) * z / fy, z), -1).float()
    inverse = invert_extrinsics(extrinsics).to(points.dtype)
    rotation, translation = inverse[..., None, :3, :3], inverse[..., None, None, :3, 3]
    return points @ rotation.transpose(-1, -2) + translation
