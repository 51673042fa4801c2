"""Small videos made for the tests, and the same with other time stamps or a rotation."""

import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np

from .pictures import texture

PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def write_clip(path: Path, frames: Iterable[np.ndarray], fps: float = 30.0) -> Path:
    """Write RGB frames; the codec follows the suffix (mp4 MPEG-4, avi MJPEG)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fourcc = {".mp4": "mp4v", ".avi": "MJPG", ".webm": "VP80"}[path.suffix]
    writer = None
    for frame in frames:
        if writer is None:
            size = (frame.shape[1], frame.shape[0])
            code = cv2.VideoWriter.fourcc(*fourcc)
            writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, fps, size)
            assert writer.isOpened()
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    assert writer is not None
    writer.release()
    return path


def moving(count: int, height: int = 96, width: int = 128, step: int = 3) -> list[np.ndarray]:
    """Return frames of a camera that slides over a texture."""
    scene = texture(height, width + step * count, seed=1)
    return [scene[:, step * i : step * i + width].copy() for i in range(count)]


def edit_boxes(path: Path, edits: dict[bytes, Callable[[bytes], bytes | None]]) -> None:
    """Rewrite boxes of an mp4 whose index follows its data; None removes a box."""

    def rebuild(data: bytes) -> bytes:
        out, at = b"", 0
        while at + 8 <= len(data):
            size, kind = struct.unpack(">I4s", data[at : at + 8])
            body: bytes | None = data[at + 8 : at + size]
            assert body is not None
            if kind in PARENTS:
                body = rebuild(body)
            if kind in edits:
                body = edits[kind](body)
            if body is not None:
                out += struct.pack(">I4s", len(body) + 8, kind) + body
            at += size
        return out

    data = path.read_bytes()
    assert data.index(b"mdat") < data.index(b"moov")
    path.write_bytes(rebuild(data))


def set_rotation(path: Path, degrees: int) -> None:
    """Ask players to turn the picture clockwise."""
    a, b = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 1 << 16
    matrix = struct.pack(">9i", a * one, b * one, 0, -b * one, a * one, 0, 0, 0, 1 << 30)

    def edit(body: bytes) -> bytes:
        at = 40 if body[0] == 0 else 52
        return body[:at] + matrix + body[at + 36 :]

    edit_boxes(path, {b"tkhd": edit})


def set_durations(path: Path, durations: list[int], timescale: int = 1000) -> None:
    """Give each frame its own display time, as phones with a variable frame rate do."""
    rows = b"".join(struct.pack(">II", 1, d) for d in durations)

    def header(body: bytes) -> bytes:
        assert body[0] == 0
        return body[:12] + struct.pack(">II", timescale, sum(durations)) + body[20:]

    edit_boxes(
        path,
        {
            b"stts": lambda body: body[:4] + struct.pack(">I", len(durations)) + rows,
            b"mdhd": header,
            b"edts": lambda body: None,
        },
    )
