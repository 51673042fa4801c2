"""How files are damaged: bits, numbers, pieces; and how they are closed up again.

Most formats check sums, and most damage would only ever test that check. So half of the damaged
files are built anew round what was damaged: a picture's chunks get right sums, and archives are
packed from the damaged member.
"""

import gzip
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence

Wrap = Callable[[bytes], bytes]

_BYTES = (0, 1, 0x7F, 0x80, 0xFE, 0xFF, 0x2D, 0x39)
_WORDS = tuple(
    value.to_bytes(size, order, signed=False)
    for order in ("little", "big")
    for size in (2, 4, 8)
    for value in (0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1, 2**15)
)
_TEXTS = (
    *(b"-1", b"0", b"1e999", b"-1e999", b"NaN", b"Infinity", b"4294967296", b"-2147483649"),
    *(b"99999999999999999999", b"1" * 5000, b"0.5", b"", b"\x00", b"\xff\xfe", b"\xed\xa0\x80"),
    b"[" * 20_000,
    *(b"../../etc/passwd", b"/etc/passwd", b"C:\\x", b"[" * 300, b'{"a":' * 200, b"null", b"true"),
    *(b"[]", b"{}", b'""', b'"\\ud800"', b"2001-99-99", b"!!python/object:os.system", b"&a [*a]"),
)
_DIGITS = frozenset(b"0123456789.-+eE")


def damage(rng: random.Random, files: Sequence[bytes]) -> bytes:
    """Return one of the files with one to four kinds of damage."""
    data = bytearray(rng.choice(files))
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        # Half of the damage hits the first bytes, where headers and counts are.
        reach = min(len(data), 256) if rng.random() < 0.5 else len(data)
        _strike(rng, data, rng.randrange(reach), files)
    return bytes(data)


def _strike(rng: random.Random, data: bytearray, at: int, files: Sequence[bytes]) -> None:
    kind = rng.randrange(9)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at] = rng.choice(_BYTES)
    elif kind == 2:
        word = rng.choice(_WORDS)
        data[at : at + len(word)] = word
    elif kind == 3:
        del data[at:]
    elif kind == 4:
        stop = at + rng.randrange(1, 64)
        data[at:at] = data[at:stop] * rng.randrange(1, 4)
    elif kind == 5:
        del data[at : at + rng.randrange(1, 64)]
    elif kind == 6:
        other = rng.choice(files)
        start = rng.randrange(len(other) or 1)
        data[at : at + 32] = other[start : start + 32]
    elif kind == 7:
        start = next((i for i in range(at, len(data)) if data[i] in _DIGITS), len(data))
        stop = next((i for i in range(start, len(data)) if data[i] not in _DIGITS), len(data))
        data[start:stop] = rng.choice(_TEXTS)
    else:
        _replace_value(rng, data, at)


def _replace_value(rng: random.Random, data: bytearray, at: int) -> None:
    """Put something else where the next value of JSON or YAML stands."""
    start = data.find(b":", at) + 1
    if not start:
        return
    stop = start
    while stop < len(data) and data[stop] not in b",}\n":
        stop += 1
    data[start:stop] = b" " + rng.choice(_TEXTS)


def mend_png(data: bytes) -> bytes:
    """Give every chunk of a PNG file the right sum."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        (length,) = struct.unpack_from(">I", out, at)
        stop = at + 8 + length
        if stop + 4 > len(out):
            break
        struct.pack_into(">I", out, stop, zlib.crc32(out[at + 4 : stop]))
        at = stop + 4
    return bytes(out)


def pack_gzip(data: bytes) -> bytes:
    """Pack what is inside a ``.gz`` file."""
    return gzip.compress(data, 1, mtime=0)


def members(archive: bytes) -> dict[str, bytes]:
    """Return what is in a ZIP archive."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        return {name: file.read(name) for name in file.namelist()}


def named(parts: Mapping[str, bytes]) -> list[bytes]:
    """Return members as files to damage; see `pack_zip`."""
    return [name.encode() + b"\n" + content for name, content in parts.items()]


def pack_zip(parts: Mapping[str, bytes]) -> Wrap:
    """Return what packs an archive again with one member changed.

    It takes the member's name, a line end and its content, so that names are damaged too.
    """

    def wrap(data: bytes) -> bytes:
        name, _, content = data.partition(b"\n")
        text = name.decode("utf-8", "replace")[:200].partition("\0")[0] or "x"
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as file:
            for other, kept in ({**parts, text: content}).items():
                file.writestr(zipfile.ZipInfo(other), kept)
        return target.getvalue()

    return wrap
