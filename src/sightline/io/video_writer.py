"""Write rendered videos: VP9 in mp4, which browsers play, or H.264 where a program can make it.

OpenCV's wheels encode VP9 but no H.264; that needs an ``ffmpeg`` program or PyAV on the machine.
Files say which matrix made their colours (BT.601 by OpenCV, BT.709 by the others), since players
that have to guess go by the picture's size and shift reds and greens.
"""

import importlib.util
import mmap
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from jaxtyping import UInt8

from sightline.errors import InputError, OutputError, ShapeError
from sightline.io.atomic import atomic_path

Codec = Literal["vp9", "h264", "auto"]

H264_QUALITY = 18
"""Constant rate factor of x264: visually lossless for renders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenVideo:
    """What was written."""

    path: Path
    codec: str
    """``vp9`` or ``h264``."""
    encoder: str
    """``opencv``, ``ffmpeg`` or ``pyav``."""
    num_frames: int
    height: int
    width: int
    fps: float


class _Encoder(Protocol):
    def write(self, frame: UInt8[np.ndarray, "h w 3"]) -> None: ...

    def close(self) -> None: ...


def write_video(
    path: Path,
    frames: Iterable[UInt8[np.ndarray, "height width 3"]],
    fps: float = 30.0,
    *,
    codec: Codec = "vp9",
) -> WrittenVideo:
    """Write RGB frames as one mp4 file, in one step.

    Args:
        path: Ends in ``.mp4``.
        frames: At least one; all of one size. An odd last row or column is repeated, since the
            codecs need even sizes.
        fps: Frames a second.
        codec: ``vp9``; ``h264``, if this machine can; ``auto`` takes H.264 if it can, else VP9.

    Raises:
        InputError: If H.264 is asked for and there is no encoder, or an argument is out of range.
        ShapeError: If the frames differ in size.
        OutputError: If the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise InputError(f"videos are written as .mp4, got {path.name}; change the name")
    if not 0 < fps <= 1000:
        raise InputError(f"--fps must be above 0 and at most 1000, got {fps:g}")
    encoder = _choose(codec)
    count, size, even = 0, (0, 0), (0, 0)
    with atomic_path(path) as tmp:
        writer: _Encoder | None = None
        try:
            for frame in frames:
                if count == 0:
                    size = frame.shape[:2]
                    even = (size[0] + size[0] % 2, size[1] + size[1] % 2)
                    writer = _ENCODERS[encoder](tmp, *even, fps)
                if frame.shape != (*size, 3):
                    raise ShapeError(
                        f"frames must be [H W 3] = {[*size, 3]} like the first, got "
                        f"{list(frame.shape)} for frame {count}"
                    )
                assert writer is not None
                writer.write(_even(frame))
                count += 1
        finally:
            if writer is not None:
                writer.close()
        if count == 0:
            raise InputError("a video needs at least one frame, got none")
        if not tmp.is_file() or tmp.stat().st_size == 0:
            raise OutputError(f"cannot write {path}: the {encoder} encoder made no file")
        if encoder == "opencv":
            _tag_colours(tmp)
    return WrittenVideo(
        path=path,
        codec="vp9" if encoder == "opencv" else "h264",
        encoder=encoder,
        num_frames=count,
        height=even[0],
        width=even[1],
        fps=fps,
    )


def h264_encoder() -> str | None:
    """Return what can write H.264 on this machine: ``ffmpeg``, ``pyav`` or None."""
    program = shutil.which("ffmpeg")
    if program is not None:
        listed = subprocess.run(
            [program, "-hide_banner", "-encoders"], capture_output=True, text=True, check=False
        )
        if "libx264" in listed.stdout:
            return "ffmpeg"
    return "pyav" if importlib.util.find_spec("av") is not None else None


def _choose(codec: Codec) -> str:
    if codec == "vp9":
        return "opencv"
    found = h264_encoder()
    if found is None and codec == "h264":
        raise InputError(
            "H.264 needs an ffmpeg program with libx264, or the av package, and there is neither; "
            "install one, or write VP9"
        )
    return found or "opencv"


def _even(frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    height, width = frame.shape[:2]
    if height % 2 or width % 2:
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(frame)


class _OpenCV:
    def __init__(self, path: Path, height: int, width: int, fps: float) -> None:
        code = cv2.VideoWriter.fourcc(*"vp09")
        self._writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, fps, (width, height))
        if not self._writer.isOpened():
            raise OutputError(f"cannot write {path.parent}: this OpenCV has no VP9 encoder")

    def write(self, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        self._writer.release()


def _tag_colours(path: Path) -> None:
    """Complete the ``vpcC`` box, where OpenCV leaves primaries, transfer and matrix unspecified."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        at = data.rfind(b"vpcC", data.rfind(b"moov"))
        # After the name: version and flags (4 bytes), profile, level, depth, then the three codes
        # of ITU-T H.273: BT.709 primaries, the sRGB curve, the BT.601 matrix.
        if at > 0 and data[at + 11 : at + 14] == b"\x02\x02\x02":
            data[at + 11 : at + 14] = b"\x01\x0d\x06"


class _Ffmpeg:
    def __init__(self, path: Path, height: int, width: int, fps: float) -> None:
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
        colours = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]
        command = [
            shutil.which("ffmpeg") or "ffmpeg",
            *("-hide_banner", "-loglevel", "error", "-nostdin", "-y"),
            *(*source, "-r", repr(fps), "-i", "-"),
            *("-vf", "scale=out_color_matrix=bt709:out_range=tv", "-c:v", "libx264"),
            *("-crf", str(H264_QUALITY), "-pix_fmt", "yuv420p", *colours),
            *("-movflags", "+faststart", str(path)),
        ]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def write(self, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(frame.tobytes())
        except BrokenPipeError:
            self.close()

    def close(self) -> None:
        if self._process.returncode is not None:  # closed, and reported, before
            return
        _, said = self._process.communicate()
        if self._process.returncode:
            text = " ".join(said.decode(errors="replace").split())[-300:]
            raise OutputError(f"ffmpeg could not write the video ({text}); check the disk")


class _PyAV:
    def __init__(self, path: Path, height: int, width: int, fps: float) -> None:
        from fractions import Fraction

        import av  # pyright: ignore[reportMissingImports]

        self._av = av
        self._file: Any = av.open(str(path), "w", options={"movflags": "faststart"})
        self._stream: Any = self._file.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001)
        )
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": str(H264_QUALITY)}
        context = self._stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1

    def write(self, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        picture = self._av.VideoFrame.from_ndarray(frame, format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709")
        for packet in self._stream.encode(picture):
            self._file.mux(packet)

    def close(self) -> None:
        for packet in self._stream.encode(None):
            self._file.mux(packet)
        self._file.close()


_ENCODERS = {"opencv": _OpenCV, "ffmpeg": _Ffmpeg, "pyav": _PyAV}
