"""Rigid motions: inverses, exponentials, look-at cameras and the flip to OpenGL axes."""

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.geometry.rotation import cross_matrix, sinc_of_square, so3_exp


def rigid_matrix(
    rotation: Float[Tensor, "*batch 3 3"], translation: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 4 4"]:
    """Assemble the 4x4 matrix of ``x -> rotation x + translation``."""
    top = torch.cat([rotation, translation[..., None]], -1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 3] = 1
    return torch.cat([top, bottom], -2)


def invert_se3(motion: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Invert rigid motions in closed form: the transposed rotation.

    >>> motion = rigid_matrix(torch.eye(3), torch.tensor([1.0, 2.0, 3.0]))
    >>> (invert_se3(motion) @ motion).equal(torch.eye(4))
    True
    """
    rotation = motion[..., :3, :3].mT
    return rigid_matrix(rotation, -(rotation @ motion[..., :3, 3:])[..., 0])


def camera_centers(w2c: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 3"]:
    """Return camera centres in the world, ``-R^T t``."""
    return -(w2c[..., :3, :3].mT @ w2c[..., :3, 3:])[..., 0]


def se3_exp(twist: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 4 4"]:
    """Turn twists into rigid motions.

    Args:
        twist: Translational part, then the rotation vector in radians (the order of Sophus and
            of Barfoot, State Estimation for Robotics, sec. 7.1).
    """
    rho, omega = twist[..., :3], twist[..., 3:]
    squared = omega.square().sum(-1)[..., None, None]
    cross = cross_matrix(omega)
    half = sinc_of_square(squared / 4)
    # (1 - sin(a)/a) / a^2 by its series near zero, where the difference would cancel.
    small = squared < 1e-2
    safe = torch.where(small, 1.0, squared)
    series = 1 / 6 - squared / 120 + squared.square() / 5040 - squared**3 / 362880
    third = torch.where(small, series, (1 - sinc_of_square(safe)) / safe)
    eye = torch.eye(3, dtype=twist.dtype, device=twist.device)
    left_jacobian = eye + 0.5 * half.square() * cross + third * (cross @ cross)
    return rigid_matrix(so3_exp(omega), (left_jacobian @ rho[..., None])[..., 0])


def look_at(
    eye: Float[Tensor, "*#batch 3"],
    target: Float[Tensor, "*#batch 3"],
    up: Float[Tensor, "*#batch 3"],
) -> Float[Tensor, "*#batch 4 4"]:
    """Return ``c2w`` of OpenCV cameras at ``eye`` that see ``target`` in the picture's centre.

    Args:
        eye: Camera centres.
        target: Points to look at.
        up: World directions that point up in the picture; any length. Where one is (nearly)
            parallel to the viewing direction, the world axis most across it takes its place.

    >>> eye, up = torch.tensor([0.0, -3.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    >>> c2w = look_at(eye, torch.zeros(3), up)
    >>> c2w[:3, 2].tolist()  # the camera looks along z
    [0.0, 1.0, 0.0]
    """
    eye, target, up = torch.broadcast_tensors(eye, target, up)
    forward = torch.nn.functional.normalize(target - eye, dim=-1)
    up = torch.nn.functional.normalize(up, dim=-1)
    right = torch.linalg.cross(forward, up)
    axes = torch.eye(3, dtype=eye.dtype, device=eye.device)
    spare = torch.linalg.cross(forward, axes[forward.abs().argmin(-1)])
    degenerate = right.square().sum(-1, keepdim=True) < 1e-10
    right = torch.nn.functional.normalize(torch.where(degenerate, spare, right), dim=-1)
    down = torch.linalg.cross(forward, right)
    return rigid_matrix(torch.stack([right, down, forward], -1), eye)


def opencv_from_opengl(c2w: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Swap OpenCV camera axes (right, down, forward) and OpenGL's (right, up, backward).

    It flips the second and third columns of camera-to-world matrices and is its own inverse;
    nerfstudio, instant-ngp, Blender and glTF store OpenGL axes.
    """
    flip = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=c2w.dtype, device=c2w.device)
    return c2w * flip
