"""How much memory a job will take, before it starts, and what would fit where it is too much.

These are estimates from sizes: the process with its libraries, the weights, what a network holds a
view (as in `reconstruction.learned.memory`), pictures, and splats with their gradients and moments.
They err on the high side, and only stop a job that would take more than there is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.errors import OutOfMemoryError, SightlineError
from sightline.hub.catalogue import CATALOGUE
from sightline.io.decoding import image_format, open_plugin, read_head
from sightline.io.video import is_video
from sightline.run import free_memory_bytes

_PROCESS = 0.6e9
"""Python with torch, numba and OpenCV."""
_SFM_PIXEL, _SFM_PROCESS = 60.0, 0.3e9
"""Of the largest photo: a scale space of floats, for each of two threads."""
_VIEW_PIXEL = 80.0
"""Bytes a fitted pixel: the picture, its mask, depth, points, and a copy while stages change."""
_SPLAT = 1300.0
"""Bytes a splat: 38 floats with gradient, two moments and a copy, and the rasteriser's lists."""
_STEP_PIXEL = 400.0
"""Bytes a pixel of the view at work in a step of optimisation."""
_NETWORK_VIEW = {"vggt": 0.16e9, "vggt-omega": 0.16e9, "dust3r": 0.12e9, "mast3r": 0.2e9}
_NETWORK_HEAD = 0.9e9
_WEIGHTS = {
    "vggt": "vggt_1b",
    "vggt-omega": "vggt_omega_1b_512",
    "dust3r": "DUSt3R_ViTLarge_BaseDecoder_512_dpt",
    "mast3r": "MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric",
    "splatt3r": "splatt3r_v1.0",
}
_CPU_SIDE, _GPU_SIDE = 480, 1600
_CPU_SPLATS, _GPU_SPLATS = 200_000, 1_000_000
_VIDEO_VIEWS = 60
"""What a video gives where no option says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes that a job takes, and that there are."""

    need: float
    free: float | None
    """None where the system does not tell."""
    views: int = 0
    fixed: float = 0.0
    """Part of ``need`` that does not grow with views."""
    options: Mapping[str, Any] = field(default_factory=dict)
    side: int = 0

    @property
    def fits(self) -> bool:
        """Whether it is likely to fit."""
        return self.free is None or self.need <= self.free

    def suggestions(self) -> list[dict[str, Any]]:
        """Return changes of options that would fit, the mildest first."""
        if self.free is None or self.views < 2:
            return []
        found: list[dict[str, Any]] = []
        free = 0.9 * self.free
        each = (self.need - self.fixed) / self.views
        if "memory_limit" not in self.options and self.options.get("geometry") in _NETWORK_VIEW:
            found.append({"memory_limit": round(free / 1e9, 1)})
        if self.fixed < free and each > 0:
            fit = int((free - self.fixed) / each)
            if 2 <= fit < self.views:
                found.append({"max_frames": fit})
        if self.side > 320:
            found.append({"resolution": max(240, self.side // 2)})
        return found

    def sentence(self, reason: str) -> str:
        """Return what a user is told where it does not fit."""
        words = [
            " ".join(f"--{name.replace('_', '-')} {value}" for name, value in change.items())
            for change in self.suggestions()
        ]
        remedy = f"; try {' or '.join(words)}" if words else "; close other programs"
        have = "" if self.free is None else f" of {self.free / 1e9:.1f} GB"
        return f"{reason}: about {self.need / 1e9:.1f} GB{have} needed{remedy}"

    def require(self) -> None:
        """Refuse what will not fit.

        Raises:
            OutOfMemoryError: With what would fit.
        """
        if not self.fits:
            raise OutOfMemoryError(self.sentence("this would not fit into memory"))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "need": round(self.need),
            "free": None if self.free is None else round(self.free),
            "views": self.views,
            "fits": self.fits,
        }


def estimate(
    kind: str, options: Mapping[str, Any], inputs: Sequence[Path], scene: Path | None
) -> MemoryEstimate:
    """Return the estimate of one job; kinds of bounded size count by their process and weights."""
    sizes = [size for path in inputs if (size := _picture_size(path)) is not None]
    videos = sum(is_video(path) for path in inputs)
    views = len(sizes) + videos * _frames(options)
    cap = options.get("max_frames") or options.get("max_video_frames")
    if cap is not None:
        views = min(views, int(cap))
    largest = max((w * h for w, h in sizes), default=2_000_000 if videos else 0)
    fixed, each, side = _PROCESS, 0.0, 0
    if kind == "demo":
        views, fixed = 24, fixed + 0.3e9
    if kind in ("reconstruct", "probe-demo", "probe-run"):
        gpu = options.get("device") == "cuda"
        side = int(options.get("resolution") or (_GPU_SIDE if gpu else _CPU_SIDE))
        pixels = min(0.75 * side**2, largest or 0.75 * side**2)
        geometry = str(options.get("geometry", "auto"))
        fixed += _geometry(geometry, largest)
        each = _VIEW_PIXEL * pixels + _NETWORK_VIEW.get(geometry, 0.0)
        if options.get("splats", "optimize") == "optimize":
            most = int(options.get("max_splats") or (_GPU_SPLATS if gpu else _CPU_SPLATS))
            fixed += _SPLAT * most + _STEP_PIXEL * pixels
    elif kind == "prepare":
        fixed += 4 * 12.0 * largest  # four threads, each with a picture in floats
    elif kind in ("features", "segment-predict", "segment-fit"):
        fixed += _backbone(str(options.get("backbone", ""))) + 12.0 * largest
        each = 2e6
    elif kind == "models-check":
        fixed += sum(path.stat().st_size for path in inputs)
    elif kind in ("render", "export", "segment-lift") and scene is not None:
        fixed += 6.0 * _scene_bytes(scene)
    free = free_memory_bytes()
    need = fixed + each * views
    return MemoryEstimate(
        need=need, free=free, views=views, fixed=fixed, options=dict(options), side=side
    )


def _geometry(name: str, largest: int) -> float:
    if name in _WEIGHTS:
        entry = CATALOGUE.get(_WEIGHTS[name])
        return (entry.memory if entry is not None else 3e9) + _NETWORK_HEAD
    return _SFM_PROCESS + 2 * _SFM_PIXEL * min(largest, 3200 * 2400)


def _backbone(name: str) -> float:
    entry = CATALOGUE.get(name.partition(":")[2] or name)
    return 1.5 * entry.memory if entry is not None else 0.5e9


def _frames(options: Mapping[str, Any]) -> int:
    chosen = options.get("num_frames") or options.get("max_frames")
    return int(chosen or options.get("max_video_frames") or _VIDEO_VIEWS)


def _scene_bytes(run: Path) -> int:
    names = ("splats.ply", "geometry.npz", "features.npz")
    return sum((run / n).stat().st_size for n in names if (run / n).is_file())


def _picture_size(path: Path) -> tuple[int, int] | None:
    """Return width and height of a picture from its first bytes, None for what is no picture."""
    try:
        kind = image_format(read_head(path))
        if kind is None or kind == "heif":
            return None if kind is None else (4032, 3024)
        with path.open("rb") as file, open_plugin(kind, file) as image:
            return image.size
    except (SightlineError, OSError, ValueError, SyntaxError):
        return None
