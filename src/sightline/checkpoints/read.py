"""Read a checkpoint of any kind: what kind it is, which tensors it holds, what it says of itself.

Nothing from a file is ever run. Tensors are views of the file, so that examining one of any size
takes little memory; sizes that a file claims are checked against the bytes it has.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sightline.checkpoints.constructor import Constructor, parse_constructor
from sightline.checkpoints.pickled import Made, Value
from sightline.checkpoints.torchfile import Stored, TorchFile
from sightline.errors import FileFormatError, InputError

State = dict[str, Tensor]

WRAPPERS = ("model", "state_dict", "teacher", "model_state_dict", "module", "student")
"""Where training scripts put the weights inside a file, in the order tried."""

TRAINING = (
    "optimizer",
    "optimizer_states",
    "optimizer_state_dict",
    "epoch",
    "iteration",
    "student",
)
"""Entries that only a training checkpoint has."""

FOLDER_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.pt",
)
"""What a folder of weights is looked through for, in this order."""

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
MAX_INDEX_BYTES = 64 << 20
MAX_SHARDS = 1000
MAX_NOTE_BYTES = 1 << 16
METADATA = "sightline"
"""Entry of a safetensors header, and of torch files, that says what the tensors do not."""
PSEUDO = "pseudo ground truth"
"""True there when the network was trained on estimated cameras and depth."""
MAX_DEPTH = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A file of weights.

    Attributes:
        path: The file, or the index of several.
        kind: ``safetensors``, ``torch``, or ``sharded safetensors`` and so on.
        weights: Named tensors, views of the file.
        inside: The entry that held them, such as ``teacher``; empty for a flat file.
        notes: Remarks on the file, as short phrases.
        constructor: The call that builds the network, where the file tells one.
    """

    path: Path
    kind: str
    weights: State
    inside: str = ""
    notes: tuple[str, ...] = ()
    constructor: Constructor | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


def read_weights(path: str | Path) -> State:
    """Return the named tensors of a checkpoint, see `read_checkpoint`."""
    return read_checkpoint(path).weights


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a weights file, the index of a sharded set, or a folder with one of them.

    Args:
        path: Safetensors, any file of ``torch.save`` (also Lightning's), or ``*.index.json``. The
            content decides, not the suffix.

    Raises:
        InputError: There is no such file, or a folder holds none or several.
        FileFormatError: The file is damaged, or holds no weights that can be read without code.
    """
    path = _pick(Path(path))
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    with path.open("rb") as file:
        head = file.read(64)
    if path.suffix == ".safetensors" and not head.startswith(_LFS) or head[8:9] == b"{":
        weights, config = _read_safetensors(path)
        notes = tuple(_told_truth(config))
        return Checkpoint(
            path=path, kind="safetensors", weights=weights, config=config, notes=notes
        )
    for mark, what in _FOREIGN.items():
        if head.lstrip().lower().startswith(mark):
            msg = f"expected weights, but {path} is {what}"
            raise FileFormatError(msg)
    try:
        file = TorchFile(path)
        content, inside = _unwrap(file.content)
        weights = {
            str(name): file.tensor(value)
            for name, value in content.items()
            if isinstance(value, Stored)
        }
    except FileFormatError as error:
        msg = f"{path} is not a whole torch file: {printable(str(error))}; download it again"
        raise FileFormatError(msg) from error
    if not weights:
        raise FileFormatError(_why_empty(path, file))
    notes = []
    if isinstance(file.content, dict) and any(key in file.content for key in TRAINING):
        used = f": {inside} inside, which was taken" if inside else ""
        notes.append(f"training checkpoint{used}")
    notes += _told_truth(file.content.get(METADATA) if isinstance(file.content, dict) else None)
    if file.quantised:
        notes.append("quantised tensors, which were left out")
    return Checkpoint(
        path=path,
        kind="torch",
        weights=weights,
        inside=inside,
        notes=tuple(notes),
        **_description(file.content),
    )


def printable(text: str) -> str:
    """Return a text from a file without control characters."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _pick(path: Path) -> Path:
    """Return the file that a path stands for."""
    if path.is_file():
        return path
    if not path.is_dir():
        msg = f"expected a weights file, but {path} does not exist"
        raise InputError(msg)
    for name in FOLDER_NAMES:
        if (path / name).is_file():
            return path / name
    found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
    if len(found) == 1:
        return found[0]
    names = ", ".join(p.name for p in found[:4])
    msg = (
        f"expected one weights file in {path}, found {len(found)} ({names}); give the file itself"
        if found
        else f"expected a weights file in {path}, found none ({', '.join(SUFFIXES)})"
    )
    raise InputError(msg)


def _read_safetensors(path: Path) -> tuple[State, dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            note = (file.metadata() or {}).get(METADATA, "")
    except (SafetensorError, ValueError, OSError, OverflowError) as error:
        why = printable(str(error))
        msg = f"{path} is not a whole safetensors file ({why}); download it again"
        raise FileFormatError(msg) from error
    if not weights:
        raise FileFormatError(_no_tensors(path))
    return weights, _told(note)


def _told(note: str) -> dict[str, Any]:
    """Return the options that `save_weights` left beside the tensors, if any."""
    try:
        found = json.loads(note) if 0 < len(note) <= MAX_NOTE_BYTES else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _told_truth(about: Any) -> list[str]:  # noqa: ANN401
    """Return the note that a network was trained on estimates, where its file says so."""
    estimated = isinstance(about, dict) and about.get(PSEUDO) is True
    return ["trained on pseudo ground truth: estimated cameras and depth"] if estimated else []


def _read_shards(path: Path) -> Checkpoint:
    """Read the files that an index of Hugging Face's kind lists."""
    if path.stat().st_size > MAX_INDEX_BYTES:
        msg = f"expected an index of at most {MAX_INDEX_BYTES >> 20} MB, but {path} is larger"
        raise FileFormatError(msg)
    try:
        table = json.loads(path.read_bytes())["weight_map"]
        places = {str(name): str(file) for name, file in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        msg = f"expected {path} to map names of tensors to files (weight_map), but it does not"
        raise FileFormatError(msg) from error
    files = sorted(set(places.values()))
    for name in files:
        if PurePosixPath(name).name != name or "\\" in name or name in {"", ".", ".."}:
            msg = f"{path} names the file {name[:80]!r}, which is not beside it"
            raise FileFormatError(msg)
        if name.endswith(".index.json") or len(files) > MAX_SHARDS:
            msg = f"{path} names {len(files)} files such as {name[:80]!r}, which are no shards"
            raise FileFormatError(msg)
    lost = [name for name in files if not (path.parent / name).is_file()]
    if lost:
        msg = f"{path} needs {len(files)} files, but {len(lost)} are missing, such as {lost[0]}"
        raise InputError(msg)
    parts = [read_checkpoint(path.parent / name) for name in files]
    weights: State = {}
    for file, part in zip(files, parts, strict=True):
        weights |= {n: t for n, t in part.weights.items() if places.get(n) == file}
    if weights.keys() != places.keys():
        absent = sorted(places.keys() - weights.keys())
        msg = f"{path} promises {len(absent)} tensors that its files lack, such as {absent[0]!r}"
        raise FileFormatError(msg)
    kind = f"sharded {parts[0].kind}, {len(files)} files" if parts else "sharded"
    if not weights:
        raise FileFormatError(_no_tensors(path))
    return Checkpoint(path=path, kind=kind, weights=weights)


def _unwrap(content: Value) -> tuple[dict[Any, Any], str]:
    """Return the named tensors of a file, below the keys that scripts wrap them in."""
    inside: list[str] = []
    for _ in range(MAX_DEPTH):
        content = _module_state(content)
        if not isinstance(content, dict):
            break
        key = next((k for k in WRAPPERS if isinstance(content.get(k), (dict, Made))), None)
        if key is None or not _module_state(content[key]):
            return content, ".".join(inside)
        inside.append(key)
        content = content[key]
    return {}, ""


def _module_state(content: Value) -> Value:
    """Return the state of a whole pickled module, or anything else unchanged."""
    if not isinstance(content, Made):
        return content
    found: dict[str, Any] = {}
    for prefix, entries in _modules(content):
        for part in ("_parameters", "_buffers"):
            tensors = entries.get(part)
            if isinstance(tensors, dict):
                found |= {f"{prefix}{n}": t for n, t in tensors.items() if isinstance(t, Stored)}
    return found


def _modules(root: Made) -> Iterator[tuple[str, dict[Any, Any]]]:
    waiting: list[tuple[str, Any, int]] = [("", root, 0)]
    while waiting:
        prefix, module, depth = waiting.pop()
        if not isinstance(module, Made) or not isinstance(module.state, dict) or depth > MAX_DEPTH:
            continue
        yield prefix, module.state
        children = module.state.get("_modules")
        if isinstance(children, dict) and len(waiting) < 100_000:
            waiting += [(f"{prefix}{n}.", child, depth + 1) for n, child in children.items()]


def _description(content: Value) -> dict[str, Any]:
    """Return what a file says of its network: a constructor as text, or options."""
    if not isinstance(content, dict):
        return {}
    args = content.get("args")
    args = args.state if isinstance(args, Made) else args
    text = args.get("model") if isinstance(args, dict) else None
    found: dict[str, Any] = {}
    if isinstance(text, str):
        try:
            found["constructor"] = parse_constructor(text)
        except FileFormatError:
            found["config"] = {"model": text[:200]}
    options = content.get("croco_kwargs")
    if isinstance(options, dict):
        plain = (str, int, float, bool, type(None), tuple, list)
        found["config"] = {str(k): v for k, v in options.items() if isinstance(v, plain)}
    return found


def _why_empty(path: Path, file: TorchFile) -> str:
    if file.quantised:
        return f"expected ordinary tensors, but those of {path} are quantised; use the full weights"
    if isinstance(file.content, Made) or _has_made(file.content):
        return (
            f"{path} holds objects that only code could make, which is never run, and no named "
            "tensors; save model.state_dict() instead"
        )
    return _no_tensors(path)


def _no_tensors(path: Path) -> str:
    return f"expected named tensors in {path}, found none; give another file, or download it again"


def _has_made(content: Value) -> bool:
    return isinstance(content, dict) and any(isinstance(v, Made) for v in content.values())


_LFS = b"version https://git-lfs"
_FOREIGN = {
    _LFS: "a Git LFS pointer; fetch the file itself (git lfs pull)",
    b"<!doctype": "a web page, such as a sign-in or error page saved in its place",
    b"<html": "a web page, such as a sign-in or error page saved in its place",
    b"gguf": "quantised for llama.cpp (GGUF); use the original weights",
    b"\x89hdf": "an HDF5 file; convert it to safetensors",
}
