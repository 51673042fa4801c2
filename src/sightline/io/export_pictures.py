"""Pictures that match exported pinhole cameras, as trainers of splats expect them."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2

from sightline.errors import OutputError
from sightline.io.atomic import atomic_path, atomic_write_bytes
from sightline.io.images import read_image
from sightline.io.reading import check_file
from sightline.io.scene_result import SceneResult, SourceViews
from sightline.io.undistort import undistort_image

_KEPT = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Suffixes that everybody reads; other pictures become PNG."""
_JPEG = (
    cv2.IMWRITE_JPEG_QUALITY,
    95,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
)
_WORKERS = 4  # each holds a full-size picture a few times


def picture_names(result: SceneResult, views: SourceViews) -> tuple[str, ...]:
    """Return the names that `write_pictures` gives; ``.png`` is added to rare formats."""
    known = result.files is not None
    return tuple(
        f"{name}.png" if known and not name.lower().endswith(_KEPT) else name
        for name in views.names
    )


def write_pictures(
    result: SceneResult, views: SourceViews, names: tuple[str, ...], folder: Path
) -> None:
    """Write one pinhole picture a view: a hard link where it is one already, else undistorted.

    Args:
        result: Tells the files and their lenses.
        views: The pinhole cameras to match.
        names: From `picture_names`.
        folder: Where to; other files in it stay.

    Raises:
        InputError: If a picture is missing.
        OutputError: If one cannot be written.
    """
    assert result.files is not None
    with ThreadPoolExecutor(min(_WORKERS, os.cpu_count() or 1)) as pool:
        jobs = [
            pool.submit(_write_picture, result, views, i, folder / name)
            for i, name in enumerate(names)
        ]
        for job in jobs:
            job.result()


def _write_picture(result: SceneResult, views: SourceViews, index: int, path: Path) -> None:
    assert result.files is not None
    view = views.indices[index]
    source, lenses = result.files[view], result.lenses
    plain = lenses is None or not (
        bool(lenses.fisheye[view]) or bool(lenses.distortion[view].any())
    )
    if plain and views.names[index].lower().endswith(_KEPT):
        _link(source, path)
        return
    pixels = read_image(source, alpha="ignore").pixels
    if lenses is not None and not plain:
        height, width = views.sizes[index].tolist()
        pixels, _ = undistort_image(
            pixels,
            lenses.K[view].double().cpu().numpy(),
            lenses.distortion[view].double().cpu().numpy(),
            bool(lenses.fisheye[view]),
            views.K[index].numpy(),
            size=(height, width),
        )
    made, data = cv2.imencode(path.suffix.lower(), pixels[..., ::-1], _JPEG)
    if not made:
        raise OutputError(f"cannot write {path}: the picture could not be encoded")
    atomic_write_bytes(path, data.tobytes())


def _link(source: Path, path: Path) -> None:
    """Share the file's content where the disk allows it, else copy."""
    check_file(source)
    with atomic_path(path) as tmp:
        try:
            os.link(source, tmp)
        except OSError:  # another disk, or one without links
            shutil.copyfile(source, tmp)
