"""From verified matches to cameras and points: the worker's third stage. Needs no torch.

The default is COLMAP's incremental mapper (Schönberger and Frahm, "Structure-from-Motion
Revisited", CVPR 2016). When it leaves views out, laxer thresholds, the global mapper (Pan et al.,
"Global Structure-from-Motion Revisited", ECCV 2024) and more pairs are tried in turn; the result
with the most views wins, the earlier one among equals.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pycolmap

from sightline.reconstruction.features import FEW_VIEWS
from sightline.reconstruction.job import Job, Mapper
from sightline.reconstruction.log import Report

LEAST_POINTS = 15
"""A view counts as placed when it sees this many points."""
_TURN_ONLY = 0.8
"""Above this share of matched pairs that one homography explains, the camera only turned."""
_MANY_VIEWS = 100
"""Above this, only one retry is made, and only for a tenth of the views or more."""
_MOST_ERROR_GROWTH = 1.5
_SHORTEST_FOCAL = 0.4
"""Over the long side; an unknown lens does not see more than 103 degrees across a picture."""
_FIXED_FOCALS = (0.6, 0.72, 0.85, 1.0, 1.25, 1.6)
"""Tried in turn over the long side where few views cannot say the focal length by themselves."""


@dataclass(frozen=True, slots=True, eq=False)
class Mapped:
    """What was found."""

    model: pycolmap.Reconstruction | None
    placed: frozenset[int]
    """Views, counted from zero."""
    database: Path
    """The matches that the model comes from."""
    attempts: list[str] = field(default_factory=list)
    """What was tried."""


def map_views(
    job: Job,
    database: Path,
    folder: Path,
    report: Report,
    match_more: Callable[[frozenset[int]], Path | None] | None = None,
) -> Mapped:
    """Find cameras and points.

    Args:
        job: Settings; cameras with a known model stay as they are.
        database: Features and verified matches.
        folder: For COLMAP's own output; emptied.
        report: Told after each view that is placed.
        match_more: Called with the views that could not be placed; returns a database in which
            they are matched with more views, or None when all are already.

    Returns:
        The best model, not refined yet; its ``model`` is None when there is none.
    """
    views = len(job.names)
    first: Mapper = job.settings.mapper
    second: Mapper = "incremental" if first == "global" else "global"
    # A few views of many are not worth another pass.
    enough = views - views // 50 if views <= _MANY_VIEWS else round(0.9 * views)
    attempts: list[str] = []
    best = Mapped(None, frozenset(), database, attempts)

    def attempt(name: str, mapper: Mapper, relaxed: bool, matches: Path = database) -> bool:
        nonlocal best
        models = _run(job, matches, folder, report, mapper, relaxed)
        attempts.append(name)
        for model in models:
            placed = _keep_placed(job, model)
            if len(placed) > len(best.placed) and not _much_worse(model, best.model):
                best = Mapped(model, placed, matches, attempts)
        return len(best.placed) >= enough

    if attempt(first, first, False) or _only_turns(database):
        return best
    if attempt("relaxed", "incremental", True) or views > _MANY_VIEWS:
        return best
    if not best.placed and views <= FEW_VIEWS and _guesses_focal(job):
        best = _best_fixed_focal(job, folder, report, best)
        attempts.append("fixed focal")
    # The global mapper can fix all lenses or none.
    if not _mixes_lenses(job) and attempt(second, second, True):
        return best
    if match_more is not None:
        more = match_more(frozenset(range(views)) - best.placed)
        if more is not None:
            attempt("more pairs", "incremental", True, more)
    return best


def _only_turns(database: Path) -> bool:
    """Tell whether nearly all matched pairs are explained by a homography."""
    kinds = pycolmap.TwoViewGeometryConfiguration
    with pycolmap.Database.open(database) as opened:
        _, geometries = opened.read_two_view_geometries()
    strong = [g.config for g in geometries if len(g.inlier_matches) >= 2 * LEAST_POINTS]
    flat = [c for c in strong if c in (kinds.PANORAMIC, kinds.PLANAR_OR_PANORAMIC)]
    return len(strong) > 0 and len(flat) > _TURN_ONLY * len(strong)


def _run(
    job: Job,
    database: Path,
    folder: Path,
    report: Report,
    mapper: Mapper,
    relaxed: bool,
    *,
    fixed: bool = False,
) -> list[pycolmap.Reconstruction]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    report.progress("mapping", 0, len(job.names))
    if mapper == "global":
        return _run_global(job, database, folder)
    placed = 0

    def another(count: int) -> None:
        nonlocal placed
        placed = min(placed + count, len(job.names))
        report.progress("mapping", placed, len(job.names))

    found = pycolmap.incremental_mapping(
        database,
        folder,
        folder,
        _incremental_options(job, relaxed, fixed),
        initial_image_pair_callback=lambda: another(2),
        next_image_callback=lambda: another(1),
    )
    return list(found.values())


def _mixes_lenses(job: Job) -> bool:
    return len({camera.model is None for camera in job.cameras}) > 1


def _guesses_focal(job: Job) -> bool:
    return any(camera.model is None and camera.focal is None for camera in job.cameras)


def _best_fixed_focal(job: Job, folder: Path, report: Report, best: Mapped) -> Mapped:
    """Map with several focal lengths that stay fixed; the least error decides among equals."""
    guessed = [i for i, c in enumerate(job.cameras) if c.model is None and c.focal is None]
    database = folder.with_name("focal.db")
    shutil.copyfile(best.database, database)
    found: list[tuple[bool, float, Mapped]] = []
    for ratio in _FIXED_FOCALS:
        with pycolmap.Database.open(database) as opened:
            for i in guessed:
                camera = opened.read_camera(i + 1)
                camera.params = [ratio * max(camera.width, camera.height), *camera.params[1:]]
                opened.update_camera(camera)
        for model in _run(job, database, folder, report, "incremental", True, fixed=True):
            placed = _keep_placed(job, model)
            error = model.compute_mean_reprojection_error()
            found.append((len(placed) > 2, -error, replace(best, model=model, placed=placed)))
    database.unlink()
    # Not the most views: a wrong focal length can let in a view that does not belong.
    _, _, mapped = max(found, key=lambda one: one[:2], default=(False, 0.0, best))
    return mapped if mapped.placed else best


def _much_worse(model: pycolmap.Reconstruction, than: pycolmap.Reconstruction | None) -> bool:
    """Tell whether a model pays for its views with errors: then some are in wrong places."""
    if than is None:
        return False
    errors = [m.compute_mean_reprojection_error() for m in (model, than)]
    return errors[0] > _MOST_ERROR_GROWTH * errors[1]


def _incremental_options(
    job: Job, relaxed: bool, fixed: bool
) -> pycolmap.IncrementalPipelineOptions:
    views = len(job.names)
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads = job.settings.num_threads
    options.random_seed = job.settings.seed
    options.extract_colors = False
    options.min_model_size = 2 if views <= FEW_VIEWS else 3
    # Global adjustment after each fifth more of views or points instead of each tenth: a quarter
    # less time and, after the last one, the same cameras.
    options.ba_global_frames_ratio = 1.2
    options.ba_global_points_ratio = 1.2
    known = {i + 1 for i, camera in enumerate(job.cameras) if camera.model is not None}
    options.constant_cameras = known
    options.min_focal_length_ratio = _shortest_focal(job)
    if fixed:
        options.ba_refine_focal_length = False
        options.mapper.abs_pose_refine_focal_length = False
    if views == 2 or fixed:
        # Two views do not show how a lens bends; its focal length they do, roughly.
        options.ba_refine_extra_params = False
        options.mapper.abs_pose_refine_extra_params = False
    if relaxed or views <= FEW_VIEWS:
        # Walking forward or taking few pictures gives pairs with little parallax.
        options.mapper.init_min_tri_angle = 4.0
        options.mapper.init_max_forward_motion = 1.0
        options.mapper.init_min_num_inliers = 50
        options.mapper.abs_pose_min_num_inliers = LEAST_POINTS
        options.mapper.abs_pose_min_inlier_ratio = 0.15
    if views <= 3:
        options.triangulation.ignore_two_view_tracks = False
    return options


def believable(job: Job, camera: pycolmap.Camera) -> bool:
    """Tell whether a lens that was found can be one: its focal length, and its distortion.

    Distortion must not fold the picture over itself: further from the middle stays further.
    """
    if job.cameras[camera.camera_id - 1].model is not None:
        return True
    if camera.has_bogus_params(_shortest_focal(job), 10.0, 1.0):
        return False
    radial = [float(camera.params[i]) for i in camera.extra_params_idxs()]
    corner = np.hypot(camera.width, camera.height) / 2 / camera.focal_length
    r2 = np.linspace(0.0, corner, 50) ** 2
    growth = 1 + sum((2 * i + 3) * k * r2 ** (i + 1) for i, k in enumerate(radial))
    return bool(np.min(growth) > 0.2)


def _shortest_focal(job: Job) -> float:
    """Return the least believable focal length over the long side of a picture."""
    ratios = [c.focal / max(c.width, c.height) for c in job.cameras if c.focal is not None]
    ratios += [c.params[0] / max(c.width, c.height) for c in job.cameras if c.params]
    return min([_SHORTEST_FOCAL, *(0.7 * ratio for ratio in ratios)])


def _run_global(job: Job, database: Path, folder: Path) -> list[pycolmap.Reconstruction]:
    """Run the global mapper on a copy, because calibrating the view graph changes the matches."""
    copy = folder / "calibrated.db"
    shutil.copyfile(database, copy)
    if any(camera.model is None for camera in job.cameras):
        calibration = pycolmap.ViewGraphCalibrationOptions()
        calibration.random_seed = job.settings.seed
        pycolmap.calibrate_view_graph(copy, calibration)
    options = pycolmap.GlobalPipelineOptions()
    options.num_threads = job.settings.num_threads
    options.random_seed = job.settings.seed
    if all(camera.model is not None for camera in job.cameras):
        options.mapper.bundle_adjustment.refine_focal_length = False
        options.mapper.bundle_adjustment.refine_extra_params = False
    found = pycolmap.global_mapping(copy, folder, folder, options)
    return list(found.values())


def _keep_placed(job: Job, model: pycolmap.Reconstruction) -> frozenset[int]:
    """Take out views that see too few points, until all others see enough; return those.

    A model whose lens is not believable keeps none.
    """
    used = {model.image(i).camera_id for i in model.reg_image_ids()}
    if not all(believable(job, model.camera(i)) for i in used):
        return frozenset()
    while True:
        seen = {i: model.image(i).num_points3D for i in model.reg_image_ids()}
        weak = [i for i, points in seen.items() if points < LEAST_POINTS]
        if not weak:
            break
        for i in weak:
            model.deregister_frame(model.image(i).frame_id)
    placed = frozenset(i - 1 for i in seen)
    return placed if len(placed) >= 2 else frozenset()
