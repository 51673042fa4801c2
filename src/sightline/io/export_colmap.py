"""A COLMAP model of a finished scene: pinhole cameras at source resolution and real tracks."""

import logging

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor

from sightline.geometry.pointmap import voxel_thin
from sightline.geometry.rotation import matrix_to_quat
from sightline.io.colmap_model import ColmapCamera, ColmapImage, ColmapModel, ColmapPoints
from sightline.io.scene_result import SceneResult, SourceViews
from sightline.io.splat_arrays import to_bytes, to_numpy
from sightline.types import PointCloud, SparsePoints

log = logging.getLogger(__name__)

_THIN = 0.01  # cell of the thinned cloud, as a fraction of its interquartile extent
_DEPTH_TOLERANCE = 0.02  # relative; a point this close to a view's depth is seen by it


def colmap_model(result: SceneResult, views: SourceViews, min_confidence: float) -> ColmapModel:
    """Return cameras, images and points.

    Sparse points keep their tracks; each observation lies where the point projects, and those
    outside the picture are dropped. Dense points are thinned to about one in a hundredth of the
    scene's extent, and are seen by the views whose depth maps agree with them within 2 %.

    Args:
        result: The scene.
        views: Its registered views; the names are used as they are.
        min_confidence: Percentage of the least certain points to leave out; a sparse point is as
            certain as its track is long.
    """
    if result.sparse is not None:
        points, colors, errors, pairs = _sparse(result.sparse, views, min_confidence)
    elif result.points is not None:
        points, colors, pairs = _dense(result, result.points, views, min_confidence)
        errors = np.full(len(points), -1.0)
    else:
        log.warning("the scene has no points, so the COLMAP model has cameras only")
        points, colors = np.zeros((0, 3)), np.zeros((0, 3), np.uint8)
        errors, pairs = np.zeros(0), np.zeros((0, 2), np.int64)
    pairs, pixels, bounds = _project(points, views, pairs)
    camera_of, cameras = _cameras(views)
    quats = matrix_to_quat(views.w2c[:, :3, :3]).numpy()
    images = {}
    for i, name in enumerate(views.names):
        own = slice(bounds[i], bounds[i + 1])
        images[i + 1] = ColmapImage(
            id=i + 1,
            name=name,
            camera_id=camera_of[i],
            quat=quats[i],
            translation=views.w2c[i, :3, 3].numpy(),
            pixels=pixels[own],
            point_ids=pairs[own, 0] + 1,
        )
    index = np.arange(len(pairs)) - bounds[pairs[:, 1]]
    tracks = np.stack([pairs[:, 0], pairs[:, 1] + 1, index], 1)
    return ColmapModel(
        cameras=cameras,
        images=images,
        points=ColmapPoints(
            ids=np.arange(1, len(points) + 1),
            points=points,
            colors=colors,
            errors=errors,
            tracks=tracks[np.argsort(tracks[:, 0], kind="stable")],
        ),
    )


def confident(values: Float[Tensor, "*shape"], percent: float) -> Bool[Tensor, "*shape"]:
    """Mark the values at or above a percentile; with many equal values, fewer are left out."""
    if percent == 0 or values.numel() == 0:
        return torch.ones_like(values, dtype=torch.bool)
    flat = values.flatten()
    rank = min(flat.numel(), int(flat.numel() * percent / 100) + 1)
    return values >= flat.kthvalue(rank).values


def _project(
    points: Float64[np.ndarray, "N 3"], views: SourceViews, pairs: Int64[np.ndarray, "T 2"]
) -> tuple[Int64[np.ndarray, "M 2"], Float64[np.ndarray, "M 2"], Int64[np.ndarray, " B"]]:
    """Drop (point, view) pairs outside the picture.

    Returns:
        The pairs that are left, their source pixels, and where each view's pairs begin and end.
    """
    starts = np.searchsorted(pairs[:, 1], np.arange(len(views.names) + 1))
    kept: list[np.ndarray] = [pairs[:0]]
    found: list[np.ndarray] = [np.zeros((0, 2))]
    bounds = [0]
    for i in range(len(views.names)):
        own = pairs[starts[i] : starts[i + 1]]
        w2c, K = views.w2c[i].numpy(), views.K[i].numpy()
        local = points[own[:, 0]] @ w2c[:3, :3].T + w2c[:3, 3]
        ahead = local[:, 2] > 1e-12
        rays = local / np.where(ahead, local[:, 2], 1)[:, None]
        pixels = rays @ K[:2].T
        height, width = views.sizes[i].tolist()
        within = ahead & (pixels >= 0).all(1) & (pixels <= (width, height)).all(1)
        kept.append(own[within])
        found.append(pixels[within])
        bounds.append(bounds[-1] + int(within.sum()))
    return np.concatenate(kept), np.concatenate(found), np.array(bounds, np.int64)


def _sparse(
    sparse: SparsePoints, views: SourceViews, min_confidence: float
) -> tuple[
    Float64[np.ndarray, "N 3"],
    UInt8[np.ndarray, "N 3"],
    Float64[np.ndarray, " N"],
    Int64[np.ndarray, "T 2"],
]:
    count = len(sparse.points)
    lengths = torch.bincount(sparse.tracks[:, 0].long(), minlength=count).float()
    keep = torch.isfinite(sparse.points).all(1)
    keep[keep.clone()] = confident(lengths[keep], min_confidence)
    kept = keep.cpu().numpy()
    new_row = np.cumsum(kept) - 1
    new_view = np.full(max(views.indices) + 1, -1)
    new_view[list(views.indices)] = np.arange(len(views.indices))
    tracks = sparse.tracks.cpu().numpy().astype(np.int64)
    tracks = tracks[kept[tracks[:, 0]] & (tracks[:, 1] < len(new_view))]
    tracks = tracks[new_view[tracks[:, 1]] >= 0]
    # Sorted by view, then point; a point that one view saw twice stands once.
    keys = np.sort(new_view[tracks[:, 1]] * count + new_row[tracks[:, 0]])
    keys = keys[np.diff(keys, prepend=-1) > 0]
    pairs = np.stack([keys % max(count, 1), keys // max(count, 1)], 1)
    errors = np.full(count, -1.0)
    if sparse.errors is not None:
        errors = sparse.errors.double().cpu().numpy()
    points = sparse.points.double().cpu().numpy()
    return points[kept], sparse.colors.cpu().numpy()[kept], errors[kept], pairs


def _dense(
    result: SceneResult, cloud: PointCloud, views: SourceViews, min_confidence: float
) -> tuple[Float64[np.ndarray, "N 3"], UInt8[np.ndarray, "N 3"], Int64[np.ndarray, "T 2"]]:
    points = cloud.points.cpu()
    keep = torch.isfinite(points).all(1)
    confidence = None if cloud.confidence is None else cloud.confidence.cpu().float()
    if confidence is not None:
        keep &= torch.isfinite(confidence)
        keep[keep.clone()] = confident(confidence[keep], min_confidence)
    rows = keep.nonzero()[:, 0]
    cell = _cell(to_numpy(points[rows]))
    if cell > 0:
        priority = None if confidence is None else confidence[rows]
        rows = rows[voxel_thin(points[rows], cell, priority)]
    positions = points[rows].double().numpy()
    colors = to_bytes(255 * to_numpy(cloud.colors)[rows.numpy()])
    pairs = [np.zeros((0, 2), np.int64)]
    if result.depth is not None:
        for i, view in enumerate(views.indices):
            seen = _agreeing(positions, result, views, i, to_numpy(result.depth[view]))
            pairs.append(np.stack([seen, np.full(len(seen), i)], 1))
    return positions, colors, np.concatenate(pairs)


def _cell(points: Float[np.ndarray, "N 3"]) -> float:
    """Return the side of the cells in which one point is kept, 0 for no thinning."""
    if len(points) == 0:
        return 0.0
    low, high = np.percentile(points[:: max(1, len(points) // 1_000_000)], (25, 75), axis=0)
    widest = float(np.ptp(points, axis=0).max())
    # Outliers may be so far off that the cells cannot be numbered otherwise.
    return max(_THIN * float(np.linalg.norm(high - low)), widest / 2**20)


def _agreeing(
    points: Float64[np.ndarray, "N 3"],
    result: SceneResult,
    views: SourceViews,
    index: int,
    depth: Float[np.ndarray, "H W"],
) -> Int64[np.ndarray, " M"]:
    """Return the points that lie on a view's depth map."""
    w2c = views.w2c[index].numpy()
    K = result.cameras.K[views.indices[index]].double().cpu().numpy()
    local = points @ w2c[:3, :3].T + w2c[:3, 3]
    z = np.where(local[:, 2] > 1e-12, local[:, 2], np.nan)
    columns = np.floor(K[0, 0] * local[:, 0] / z + K[0, 2])
    rows = np.floor(K[1, 1] * local[:, 1] / z + K[1, 2])
    height, width = depth.shape
    within = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    found = within.nonzero()[0]
    there = depth[rows[found].astype(np.int64), columns[found].astype(np.int64)]
    return found[np.abs(there - z[found]) <= _DEPTH_TOLERANCE * z[found]]


def _cameras(views: SourceViews) -> tuple[list[int], dict[int, ColmapCamera]]:
    """Return each view's camera id and the cameras; equal ones are shared."""
    known: dict[tuple[float, ...], int] = {}
    cameras: dict[int, ColmapCamera] = {}
    ids: list[int] = []
    for K, (height, width) in zip(views.K.tolist(), views.sizes.tolist(), strict=True):
        params = (K[0][0], K[1][1], K[0][2], K[1][2])
        number = known.setdefault((*params, width, height), len(known) + 1)
        cameras[number] = ColmapCamera(
            id=number, model="PINHOLE", width=width, height=height, params=params
        )
        ids.append(number)
    return ids, cameras
