"""The viewer page of a run, as the app shows it: larger photos, more points, all that is known."""

import sys
from dataclasses import replace
from pathlib import Path

from sightline.errors import SightlineError
from sightline.geometry.cloud import dense_cloud, map_cloud
from sightline.geometry.sh import sh0_to_rgb
from sightline.io.scene_arrays import GeometryFile
from sightline.io.scene_result import SceneResult
from sightline.report.scene_html import SceneExtras, write_result_page
from sightline.results import open_run, scene_from_file

_MOST_POINTS = 600_000
_PHOTO_SIDE = 640
_PHOTOS_BUDGET = 8_000_000
_MOST_OTHER = 300_000


def write_viewer_page(path: Path, page: Path) -> Path:
    """Write the page that shows a run, or a single splat or point file, and return its path.

    Args:
        path: A run folder, or a ``.ply``, ``.splat``, ``.spz`` or ``.glb`` file.
        page: The ``.html`` file to write; kept when it is newer than the run.

    Raises:
        InputError: If there is nothing to show (yet).
        FileFormatError: If a file is damaged.
        OutputError: If the page cannot be written.
    """
    if not path.is_dir():
        return write_result_page(scene_from_file(path), page, max_points=_MOST_POINTS)
    run = open_run(path)
    sources = [path / name for name in ("cameras.npz", "geometry.npz", "splats.ply")]
    latest = max((file.stat().st_mtime_ns for file in sources if file.is_file()), default=0)
    if page.is_file() and page.stat().st_mtime_ns > latest > 0:
        return page
    scene, features = run.scene(), run.features()
    geometry = GeometryFile(path / "geometry.npz", run.camera_file())
    extras = SceneExtras(photo_side=_PHOTO_SIDE, photos_budget=_PHOTOS_BUDGET)
    if features is not None:
        splats = features.paint_splats(scene.gaussians)
        points = features.paint_points(scene.points)
        extras = replace(
            extras,
            splat_paint=None if splats is None else sh0_to_rgb(splats.sh[:, 0]),
            point_paint=None if points is None else points.colors,
        )
    elif geometry.sky is not None:
        scene = _with_sky_points(scene, geometry)
    if geometry.points is not None and geometry.depth is not None:
        other = map_cloud(
            geometry.images,
            geometry.points,
            valid=geometry.surface,
            confidence=geometry.confidence,
            most=_MOST_OTHER,
        )
        extras = replace(extras, other_points=other)
    return write_result_page(scene, page, max_points=_MOST_POINTS, sky=geometry.sky, extras=extras)


def _with_sky_points(scene: SceneResult, geometry: GeometryFile) -> SceneResult:
    """Put the points of the sky back, which the page's filter then hides or shows."""
    if geometry.depth is None:
        return scene
    cloud = dense_cloud(
        geometry.images,
        geometry.depth,
        scene.cameras,
        valid=geometry.geometry_valid,
        confidence=geometry.confidence,
    )
    return replace(scene, points=cloud)


def main() -> None:
    """Write a page as the server's child: ``python -m sightline.app.scene_page SOURCE PAGE``."""
    try:
        write_viewer_page(Path(sys.argv[1]), Path(sys.argv[2]))
    except SightlineError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
