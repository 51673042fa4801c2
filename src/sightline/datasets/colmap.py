"""Scenes as COLMAP workspaces: ``images/`` and ``sparse/0``."""

from pathlib import Path

from sightline.datasets.base import scene_from_given
from sightline.io.given import read_given
from sightline.protocols import Progress
from sightline.types import Scene


def read_colmap_scene(
    path: Path,
    *,
    long_side: int | None = None,
    test_every: int = 0,
    progress: Progress | None = None,
) -> Scene:
    """Read the registered pictures of a workspace with cameras and points; see `scene_from_given`.

    Args:
        path: Holds the pictures and a model.
        long_side: Longest side of the views in pixels; None keeps full size.
        test_every: Hold out every K-th view, in natural order of the names.
        progress: As for `load_views`.

    Raises:
        InputError: If there is no model, or a picture is missing.
        FileFormatError: If the model is damaged.
    """
    return scene_from_given(
        read_given("colmap", path),
        path.name,
        long_side=long_side,
        test_every=test_every,
        progress=progress,
    )
