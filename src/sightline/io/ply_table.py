"""The container under PLY files: header, and the vertex element as columns of float32."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from sightline.errors import FileFormatError
from sightline.io.reading import bad_file, check_file, read_whole

_MAX_HEADER = 1 << 20
_ROWS = 8192  # rows gathered at a time, so that a block stays in the processor's cache
_TYPES = {
    "char": "i1",
    "int8": "i1",
    "uchar": "u1",
    "uint8": "u1",
    "short": "i2",
    "int16": "i2",
    "ushort": "u2",
    "uint16": "u2",
    "int": "i4",
    "int32": "i4",
    "uint": "u4",
    "uint32": "u4",
    "float": "f4",
    "float32": "f4",
    "double": "f8",
    "float64": "f8",
}
_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


@dataclass(frozen=True, slots=True, eq=False)
class _Property:
    name: str
    kind: str
    count_kind: str | None = None
    """Type of a list's length; None for a plain number."""


@dataclass(frozen=True, slots=True, eq=False)
class _Element:
    name: str
    count: int
    properties: tuple[_Property, ...]

    @property
    def smallest(self) -> int:
        """Bytes of a record whose lists are all empty."""
        return sum(int((p.count_kind or p.kind)[1]) for p in self.properties)

    @property
    def has_lists(self) -> bool:
        """True when records may differ in length."""
        return any(p.count_kind for p in self.properties)


@dataclass(frozen=True, slots=True, eq=False)
class PlyTable:
    """The vertices of a PLY file.

    Attributes:
        path: The file, for error texts.
        comments: Without the leading word.
        count: Number of vertices.
    """

    path: Path
    comments: tuple[str, ...]
    count: int
    _kinds: dict[str, str]
    _records: np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the vertices' properties that are plain numbers, in file order."""
        return tuple(self._kinds)

    def has(self, *names: str) -> bool:
        """Tell whether all these properties exist."""
        return all(name in self._kinds for name in names)

    def kind(self, name: str) -> str:
        """Return a property's type as numpy's two letters, such as ``u1``."""
        return self._kinds[name]

    def columns(self, names: Sequence[str]) -> Float[np.ndarray, "N C"]:
        """Return the named properties side by side; beyond float32's range they are infinite.

        Raises:
            FileFormatError: If one is missing.
        """
        missing = [name for name in names if name not in self._kinds]
        if missing:
            raise bad_file(
                self.path,
                f"the vertex properties {', '.join(names)}",
                f"no {', '.join(missing)}",
                "export it again with that data",
            )
        result = np.empty((self.count, len(names)), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, self.count, _ROWS):
                block = self._records[start : start + _ROWS]
                for column, name in enumerate(names):
                    result[start : start + _ROWS, column] = block[name]
        return result


def read_ply_table(path: Path, *, header_only: bool = False) -> PlyTable:
    """Read the ``vertex`` element of a PLY file; list properties and other elements are skipped.

    Args:
        path: The file.
        header_only: Do not read the vertices (the table then has none).

    Raises:
        InputError: If the file is missing.
        FileFormatError: If it is damaged. A declared count is compared with the file's size before
            anything is allocated.
    """
    path = Path(path)
    if header_only:
        check_file(path)
        with path.open("rb") as file:
            data = file.read(_MAX_HEADER)
    else:
        data = read_whole(path)
    order, elements, comments, offset = _parse_header(path, data)
    vertex = next((e for e in elements if e.name == "vertex"), None)
    if vertex is None:
        names = ", ".join(e.name for e in elements) or "none"
        raise bad_file(path, "an element named vertex", names, "give a file of points or splats")
    kinds = {p.name: p.kind for p in vertex.properties if p.count_kind is None}
    if header_only:
        return PlyTable(path, comments, 0, kinds, np.empty(0))
    records = np.empty(0)
    for element in elements[: elements.index(vertex) + 1]:
        _check_count(path, element, len(data) - offset, text=not order)
        read = _read_binary if order else _read_text
        records, offset = read(path, data, offset, element, order)
    return PlyTable(path, comments, vertex.count, kinds, records)


def _parse_header(path: Path, data: bytes) -> tuple[str, list[_Element], tuple[str, ...], int]:
    """Return byte order ('' for text), elements, comments and where the data begins."""
    if data[:3] != b"ply" or data[3:4] not in (b"\n", b"\r"):
        raise bad_file(path, 'a PLY file that begins with "ply"', repr(data[:8])[1:])
    order: str | None = None
    elements: list[_Element] = []
    comments: list[str] = []
    offset = 0
    while True:
        end = data.find(b"\n", offset, _MAX_HEADER)
        if end < 0:
            raise bad_file(path, "a header that ends with end_header", "no such line")
        line = data[offset:end].rstrip(b"\r").decode("ascii", "replace")
        offset = end + 1
        words = line.split()
        if line.startswith(("comment", "obj_info")):
            comments.append(line.partition(" ")[2].strip())
        elif words == ["end_header"]:
            break
        elif words[:1] == ["format"] and len(words) == 3 and words[1] in _FORMATS:
            order = _FORMATS[words[1]]
        elif words[:1] == ["element"]:
            elements.append(_parse_element(path, line, words, elements))
        elif words[:1] == ["property"] and elements:
            old = elements[-1]
            new = _parse_property(path, line, words, old)
            elements[-1] = _Element(old.name, old.count, (*old.properties, new))
        elif words and words != ["ply"]:
            raise bad_file(path, "a PLY header", f"the line {line[:60]!r}")
    if order is None:
        raise bad_file(path, "a format line in the header", "none")
    return order, elements, tuple(comments), offset


def _parse_element(path: Path, line: str, words: list[str], before: list[_Element]) -> _Element:
    if len(words) != 3 or not words[2].isdecimal() or len(words[2]) > 15:
        raise bad_file(path, "a line like: element vertex 100", f"{line[:60]!r}")
    if len(before) >= 100 or any(e.name == words[1] for e in before):
        raise bad_file(path, "at most 100 elements of unlike names", f"{line[:60]!r}")
    return _Element(words[1], int(words[2]), ())


def _parse_property(path: Path, line: str, words: list[str], element: _Element) -> _Property:
    name = words[-1]
    if any(p.name == name for p in element.properties) or len(element.properties) >= 2000:
        raise bad_file(path, "at most 2000 properties of unlike names", f"{line[:60]!r}")
    if len(words) == 3 and words[1] in _TYPES:
        return _Property(name, _TYPES[words[1]])
    whole = {name for name, kind in _TYPES.items() if kind[0] != "f"}
    if len(words) == 5 and words[1] == "list" and words[2] in whole and words[3] in _TYPES:
        return _Property(name, _TYPES[words[3]], _TYPES[words[2]])
    raise bad_file(path, "a line like: property float x", f"{line[:60]!r}")


def _check_count(path: Path, element: _Element, left: int, *, text: bool) -> None:
    """Compare a declared count with the bytes that are there; text needs two a number."""
    least = max(1, 2 * len(element.properties)) if text else element.smallest
    if element.count * least > left + text:  # the last number of a text may lack its line end
        raise _too_short(path, element)


def _too_short(path: Path, element: _Element) -> FileFormatError:
    return bad_file(path, f"{element.count} records of {element.name}", "a file too short for them")


def _read_binary(
    path: Path, data: bytes, offset: int, element: _Element, order: str
) -> tuple[np.ndarray, int]:
    """Return an element's records, with a field for every plain property, and where they end."""
    layout: list[tuple[str, str, tuple[int, ...]]] = []
    cursor = offset
    for i, p in enumerate(element.properties):
        if p.count_kind is None:
            layout.append((p.name, order + p.kind, ()))
            cursor += int(p.kind[1])
        else:  # guess that all lists are as long as the first; names in a header have no blanks
            size = _list_length(path, data, cursor, p, order) if element.count else 0
            layout.append((f"count {i}", order + p.count_kind, ()))
            layout.append((f"list {i}", order + p.kind, (size,)))
            cursor += int(p.count_kind[1]) + size * int(p.kind[1])
    width = cursor - offset
    if width == 0:
        return np.empty(0), offset
    if element.count * width <= len(data) - offset and width < 1 << 30:
        records = np.frombuffer(data, np.dtype(layout), element.count, offset)
        lengths = [records[name] for name, _, _ in layout if name.startswith("count ")]
        if all((column == column[:1]).all() for column in lengths):
            return records, offset + element.count * width
    if not element.has_lists:
        raise _too_short(path, element)
    return _read_ragged(path, data, offset, element, order)


def _read_ragged(
    path: Path, data: bytes, offset: int, element: _Element, order: str
) -> tuple[np.ndarray, int]:
    """Read records of unlike lengths one by one, which is slow but rare."""
    kept = bytearray()
    for _ in range(element.count):
        for p in element.properties:
            size = int(p.kind[1])
            if p.count_kind is None:
                kept += data[offset : offset + size]
            else:
                size = int(p.count_kind[1]) + size * _list_length(path, data, offset, p, order)
            offset += size
        if offset > len(data):
            raise _too_short(path, element)
    plain = [(p.name, order + p.kind) for p in element.properties if p.count_kind is None]
    if not plain:
        return np.empty(0), offset
    return np.frombuffer(bytes(kept), np.dtype(plain), element.count), offset


def _list_length(path: Path, data: bytes, offset: int, p: _Property, order: str) -> int:
    width = int((p.count_kind or "")[1])
    signed = (p.count_kind or "")[0] == "i"
    endian = "big" if order == ">" else "little"
    length = int.from_bytes(data[offset : offset + width], endian, signed=signed)
    if not 0 <= length <= len(data):
        raise bad_file(path, f"a list {p.name} that fits the file", f"length {length}")
    return length


def _read_text(
    path: Path, data: bytes, offset: int, element: _Element, order: str
) -> tuple[np.ndarray, int]:
    """Return an element's plain properties as float64 records; one line is one record."""
    del order
    end = offset
    for _ in range(element.count):
        end = data.find(b"\n", end) + 1
        if end == 0:
            end = len(data)
            break
    text = data[offset:end]
    plain = [p.name for p in element.properties if p.count_kind is None]
    try:
        if element.has_lists:
            rows = [_plain_words(line.split(), element) for line in text.splitlines()]
            values = np.array(rows, np.float64).reshape(-1)
        else:
            # The mark at the end makes numpy complain about too few numbers.
            want = element.count * len(plain)
            values = np.fromstring(text.decode("ascii") + " ;", sep=" ", count=want)
    except (ValueError, IndexError) as error:
        raise bad_file(
            path, f"{element.count} lines of {len(plain)} numbers", f"text that is not ({error})"
        ) from error
    if len(values) != element.count * len(plain):
        raise _too_short(path, element)
    if not plain:
        return np.empty(0), end
    records = values.view(np.dtype([(name, "f8") for name in plain]))
    return records, end


def _plain_words(words: list[bytes], element: _Element) -> list[bytes]:
    """Drop the lists from one line."""
    kept: list[bytes] = []
    cursor = 0
    for p in element.properties:
        if p.count_kind is None:
            kept.append(words[cursor])
            cursor += 1
        else:
            cursor += 1 + max(0, int(words[cursor]))
    return kept
