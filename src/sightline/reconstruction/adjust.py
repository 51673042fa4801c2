"""Poses that are nearly right, adjusted to matched features. Needs no torch; the worker's last stage.

Points are triangulated with room for the poses' errors, everything is adjusted robustly, and the
room is made smaller, until points meet their features as after structure from motion.
"""

from pathlib import Path

import pycolmap

from sightline.reconstruction.job import Job
from sightline.reconstruction.log import Report
from sightline.reconstruction.triangulate import triangulate

_ROOM = (24.0, 12.0, 6.0, 4.0)
"""Pixels of SIFT's picture by which points may miss their features, round by round."""
_LEAST_POINTS = 30
_VIEWS_FOR_FOCAL = 4
"""A focal length is adjusted when so many views share it."""


def adjust(
    job: Job, model: pycolmap.Reconstruction, database: Path, folder: Path, report: Report
) -> pycolmap.Reconstruction:
    """Return the model with adjusted poses, and points.

    Args:
        job: Poses and settings.
        model: All views, posed.
        database: Features and verified matches.
        folder: For COLMAP's own output; emptied.
        report: Told after every round.
    """
    for number, room in enumerate(_ROOM):
        report.progress("adjust", number, len(_ROOM))
        model = triangulate(job, model, database, folder, keep=False, most_error=room)
        if model.num_points3D() < _LEAST_POINTS:
            break
        _solve(job, model, room)
    report.progress("adjust", len(_ROOM), len(_ROOM))
    return triangulate(job, model, database, folder, keep=False)


def _solve(job: Job, model: pycolmap.Reconstruction, room: float) -> None:
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    options.refine_principal_point = False
    options.refine_extra_params = False
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    options.ceres.loss_function_scale = max(1.0, room / 8)
    solver = options.ceres.solver_options
    solver.num_threads = job.settings.num_threads
    solver.max_num_iterations = 50
    config = pycolmap.BundleAdjustmentConfig()
    views = dict.fromkeys(model.cameras, 0)
    for i in model.reg_image_ids():
        if model.image(i).num_points3D:
            config.add_image(i)
            views[model.image(i).camera_id] += 1
    for i, count in views.items():
        if count and (count < _VIEWS_FOR_FOCAL or not job.settings.free_lenses):
            config.set_constant_cam_intrinsics(i)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    pycolmap.create_default_bundle_adjuster(options, config, model).solve()
