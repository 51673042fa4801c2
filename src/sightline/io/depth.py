"""Depth and normal maps as pictures and arrays.

Depth is z-depth. A 16-bit PNG holds ``round(depth / scale)``, 0 where there is none; the scale
lies beside it in ``scale.json``. An ``.npz`` holds the exact values with camera and confidence.
"""

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from sightline.errors import InputError, OutputError
from sightline.io.arrays import read_npz, write_npz
from sightline.io.atomic import atomic_write_bytes, atomic_write_text
from sightline.io.images import MAX_PIXELS, read_samples
from sightline.io.reading import bad_file, check_file, read_whole
from sightline.io.splat_arrays import to_bytes, to_numpy
from sightline.types import TensorStruct

log = logging.getLogger(__name__)

MILLIMETRE = 0.001
_LEVELS = 65535
_PREVIEW_RANGE = (2.0, 98.0)  # percentiles of inverse depth that span the colours


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DepthView(TensorStruct):
    """What a view's ``.npz`` holds."""

    depth: Float[Tensor, "H W"]
    K: Float[Tensor, "3 3"]
    """At the depth map's size."""
    w2c: Float[Tensor, "4 4"]
    confidence: Float[Tensor, "H W"] | None = None


def choose_depth_scale(depth: Float[Tensor, "*shape"], *, metric: bool) -> float:
    """Return the scene units a step: a millimetre, or the finest 1-2-5 step that reaches all.

    Args:
        depth: All maps of the scene; zero, negative and not finite mean missing.
        metric: True when the scene's unit is a metre.
    """
    if metric:
        return MILLIMETRE
    known = depth[torch.isfinite(depth) & (depth > 0)]
    if known.numel() == 0:
        return MILLIMETRE
    step = float(known.max()) / _LEVELS
    power = 10.0 ** math.floor(math.log10(step))
    return float(next(f"{m * power:.1g}" for m in (1, 2, 5, 10) if m * power >= step * 0.999999))


def write_depth_png(path: Path, depth: Float[Tensor, "H W"], scale: float = MILLIMETRE) -> None:
    """Write z-depth as a 16-bit PNG.

    Args:
        path: The ``.png`` file.
        depth: Scene units; zero, negative and not finite mean missing and become 0.
        scale: Scene units a step. What is beyond 65535 steps is saturated, with a warning; what is
            nearer than half a step becomes 1, since 0 means missing.

    Raises:
        InputError: If the scale is not positive.
        OutputError: If the file cannot be written.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(f"the depth scale must be above 0, got {scale}; use 0.001 for millimetres")
    values = to_numpy(depth).astype(np.float64)
    known = np.isfinite(values) & (values > 0)
    steps = np.rint(np.where(known, values, 0) / scale)
    beyond = int((steps > _LEVELS).sum())
    if beyond:
        log.warning(
            "%s: %d pixels are beyond %g and were set to it; use a larger scale",
            path.name,
            beyond,
            _LEVELS * scale,
        )
    coded = np.where(known, steps.clip(1, _LEVELS), 0).astype(np.uint16)
    _write_png(path, coded)


def read_depth_png(path: Path, scale: float = MILLIMETRE) -> Float[Tensor, "H W"]:
    """Return z-depth in scene units, 0 where missing.

    Raises:
        InputError: If the file is missing.
        FileFormatError: If it is no picture, damaged, or not 16-bit with one channel.
    """
    samples = _read_map(path)
    if samples.dtype != np.uint16 or samples.shape[-1] != 1:
        got = f"{samples.dtype} with {samples.shape[-1]} channels"
        raise bad_file(path, "a 16-bit picture with one channel", got, "give a depth map")
    return torch.from_numpy(samples[..., 0].astype(np.float32) * np.float32(scale))


def write_depth_scale(folder: Path, scale: float, *, metric: bool) -> Path:
    """Write ``scale.json``: units a step, the unit and the value that means missing."""
    path = folder / "scale.json"
    fields = {"scale": scale, "unit": "m" if metric else "scene", "invalid": 0}
    atomic_write_text(path, json.dumps(fields) + "\n")
    return path


def read_depth_scale(folder: Path) -> tuple[float, bool]:
    """Return the scale that lies beside depth pictures, and whether its unit is a metre.

    Raises:
        InputError: If there is none.
        FileFormatError: If it is damaged.
    """
    path = folder / "scale.json"
    if check_file(path) > 1 << 16:
        raise bad_file(path, "a few lines of JSON", "more")
    try:
        fields = json.loads(read_whole(path))
        scale, unit = fields["scale"], fields["unit"]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise bad_file(path, 'JSON like {"scale": 0.001, "unit": "m"}', "something else") from error
    if type(scale) not in (int, float) or not 1e-12 < scale < 1e12 or unit not in ("m", "scene"):
        raise bad_file(path, "a positive scale and the unit m or scene", f"{scale} and {unit}")
    return float(scale), unit == "m"


def write_depth_npz(path: Path, view: DepthView) -> None:
    """Write exact depth (float32) with camera and, where known, confidence."""
    arrays = {
        "depth": to_numpy(view.depth),
        "K": view.K.detach().cpu().double().numpy(),
        "w2c": view.w2c.detach().cpu().double().numpy(),
    }
    if view.confidence is not None:
        arrays["confidence"] = to_numpy(view.confidence)
    write_npz(path, arrays)


def read_depth_npz(path: Path) -> DepthView:
    """Read what `write_depth_npz` wrote.

    Raises:
        InputError: If the file is missing.
        FileFormatError: If it is damaged or shapes contradict each other.
    """
    arrays = read_npz(path)
    shape = arrays["depth"].shape if "depth" in arrays else ()
    want = {"depth": shape, "K": (3, 3), "w2c": (4, 4)}
    want |= {"confidence": shape} if "confidence" in arrays else {}
    got = {name: arrays[name].shape for name in want if name in arrays}
    floats = all(arrays[name].dtype.kind == "f" for name in got)
    if len(shape) != 2 or got != want or not floats:
        raise bad_file(path, "depth [H W], K [3 3] and w2c [4 4] as floats", f"{got}")
    tensors = {name: torch.from_numpy(arrays[name].astype("=f8")) for name in ("K", "w2c")}
    for name in want.keys() - tensors.keys():
        tensors[name] = torch.from_numpy(arrays[name].astype("=f4"))
    return DepthView(**tensors)


def depth_preview(depth: Float[Tensor, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Colour inverse depth in turbo, near is red, between its 2nd and 98th percentile.

    Missing pixels are mid grey.
    """
    values = to_numpy(depth).astype(np.float64)
    known = np.isfinite(values) & (values > 0)
    inverse = 1 / np.where(known, values, 1)
    low, high = np.percentile(inverse[known], _PREVIEW_RANGE) if known.any() else (0.0, 1.0)
    levels = to_bytes(255 * (inverse - low) / max(high - low, 1e-12))
    colors = cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)[..., ::-1]
    return np.where(known[..., None], colors, np.uint8(128))


def write_depth_preview(path: Path, depth: Float[Tensor, "H W"]) -> None:
    """Write `depth_preview` as a PNG."""
    _write_png(path, depth_preview(depth)[..., ::-1])


def write_normals_png(path: Path, normals: Float[Tensor, "H W 3"]) -> None:
    """Write unit normals in OpenCV camera axes as 8-bit RGB, (n + 1) / 2; black means missing.

    Args:
        path: The ``.png`` file.
        normals: Zero or NaN where missing.

    Raises:
        OutputError: If the file cannot be written.
    """
    values = to_numpy(normals)
    known = np.isfinite(values).all(-1) & (np.abs(values).max(-1, initial=0) > 0)
    coded = to_bytes(127.5 * (np.where(known[..., None], values, -1) + 1))
    _write_png(path, coded[..., ::-1])


def read_normals_png(path: Path) -> Float[Tensor, "H W 3"]:
    """Return unit normals in OpenCV camera axes, zero where missing.

    Raises:
        InputError: If the file is missing.
        FileFormatError: If it is no picture, damaged, or not 8-bit RGB.
    """
    samples = _read_map(path)
    if samples.dtype != np.uint8 or samples.shape[-1] != 3:
        got = f"{samples.dtype} with {samples.shape[-1]} channels"
        raise bad_file(path, "an 8-bit RGB picture", got, "give a map of normals")
    values = torch.from_numpy(samples.astype(np.float32) / np.float32(127.5) - 1)
    known = torch.from_numpy(samples.any(-1))
    return torch.nn.functional.normalize(values, dim=-1) * known[..., None]


def _read_map(path: Path) -> Shaped[np.ndarray, "H W C"]:
    # Deflate packs at most 1032 to 1: more pixels than that cannot be in the file, whatever it
    # declares, and must not be made room for.
    limit = min(MAX_PIXELS, 1040 * check_file(path) + 1024)
    return read_samples(path, max_pixels=limit).samples


def _write_png(path: Path, pixels: np.ndarray) -> None:
    made, data = cv2.imencode(".png", np.ascontiguousarray(pixels))
    if not made:
        raise OutputError(f"cannot write {path}: a picture of shape {pixels.shape} has no PNG form")
    atomic_write_bytes(path, data.tobytes())
