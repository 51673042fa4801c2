"""The options of ``prepare``: one torch-free record for Python, command line and YAML."""

import math
import re
from dataclasses import dataclass, fields
from typing import Any, Literal

from sightline.errors import InputError
from sightline.options import option

_NOT_CONTENT = ("workers", "cluster")
"""Options that change how the work is done, never what comes out."""

_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeChoice:
    """How stored values become 8-bit ones, read from ``--range``."""

    kind: Literal["auto", "percentile", "fixed", "celsius"] = "auto"
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """Everything that decides what ``prepare`` makes from its inputs.

    Raises:
        InputError: If two options contradict each other or one is out of range.
    """

    size: int = option(256, "side in pixels of the prepared pictures; 0 keeps their own size")
    mode: Literal["resize", "crop", "pad"] = option(
        "resize",
        "resize: the long side becomes --size; crop: the short side does, and the middle square is "
        "kept; pad: the long side does, in a black square whose border is masked",
    )
    keep_16bit: bool = option(
        False, "write 16-bit pictures of deep sources: raw counts where the source has 16 bits"
    )
    range: str = option(
        "auto",
        "deep pictures: auto, percentiles as 1%,99%, raw values as 20000,30000, or degrees as "
        "10C,40C (value x --gain + --offset)",
    )
    gain: float | None = option(None, "degrees Celsius a raw count, for --range in degrees")
    offset: float | None = option(None, "degrees Celsius of raw count 0, for --range in degrees")
    local_contrast: bool = option(
        False, "thermal: even out contrast locally (CLAHE) after the stretch; see raw/ for values"
    )
    bands: str | None = option(
        None,
        "rasters: bands shown as red, green and blue, from 0 or by name (3,2,1); further ones, or "
        "all, are kept beside in bands/",
    )
    tile: int | None = option(None, "rasters: cut into tiles of this many pixels, not resized")
    overlap: int = option(0, "rasters: pixels that neighbouring tiles share")
    max_video_frames: int = option(32, "most frames of each video, evenly spread")
    fps: float | None = option(None, "video: frames a second")
    num_frames: int | None = option(None, "video: this many frames, evenly spread")
    every: int | None = option(None, "video: every K-th frame")
    start: str | None = option(None, "video: first time used, seconds or hh:mm:ss")
    end: str | None = option(None, "video: last time used, seconds or hh:mm:ss")
    select: Literal["even", "sharp"] = option(
        "even", "video: evenly spaced frames, or the sharpest of each window"
    )
    metadata_json: str | None = option(
        None, "what you know of the files: one JSON file, or a folder of NAME.json"
    )
    strict: bool = option(False, "stop where metadata and files do not match each other")
    alpha: Literal["white", "black", "ignore"] = option(
        "white", "what shows through transparent pixels; ignore drops the alpha plane"
    )
    val_split: float = option(0.0, "share of the records for validation, 0 to 1")
    seed: int = option(0, "seed of the split")
    dedup: bool = option(False, "leave out pictures that look like an earlier one")
    dedup_distance: int = option(4, "bits of 64 in which perceptual hashes of duplicates differ")
    min_sharpness: float = option(0.0, "leave out pictures and frames that are less sharp")
    keep_going: bool = option(False, "skip unreadable files instead of stopping")
    workers: int | None = option(None, "threads; default: the cores, at most 4")
    cluster: str | None = option(
        None, "spread the work over a Ray cluster that shares the disk: auto, or its address"
    )

    def __post_init__(self) -> None:
        """Refuse contradictions early, before any work."""
        chosen = [n for n in ("fps", "num_frames", "every") if getattr(self, n) is not None]
        if len(chosen) > 1:
            names = " and ".join(_flag(n) for n in chosen)
            raise InputError(f"frames are chosen by one rule, got {names}; keep one of them")
        for name, low, high in (
            ("size", 0, 65535),
            ("tile", 16, 65535),
            ("overlap", 0, 65535),
            ("max_video_frames", 1, 10**6),
            ("num_frames", 1, 10**6),
            ("every", 1, 10**9),
            ("val_split", 0.0, 1.0),
            ("seed", 0, 2**63),
            ("dedup_distance", 0, 64),
            ("min_sharpness", 0.0, 1e12),
            ("workers", 1, 1024),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"{_flag(name)} must be {low} to {high}, got {value}; change it")
        if self.fps is not None and not 0 < self.fps < 1000:
            raise InputError(f"--fps must be above 0 and below 1000, got {self.fps}; change it")
        if self.overlap and (self.tile is None or self.overlap >= self.tile):
            raise InputError(
                f"--overlap must be less than --tile, got {self.overlap} and {self.tile}; lower it"
            )
        if self.size == 0 and self.mode != "resize":
            raise InputError(f"--mode {self.mode} needs a --size above 0; give one")
        for name in ("gain", "offset"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise InputError(f"{_flag(name)} must be finite, got {value}; change it")
        self.range_choice()

    def range_choice(self) -> RangeChoice:
        """Return what ``--range`` asks for.

        Raises:
            InputError: If it has none of the four forms.
        """
        if self.range == "auto":
            return RangeChoice()
        match = re.fullmatch(rf"({_NUMBER})(%|C|), ?({_NUMBER})(%|C|)", self.range)
        if not match or match[2] != match[4] or not float(match[1]) < float(match[3]):
            raise InputError(
                f'--range expects auto, 1%,99% or 20000,30000 or 10C,40C, got "{self.range}"; '
                "give the lower value first"
            )
        low, high = float(match[1]), float(match[3])
        if match[2] == "%":
            if low < 0 or high > 100:
                raise InputError(f'--range in percent must be 0 to 100, got "{self.range}"')
            return RangeChoice(kind="percentile", low=low, high=high)
        if match[2] == "C":
            if self.gain is None or self.gain <= 0 or self.offset is None:
                raise InputError(
                    f"--range {self.range} needs --gain above 0 (degrees a count) and --offset (degrees of "
                    "count 0); for many cameras they are 0.04 and -273.15"
                )
            return RangeChoice(kind="celsius", low=low, high=high)
        return RangeChoice(kind="fixed", low=low, high=high)

    def content(self) -> dict[str, Any]:
        """Return the options that decide what is made, as plain values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_CONTENT}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
