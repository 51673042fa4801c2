"""Learned cameras adjusted to features that are matched between the full-size pictures."""

import dataclasses
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sightline.errors import ReconstructionError
from sightline.geometry.align import transform_cameras, transform_points
from sightline.geometry.rotation import rotation_angle
from sightline.io.undistort import pinhole_intrinsics
from sightline.protocols import Progress
from sightline.reconstruction.colmap import found_lenses, open_workspace, sparse_points
from sightline.reconstruction.engine import run_worker
from sightline.reconstruction.given import GivenEstimator
from sightline.reconstruction.learned.gauge import align_cameras, view_points
from sightline.reconstruction.pictures import source_sizes
from sightline.types import Cameras, Reconstruction, Views

_LEAST_SEEN = 15
"""Points that a view must see to take its new pose."""
_MOST_TURN = 10.0
"""Degrees of a median correction; more than that is a failure, not a refinement."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Adjusted:
    """What bundle adjustment did."""

    reconstruction: Reconstruction
    note: str
    """For the user: what was gained, or why nothing was changed."""
    changed: bool


def bundle_adjust(
    views: Views,
    found: Reconstruction,
    *,
    workspace: Path | None = None,
    seed: int = 0,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> Adjusted:
    """Adjust poses, focal lengths and points robustly; depth maps follow.

    SIFT features of the pictures are matched; the learned poses say where points are, and points
    say where cameras are better (COLMAP's bundle adjustment, Cauchy loss). Views of one size and
    group share a focal length, unless lenses are known. The world stays where it was, and each
    depth map is scaled to the points that its view sees.

    Args:
        views: The pictures.
        found: Of a learned method, in pixels of the full-size pictures.
        workspace: As in ``ColmapEstimator``.
        seed: Of matching and triangulation.
        num_threads: None uses all cores.
        progress: Called with the worker's stages.

    Raises:
        Cancelled: If ``progress`` raised it.
    """
    chosen = found.registered.nonzero()[:, 0]
    if len(chosen) < 2:
        return Adjusted(
            reconstruction=found, note="one picture leaves nothing to adjust", changed=False
        )
    sizes = torch.tensor(source_sizes(views))
    K = found.cameras.K.double() if views.lenses is not None else _shared(views, found, sizes)
    start = dataclasses.replace(
        found, cameras=dataclasses.replace(found.cameras, K=K), sparse=None, depth=None
    )
    helper = GivenEstimator(reconstruction=start, seed=seed, num_threads=num_threads)
    try:
        with open_workspace(workspace) as folder:
            job = helper.job(views, chosen.tolist(), folder)
            settings = dataclasses.replace(
                job.settings, adjust=True, free_lenses=views.lenses is None
            )
            job = dataclasses.replace(job, settings=settings)
            arrays = run_worker(job, folder, progress)
    except ReconstructionError as error:
        return Adjusted(
            reconstruction=found, note=f"bundle adjustment failed: {error}", changed=False
        )
    seen = torch.bincount(torch.from_numpy(arrays["tracks"][:, 1]).long(), minlength=len(chosen))
    good = seen >= _LEAST_SEEN
    if int(good.sum()) < 2 or int(good.sum()) < len(chosen) / 2:
        return Adjusted(
            reconstruction=found,
            note=f"bundle adjustment found enough matched points in only {int(good.sum())} of "
            f"{len(chosen)} pictures; the learned cameras were kept",
            changed=False,
        )
    w2c = torch.from_numpy(arrays["w2c"])
    before = found.cameras.w2c[chosen]
    world = align_cameras(w2c[good], before[good])
    lenses = found_lenses(job, arrays)
    moved = transform_cameras(
        Cameras(w2c=w2c, K=pinhole_intrinsics(lenses), height=1, width=1), world
    )
    turn = torch.rad2deg(rotation_angle(moved.w2c[good, :3, :3], before[good, :3, :3])).median()
    if not bool(moved.w2c[good].isfinite().all()) or float(turn) > _MOST_TURN:
        return Adjusted(
            reconstruction=found,
            note="bundle adjustment moved cameras further than learned ones are wrong; they were "
            "kept",
            changed=False,
        )
    poses, matrices = found.cameras.w2c.clone(), K.clone()
    poses[chosen[good]], matrices[chosen[good]] = moved.w2c[good], moved.K[good]
    arrays["tracks"][:, 1] = chosen.numpy()[arrays["tracks"][:, 1]]
    sparse = sparse_points(arrays)
    points = transform_points(sparse.points.double(), world)
    result = dataclasses.replace(
        found,
        cameras=dataclasses.replace(found.cameras, w2c=poses, K=matrices),
        sparse=dataclasses.replace(sparse, points=points.float()),
    )
    assert sparse.errors is not None
    note = (
        f"bundle adjustment moved cameras by {float(turn):.2f} degrees (median), "
        f"{len(points)} points now reproject within {float(sparse.errors.mean()):.2f} pixels"
    )
    return Adjusted(reconstruction=_rescaled(views, result), note=note, changed=True)


def _shared(
    views: Views, found: Reconstruction, sizes: Int64[Tensor, "V 2"]
) -> Float[Tensor, "V 3 3"]:
    """Return intrinsics in which views of one size and group have their median focal length."""
    K = found.cameras.K.double().clone()
    groups = views.groups or ("",) * len(views)
    keys = [(group, *size) for group, size in zip(groups, sizes.tolist(), strict=True)]
    for key in set(keys):
        rows = [row for row, other in enumerate(keys) if other == key and found.registered[row]]
        if rows:
            K[rows] = K[rows].median(0).values
    return K


def _rescaled(views: Views, found: Reconstruction) -> Reconstruction:
    """Scale each depth map to the points that its view sees, and lift it again."""
    sparse, depth = found.sparse, found.depth
    if sparse is None or depth is None:
        return found
    depth = depth.clone()
    place = views.from_original.double() @ found.cameras.K
    owner = sparse.tracks[:, 1].long()
    ratios = torch.ones(len(views), dtype=torch.float64)
    for view in found.registered.nonzero()[:, 0].tolist():
        points = sparse.points[sparse.tracks[owner == view, 0].long()].double()
        w2c = found.cameras.w2c[view]
        local = points @ w2c[:3, :3].T + w2c[:3, 3]
        pixel = local @ place[view].T
        column, row = (pixel[:, :2] / pixel[:, 2:]).floor().long().unbind(-1)
        height, width = views.sizes[view].tolist()
        inside = (local[:, 2] > 0) & (column >= 0) & (column < width)
        inside &= (row >= 0) & (row < height)
        there = depth[view, row[inside], column[inside]].double()
        ratio = (local[inside, 2] / there)[there > 0]
        if len(ratio) >= _LEAST_SEEN:
            ratios[view] = ratio.median()
    depth *= ratios[:, None, None].float()
    result = dataclasses.replace(found, depth=depth)
    if found.points is None:
        return result
    return dataclasses.replace(result, points=view_points(views, result))
