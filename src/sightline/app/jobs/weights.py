"""Weights that lie on the server, which requests name and never reach by a path."""

import os
import shutil
from pathlib import Path
from typing import Any

from sightline.errors import InputError, UnknownNameError
from sightline.io.atomic import atomic_path

FOLDERS = ("dinov3_uploaded", "vggt", "other")
"""Where users may put weights."""
SUFFIXES = (".pt", ".pth", ".safetensors", ".ckpt")
_MOST = 2000


class Weights:
    """The files of weights below a folder (``models/dinov3_uploaded``, ``models/vggt``, ...)."""

    def __init__(self, folder: Path) -> None:
        """Take the folder; it need not exist yet."""
        self.folder = folder.absolute()

    def names(self) -> dict[str, Path]:
        """Return every file by its name below the folder."""
        found: dict[str, Path] = {}
        for place, folders, files in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                path = Path(place) / name
                if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                    found[path.relative_to(self.folder).as_posix()] = path
            if len(found) >= _MOST:
                break
        return found

    def find(self, name: str) -> Path:
        """Return the file of that name.

        Raises:
            UnknownNameError: If there is none.
        """
        known = self.names()
        if name not in known:
            raise UnknownNameError("file of weights", name[:80], known, "the Models tab")
        return known[name]

    def keep(self, folder: str, name: str, source: Path) -> str:
        """Copy a file of weights into one of `FOLDERS` and return its name below the folder.

        Raises:
            UnknownNameError: If the folder is none of them.
            InputError: If the name is not one of weights, or taken.
        """
        if folder not in FOLDERS:
            raise UnknownNameError("folder of weights", folder[:80], FOLDERS)
        if Path(name).name != name or Path(name).suffix.lower() not in SUFFIXES:
            raise InputError(f"weights are {', '.join(SUFFIXES)} files, got {name[:80]!r}")
        target = self.folder / folder / name
        if target.exists():
            raise InputError(f"there is a {folder}/{name} already; rename the file")
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
        return f"{folder}/{name}"

    def rows(self) -> list[dict[str, Any]]:
        """Return names and sizes."""
        return [{"name": n, "size": path.stat().st_size} for n, path in self.names().items()]
