"""A folder of photos as a scene without ground truth."""

from pathlib import Path

from sightline.datasets.base import held_out
from sightline.errors import InputError
from sightline.io.inputs import discover, unique_names
from sightline.io.masks import find_masks
from sightline.io.views import load_views
from sightline.protocols import Progress
from sightline.types import Scene


def read_folder_scene(
    path: Path,
    *,
    long_side: int | None = None,
    test_every: int = 0,
    progress: Progress | None = None,
) -> Scene:
    """Read the photos of a folder, in natural order, with masks where a folder ``masks`` has them.

    Args:
        path: Searched recursively; hidden files are skipped.
        long_side: Longest side of the views in pixels; None keeps full size.
        test_every: Hold out every K-th view.
        progress: As for `load_views`.

    Raises:
        InputError: If the folder has no pictures.
        FileFormatError: If a picture is damaged.
    """
    if not path.is_dir():
        raise InputError(f"{path} is no folder; give a folder of photos")
    (source,) = discover([path], kind="photos")
    masks, _ = find_masks(source.files, root=path)
    return Scene(
        id=path.name,
        views=load_views(
            source.files,
            unique_names(source.files, [file.suffix for file in source.files]),
            long_side=long_side,
            mask_files=masks if any(masks) else None,
            progress=progress,
        ),
        test=held_out(len(source.files), test_every),
    )
