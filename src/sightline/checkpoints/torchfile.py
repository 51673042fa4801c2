"""Read the files that ``torch.save`` writes, zipped and older, without running what is in them.

Tensors are views of the mapped file: nothing is read before it is used, and a file of any size can
be examined. Formats: ``torch/serialization.py`` of PyTorch.
"""

import io
import math
import mmap
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.checkpoints.pickled import Made, Makers, Name, Value, read_pickle
from sightline.errors import FileFormatError

MAGIC = 0x1950A86A20F9469CFC6C
"""First pickled number of files older than the zip format (before torch 1.6)."""

MAX_AXES = 16
STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
DTYPES: dict[str, torch.dtype] = {
    f"torch.{name}": getattr(torch, name)
    for name in [
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
        "complex64",
        "complex128",
        "float8_e4m3fn",
        "float8_e5m2",
        "uint16",
        "uint32",
        "uint64",
    ]
    if hasattr(torch, name)
}
QUANTISED = ("QInt8Storage", "QUInt8Storage", "QInt32Storage", "QUInt4x2Storage")


class Storage(NamedTuple):
    """Numbers in a file: their key, type and count."""

    key: str
    dtype: torch.dtype | None
    size: int


class Stored(NamedTuple):
    """A tensor in a file: which numbers of a storage it has."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class TorchFile:
    """An open file: what it describes, and its tensors on demand.

    Attributes:
        content: Containers, plain values, `Stored` tensors, and inert `Name` and `Made`.
        quantised: Whether some tensors are quantised, which are left as `Made`.
    """

    def __init__(self, path: Path) -> None:
        """Map the file and read its description.

        Raises:
            FileFormatError: The file is damaged, or no file of torch.
        """
        self.path = path
        self.quantised = False
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            if not size:
                msg = "it is empty"
                raise FileFormatError(msg)
            # Private pages: a change of a tensor never reaches the file.
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._places: dict[str, tuple[int, int]] = {}
        self._made: dict[tuple[str, torch.dtype], Tensor] = {}
        read = self._read_zip if self._bytes[:4] == b"PK\x03\x04" else self._read_old
        self.content = read()

    def tensor(self, stored: Stored) -> Tensor:
        """Return a tensor as a view of the file.

        Raises:
            FileFormatError: It reaches beyond its storage.
        """
        shape, stride, offset = stored.shape, stored.stride, stored.offset
        if len(shape) != len(stride) or len(shape) > MAX_AXES or min((*shape, *stride, 0)) < 0:
            msg = f"a tensor has the impossible shape {shape[:MAX_AXES]}"
            raise FileFormatError(msg)
        numbers = self._numbers(stored.storage, stored.dtype)
        count = math.prod(shape)
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        if offset < 0 or (count and last >= len(numbers)) or count > len(numbers):
            msg = f"a tensor of shape {shape} needs more numbers than the file has for it"
            raise FileFormatError(msg)
        return numbers.as_strided(shape, stride, offset)

    def _numbers(self, storage: Storage, dtype: torch.dtype) -> Tensor:
        key = (storage.key, dtype)
        if key not in self._made:
            if storage.key not in self._places:
                msg = f"the numbers of storage {storage.key} are missing"
                raise FileFormatError(msg)
            start, length = self._places[storage.key]
            count = length // dtype.itemsize
            if not count:
                self._made[key] = torch.empty(0, dtype=dtype)
            elif start % dtype.itemsize:
                part = bytearray(self._bytes[start : start + count * dtype.itemsize])
                self._made[key] = torch.frombuffer(part, dtype=dtype)
            else:
                self._made[key] = torch.frombuffer(
                    self._bytes, dtype=dtype, count=count, offset=start
                )
        return self._made[key]

    def _read_zip(self) -> Value:
        try:
            with zipfile.ZipFile(self.path) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
            msg = f"its directory is damaged or missing ({str(error)[:80]})"
            raise FileFormatError(msg) from error
        found = {entry.filename: entry for entry in entries}
        main = next((n for n in found if n.count("/") <= 1 and n.endswith("data.pkl")), None)
        if main is None:
            msg = "it is a zip archive without the data.pkl of torch"
            raise FileFormatError(msg)
        root = main.removesuffix("data.pkl")
        if any(name.startswith(f"{root}code/") for name in found):
            msg = "it is a TorchScript program; save its state_dict() instead"
            raise FileFormatError(msg)
        order = found.get(f"{root}byteorder")
        if order is not None and self._record(order) not in {b"little", b""}:
            msg = "its numbers are big-endian; save it again on an ordinary machine"
            raise FileFormatError(msg)
        for name, entry in found.items():
            if name.startswith(f"{root}data/"):
                self._places[name.removeprefix(f"{root}data/")] = self._place(entry)
        return read_pickle(io.BytesIO(self._record(found[main])), self._makers(), self._storage)

    def _place(self, entry: zipfile.ZipInfo) -> tuple[int, int]:
        """Return where the bytes of an uncompressed record start, and how many there are."""
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            msg = f"its record {entry.filename[:60]} is compressed or encrypted, which torch never does"
            raise FileFormatError(msg)
        at = entry.header_offset
        head = self._bytes[at : at + 30]
        start = (
            at + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:], "little")
        )
        if head[:4] != b"PK\x03\x04" or start + entry.file_size > len(self._bytes):
            msg = f"its record {entry.filename[:60]} lies beyond the end of the file"
            raise FileFormatError(msg)
        return start, entry.file_size

    def _record(self, entry: zipfile.ZipInfo) -> bytes:
        start, length = self._place(entry)
        return self._bytes[start : start + length]

    def _read_old(self) -> Value:
        file: Any = self._bytes
        if self._bytes[:1] != b"\x80":
            msg = "it is neither a zip archive nor a pickle"
            raise FileFormatError(msg)
        first = read_pickle(file, {})
        if first != MAGIC:
            msg = "it is a pickle of something else, and what that would run stays unrun"
            raise FileFormatError(msg)
        read_pickle(file, {})  # protocol version
        system = read_pickle(file, {})
        if isinstance(system, dict) and system.get("little_endian") is False:
            msg = "its numbers are big-endian; save it again on an ordinary machine"
            raise FileFormatError(msg)
        wanted: dict[str, Storage] = {}

        def storage(found: Value) -> Value:
            made = self._storage(found)
            if isinstance(made, Storage):
                wanted[made.key] = made
            return made

        content = read_pickle(file, self._makers(), storage)
        keys = read_pickle(file, {})
        for key in keys if isinstance(keys, list) else []:
            count = int.from_bytes(file.read(8), "little")
            known = wanted.get(str(key))
            size = 1 if known is None or known.dtype is None else known.dtype.itemsize
            at = file.tell()
            if known is None or count != known.size or at + count * size > len(self._bytes):
                msg = f"the numbers of storage {str(key)[:40]} are cut off"
                raise FileFormatError(msg)
            self._places[known.key] = (at, count * size)
            file.seek(at + count * size)
        return content

    def _storage(self, found: Value) -> Value:
        """Return the storage that a file refers to: ("storage", type, key, device, count, ...)."""
        if not (isinstance(found, tuple) and len(found) >= 5 and found[0] == "storage"):
            return Made(None, (found,))
        kind, key, count = found[1], found[2], found[4]
        name = (kind.path if isinstance(kind, Name) else str(kind)).rpartition(".")[2]
        if name in QUANTISED:
            self.quantised = True
            return Made(kind, (key,))
        if name not in STORAGES or not isinstance(count, int) or any(found[5:]):
            msg = (
                f"it holds numbers of a kind that is unknown or older than torch 0.4 ({name[:40]})"
            )
            raise FileFormatError(msg)
        return Storage(str(key), STORAGES[name], count)

    def _makers(self) -> Makers:
        def tensor(
            storage: Value, offset: Value, shape: Value, stride: Value, *rest: Value
        ) -> Value:
            # _rebuild_tensor_v3 names the number type, because its storages have none.
            named = [DTYPES.get(r.path) for r in rest if isinstance(r, Name)]
            if not isinstance(storage, Storage) or storage.dtype is None:
                return Made(None, (storage,))
            dtype = next((d for d in named if d is not None), storage.dtype)
            return Stored(storage, dtype, int(offset), _ints(shape), _ints(stride))

        def quantised(*args: Value) -> Value:
            self.quantised = True
            return Made(Name("torch._utils._rebuild_qtensor"), args)

        def subclass(maker: Value, _: Value, args: Value, *__: Value) -> Value:
            ours = makers.get(maker.path) if isinstance(maker, Name) else None
            return Made(maker, args) if ours is None else ours(*args)

        makers: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": _mapping,
            "collections.defaultdict": lambda *args: _mapping(*args[1:]),
            "builtins.dict": _mapping,
            "torch.Size": lambda items=(): tuple(items),
            "torch._utils._rebuild_tensor": tensor,
            "torch._utils._rebuild_tensor_v2": tensor,
            "torch._utils._rebuild_tensor_v3": tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
            "torch._utils._rebuild_qtensor": quantised,
            "torch._tensor._rebuild_from_type_v2": subclass,
            "torch.serialization._get_layout": lambda *_: None,
        }
        return makers


def _mapping(items: Value = ()) -> dict[Any, Any]:
    if isinstance(items, dict):
        return dict(items)
    return {k: v for k, v in items if isinstance(k, (str, int))}


def _ints(values: Iterable[Any]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
