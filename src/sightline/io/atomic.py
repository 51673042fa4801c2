"""Write files and folders so that a reader sees either the old content or the whole new one.

Everything goes to a hidden temporary name in the same folder, is flushed to the disk and then
renamed. A crash leaves at worst a file named ``.NAME.XXXXXXXX.tmp.SUFFIX``, never half a result.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sightline.errors import OutputError

_REMEDIES = {
    errno.ENOSPC: "free some space or choose another disk with -o",
    errno.EDQUOT: "free some of your quota or choose another disk with -o",
    errno.EACCES: "choose a folder that you may write to with -o",
    errno.EPERM: "choose a folder that you may write to with -o",
    errno.EROFS: "choose a folder that you may write to with -o",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "choose a path whose parents are folders",
    errno.EEXIST: "choose a path whose parents are folders",
    errno.EISDIR: "that name is a folder; choose another or remove it",
}


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the same suffix; on success it becomes ``path``.

    The parent folders are made when missing. When the body raises, the temporary file is removed
    and ``path`` stays as it was.

    Raises:
        OutputError: If the file cannot be written; the text says why and what to do. An
            ``OSError`` about some other file (an input that the body reads) passes unchanged.
    """
    path = Path(path)
    tmp = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield tmp
        _flush(tmp)
        tmp.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise _explain(error, path, tmp) from error
    finally:
        with suppress(OSError):  # never let the clean-up hide the reason
            tmp.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder; on success it becomes ``path``, replacing what was there.

    Raises:
        OutputError: As for `atomic_path`, and if ``path`` exists and is not a folder.
    """
    path = Path(path)
    tmp = _temporary(path)
    old = _temporary(path)
    try:
        if path.exists() and not path.is_dir():
            raise OutputError(
                f"cannot write the folder {path}: a file has that name; remove it or choose "
                "another name"
            )
        tmp.mkdir(parents=True)
        yield tmp
        for file in tmp.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.exists():
            path.replace(old)
        try:
            tmp.replace(path)
        except OSError:
            if old.exists():  # put the former content back before reporting
                old.replace(path)
            raise
        _flush(path.parent)
    except OSError as error:
        raise _explain(error, path, tmp) from error
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def atomic_write_bytes(path: Path, data: bytes | bytearray | memoryview) -> None:
    """Write a whole file at once; see `atomic_path`."""
    with atomic_path(path) as tmp, tmp.open("wb") as file:
        file.write(data)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file at once, line ends as given; see `atomic_path`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     atomic_write_text(Path(folder) / "deep" / "note.txt", "all or nothing")
    ...     [file.name for file in Path(folder, "deep").iterdir()]
    ['note.txt']
    """
    atomic_write_bytes(path, text.encode())


def _temporary(path: Path) -> Path:
    # The suffix stays last because picture and video writers choose the format by it; the leading
    # dot keeps the name out of folder inputs.
    return path.with_name(f".{path.stem[:100]}.{secrets.token_hex(4)}.tmp{path.suffix}")


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems have no fsync; the rename is still all or nothing.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _explain(error: OSError, path: Path, tmp: Path) -> OSError | OutputError:
    name = error.filename
    if name is not None:
        culprit = Path(os.fsdecode(name) if isinstance(name, (str, bytes)) else str(name))
        ours = culprit in (tmp, path) or tmp in culprit.parents or culprit in path.parents
        if not ours:
            return error
    if isinstance(error, FileNotFoundError) and not tmp.exists():
        return OutputError(f"cannot write {path}: the writer made no file; report this as a bug")
    reason = (error.strerror or str(error)).lower()
    remedy = _REMEDIES.get(error.errno or 0, "check the folder and the disk")
    return OutputError(f"cannot write {path}: {reason}; {remedy}")
