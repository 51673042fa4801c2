"""Points for cameras that are known: the worker's last stage. Needs no torch."""

import shutil
from pathlib import Path

import numpy as np
import pycolmap
from jaxtyping import Float32, Float64, Int32, UInt8

from sightline.reconstruction.features import image_id, picture_name, sift_camera
from sightline.reconstruction.job import Job

_MOST_ERROR = 4.0
_MOST_ERROR_OF_TWO = 2.0
"""Reprojection errors in pixels of SIFT's picture; two views agree by chance more easily."""
_LEAST_ANGLE = 1.5
"""Degrees between the rays that make a point."""


def posed_model(job: Job) -> pycolmap.Reconstruction:
    """Return a model of all views with the job's poses and without points."""
    assert job.w2c is not None
    model = pycolmap.Reconstruction()
    for index in range(len(job.cameras)):
        model.add_camera_with_trivial_rig(sift_camera(job, index))
    for view, numbers in enumerate(job.w2c):
        image = pycolmap.Image(
            name=picture_name(view),
            camera_id=job.camera_of_view[view] + 1,
            image_id=image_id(view),
        )
        pose = pycolmap.Rigid3d(np.array(numbers).reshape(3, 4))
        model.add_image_with_trivial_frame(image, pose)
    return model


def triangulate(
    job: Job,
    model: pycolmap.Reconstruction,
    database: Path,
    folder: Path,
    *,
    keep: bool,
    most_error: float = _MOST_ERROR,
) -> pycolmap.Reconstruction:
    """Add points from all verified matches while cameras stay fixed, also those of two views only.

    Args:
        job: Settings.
        model: Cameras and poses.
        database: Features and verified matches.
        folder: For COLMAP's own output; emptied.
        keep: Keep the points that the model has.
        most_error: Pixels by which a point of a rough model may miss its features.

    Returns:
        The model with points whose rays meet well.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads = job.settings.num_threads
    options.random_seed = job.settings.seed
    options.extract_colors = False
    options.triangulation.ignore_two_view_tracks = False
    options.triangulation.random_seed = job.settings.seed
    if most_error > _MOST_ERROR:
        rough = most_error / _MOST_ERROR
        options.triangulation.merge_max_reproj_error *= rough
        options.triangulation.complete_max_reproj_error *= rough
        options.triangulation.create_max_angle_error *= rough
        options.triangulation.continue_max_angle_error *= rough
        options.mapper.filter_max_reproj_error *= rough
    # In a copy, because COLMAP wants the same lens models there, and refinement changed them.
    copy = folder / "triangulation.db"
    shutil.copyfile(database, copy)
    with pycolmap.Database.open(copy) as opened:
        for camera in model.cameras.values():
            opened.update_camera(camera)
    model = pycolmap.triangulate_points(
        model, copy, folder, folder, clear_points=not keep, options=options
    )
    _drop_doubtful(model, most_error)
    return model


def _drop_doubtful(model: pycolmap.Reconstruction, most_error: float) -> None:
    manager = pycolmap.ObservationManager(model)
    manager.filter_all_points3D(most_error, _LEAST_ANGLE)
    model.update_point_3d_errors()
    of_two = most_error * _MOST_ERROR_OF_TWO / _MOST_ERROR
    for i, point in list(model.points3D.items()):
        if point.track.length() < 3 and point.error > of_two:
            model.delete_point3D(i)


def point_arrays(job: Job, model: pycolmap.Reconstruction, colors: Path) -> dict[str, np.ndarray]:
    """Return points, colours, errors and tracks.

    Args:
        job: Sizes of the pictures.
        model: Cameras and points.
        colors: Folder of the colours at each feature, ``NNNNNN.npy`` a view.

    Returns:
        ``points`` [N, 3], ``colors`` [N, 3] (mean over the views that see a point), ``errors``
        [N] in source pixels and ``tracks`` [T, 2], rows of point and view.
    """
    ids = sorted(model.points3D)
    row_of = {i: row for row, i in enumerate(ids)}
    points: Float64[np.ndarray, "N 3"] = np.array(
        [model.point3D(i).xyz for i in ids], np.float64
    ).reshape(-1, 3)
    sums = np.zeros((len(ids), 3))
    scales = np.zeros(len(ids))
    counts = np.zeros(len(ids))
    tracks = []
    for image in sorted(model.reg_image_ids()):
        view = image - 1
        palette = np.load(colors / f"{view:06d}.npy", allow_pickle=False)
        found = model.image(image)
        features = np.array(found.get_observation_point2D_idxs(), int)
        rows = np.array([row_of[found.point2D(i).point3D_id] for i in features.tolist()], int)
        np.add.at(sums, rows, palette[features])
        np.add.at(scales, rows, job.camera(view).width / job.sift_size(view)[0])
        np.add.at(counts, rows, 1)
        unique = np.unique(rows)
        tracks.append(np.stack([unique, np.full_like(unique, view)], 1))
    counts = np.maximum(counts, 1)
    errors = np.array([model.point3D(i).error for i in ids]) * scales / counts
    joined = np.concatenate(tracks) if tracks else np.zeros((0, 2), int)
    order = np.lexsort((joined[:, 1], joined[:, 0]))
    colours: UInt8[np.ndarray, "N 3"] = (sums / counts[:, None] + 0.5).astype(np.uint8)
    track_rows: Int32[np.ndarray, "T 2"] = joined[order].astype(np.int32)
    error_values: Float32[np.ndarray, " N"] = errors.astype(np.float32)
    return {"points": points, "colors": colours, "errors": error_values, "tracks": track_rows}
