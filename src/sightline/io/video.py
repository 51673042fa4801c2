"""Decode video files: frames in order, upright, with the time stamps of the stream.

OpenCV's FFmpeg decodes. Times are the stream's presentation time stamps, never frame count over
nominal rate, so that variable-frame-rate phone video is right. The container's rotation is applied.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from jaxtyping import UInt8

from sightline.errors import FileFormatError, InputError
from sightline.io.boxes import iterate_boxes, read_box
from sightline.io.decoding import MAX_PIXELS, read_head

SUPPORTED = "mp4, mov, mkv, webm, avi, mpg, ts or wmv"

_HEAD_BYTES = 400  # MPEG transport streams are known by a mark every 188 or 192 bytes
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_STILL_OR_AUDIO = (b"avif", b"avis", b"M4A ", b"M4B ", b"crx ", b"jp2 ")
_STARTS = (
    (b"\x1a\x45\xdf\xa3", "mkv or webm"),
    (b"\x00\x00\x01\xba", "mpg"),
    (b"\x00\x00\x01\xb3", "mpg"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "wmv"),
    (b"FLV\x01", "flv"),
    (b"OggS", "ogv"),
)
_PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
_PQ, _HLG = 16, 18  # transfer characteristics of ITU-T H.273


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """What the container says about a video; only the picture size is to be relied on."""

    height: int
    """As shown, after rotation."""
    width: int
    nominal_fps: float
    declared_duration: float
    """Seconds; 0 when the container states none."""
    rotation: int
    """Degrees that the decoder turns the stored pictures by."""
    codec: str
    notes: tuple[str, ...] = ()
    """Sentences about dynamic range or interlacing that may spoil the pictures."""


class VideoReader:
    """Reads a video once, from its first frame to its last; use it in a ``with`` statement."""

    def __init__(self, path: Path, *, max_pixels: int = MAX_PIXELS) -> None:
        """Open a video.

        Raises:
            InputError: If the file is missing or unreadable.
            FileFormatError: If it is empty, no video, damaged, or its pictures are too large.
        """
        path = Path(path)
        kind = video_format(path)
        if kind is None:
            empty = path.stat().st_size == 0
            got = "an empty file" if empty else "other bytes"
            raise FileFormatError(
                f"{path.name}: expected a video ({SUPPORTED}), got {got}; check the file"
            )
        # The decoder's own messages say less than our errors do; read once, at its first use.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "8")
        capture = cv2.VideoCapture(str(path.resolve()), cv2.CAP_FFMPEG)
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        width, height = (
            int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        )
        if not capture.isOpened() or width < 1 or height < 1:
            capture.release()
            raise FileFormatError(
                f"{path.name}: expected a whole video, got a damaged or truncated {kind} file, or "
                "one with a codec that this OpenCV cannot decode; copy or convert it again"
            )
        if width * height > max_pixels:
            capture.release()
            raise FileFormatError(
                f"{path.name}: expected pictures of at most {max_pixels / 1e6:g} million pixels, "
                f"got {width} x {height}; convert it to a smaller size"
            )
        rate = capture.get(cv2.CAP_PROP_FPS)
        rate = rate if 0 < rate < 1e5 else 0.0
        count = max(capture.get(cv2.CAP_PROP_FRAME_COUNT), 0.0)
        self.path = path
        self.info = VideoInfo(
            height=height,
            width=width,
            nominal_fps=rate,
            declared_duration=count / rate if rate and count < 1e9 else 0.0,
            rotation=int(capture.get(cv2.CAP_PROP_ORIENTATION_META)),
            codec=_four_letters(int(capture.get(cv2.CAP_PROP_FOURCC))),
            notes=_container_notes(path),
        )
        self._capture = capture
        self._time: float | None = None

    def __enter__(self) -> "VideoReader":  # noqa: PYI034  # Self cannot be checked at run time
        """Return the reader."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._capture.release()

    def grab(self) -> float | None:
        """Decode the next frame; return its time in seconds, or None after the last one."""
        if not self._capture.grab():
            return None
        time = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if self._time is not None and not time > self._time:
            # Raw and some AVI streams carry no stamps at all; then the nominal rate is all there is.
            time = self._time + 1 / (self.info.nominal_fps or 30.0)
        self._time = time
        return time

    def retrieve(self) -> UInt8[np.ndarray, "height width 3"]:
        """Return the frame grabbed last, upright, in OpenCV's BGR order."""
        good, frame = self._capture.retrieve()
        if not good or frame is None:
            raise FileFormatError(f"{self.path.name}: a frame cannot be decoded; convert it again")
        return frame if frame.ndim == 3 else cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR)


def iterate_frames(
    path: Path, *, max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[int, float, UInt8[np.ndarray, "height width 3"]]]:
    """Yield (number, seconds, RGB picture) of every frame; errors as `VideoReader`."""
    with VideoReader(path, max_pixels=max_pixels) as video:
        number = 0
        while (time := video.grab()) is not None:
            yield number, time, cv2.cvtColor(video.retrieve(), cv2.COLOR_BGR2RGB)
            number += 1


def video_format(path: Path) -> str | None:
    """Return the kind of container by content, or None if the file is no video.

    Raises:
        InputError: If there is no such file or it cannot be read.
    """
    head = read_head(path)
    if head[4:8] in _BOXES and head[8:12] not in _STILL_OR_AUDIO:
        still = head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"heim")
        return None if still else "mp4 or mov"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    with path.open("rb") as file:
        marks = file.read(_HEAD_BYTES)
    for first, step in ((0, 188), (4, 192)):
        if len(marks) > first + step and marks[first] == marks[first + step] == 0x47:
            return "ts"
    return None


def is_video(path: Path) -> bool:
    """Say whether a readable file begins like a video."""
    try:
        return video_format(path) is not None
    except (InputError, OSError):
        return False


def _four_letters(code: int) -> str:
    text = struct.pack("<I", code & 0xFFFFFFFF).decode("latin1")
    return text if text.isprintable() else f"0x{code:08x}"


def _container_notes(path: Path) -> tuple[str, ...]:
    """Look for the marks of HDR and interlacing in an mp4 or mov file's sample descriptions."""
    try:
        with path.open("rb") as file:
            descriptions = list(_sample_descriptions(file, 0, path.stat().st_size))
    except (OSError, RecursionError):
        return ()
    notes = []
    for data in descriptions:
        at = data.find(b"colrnclx")
        transfer = int.from_bytes(data[at + 10 : at + 12], "big") if at >= 0 else 0
        if transfer in (_PQ, _HLG) or b"dvcC" in data or b"dvvC" in data:
            name = {_PQ: "PQ", _HLG: "HLG"}.get(transfer, "Dolby Vision")
            notes.append(
                f"{path.name} is HDR ({name}), which is not tone-mapped: colours will look flat; "
                "export it as SDR for true ones"
            )
        at = data.find(b"fiel")
        if at >= 0 and data[at + 4 : at + 5] == b"\x02":
            notes.append(interlaced_note(path))
    return tuple(dict.fromkeys(notes))


def interlaced_note(path: Path) -> str:
    """Return the warning about interlaced video."""
    return (
        f"{path.name} is interlaced: moving edges are combed, which costs accuracy; deinterlace it "
        "first (for instance with ffmpeg -vf yadif)"
    )


def _sample_descriptions(file: BufferedIOBase, first: int, stop: int) -> Iterator[bytes]:
    """Yield the content of every ``stsd`` box."""
    for kind, inner, end in iterate_boxes(file, first, stop):
        if kind in _PARENTS:
            yield from _sample_descriptions(file, inner, end)
        elif kind == b"stsd":
            yield read_box(file, inner, end)
