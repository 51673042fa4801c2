"""Read files that strangers made: whole, regular, of bounded size, with one-sentence errors."""

from pathlib import Path

from sightline.errors import FileFormatError, InputError

MAX_FILE_BYTES = 64 << 30
"""No scene file of ours comes near; stops a slip such as pointing at a disk image."""
FREE_BYTES = 256 << 20
"""Any compressed file may unpack to this much."""
MAX_GROWTH = 200
"""Beyond `FREE_BYTES`, a compressed file may unpack to this many times its size."""


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
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file; give a file")
    if not path.exists():
        raise InputError(f"there is no file {path}; check the path")
    if not path.is_file():
        raise InputError(f"{path} is a device or a pipe, not a file; copy it to a file first")
    size = path.stat().st_size
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
        FileFormatError: If the text is absolute, has a drive or control characters, or climbs out.
    """
    parts: list[str] = []
    slashed = text.replace("\\", "/")
    for part in slashed.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part == ".." or ":" in part:
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
