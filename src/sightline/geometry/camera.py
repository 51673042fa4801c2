"""Pinhole cameras: intrinsics, rays, projection and its inverse.

Pixel coordinates have their origin at the top-left image corner, so the first pixel's centre is
(0.5, 0.5), resizing by s is ``diag(s, s, 1) @ K``, and a crop moves the principal point only.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.errors import ShapeError
from sightline.types import Cameras

Pixels = int | float
"""A length in pixels; a name, because the tests' type checker takes no integer for a float."""


def intrinsics_matrix(
    fx: Float[Tensor, "*batch"],
    fy: Float[Tensor, "*batch"],
    cx: Float[Tensor, "*batch"],
    cy: Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch 3 3"]:
    """Assemble K from focal lengths and principal point, all in pixels."""
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    rows = ((fx, zero, cx), (zero, fy, cy), (zero, zero, one))
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def scale_intrinsics(
    K: Float[Tensor, "*batch 3 3"], sx: float, sy: float
) -> Float[Tensor, "*batch 3 3"]:
    """Return K of a picture resized by ``sx`` across and ``sy`` down."""
    return K * torch.tensor([[sx], [sy], [1.0]], dtype=K.dtype, device=K.device)


def crop_intrinsics(
    K: Float[Tensor, "*batch 3 3"], left: Pixels, top: Pixels
) -> Float[Tensor, "*batch 3 3"]:
    """Return K of a picture cut ``left`` and ``top`` pixels in; negative values pad."""
    shift = torch.zeros(3, 3, dtype=K.dtype, device=K.device)
    shift[0, 2], shift[1, 2] = left, top
    return K - shift


def fov_from_focal(focal: Float[Tensor, "*batch"], size: Pixels) -> Float[Tensor, "*batch"]:
    """Return the field of view in radians across ``size`` pixels (principal point centred)."""
    return 2 * torch.atan(size / (2 * focal))


def focal_from_fov(fov: Float[Tensor, "*batch"], size: Pixels) -> Float[Tensor, "*batch"]:
    """Return the focal length in pixels for a field of view in radians across ``size`` pixels."""
    return size / (2 * torch.tan(fov / 2))


def resize_cameras(cameras: Cameras, height: int, width: int) -> Cameras:
    """Return the cameras of pictures resized to ``height`` x ``width``; poses stay."""
    K = scale_intrinsics(cameras.K, width / cameras.width, height / cameras.height)
    return replace(cameras, K=K, height=height, width=width)


def pixel_grid(
    height: int,
    width: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, "height width 2"]:
    """Return the (x, y) centre of every pixel: column + 0.5, row + 0.5."""
    x = torch.arange(width, dtype=dtype, device=device) + 0.5
    y = torch.arange(height, dtype=dtype, device=device) + 0.5
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def _rays_at_unit_depth(cameras: Cameras) -> Float[Tensor, "V H W 3"]:
    """Return each pixel's ray in camera axes, scaled to z = 1."""
    K = cameras.K
    grid = pixel_grid(cameras.height, cameras.width, dtype=K.dtype, device=K.device)
    focal = torch.stack([K[:, 0, 0], K[:, 1, 1]], -1)[:, None, None]
    xy = (grid - K[:, None, None, :2, 2]) / focal
    return torch.cat([xy, torch.ones_like(xy[..., :1])], -1)


def camera_rays(
    cameras: Cameras,
) -> tuple[Float[Tensor, "V 3"], Float[Tensor, "V H W 3"]]:
    """Return camera centres and the unit world direction through every pixel's centre."""
    rays = torch.nn.functional.normalize(_rays_at_unit_depth(cameras), dim=-1)
    # Row vectors times R_w2c are column vectors times its transpose, R_c2w.
    return cameras.centers, torch.einsum("vhwi,vij->vhwj", rays, cameras.w2c[:, :3, :3])


def project_points(
    points: Float[Tensor, "N 3"], cameras: Cameras
) -> tuple[Float[Tensor, "V N 2"], Float[Tensor, "V N"]]:
    """Project world points into every camera.

    Returns:
        Pixels, NaN for points that are not in front of the camera (so that any test of being
        inside the picture is false), and z-depth, which is negative behind the camera.

    >>> K = torch.tensor([[[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]])
    >>> cameras = Cameras(w2c=torch.eye(4)[None], K=K, height=48, width=64)
    >>> pixels, depth = project_points(torch.tensor([[0.0, 1.0, 5.0]]), cameras)
    >>> pixels.tolist(), depth.tolist()
    ([[[32.0, 34.0]]], [[5.0]])
    """
    rotation, translation = cameras.w2c[:, :3, :3], cameras.w2c[:, :3, 3]
    local = torch.einsum("vij,nj->vni", rotation, points) + translation[:, None]
    depth = local[..., 2]
    in_front = depth > torch.finfo(depth.dtype).tiny
    safe = torch.where(in_front, depth, 1.0)[..., None]
    K = cameras.K
    focal = torch.stack([K[:, 0, 0], K[:, 1, 1]], -1)[:, None]
    pixels = focal * local[..., :2] / safe + K[:, None, :2, 2]
    return torch.where(in_front[..., None], pixels, torch.nan), depth


def unproject_depth(depth: Float[Tensor, "V H W"], cameras: Cameras) -> Float[Tensor, "V H W 3"]:
    """Lift z-depth to world points.

    Args:
        depth: Distance along the optical axis in scene units; zero, negative and not finite
            mean missing.
        cameras: One camera a view, at the depth map's resolution.

    Returns:
        World points; NaN where depth is missing.

    Raises:
        ShapeError: If the cameras' number or picture size differs from the depth map's.

    The ray of pixel (column, row) passes through its centre (column + 0.5, row + 0.5).

    >>> K = torch.tensor([[[2.0, 0, 1], [0, 2, 1], [0, 0, 1]]])
    >>> cameras = Cameras(w2c=torch.eye(4)[None], K=K, height=2, width=2)
    >>> unproject_depth(torch.full((1, 2, 2), 4.0), cameras)[0, 0, 1].tolist()
    [1.0, -1.0, 4.0]
    """
    want = (len(cameras), cameras.height, cameras.width)
    if depth.shape != want:
        msg = (
            f"depth must be [V H W] = {list(want)} like its cameras, got {list(depth.shape)}; "
            "resize the cameras with resize_cameras or choose the views with Cameras.select"
        )
        raise ShapeError(msg)
    known = (depth > 0) & torch.isfinite(depth)
    local = _rays_at_unit_depth(cameras) * torch.where(known, depth, 1.0)[..., None]
    offset = local - cameras.w2c[:, None, None, :3, 3]
    points = torch.einsum("vhwi,vij->vhwj", offset, cameras.w2c[:, :3, :3])
    return torch.where(known[..., None], points, torch.nan)
