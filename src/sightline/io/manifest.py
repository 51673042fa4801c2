"""``manifest.json`` of prepared data, and the same for one run: ``inputs.json``.

One record a view, in view order, with everything that is known of the picture and that undoes its
processing.
"""

import datetime
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sightline.errors import FileFormatError
from sightline.io.atomic import atomic_path
from sightline.io.inputs import MANIFEST_FORMAT
from sightline.io.reading import inside, read_json

VERSION = 1
MODALITIES = ("visible", "ir", "thermal", "depth", "satellite", "other")
KINDS = ("image", "frame", "tile")
SPLITS = ("train", "val", "test")

_MAX_RECORDS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One view; absent means unknown."""

    id: str
    file: str
    """Relative to the manifest, with forward slashes."""
    width: int
    height: int
    source: str | None = None
    """The original as given."""
    sha256: str | None = None
    """Of the original's bytes; for a frame, of its video."""
    modality: str = "visible"
    kind: str = "image"
    channels: int | None = None
    dtype: str | None = None
    source_width: int | None = None
    source_height: int | None = None
    source_channels: int | None = None
    source_dtype: str | None = None
    transform: list[list[float]] | None = None
    """Processed pixel to source pixel, 2 x 3, corner convention."""
    range: dict[str, Any] | None = None
    raw_file: str | None = None
    """The source's own values at its own size, where ``file`` shows them stretched."""
    bands: list[int | str] | None = None
    """Those shown as red, green and blue, then any others kept; from 0, or by name."""
    bands_file: str | None = None
    """An ``.npz`` with ``values`` [height width bands] in that order, of the size of ``file``."""
    video: dict[str, Any] | None = None
    """``frame``, ``time_s``, ``sharpness``."""
    camera: dict[str, Any] | None = None
    """``model`` and ``params`` as COLMAP names and orders them, and ``source``."""
    pose: list[list[float]] | None = None
    """Camera-to-world, 4 x 4, OpenCV axes."""
    depth: dict[str, Any] | None = None
    """``file``, ``scale`` (to ``unit``), ``invalid``."""
    geo: dict[str, Any] | None = None
    exif: dict[str, Any] | None = None
    mask: str | None = None
    group: str | None = None
    split: str | None = None
    labels: dict[str, Any] = field(default_factory=dict)


def write_manifest(
    path: Path,
    records: Iterable[Record],
    *,
    options: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    created: str | None = None,
) -> None:
    """Write a manifest in one step, a record at a time.

    Args:
        path: ``manifest.json`` or ``inputs.json``.
        records: In view order.
        options: What decided the content.
        notes: Sentences for the user that arose on the way.
        created: The time to write, ISO 8601; default: now.

    Raises:
        OutputError: If the file cannot be written.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    head = {
        "format": MANIFEST_FORMAT,
        "version": VERSION,
        "created": created or now,
        "options": dict(options or {}),
        "notes": list(notes),
    }
    with atomic_path(path) as tmp, tmp.open("w", encoding="utf-8", newline="\n") as file:
        file.write(_json(head).removesuffix("\n}") + ',\n "records": [')
        separator = "\n"
        for record in records:
            text = _json(_plain(record)).replace("\n", "\n  ")
            file.write(f"{separator}  {text}")
            separator = ",\n"
        file.write("\n ]\n}\n")


def read_created(path: Path) -> str | None:
    """Return when a manifest was written, without reading its records; None if it does not say."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            found = re.search(r'^ "created": "([^"]{1,40})"', file.read(4096), re.MULTILINE)
    except OSError:
        return None
    return found[1] if found else None


def _json(value: Any) -> str:  # noqa: ANN401
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)


def read_manifest(path: Path) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    """Read a manifest's records and notes; unknown fields are ignored.

    Raises:
        InputError: If there is no such file.
        FileFormatError: If it is not a manifest, or a field has the wrong form.
    """
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != MANIFEST_FORMAT:
        raise FileFormatError(
            f'{path.name}: expected a manifest (format "{MANIFEST_FORMAT}"), got other JSON; make '
            "it again"
        )
    if data.get("version") != VERSION:
        raise FileFormatError(
            f"{path.name}: expected version {VERSION}, got {str(data.get('version'))[:20]}; make "
            "it again with this version"
        )
    rows = data.get("records")
    if not isinstance(rows, list) or not 0 < len(rows) <= _MAX_RECORDS:
        raise FileFormatError(f"{path.name}: expected a list of records, got none; make it again")
    records = tuple(_record(path, i, row) for i, row in enumerate(rows))
    for what, values in (("id", [r.id for r in records]), ("file", [r.file for r in records])):
        if len(set(values)) < len(values):
            raise FileFormatError(f"{path.name}: expected one record a {what}, got one twice")
    notes = data.get("notes")
    return records, tuple(str(n) for n in notes) if isinstance(notes, list) else ()


def _plain(record: Record) -> dict[str, Any]:
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    return {name: value for name, value in values.items() if value is not None and value != {}}


def _record(path: Path, index: int, row: Any) -> Record:  # noqa: ANN401
    if not isinstance(row, dict):
        raise _wrong(path, index, "record", "an object", row)
    for name, kind in _REQUIRED.items():
        if not isinstance(row.get(name), kind) or isinstance(row.get(name), bool):
            raise _wrong(path, index, name, kind.__name__, row.get(name))
    values: dict[str, Any] = {}
    for item in fields(Record):
        value = row.get(item.name)
        if value is not None:
            values[item.name] = _checked(path, index, item.name, value)
    return Record(**values)


_REQUIRED = {"id": str, "file": str, "width": int, "height": int}
_TEXTS = ("id", "source", "sha256", "dtype", "source_dtype", "group")
_COUNTS = ("width", "height", "channels", "source_width", "source_height", "source_channels")
_OBJECTS = ("range", "video", "camera", "depth", "geo", "exif", "labels")
_CHOICES = {"modality": MODALITIES, "kind": KINDS, "split": SPLITS}
_MATRICES = {"transform": (2, 3), "pose": (4, 4)}


def _checked(path: Path, index: int, name: str, value: Any) -> Any:  # noqa: ANN401
    if name in ("file", "mask", "raw_file", "bands_file"):
        if not isinstance(value, str):
            raise _wrong(path, index, name, "a path", value)
        return inside(path, value)
    if name in _TEXTS and not isinstance(value, str):
        raise _wrong(path, index, name, "a text", value)
    if name in _COUNTS and (type(value) is not int or not 0 < value < 10**7):
        raise _wrong(path, index, name, "a number above 0", value)
    if name in _OBJECTS and not isinstance(value, dict):
        raise _wrong(path, index, name, "an object", value)
    if name in _CHOICES and value not in _CHOICES[name]:
        raise _wrong(path, index, name, f"one of {', '.join(_CHOICES[name])}", value)
    if name in _MATRICES and not is_matrix(value, *_MATRICES[name]):
        rows, columns = _MATRICES[name]
        raise _wrong(path, index, name, f"{rows} x {columns} finite numbers", value)
    if name == "bands" and not isinstance(value, list):
        raise _wrong(path, index, name, "a list", value)
    if name == "depth" and isinstance(value, dict):
        file = value.get("file")
        if not isinstance(file, str):
            raise _wrong(path, index, "depth.file", "a path", file)
        scale = value.get("scale", 0.001)
        if not is_number(scale) or scale <= 0:
            raise _wrong(path, index, "depth.scale", "a number above 0", scale)
        return value | {"file": inside(path, file), "scale": float(scale)}
    return value


def is_number(value: Any) -> bool:  # noqa: ANN401
    """Say whether a JSON value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_matrix(value: Any, rows: int, columns: int) -> bool:  # noqa: ANN401
    """Say whether a JSON value is a matrix of finite numbers."""
    if not isinstance(value, list) or len(value) != rows:
        return False
    return all(
        isinstance(row, list) and len(row) == columns and all(is_number(v) for v in row)
        for row in value
    )


def _wrong(path: Path, index: int, name: str, expected: str, got: Any) -> FileFormatError:  # noqa: ANN401
    return FileFormatError(
        f"{path.name}: record {index}: expected {name} to be {expected}, got {str(got)[:40]!r}; "
        "correct or make it again"
    )
