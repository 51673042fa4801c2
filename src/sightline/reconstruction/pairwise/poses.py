"""Camera poses from points and pixels (perspective-n-point), and from other poses."""

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sightline.errors import InputError
from sightline.geometry.align import Similarity, align_umeyama
from sightline.geometry.pose import invert_se3, rigid_matrix

PIXEL_ERROR = 5.0
"""Reprojection error, in pixels, up to which a point supports a pose."""


def solve_pnp(
    points: Float[Tensor, "n 3"],
    pixels: Float[Tensor, "n 2"],
    focal: float | None,
    center: Float[Tensor, "2"],
    *,
    iterations: int = 10,
    long_side: int = 0,
) -> tuple[float, Float[Tensor, "4 4"]] | None:
    """Find the pose of a camera that sees points at pixels (SQPnP inside RANSAC).

    Args:
        points: In the world.
        pixels: Where they are seen.
        focal: In pixels; None tries 21 of them between half and three times ``long_side``.
        center: Principal point.
        iterations: Of RANSAC.
        long_side: Of the picture; needed without ``focal`` only.

    Returns:
        The focal length and the camera-to-world pose, or None when there is none.
    """
    known = points.isfinite().all(-1)
    points, pixels = points[known], pixels[known]
    if len(points) < 4:
        return None
    focals = [focal] if focal is not None else np.geomspace(long_side / 2, long_side * 3, 21)
    world, seen = (np.ascontiguousarray(t.cpu().numpy(), np.float32) for t in (points, pixels))
    cx, cy = center.tolist()
    best: tuple[int, float, np.ndarray, np.ndarray] | None = None
    for candidate in focals:
        K = np.array([[candidate, 0, cx], [0, candidate, cy], [0, 0, 1]], np.float32)
        try:
            found, turn, shift, inliers = cv2.solvePnPRansac(
                world,
                seen,
                K,
                None,
                iterationsCount=iterations,
                reprojectionError=PIXEL_ERROR,
                flags=cv2.SOLVEPNP_SQPNP,
            )
        except cv2.error:  # degenerate points
            continue
        if found and inliers is not None and (best is None or len(inliers) > best[0]):
            best = len(inliers), float(candidate), turn, shift
    if best is None:
        return None
    rotation = torch.from_numpy(cv2.Rodrigues(best[2])[0]).to(points)
    w2c = rigid_matrix(rotation, torch.from_numpy(best[3][:, 0]).to(points))
    return best[1], invert_se3(w2c)


def align_poses(source: Float[Tensor, "n 4 4"], target: Float[Tensor, "n 4 4"]) -> Similarity:
    """Find the similarity that carries cameras (camera-to-world) onto others.

    Least squares over centres and over points a little ahead of them; a hundredth of the median
    distance between the cameras.

    Raises:
        InputError: If all cameras look along the line that they are on.
    """
    similarity = align_umeyama(_centers_and_ahead(source), _centers_and_ahead(target))
    if not bool(torch.isfinite(similarity.scale)):
        raise InputError("the cameras to align are all at one place; give poses apart")
    return similarity


def _centers_and_ahead(poses: Float[Tensor, "n 4 4"]) -> Float[Tensor, "_ 3"]:
    centers = poses[:, :3, 3]
    step = torch.pdist(centers).median() / 100
    return torch.cat([centers, centers + step * poses[:, :3, 2]])


def transform_pose(similarity: Similarity, pose: Float[Tensor, "*batch 4 4"]) -> Tensor:
    """Move camera-to-world poses with the world."""
    rotation = similarity.rotation @ pose[..., :3, :3]
    center = similarity.scale * (pose[..., :3, 3] @ similarity.rotation.T) + similarity.translation
    return rigid_matrix(rotation, center)
