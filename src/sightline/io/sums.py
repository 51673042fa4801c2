"""Sums of files: whether what a stage left is still what it left."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from sightline.errors import InputError


def sha256(path: Path) -> str:
    """Return the digest of a file's bytes.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"cannot read {path}: {reason}; check its permissions") from error


def sums_of(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the digest of every file.

    Args:
        root: Folder that names are relative to.
        names: Files, and folders for all that is in them; what is not there is left out.

    Raises:
        InputError: If a file cannot be read.
    """
    files: list[Path] = []
    for name in names:
        path = root / name
        files += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return {f.relative_to(root).as_posix(): sha256(f) for f in files if f.is_file()}


def first_changed(root: Path, sums: Mapping[str, object]) -> str | None:
    """Return the first file that is there with other bytes than it had, if any.

    Args:
        root: Folder that names are relative to.
        sums: From `sums_of`. A name that leads out of ``root`` counts as changed.

    Raises:
        InputError: If a file cannot be read.
    """
    inside = root.resolve()
    for name, expected in sums.items():
        path = root / name
        if not path.resolve().is_relative_to(inside):
            return name
        if path.is_file() and sha256(path) != expected:
            return name
    return None
