"""Read files that strangers made: whole, regular, of bounded size, with one-sentence errors."""

import gzip
import json
import stat
import zlib
from pathlib import Path
from typing import Any

from sightline.errors import FileFormatError, InputError

MAX_FILE_BYTES = 64 << 30
"""No scene file of ours comes near; stops a slip such as pointing at a disk image."""
MAX_JSON_BYTES = 512 << 20
"""Of a JSON file."""
MAX_ANNOTATION_BYTES = 4 << 30
"""Of the annotations of a large data set."""
FREE_BYTES = 256 << 20
"""Any compressed file may unpack to this much."""
MAX_GROWTH = 200
"""Beyond `FREE_BYTES`, a compressed file may unpack to this many times its size."""
_LONGEST_NAME = 255
"""Bytes that file systems allow; looking for a longer name is an error of its own."""


def bad_file(path: Path, expected: str, got: str, remedy: str = "") -> FileFormatError:
    """Build the sentence ``NAME: expected ..., got ...; REMEDY``."""
    remedy = remedy or "the file is damaged or of another kind: export or download it again"
    return FileFormatError(f"{path.name}: expected {expected}, got {got}; {remedy}")


def check_file(path: Path) -> int:
    """Return the size in bytes of a readable regular file.

    Raises:
        InputError: If it is missing, a folder, a device or a pipe (which may never end).
        FileFormatError: If it is larger than `MAX_FILE_BYTES`.
    """
    path = Path(path)
    try:
        kind = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"there is no file {path}; check the path") from error
    except (OSError, ValueError) as error:  # too long, a zero byte, a folder that is closed to us
        reason = " ".join(str(getattr(error, "strerror", None) or error).lower().split())
        raise InputError(f"cannot read {str(path)[:200]!r}: {reason}; check the path") from error
    if stat.S_ISDIR(kind.st_mode):
        raise InputError(f"{path} is a folder, not a file; give a file")
    if not stat.S_ISREG(kind.st_mode):
        raise InputError(f"{path} is a device or a pipe, not a file; copy it to a file first")
    size = kind.st_size
    if size > MAX_FILE_BYTES:
        raise bad_file(path, f"at most {MAX_FILE_BYTES} bytes", f"{size}")
    return size


def read_whole(path: Path) -> bytes:
    """Return the content of a regular file; errors as `check_file`, plus unreadable files."""
    check_file(path)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"cannot read {path}: {reason}; check its permissions") from error


def read_json(path: Path, most: int = MAX_JSON_BYTES) -> Any:  # noqa: ANN401
    """Read a JSON file from a stranger, packed by gzip where its name ends in ``gz``.

    Args:
        path: The file.
        most: Bytes that it may have, unpacked.

    Raises:
        InputError: If there is no such file.
        FileFormatError: If it is no JSON, or unreasonably large or deep.
    """
    size = check_file(path)
    if size > most:
        raise bad_file(path, f"JSON of at most {most >> 20} MiB", f"{size >> 20} MiB")
    content = _unpack(path, size, most) if path.name.endswith("gz") else read_whole(path)
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        why = str(error).partition("\n")[0]
        raise bad_file(path, "JSON", f"something else ({why})") from error


def _unpack(path: Path, packed: int, most: int) -> bytes:
    limit = min(most, max(FREE_BYTES, MAX_GROWTH * packed))
    try:
        with gzip.open(path) as file:
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise bad_file(path, "a gzip file", str(error)) from error
    if len(content) > limit:
        raise bad_file(path, f"at most {limit} unpacked bytes", "more")
    return content


def check_growth(path: Path, packed: int, unpacked: int, most: int = MAX_FILE_BYTES) -> None:
    """Refuse compressed data that declares an unreasonable unpacked size.

    Any file may unpack to `FREE_BYTES`, beyond that to `MAX_GROWTH` times its own size, and never
    to more than ``most``: ten thousand zeros compress a thousandfold, whole scenes do not.

    Raises:
        FileFormatError: If ``unpacked`` is above that.
    """
    limit = min(most, max(FREE_BYTES, MAX_GROWTH * packed))
    if unpacked > limit:
        raise bad_file(path, f"at most {limit} unpacked bytes", f"{unpacked}")


def inside(path: Path, text: str) -> str:
    """Return a relative path from a stranger's file, cleaned, or refuse it if it leads outside.

    Args:
        path: The file that holds the text.
        text: A path relative to that file's folder; a backslash counts as a slash; ``a/../b`` is fine
            as long as it stays inside.

    Raises:
        FileFormatError: If the text is absolute, has a drive, control characters or a name longer
            than files can have, or climbs out.

    >>> inside(Path("scene/transforms.json"), "images/../images/a.png")
    'images/a.png'
    >>> inside(Path("scene/transforms.json"), "../secret.png")
    Traceback (most recent call last):
    sightline.errors.FileFormatError: transforms.json: expected paths relative to ...
    """
    parts: list[str] = []
    slashed = text.replace("\\", "/")
    for part in slashed.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part == ".." or ":" in part or len(part.encode(errors="replace")) > _LONGEST_NAME:
            parts = []
            break
        elif part not in ("", "."):
            parts.append(part)
    if not parts or slashed.startswith("/") or len(text) > 4096 or not text.isprintable():
        raise bad_file(
            path,
            "paths relative to the file's own folder",
            f"{text[:80]!r}",
            "move the files below that folder and correct the path",
        )
    return "/".join(parts)
