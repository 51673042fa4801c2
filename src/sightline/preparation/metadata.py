"""What the user knows of the files: ``metadata.json``, or a folder of ``NAME.json``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.errors import FileFormatError, InputError
from sightline.io.manifest import MODALITIES, SPLITS, is_matrix, is_number
from sightline.io.reading import check_file, read_json

_FILE_KEYS = ("file", "path", "filename", "image")
_KNOWN = ("modality", "camera", "pose", "group", "split", "bands", "depth")
_MAX_SIDECARS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What is known of one file; absent means unknown."""

    modality: str | None = None
    camera: dict[str, Any] | None = None
    """Of the picture before it is resized."""
    pose: list[list[float]] | None = None
    group: str | None = None
    split: str | None = None
    bands: list[int | str] | None = None
    depth: dict[str, Any] | None = None
    """``file`` (relative to the metadata), ``scale``, ``unit``."""
    labels: dict[str, Any] = field(default_factory=dict)


def read_metadata(path: Path) -> dict[str, Metadata]:
    """Read metadata by the name that each entry gives its file.

    Args:
        path: An object keyed by relative path or base name; a list of objects with ``file``
            (or ``path``, ``filename``, ``image``); or a folder of ``NAME.json``.

    Raises:
        InputError: If it is missing.
        FileFormatError: If it has another form, or a known key has the wrong type.
    """
    if path.is_dir():
        found = sorted(path.rglob("*.json"))[:_MAX_SIDECARS]
        rows = {p.relative_to(path).with_suffix("").as_posix(): read_json(p) for p in found}
        if not rows:
            raise InputError(f"there is no NAME.json in {path}; check --metadata-json")
        base = path
    else:
        data, base = read_json(path), path.parent
        rows = _rows(path, data)
    return {name.replace("\\", "/"): _entry(path, base, name, row) for name, row in rows.items()}


def match_metadata(
    entries: dict[str, Metadata], files: Sequence[str]
) -> tuple[list[Metadata], list[str], list[str]]:
    """Match entries with files by relative path, base name, or either without its suffix.

    Args:
        entries: As `read_metadata` returns them.
        files: Relative paths with forward slashes.

    Returns:
        One record a file, the entries that fit none, and the files without any.
    """
    used: set[str] = set()
    matched, without = [], []
    for file in files:
        name = file.rsplit("/", 1)[-1]
        keys = (file, name, file.rsplit(".", 1)[0], name.rsplit(".", 1)[0])
        key = next((k for k in keys if k in entries), None)
        if key is None:  # a longer path than ours, ending alike
            key = next((k for k in entries if "/" in k and k.endswith(f"/{file}")), None)
        if key is None:
            without.append(file)
            matched.append(Metadata())
        else:
            used.add(key)
            matched.append(entries[key])
    return matched, [key for key in entries if key not in used], without


def _rows(path: Path, data: Any) -> dict[str, Any]:  # noqa: ANN401
    if isinstance(data, dict):
        return data
    if not isinstance(data, list):
        raise FileFormatError(
            f"{path.name}: expected an object keyed by file, or a list of objects, got other JSON"
        )
    rows = {}
    for i, row in enumerate(data):
        key = next((k for k in _FILE_KEYS if isinstance(row, dict) and k in row), None)
        if key is None or not isinstance(row[key], str):
            raise FileFormatError(
                f'{path.name}: entry {i}: expected an object with "file", got {str(row)[:40]!r}; '
                "name the file it is about"
            )
        if row[key] in rows:
            raise FileFormatError(f"{path.name}: two entries are about {row[key]}; keep one")
        rows[row[key]] = {k: v for k, v in row.items() if k != key}
    return rows


def _entry(path: Path, base: Path, name: str, row: Any) -> Metadata:  # noqa: ANN401
    if not isinstance(row, dict):
        raise _wrong(path, name, "entry", "an object", row)
    known = {key: row[key] for key in _KNOWN if row.get(key) is not None}
    labels = {key: value for key, value in row.items() if key not in _KNOWN}
    for key, choices in (("modality", MODALITIES), ("split", SPLITS)):
        if key in known and known[key] not in choices:
            raise _wrong(path, name, key, f"one of {', '.join(choices)}", known[key])
    if "group" in known and not isinstance(known["group"], str):
        raise _wrong(path, name, "group", "a text", known["group"])
    if "pose" in known and not is_matrix(known["pose"], 4, 4):
        raise _wrong(path, name, "pose", "4 x 4 finite numbers", known["pose"])
    if "bands" in known:
        bands = known["bands"]
        good = isinstance(bands, list) and all(isinstance(b, str) or type(b) is int for b in bands)
        if not good or not bands:
            raise _wrong(path, name, "bands", "a list of indices or names", bands)
    if "camera" in known:
        known["camera"] = _camera(path, name, known["camera"])
    if "depth" in known:
        known["depth"] = _depth(path, base, name, known["depth"])
    return Metadata(**known, labels=labels)


def _camera(path: Path, name: str, value: Any) -> dict[str, Any]:  # noqa: ANN401
    from sightline.io.colmap_model import CAMERA_MODELS

    good = isinstance(value, dict) and isinstance(value.get("params"), list)
    if good and isinstance(value.get("model"), str) and value["model"] in CAMERA_MODELS:
        params = value["params"]
        if len(params) == CAMERA_MODELS[value["model"]] and all(is_number(p) for p in params):
            return {"model": value["model"], "params": params, "source": "given"}
    raise _wrong(path, name, "camera", '{"model": "PINHOLE", "params": [fx, fy, cx, cy]}', value)


def _depth(path: Path, base: Path, name: str, value: Any) -> dict[str, Any]:  # noqa: ANN401
    if isinstance(value, str):
        value = {"file": value}
    scale = value.get("scale", 0.001) if isinstance(value, dict) else None
    good = isinstance(value, dict) and isinstance(value.get("file"), str)
    if not good or not is_number(scale) or not scale or scale <= 0:
        raise _wrong(path, name, "depth", '{"file": "NAME.png", "scale": 0.001}', value)
    file = base / value["file"]
    try:
        check_file(file)
    except InputError as error:
        what = f"there is no depth map {str(file)[:200]}"
        raise InputError(f"{path.name}: {what}; put it in place") from error
    return {"file": str(file), "scale": float(scale), "unit": str(value.get("unit", "m"))}


def _wrong(path: Path, name: str, key: str, expected: str, got: Any) -> FileFormatError:  # noqa: ANN401
    return FileFormatError(
        f"{path.name}: {name}: expected {key} to be {expected}, got {str(got)[:40]!r}; correct it"
    )
