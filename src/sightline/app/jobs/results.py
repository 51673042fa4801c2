"""What a job's owner may fetch: a list that the server makes, by which names are looked up."""

import mimetypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MOST = 20_000
_LEFT_OUT = ("stages", "store", "failed")
"""Folders of a verb's own books."""
_TYPES = {
    ".ply": "application/octet-stream",
    ".splat": "application/octet-stream",
    ".spz": "application/octet-stream",
    ".npz": "application/octet-stream",
    ".safetensors": "application/octet-stream",
    ".glb": "model/gltf-binary",
    ".mp4": "video/mp4",
    ".json": "application/json",
}
INLINE = ("image/png", "image/jpeg", "video/mp4", "application/json", "text/html")
"""Types that a browser may show; pages are shown without the rights of the app's address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One file of a job's output."""

    name: str
    """Relative to the job's ``output/``; also its address in the API."""
    path: Path
    size: int
    media_type: str

    def as_dict(self) -> dict[str, Any]:
        """Return what the API shows."""
        return {"name": self.name, "size": self.size, "media_type": self.media_type}


def list_results(output: Path) -> dict[str, Result]:
    """Return the finished files below a folder by name; links and hidden files are left out."""
    found: dict[str, Result] = {}
    for folder, folders, files in os.walk(output):
        here = Path(folder)
        top = here in (output, *(p for p in output.glob("*") if p.is_dir()))
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and not (here / name).is_symlink()
            and not (top and name in _LEFT_OUT)
        )
        for name in sorted(files):
            path = here / name
            if name.startswith(".") or path.is_symlink() or not path.is_file():
                continue
            relative = path.relative_to(output).as_posix()
            found[relative] = Result(
                name=relative,
                path=path,
                size=path.stat().st_size,
                media_type=media_type(name),
            )
            if len(found) >= _MOST:
                return found
    return found


def media_type(name: str) -> str:
    """Return the type of a file by its suffix."""
    suffix = Path(name).suffix.lower()
    guessed = _TYPES.get(suffix) or mimetypes.guess_type(name)[0]
    return guessed or "application/octet-stream"
