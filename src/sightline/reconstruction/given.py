"""Cameras that the user brings, with points where they came without."""

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from sightline.errors import InputError, ReconstructionError
from sightline.geometry.camera import project_points, resize_cameras, unproject_depth
from sightline.protocols import Progress
from sightline.reconstruction.colmap import open_workspace, sparse_points
from sightline.reconstruction.engine import run_worker
from sightline.reconstruction.job import Job, Matching, Settings
from sightline.reconstruction.pictures import (
    as_bytes,
    camera_specs,
    picture_files,
    pinhole_lenses,
    sequences,
    source_sizes,
)
from sightline.types import Reconstruction, SparsePoints, Views

_ENOUGH_POINTS = 100
_MOST_DEPTH_POINTS = 100_000
_DEPTH_AGREES = 0.02
"""A depth map of another view confirms a point within this share of the depth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenEstimator:
    """Uses known cameras exactly as they are.

    Points come from ``reconstruction.sparse`` when there are some; else from its depth maps; else
    they are triangulated from SIFT matches between the pictures, with cameras held fixed, which
    also shows whether cameras and pictures belong together.
    """

    reconstruction: Reconstruction
    """One camera a view, in view order; unregistered views stay out."""
    workspace: Path | None = None
    """As in ``ColmapEstimator``; used only when points are triangulated."""
    matching: Matching = "auto"
    max_image_size: int = 1600
    max_features: int = 4096
    neighbors: int = 12
    seed: int = 0
    num_threads: int | None = None
    progress: Progress | None = None

    def estimate(self, views: Views) -> Reconstruction:
        """Return the given cameras, in the given world, with points.

        Raises:
            InputError: If cameras and views do not correspond, or a pose is no rigid motion.
            ReconstructionError: If the pictures do not fit the cameras.
        """
        given = self.reconstruction
        _check(given, views)
        if given.sparse is not None and len(given.sparse.points) >= _ENOUGH_POINTS:
            return given
        if given.depth is not None:
            sparse = _points_from_depth(given, views)
        else:
            sparse = self._triangulate(views)
        return dataclasses.replace(given, sparse=sparse)

    def _triangulate(self, views: Views) -> SparsePoints:
        given = self.reconstruction
        chosen = given.registered.nonzero()[:, 0]
        with open_workspace(self.workspace) as folder:
            arrays = run_worker(self.job(views, chosen.tolist(), folder), folder, self.progress)
        arrays["tracks"][:, 1] = chosen.numpy()[arrays["tracks"][:, 1]]
        found = sparse_points(arrays)
        if len(found.points) >= _ENOUGH_POINTS:
            return found
        matched = int(arrays["matches"].sum()) // 2
        if matched < 2 * _ENOUGH_POINTS:
            raise ReconstructionError(
                f"only {len(found.points)} points and {matched} matches were found between the "
                f"{len(chosen)} pictures with given cameras, expected {_ENOUGH_POINTS} points or "
                "more; give pictures with more overlap and texture, or the points themselves "
                "(points3D or a ply_file_path)"
            )
        raise ReconstructionError(
            f"the pictures match well ({matched} matches), but only {len(found.points)} points fit "
            "the given cameras, expected hundreds; check that the poses are of these pictures, "
            "and their axes (transforms.json: camera-to-world, OpenGL), or use --geometry colmap"
        )

    def job(self, views: Views, chosen: list[int], folder: Path) -> Job:
        """Return what the worker is asked for some of the views."""
        given = self.reconstruction
        lenses = given.lenses
        if lenses is None:
            sizes: Int64[Tensor, "V 2"] = torch.tensor(source_sizes(views))
            lenses = pinhole_lenses(given.cameras, sizes)
        files, masks = picture_files(views, folder)
        cameras, camera_of_view = camera_specs(dataclasses.replace(views, lenses=lenses))
        used = sorted({camera_of_view[i] for i in chosen})
        row = {view: i for i, view in enumerate(chosen)}
        lines = [[row[v] for v in line if v in row] for line in sequences(views)]
        w2c = given.cameras.w2c.double()[:, :3].reshape(-1, 12).tolist()
        return Job(
            names=tuple(views.names[i] for i in chosen),
            files=tuple(files[i] for i in chosen),
            masks=tuple(masks[i] for i in chosen),
            cameras=tuple(cameras[i] for i in used),
            camera_of_view=tuple(used.index(camera_of_view[i]) for i in chosen),
            sequences=tuple(tuple(line) for line in lines if len(line) > 2),
            w2c=tuple(tuple(w2c[i]) for i in chosen),
            settings=Settings(
                max_image_size=self.max_image_size,
                max_features=self.max_features,
                matching=self.matching,
                neighbors=self.neighbors,
                mapper="incremental",
                seed=self.seed,
                num_threads=self.num_threads or os.cpu_count() or 1,
            ),
        )


def _check(given: Reconstruction, views: Views) -> None:
    if len(given.cameras) != len(views):
        raise InputError(
            f"{len(given.cameras)} cameras are given for {len(views)} pictures; give one camera a "
            "picture, in the same order"
        )
    if int(given.registered.sum()) < 2:
        raise InputError(
            f"{int(given.registered.sum())} of {len(views)} pictures have a given camera, expected "
            "2 or more; give more poses or use --geometry colmap"
        )
    for i in given.registered.nonzero()[:, 0].tolist():
        name, pose, K = views.names[i], given.cameras.w2c[i].double(), given.cameras.K[i]
        if not bool(pose.isfinite().all()) or not bool(K.isfinite().all()):
            raise InputError(
                f"the given camera of {name} has numbers that are not finite; correct or remove it"
            )
        rotation = pose[:3, :3]
        skew = (rotation @ rotation.T - torch.eye(3, dtype=torch.float64)).abs().max().item()
        if skew > 1e-3 or torch.linalg.det(rotation) < 0:
            raise InputError(
                f"the given pose of {name} is not a rotation and a shift (it scales, shears or "
                "mirrors); give rigid camera poses"
            )
        if K[0, 0] <= 0 or K[1, 1] <= 0:
            raise InputError(
                f"the given focal length of {name} is {K[0, 0]:.4g}, {K[1, 1]:.4g}, expected "
                "positive pixels; correct it"
            )


def _points_from_depth(given: Reconstruction, views: Views) -> SparsePoints:
    """Lift depth maps to points on a grid; other views see a point when their depth agrees."""
    assert given.depth is not None
    depth = given.depth.double()
    if given.valid is not None:
        depth = torch.where(given.valid, depth, 0.0)
    _, height, width = depth.shape
    cameras = resize_cameras(given.cameras.map(torch.Tensor.double), height, width)
    good = given.registered[:, None, None] & depth.isfinite() & (depth > 0)
    stride = max(1, math.ceil(math.sqrt(int(good.sum()) / _MOST_DEPTH_POINTS)))
    grid = torch.zeros_like(good)
    grid[:, stride // 2 :: stride, stride // 2 :: stride] = True
    owner, row, column = (good & grid).nonzero(as_tuple=True)
    points = unproject_depth(depth, cameras)[owner, row, column]
    if len(points) < _ENOUGH_POINTS:
        raise ReconstructionError(
            f"the given depth maps hold only {len(points)} usable values, expected "
            f"{_ENOUGH_POINTS} or more; check their scale and their file names"
        )
    colors = _colors(views, owner, (row + 0.5) / height, (column + 0.5) / width)
    tracks = [torch.stack([torch.arange(len(points)), owner], 1)]
    for view in given.registered.nonzero()[:, 0].tolist():
        pixels, z = project_points(points, cameras.select([view]))
        x, y = pixels[0].floor().long().unbind(-1)
        inside = (z[0] > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height) & (owner != view)
        index = inside.nonzero()[:, 0]
        near = depth[view, y[index], x[index]]
        agrees = (near - z[0, index]).abs() < _DEPTH_AGREES * z[0, index]
        seen = index[agrees]
        tracks.append(torch.stack([seen, torch.full_like(seen, view)], 1))
    joined = torch.cat(tracks)
    order = np.lexsort((joined[:, 1].numpy(), joined[:, 0].numpy()))
    return SparsePoints(
        points=points.float(), colors=colors, tracks=joined[torch.from_numpy(order)].int()
    )


def _colors(views: Views, owner: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Return the colour of each point in its own view; positions are shares of the size."""
    pictures = torch.from_numpy(as_bytes(views.images))
    sizes = views.sizes[owner]
    row = (down * sizes[:, 0]).long().clamp(max=views.images.shape[2] - 1)
    column = (across * sizes[:, 1]).long().clamp(max=views.images.shape[3] - 1)
    return pictures[owner, row, column]
