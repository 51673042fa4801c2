"""Damage valid files at random and demand the one error that readers may raise."""

import tracemalloc
from contextlib import suppress

from hypothesis import strategies as st

from sightline.errors import FileFormatError

MEMORY = 24 << 20


def damage(draw, raw: bytes) -> bytes:
    """Cut, flip, insert or replace everything."""
    kind = draw(st.sampled_from(["cut", "flip", "insert", "random"]))
    if kind == "random":
        return draw(st.binary(max_size=400))
    data = bytearray(raw)
    if kind == "cut":
        return bytes(data[: draw(st.integers(0, len(data) - 1))])
    if kind == "insert":
        at = draw(st.integers(0, len(data)))
        data[at:at] = draw(st.binary(min_size=1, max_size=20))
        return bytes(data)
    # Half of the flips hit the first bytes, where headers and counts are.
    near = st.integers(0, min(len(data) - 1, 400))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.one_of(near, st.integers(0, len(data) - 1)))
        data[at] = draw(st.sampled_from([0, 1, 45, 57, 127, 128, 255, data[at] ^ 1]))
    return bytes(data)


def survives(read, *arguments, **options) -> None:
    """Read damaged input: success or FileFormatError, within bounded memory."""
    tracemalloc.start()
    try:
        with suppress(FileFormatError):
            read(*arguments, **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEMORY, f"{peak} bytes were allocated"
