"""The boxes of ISO media files (mp4, mov, HEIF): just enough to look before a decoder does.

ISO/IEC 14496-12, section 4.2: a 32-bit big-endian length, a four-letter kind, then the content.
"""

import struct
from collections.abc import Iterator
from io import BufferedIOBase

_MAX_BOXES = 10_000


def iterate_boxes(file: BufferedIOBase, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, first byte, end) of the contents between two positions.

    Stops at the first box that does not fit, as damaged and hostile files have them.
    """
    at = start
    for _ in range(_MAX_BOXES):
        if at + 8 > end:
            return
        file.seek(at)
        header = file.read(16)
        if len(header) < 8:
            return
        length, kind = struct.unpack(">I4s", header[:8])
        first = at + 8
        if length == 1 and len(header) == 16:
            (length,) = struct.unpack(">Q", header[8:])
            first = at + 16
        stop = end if length == 0 else at + length
        if stop < first or stop > end:
            return
        yield kind, first, stop
        at = stop


def read_box(file: BufferedIOBase, first: int, stop: int, limit: int = 1 << 20) -> bytes:
    """Return at most ``limit`` bytes of a box's content."""
    file.seek(first)
    return file.read(min(stop - first, limit))
