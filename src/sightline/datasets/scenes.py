"""Any scene on disk, and folders of many of them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from sightline.datasets.base import Scenes
from sightline.datasets.colmap import read_colmap_scene
from sightline.datasets.folder import read_folder_scene
from sightline.datasets.transforms import read_transforms_scene
from sightline.errors import InputError
from sightline.io.inputs import discover, natural_key
from sightline.types import Scene

READERS: dict[str, Callable[..., Scene]] = {
    "photos": read_folder_scene,
    "transforms": read_transforms_scene,
    "colmap": read_colmap_scene,
}
"""Readers by the kind that `inputs.discover` finds."""


def read_scene(path: Path, *, long_side: int | None = None, test_every: int = 0) -> Scene:
    """Read a folder of photos, a COLMAP workspace or a ``transforms.json``, told by content.

    Raises:
        InputError: If it is none of these.
    """
    kind = discover([path])[0].kind
    if kind not in READERS:
        raise InputError(
            f"{path} is of kind {kind}, which is no scene on disk yet; reconstruct it first"
        )
    return READERS[kind](path, long_side=long_side, test_every=test_every)


def open_scenes(root: Path, *, long_side: int | None = None, test_every: int = 0) -> Scenes:
    """Open a folder whose sub-folders are one scene each, in natural order.

    Nothing but the list of folders is read here.

    Raises:
        InputError: If there is no sub-folder.
    """
    if not root.is_dir():
        raise InputError(f"{root} is no folder; give a folder that holds one folder a scene")
    folders = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
    if not folders:
        raise InputError(f"{root} holds no folders; expected one folder a scene")
    read = partial(read_scene, long_side=long_side, test_every=test_every)
    return Scenes(tuple(sorted(folders, key=lambda p: natural_key(p.name))), read)
