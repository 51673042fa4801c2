"""Scenes in nerfstudio's and instant-ngp's form: pictures and a ``transforms.json``."""

from pathlib import Path

from sightline.datasets.base import scene_from_given
from sightline.io.given import read_given
from sightline.protocols import Progress
from sightline.types import Scene


def read_transforms_scene(
    path: Path,
    *,
    long_side: int | None = None,
    test_every: int = 0,
    progress: Progress | None = None,
) -> Scene:
    """Read a scene with its cameras and, for RGB-D data, its depth; see `scene_from_given`.

    Args:
        path: The folder, or the JSON file.
        long_side: Longest side of the views in pixels; None keeps full size.
        test_every: Hold out every K-th view, unless the file names test views.
        progress: As for `load_views`.

    Raises:
        InputError: If the file or a picture is missing.
        FileFormatError: If the file is damaged.
    """
    file = path / "transforms.json" if path.is_dir() else path
    return scene_from_given(
        read_given("transforms", file),
        file.parent.name,
        long_side=long_side,
        test_every=test_every,
        progress=progress,
    )
