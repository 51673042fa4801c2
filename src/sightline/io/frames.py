"""Choose the frames of a video: by rate, number or interval; sharp ones; without blurred ones.

Two passes over the file: the first keeps a few numbers a frame, the second decodes what was chosen.
At no time is more than one frame held.

Without a request, one frame a second is taken, but at least ``DEFAULT_FRAMES`` where the clip can
give them at ``DENSEST_FPS`` or less. A 12-second clip thus gives 40 frames (3.3 a second), not 12:
a camera that is walked around something moves too far in a second for neighbours to overlap well,
and every 8th view may be held out. From 40 seconds on the rate is one frame a second.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8

from sightline.errors import FileFormatError, InputError
from sightline.io.decoding import MAX_PIXELS
from sightline.io.video import VideoInfo, VideoReader, interlaced_note
from sightline.protocols import Progress

DEFAULT_FPS = 1.0
DEFAULT_FRAMES = 40
DENSEST_FPS = 8.0

LUMA_LONG_SIDE = 512
"""Sharpness is measured at this size, so that it does not depend on the resolution."""

_NEIGHBOURS = 15
_BLURRED = 0.5  # of the median of its neighbours
_THUMBNAIL = (96, 54)
_SURVEYED = 128  # most thumbnails kept
_STILL = 2.5  # grey levels of 255 that noise and compression alone may cause
_COMB_TILE = 16
_CLOCK = re.compile(r"(?:(?:(\d+):)?(\d{1,2}):)?(\d+(?:\.\d*)?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameOptions:
    """Which frames of a video to take; at most one of the first three."""

    fps: float | None = None
    """Frames a second."""
    num_frames: int | None = None
    """This many, evenly spaced in time, the first and the last included."""
    every: int | None = None
    """Every K-th frame."""
    start: float | str | None = None
    """Seconds, or hh:mm:ss, from the start of the video."""
    end: float | str | None = None
    max_frames: int | None = None
    """Cap after selection; frames are left out evenly."""
    select: Literal["even", "sharp"] = "even"
    """``sharp`` takes the sharpest frame of each of as many equal windows of time."""
    reject_blurred: bool = True
    """Leave out frames less than half as sharp as their neighbourhood (at most half of all)."""
    min_sharpness: float = 0.0
    """Also leave out frames below this variance of the Laplacian."""
    allow_still: bool = False
    """Take videos whose camera stands still, which no reconstruction can use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One frame of a video."""

    number: int
    """From 0, in the order of the stream."""
    time: float
    """Seconds from the start."""
    sharpness: float
    """Variance of the Laplacian of the luma plane at ``LUMA_LONG_SIDE``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FramePlan:
    """The frames to take from one video."""

    path: Path
    info: VideoInfo
    frames: tuple[Frame, ...]
    rejected: tuple[Frame, ...]
    """Chosen but too blurred."""
    notes: tuple[str, ...]
    """Sentences for the user: defaults taken, frames rejected, trouble ahead."""

    def name(self, frame: Frame) -> str:
        """Return the file name of a frame, ``VIDEOSTEM_000123.png``."""
        return f"{self.path.stem}_{frame.number:06d}.png"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Survey:
    """What the first pass keeps, frame by frame within the requested span."""

    info: VideoInfo
    numbers: Int64[np.ndarray, " N"]
    times: Float[np.ndarray, " N"]
    scores: Float[np.ndarray, " N"]
    thumbnails: Float32[np.ndarray, "T h w"]
    combed: bool
    last_time: float


def plan_frames(
    path: Path,
    options: FrameOptions | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
) -> FramePlan:
    """Choose frames; reads the whole video once.

    Raises:
        InputError: If the options contradict each other or the video, if the file is missing,
            or if all frames are nearly the same picture.
        FileFormatError: If the file is no video or no frame of it can be decoded.
        Cancelled: If ``progress`` raises it.
    """
    options = options or FrameOptions()
    start, end = _check(options)
    survey = _survey(Path(path), start, end, max_pixels, progress)
    notes = list(survey.info.notes)
    if survey.combed:
        notes.append(interlaced_note(path))
    notes += _movement_notes(path, survey, allow_still=options.allow_still)
    chosen, note = _choose(path, survey.times, options)
    notes += [note] if note else []
    if options.select == "sharp":
        chosen = _sharpest(survey.times, survey.scores, len(chosen))
    kept, dropped = chosen, chosen[:0]
    if options.reject_blurred or options.min_sharpness > 0:
        kept, dropped = _reject(survey.scores, chosen, options)
    kept = spread(kept, options.max_frames)
    frames, rejected = (
        tuple(
            Frame(
                number=int(survey.numbers[i]),
                time=float(survey.times[i]),
                sharpness=float(survey.scores[i]),
            )
            for i in indices
        )
        for indices in (kept, dropped)
    )
    if rejected:
        shown = ", ".join(f"{f.number} ({f.sharpness:.3g})" for f in rejected)
        usual = float(np.median(survey.scores))
        notes.append(
            f"{path.name}: left out {len(rejected)} blurred frames of {len(chosen)}; frame "
            f"(sharpness): {shown}; the median is {usual:.3g}"
        )
    short = survey.info.declared_duration
    if end is None and survey.last_time < 0.9 * short - 1:
        notes.append(
            f"{path.name} ends at {survey.last_time:.1f} s, but should last {short:.1f} s: the "
            "file seems to be truncated"
        )
    return FramePlan(
        path=Path(path), info=survey.info, frames=frames, rejected=rejected, notes=tuple(notes)
    )


def read_frames(
    plan: FramePlan, *, max_pixels: int = MAX_PIXELS, progress: Progress | None = None
) -> Iterator[tuple[Frame, UInt8[np.ndarray, "height width 3"]]]:
    """Yield the planned frames in order with their RGB pictures; reads the video once more."""
    wanted = {frame.number: frame for frame in plan.frames}
    number = 0
    with VideoReader(plan.path, max_pixels=max_pixels) as video:
        while wanted and video.grab() is not None:
            frame = wanted.pop(number, None)
            number += 1
            if frame is not None:
                yield frame, cv2.cvtColor(video.retrieve(), cv2.COLOR_BGR2RGB)
                if progress is not None:
                    done = len(plan.frames) - len(wanted)
                    progress(f"read {plan.path.name}", float(done), float(len(plan.frames)))
    if wanted:
        raise FileFormatError(
            f"{plan.path.name}: expected {len(plan.frames)} frames, but the file changed while it "
            "was read; run again"
        )


def parse_time(text: float | str, option: str = "--start") -> float:
    """Return seconds from seconds, ``mm:ss`` or ``hh:mm:ss`` (with a fraction, if wished).

    Raises:
        InputError: If the text is neither.
    """
    match = _CLOCK.fullmatch(str(text).strip())
    if not match:
        raise InputError(f"{option} must be seconds or hh:mm:ss, got {text!r}")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def sharpness(luma: UInt8[np.ndarray, "height width"]) -> float:
    """Return the variance of the Laplacian, after the long side came down to ``LUMA_LONG_SIDE``.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000.
    """
    return float(cv2.Laplacian(_shrink(luma, LUMA_LONG_SIDE), cv2.CV_32F).var())


def spread(indices: Int64[np.ndarray, " N"], limit: int | None) -> Int64[np.ndarray, " M"]:
    """Return at most ``limit`` of the indices, evenly, the first and the last included."""
    if limit is None or len(indices) <= limit:
        return indices
    return indices[np.rint(np.linspace(0, len(indices) - 1, limit)).astype(np.int64)]


def _check(options: FrameOptions) -> tuple[float, float | None]:
    given = {
        "--fps": options.fps,
        "--num-frames": options.num_frames,
        "--every": options.every,
    }
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise InputError(f"{' and '.join(named)} contradict each other; give one of them")
    for name, value in (given | {"--max-frames": options.max_frames}).items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} must be above 0, got {value}")
    start = parse_time(options.start, "--start") if options.start is not None else 0.0
    end = parse_time(options.end, "--end") if options.end is not None else None
    if end is not None and end <= start:
        raise InputError(f"--end ({end:g} s) must come after --start ({start:g} s)")
    return start, end


def _survey(
    path: Path, start: float, end: float | None, max_pixels: int, progress: Progress | None
) -> _Survey:
    numbers: list[int] = []
    times: list[float] = []
    scores: list[float] = []
    thumbnails: list[Float32[np.ndarray, "h w"]] = []
    combs: list[float] = []
    stride, number, time, last = 1, -1, 0.0, 0.0
    slack = 1e-6
    with VideoReader(path, max_pixels=max_pixels) as video:
        length = end if end is not None else video.info.declared_duration
        while (now := video.grab()) is not None:
            number, time = number + 1, now
            if end is not None and time > end + slack:
                break
            last = time
            if progress is not None and number % 8 == 0:
                progress(f"survey {path.name}", min(time, length), max(length, slack))
            if time < start - slack:
                continue
            luma = cv2.cvtColor(video.retrieve(), cv2.COLOR_BGR2GRAY)
            small = _shrink(luma, LUMA_LONG_SIDE)
            if len(numbers) % stride == 0:
                size = _THUMBNAIL if small.shape[1] >= small.shape[0] else _THUMBNAIL[::-1]
                thumbnail = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
                thumbnails.append(thumbnail.astype(np.float32))
                if len(thumbnails) % 4 == 1:
                    combs.append(_combed_share(luma))
                if len(thumbnails) == _SURVEYED:  # keep every second one, from now on too
                    thumbnails, stride = thumbnails[::2], stride * 2
            numbers.append(number)
            times.append(time)
            scores.append(sharpness(small))
    if number < 0:
        raise FileFormatError(
            f"{path.name}: expected a video, but none of its frames can be decoded; the file is "
            "damaged or truncated: copy or convert it again"
        )
    if not numbers:
        raise InputError(f"--start ({start:g} s) lies after the end of {path.name} ({last:.1f} s)")
    return _Survey(
        info=video.info,
        numbers=np.array(numbers),
        times=np.array(times),
        scores=np.array(scores),
        thumbnails=np.stack(thumbnails),
        combed=float(np.median(combs)) > 0.02,
        last_time=last,
    )


def _shrink(luma: UInt8[np.ndarray, "h w"], long_side: int) -> UInt8[np.ndarray, "h2 w2"]:
    height, width = luma.shape
    scale = long_side / max(height, width)
    if scale >= 1:
        return luma
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(luma, size, interpolation=cv2.INTER_AREA)


def _combed_share(luma: UInt8[np.ndarray, "h w"]) -> float:
    """Return the share of tiles in which lines differ more from the next than from the next but one.

    That is what motion between the two fields of an interlaced frame looks like.
    """
    height, width = (n // _COMB_TILE for n in luma.shape)
    if height < 4 or width < 4:
        return 0.0
    near, far = (
        cv2.resize(
            cv2.absdiff(luma[2 - step : len(luma) - step], luma[2:]).astype(np.float32),
            (width, height),
            interpolation=cv2.INTER_AREA,
        )
        for step in (1, 2)
    )
    return float(np.mean((near > 8) & (near > 2 * far)))


def _movement_notes(path: Path, survey: _Survey, *, allow_still: bool) -> list[str]:
    """Refuse a video of one picture; warn when only the background stands still."""
    thumbnails = survey.thumbnails
    if len(thumbnails) < 2:
        return []
    if (survey.scores == survey.scores[0]).all() and (thumbnails == thumbnails[0]).all():
        # OpenCV's decoder silently hands out one stale picture for streams marked as interlaced.
        raise InputError(
            f"{path.name}: every frame decodes to exactly the same picture; if the video moves, it "
            "is interlaced, which cannot be decoded here: deinterlace it first (for instance with "
            f"ffmpeg -i {path.name} -vf yadif progressive.mp4)"
        )
    if allow_still:
        return []
    # Textured pixels change when the camera moves; plain sky or wall does not in any case.
    mean = thumbnails.mean(0)
    gradient = np.hypot(*np.gradient(mean))
    textured = gradient >= np.quantile(gradient, 0.75)
    exposure = thumbnails.mean(axis=(1, 2), keepdims=True)
    change = (thumbnails - exposure)[:, textured].std(0)
    if np.quantile(change, 0.9) < _STILL:
        raise InputError(
            f"{path.name}: all frames show nearly the same picture, so the camera does not move; "
            "film while walking around the scene"
        )
    if np.median(change) < _STILL:
        note = (
            f"{path.name}: the camera hardly seems to move (only part of the picture changes); "
            "reconstruction needs views from different places"
        )
        return [note]
    return []


def _choose(
    path: Path, times: Float[np.ndarray, " N"], options: FrameOptions
) -> tuple[Int64[np.ndarray, " M"], str | None]:
    """Return the positions in ``times`` to take, and a sentence where that is not as asked."""
    count, first, last = len(times), times[0], times[-1]
    if options.every is not None:
        return np.arange(0, count, options.every), None
    if options.num_frames is not None:
        if options.num_frames > count:
            note = f"{path.name} has only {count} frames in that span; took all of them"
            return np.arange(count), note
        return _evenly(times, options.num_frames), None
    span = last - first
    if options.fps is not None:
        return _by_rate(times, options.fps), None
    rate = float(np.clip(DEFAULT_FRAMES / max(span, 1e-6), DEFAULT_FPS, DENSEST_FPS))
    if rate == DEFAULT_FPS:
        return _by_rate(times, rate), None
    number = min(DEFAULT_FRAMES, count, int(span * rate) + 1)
    if options.max_frames is not None and options.max_frames < number:
        return _evenly(times, number), None
    note = (
        f"{path.name} is short ({span:.1f} s): took {number} frames, {rate:.1f} a second instead "
        f"of {DEFAULT_FPS:g}; choose with --fps, --num-frames or --every"
    )
    return _evenly(times, number), note


def _by_rate(times: Float[np.ndarray, " N"], fps: float) -> Int64[np.ndarray, " M"]:
    number = int((times[-1] - times[0]) * fps + 1e-6) + 1
    if number > 50 * len(times):  # far above the video's own rate
        return np.arange(len(times))
    return np.unique(_nearest(times, times[0] + np.arange(number) / fps))


def _evenly(times: Float[np.ndarray, " N"], number: int) -> Int64[np.ndarray, " M"]:
    """Return exactly ``number`` different frames nearest to even times, first and last included."""
    if number == 1:
        return np.zeros(1, np.int64)
    wanted = _nearest(times, np.linspace(times[0], times[-1], number))
    taken = np.empty(number, np.int64)
    previous = -1
    for i, index in enumerate(wanted):  # gaps in the time stamps would give a frame twice
        previous = min(max(int(index), previous + 1), len(times) - (number - i))
        taken[i] = previous
    return taken


def _nearest(
    times: Float[np.ndarray, " N"], targets: Float[np.ndarray, " M"]
) -> Int64[np.ndarray, " M"]:
    right = np.clip(np.searchsorted(times, targets), 1, max(len(times) - 1, 1))
    if len(times) == 1:
        return np.zeros(len(targets), np.int64)
    left = right - 1
    return np.where(targets - times[left] <= times[right] - targets, left, right)


def _sharpest(
    times: Float[np.ndarray, " N"], scores: Float[np.ndarray, " N"], windows: int
) -> Int64[np.ndarray, " M"]:
    edges = np.linspace(times[0], times[-1], windows + 1)
    window = np.clip(np.searchsorted(edges, times, side="right") - 1, 0, windows - 1)
    best: dict[int, int] = {}
    for i, w in enumerate(window.tolist()):
        if w not in best or scores[i] > scores[best[w]]:
            best[w] = i
    return np.array(sorted(best.values()), np.int64)


def _reject(
    scores: Float[np.ndarray, " N"], chosen: Int64[np.ndarray, " M"], options: FrameOptions
) -> tuple[Int64[np.ndarray, " K"], Int64[np.ndarray, " R"]]:
    """Split the chosen frames into kept and rejected ones; never rejects more than half."""
    ratio = np.full(len(chosen), np.inf)  # of the median of the neighbours, below 0.5 is blurred
    for k, i in enumerate(chosen.tolist()):
        near = np.r_[scores[max(0, i - _NEIGHBOURS) : i], scores[i + 1 : i + 1 + _NEIGHBOURS]]
        if options.reject_blurred and near.size and (usual := float(np.median(near))) > 0:
            ratio[k] = scores[i] / usual
    blurred = (ratio < _BLURRED) | (scores[chosen] < options.min_sharpness)
    worst_first = np.lexsort((scores[chosen], np.minimum(ratio, _BLURRED), ~blurred))
    rejected = np.sort(worst_first[: min(int(blurred.sum()), len(chosen) // 2)])
    return np.delete(chosen, rejected), chosen[rejected]
