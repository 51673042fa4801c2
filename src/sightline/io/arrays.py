"""Safe and repeatable ``.npz`` files: no pickle, checked sizes, the same bytes every time."""

import ast
import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from sightline.errors import FileFormatError
from sightline.io.atomic import atomic_path
from sightline.io.reading import bad_file, check_file, check_growth

MAX_BYTES = 32 << 30
"""The largest total of unpacked arrays that `read_npz` accepts by default."""

_MAX_HEADER = 10_000
_DESCR = re.compile(r"[<>|][biufcUS]\d{1,9}")
_DAMAGE = (  # what zipfile and zlib raise on damaged or hostile archives
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    OSError,
)


def write_npz(path: Path, arrays: Mapping[str, ArrayLike], *, compress: bool = True) -> None:
    """Write named arrays; the same arrays in the same order give the same bytes.

    Args:
        path: The ``.npz`` file; replaced in one step.
        arrays: Numbers, booleans or strings of any shape; CPU tensors without gradients will do.
        compress: Deflate at the fastest level (about 60 MB/s); False stores the bytes.

    Raises:
        TypeError: If an array holds Python objects or records.
        OutputError: If the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "a.npz"
    ...     write_npz(file, {"depth": np.ones((2, 3), np.float32), "names": ["a", "b"]})
    ...     read_npz(file, ["depth"])["depth"].shape
    (2, 3)
    """
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with atomic_path(path) as tmp, zipfile.ZipFile(tmp, "w") as archive:
        for name, value in arrays.items():
            array = np.asarray(value, order="C")
            if not _DESCR.fullmatch(array.dtype.str):
                raise TypeError(f"{name} must hold numbers, booleans or text, got {array.dtype}")
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = method
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            entry._compresslevel = 1  # type: ignore[attr-defined]  # open() has no argument for it
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def read_npz(
    path: Path, keys: Collection[str] | None = None, *, max_bytes: int = MAX_BYTES
) -> dict[str, np.ndarray]:
    """Read the arrays of an ``.npz`` file that may come from a stranger.

    Args:
        path: The file.
        keys: Read these only, all of which must be there; default all.
        max_bytes: Refuse archives whose chosen arrays unpack to more.

    Raises:
        InputError: If the file is missing or unreadable.
        FileFormatError: If it is damaged, truncated, asks for unreasonable memory, or holds
            pickled objects. Nothing is allocated for an array before its declared size is checked
            against the archive's.
    """
    path = Path(path)
    size = check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _entries(path, archive, size)
            missing = [key for key in keys or () if key not in entries]
            if missing:
                raise bad_file(
                    path,
                    f"the arrays {', '.join(sorted(keys or ()))}",
                    f"no {', '.join(missing)}",
                    "make the file again",
                )
            chosen = {k: e for k, e in entries.items() if keys is None or k in keys}
            total = sum(entry.file_size for entry in chosen.values())
            check_growth(path, size, total, max_bytes)
            return {key: _read_entry(path, archive, entry) for key, entry in chosen.items()}
    except FileFormatError:
        raise
    except _DAMAGE as error:
        raise bad_file(path, "an .npz archive of arrays", f"damage ({error})") from error


def _entries(path: Path, archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        key = entry.filename.removesuffix(".npy")
        if key in entries:
            raise bad_file(path, "one array a name", f"{key!r} twice")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise bad_file(path, "stored or deflated arrays", f"method {entry.compress_type}")
        entries[key] = entry
    packed = sum(entry.compress_size for entry in entries.values())
    if packed > size:  # overlapping entries: the trick of non-recursive zip bombs
        raise bad_file(path, f"at most {size} packed bytes", f"{packed} declared")
    return entries


def read_npy(path: Path, *, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """Read the array of a ``.npy`` file.

    Raises:
        InputError: If the file is missing.
        FileFormatError: If it is damaged, larger than ``max_bytes``, or holds pickled objects.
    """
    path = Path(path)
    size = check_file(path)
    if size > max_bytes:
        raise bad_file(path, f"at most {max_bytes} bytes", f"{size}")
    try:
        with path.open("rb") as file:
            return _read_array(path, path.name, file, size)
    except FileFormatError:
        raise
    except _DAMAGE as error:
        raise bad_file(path, "an .npy array", f"damage ({error})") from error


def _read_entry(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as file:
        assert isinstance(file, io.BufferedIOBase)
        return _read_array(path, entry.filename, file, entry.file_size)


def _read_array(path: Path, name: str, file: io.BufferedIOBase, size: int) -> np.ndarray:
    dtype, shape, fortran, header = _read_header(path, name, file)
    want = header + math.prod(shape) * dtype.itemsize
    if want != size:
        raise bad_file(path, f"{want} bytes in {name}", f"{size}")
    array = np.empty(shape[::-1] if fortran else shape, dtype)
    view = array.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        count = file.readinto(view[done : done + (16 << 20)])
        if not count:
            raise bad_file(path, f"{want} bytes in {name}", f"{header + done}")
        done += count
    if file.read(1):
        raise bad_file(path, f"{want} bytes in {name}", "more")
    return array.T if fortran else array


def _read_header(
    path: Path, name: str, file: io.BufferedIOBase
) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """Return dtype, shape, Fortran order and the header's length; strict, without eval."""
    start = file.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:7] not in (b"\1", b"\2", b"\3"):
        raise bad_file(path, f"an array in {name}", "something else")
    width, code = (2, "<H") if start[6] == 1 else (4, "<I")
    (length,) = struct.unpack(code, file.read(width))
    if length > _MAX_HEADER:
        raise bad_file(path, f"an array header of at most {_MAX_HEADER} bytes", f"{length}")
    text = file.read(length)
    try:
        header = ast.literal_eval(text.decode("latin1").strip())
        descr, shape, fortran = header["descr"], header["shape"], header["fortran_order"]
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError, KeyError) as error:
        raise bad_file(path, f"an array header in {name}", "unreadable text") from error
    if not isinstance(descr, str) or not _DESCR.fullmatch(descr):
        raise bad_file(path, f"plain numbers or text in {name}", f"type {str(descr)[:40]!r}")
    try:
        dtype = np.dtype(descr)
    except TypeError as error:  # no float has nine bytes
        raise bad_file(path, f"plain numbers or text in {name}", f"type {descr!r}") from error
    good = isinstance(shape, tuple) and all(type(n) is int and 0 <= n < 1 << 48 for n in shape)
    if not good or len(shape) > 32 or dtype.itemsize == 0:
        raise bad_file(path, f"a shape in {name}", f"{str(shape)[:40]!r}")
    return dtype, shape, bool(fortran), 8 + width + length
