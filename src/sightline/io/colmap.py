"""COLMAP models: ``cameras``, ``images`` and ``points3D``, binary or text.

``rigs`` and ``frames`` (COLMAP 3.12 and later) are skipped on reading, since ``images`` repeats
the poses, and not written: COLMAP builds trivial ones where they are missing.
"""

from pathlib import Path

import numpy as np

from sightline.errors import InputError
from sightline.io import colmap_binary, colmap_text
from sightline.io.atomic import atomic_write_bytes
from sightline.io.colmap_model import (
    CAMERA_MODELS,
    ColmapCamera,
    ColmapImage,
    ColmapModel,
    ColmapPoints,
    camera_from_lens,
    lens_from_camera,
    model_views,
)
from sightline.io.reading import bad_file, inside, read_whole

__all__ = [
    "CAMERA_MODELS",
    "ColmapCamera",
    "ColmapImage",
    "ColmapModel",
    "ColmapPoints",
    "camera_from_lens",
    "find_colmap",
    "lens_from_camera",
    "model_views",
    "read_colmap",
    "write_colmap",
]

_PARTS = ("cameras", "images", "points3D")
_MAX_SIDE = 1_000_000


def find_colmap(folder: Path) -> Path | None:
    """Return where a model lies: the folder itself, its ``sparse/0``, ``sparse`` or ``0``."""
    for place in (folder, folder / "sparse" / "0", folder / "sparse", folder / "0"):
        if any(all((place / f"{p}{s}").is_file() for p in _PARTS) for s in (".bin", ".txt")):
            return place
    return None


def read_colmap(folder: Path) -> ColmapModel:
    """Read a model; binary files are preferred where both kinds are there.

    Args:
        folder: Holds the three files, directly or in ``sparse/0``, ``sparse`` or ``0``.

    Raises:
        InputError: If there is no model.
        FileFormatError: If a file is damaged or contradicts another one.
    """
    place = find_colmap(Path(folder))
    if place is None:
        raise InputError(
            f"there is no COLMAP model in {folder}: expected cameras, images and points3D, all "
            ".bin or all .txt, there or in sparse/0; export it with: colmap model_converter"
        )
    binary = all((place / f"{part}.bin").is_file() for part in _PARTS)
    codec = colmap_binary if binary else colmap_text
    paths = [place / f"{part}{'.bin' if binary else '.txt'}" for part in _PARTS]
    cameras = codec.read_cameras(paths[0], read_whole(paths[0]))
    images = codec.read_images(paths[1], read_whole(paths[1]))
    points = codec.read_points(paths[2], read_whole(paths[2]))
    _check_cameras(paths[0], cameras)
    _check_images(paths[1], images, {camera.id for camera in cameras})
    model = ColmapModel(
        cameras={camera.id: camera for camera in cameras},
        images={image.id: image for image in images},
        points=points,
    )
    _check_points(paths[2], model)
    return model


def write_colmap(folder: Path, model: ColmapModel, *, text: bool = False) -> list[Path]:
    """Write the three files of a model and return their paths.

    Raises:
        OutputError: If a file cannot be written.
    """
    codec, suffix = (colmap_text, ".txt") if text else (colmap_binary, ".bin")
    paths = [Path(folder) / f"{part}{suffix}" for part in _PARTS]
    atomic_write_bytes(paths[0], codec.pack_cameras(list(model.cameras.values())))
    atomic_write_bytes(paths[1], codec.pack_images(list(model.images.values())))
    atomic_write_bytes(paths[2], codec.pack_points(model.points))
    return paths


def _check_cameras(path: Path, cameras: list[ColmapCamera]) -> None:
    if len({camera.id for camera in cameras}) < len(cameras):
        raise bad_file(path, "one camera an id", "an id twice")
    for camera in cameras:
        if not (0 < camera.width <= _MAX_SIDE and 0 < camera.height <= _MAX_SIDE):
            got = f"{camera.width} x {camera.height} for camera {camera.id}"
            raise bad_file(path, "a picture size in pixels", got)
        if not np.isfinite(camera.params).all():
            raise bad_file(path, "finite parameters", f"NaN or infinity for camera {camera.id}")


def _check_images(path: Path, images: list[ColmapImage], cameras: set[int]) -> None:
    for what, values in (("id", [i.id for i in images]), ("name", [i.name for i in images])):
        if len(set(values)) < len(values):
            raise bad_file(path, f"one image {'an' if what == 'id' else 'a'} {what}", "one twice")
    for image in images:
        inside(path, image.name)
        if image.camera_id not in cameras:
            got = f"{image.camera_id} for {image.name}"
            raise bad_file(path, "a camera id of the cameras file", got)
        small = bool((np.abs(image.quat) <= 1.1).all())  # so that squares cannot overflow
        unit = small and 0.9 < float(np.linalg.norm(image.quat)) < 1.1
        if not (unit and np.isfinite(image.translation).all()):
            got = f"another pose for {image.name}"
            raise bad_file(path, "a unit quaternion and a finite position", got)
        if not np.isfinite(image.pixels).all():
            raise bad_file(path, "finite image points", f"NaN or infinity in {image.name}")


def _check_points(path: Path, model: ColmapModel) -> None:
    points = model.points
    if (np.diff(np.sort(points.ids)) == 0).any():
        raise bad_file(path, "one point an id", "an id twice")
    finite = np.isfinite(points.points).all(1)
    if not finite.all():
        got = f"NaN or infinity for point {points.ids[int(finite.argmin())]}"
        raise bad_file(path, "finite positions", got)
    ids = np.array(sorted(model.images), np.int64)
    counts = np.array([len(model.images[i].pixels) for i in ids.tolist()], np.int64)
    _, owner, index = points.tracks.T
    row = np.searchsorted(ids, owner)
    known = np.append(ids, -1)[row] == owner
    good = known & (index < np.append(counts, 0)[row])
    if not good.all():
        bad = int(good.argmin())
        got = f"image {owner[bad]}, image point {index[bad]}"
        raise bad_file(path, "tracks of points in the images file", got)
    existing = np.append(points.ids, -1)
    for image in model.images.values():
        known = np.isin(image.point_ids, existing)
        if not known.all():
            got = f"point {image.point_ids[~known][0]} in {image.name}"
            raise bad_file(path, "every point that the images file names", got)
