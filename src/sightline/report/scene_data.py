"""Pack splats and points for the web page that shows them.

Splats take 24 bytes and 16 per band of view dependence; the words go straight into the page's
textures, so this layout and ``assets/scene_draw.js`` must agree:

==========  ========  ===========================================================================
table       words     content of one splat
==========  ========  ===========================================================================
geometry    4         x, y, z as float32; rotation: index of the largest component (2 bits, order
                      w x y z), then the other three, 10 bits each, of [-sqrt(1/2), sqrt(1/2)]
shape       2         three log scales, 10 bits each of the range ``scales``; red, green, blue of
                      the range ``colors`` and the opacity, 8 bits each
harmonics   4 a band  coefficients 1..K-1, colour fastest, signed bytes times ``bands[degree - 1]``
==========  ========  ===========================================================================

Beside them, one row a splat or point: ``splat_sky`` and ``point_sky`` (1 in the sky), ``splat_paint``
and ``point_paint`` (other colours), ``point_seen`` (one bit a camera, the first lowest).

Each table is stored byte plane by byte plane (all first bytes, then all second bytes, ...), which
zlib packs better.
"""

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt32
from torch import Tensor

from sightline.geometry.sh import C0
from sightline.types import Gaussians, PointCloud

MAX_DEGREE = 3
_MOST_BYTES = 25_000_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packed:
    """Tables for the page and the numbers needed to read them."""

    tables: dict[str, UInt8[np.ndarray, "_ _"]]
    """Name to bytes [rows, bytes a row]."""
    header: dict[str, Any]


def drawable_splats(gaussians: Gaussians, most: int) -> Int[np.ndarray, " m"]:
    """Return the indices of the splats worth drawing, in order.

    Left out are those with values that are not finite, or too transparent to be seen; where more
    than ``most`` remain, those with the largest area times opacity.
    """
    logs = gaussians.scales.detach().float().clamp_min(1e-12).log()
    fit = gaussians.opacities >= 1 / 255
    fit &= gaussians.quats.norm(dim=1) > 1e-8
    for values in (gaussians.means, gaussians.quats, logs, gaussians.sh.flatten(1)):
        fit &= values.isfinite().all(dim=1)
    keep = fit.nonzero()[:, 0]
    if len(keep) > most:
        area = logs[keep].sort(dim=1).values[:, 1:].sum(dim=1) + gaussians.opacities[keep].log()
        keep = keep[area.topk(most, sorted=False).indices].sort().values
    return keep.cpu().numpy()


def affordable_degree(count: int) -> int:
    """Return the highest degree with which so many splats take at most 25 MB before packing."""
    fitting = [d for d in range(MAX_DEGREE + 1) if count * (24 + 16 * d) <= _MOST_BYTES]
    return max(fitting, default=0)


def pack_gaussians(
    gaussians: Gaussians,
    *,
    max_splats: int,
    max_degree: int,
    sky: Bool[Tensor, " N"] | None = None,
    paint: Float[Tensor, "N 3"] | None = None,
) -> Packed:
    """Pack splats.

    Args:
        gaussians: Any number.
        max_splats: At most; see `drawable_splats`.
        max_degree: Of the spherical harmonics, 0 to 3; higher bands are left out.
        sky: Which of them lie in the sky.
        paint: Their other colours in [0, 1], such as those of features.
    """
    degree = min(gaussians.sh_degree, max_degree, MAX_DEGREE)
    keep = drawable_splats(gaussians, max_splats)
    means = _array(gaussians.means)[keep]
    keep = keep[np.argsort(_morton(means), kind="stable")]
    means = _array(gaussians.means)[keep]
    logs = np.log(np.maximum(_array(gaussians.scales)[keep], 1e-12))
    sh = _array(gaussians.sh)[keep, : (degree + 1) ** 2]

    geometry = np.empty((len(keep), 4), np.uint32)
    geometry[:, :3] = means.astype(np.float32).view(np.uint32)
    geometry[:, 3] = _pack_quaternions(_array(gaussians.quats)[keep])
    scale_range = _range(logs)
    colors = 0.5 + C0 * sh[:, 0]
    # Harmonics may push the constant term outside [0, 1]; far outside is noise.
    color_range = _range(colors.clip(-1.0, 2.0))
    shape = np.empty((len(keep), 2), np.uint32)
    shape[:, 0] = _pack_bits(_steps(logs, scale_range, 1023), 10)
    opacities = _opacity_steps(_array(gaussians.opacities)[keep])
    rgba = np.concatenate([_steps(colors, color_range, 255), opacities], 1)
    shape[:, 1] = _pack_bits(rgba, 8)
    tables = {"geometry": _bytes(geometry), "shape": _bytes(shape)}
    bands = []
    if degree:
        coefficients = np.zeros((len(keep), 16 * degree), np.int8)
        at = 0
        for band in range(1, degree + 1):
            values = sh[:, band**2 : (band + 1) ** 2].reshape(len(keep), 3 * (2 * band + 1))
            # A few wild coefficients must not cost the others their precision.
            limit = float(np.quantile(np.abs(values), 0.9995)) if values.size else 0.0
            limit = max(limit, 1e-6)
            steps = (values / limit * 127).round().clip(-127, 127)
            coefficients[:, at : at + values.shape[1]] = steps.astype(np.int8)
            at += values.shape[1]
            bands.append(limit / 127)
        tables["harmonics"] = coefficients.view(np.uint8)
    if sky is not None:
        tables["splat_sky"] = sky.cpu().numpy()[keep, None].astype(np.uint8)
    if paint is not None:
        tables["splat_paint"] = _color_bytes(paint)[keep]
    header = {
        "count": len(keep),
        "total": len(gaussians),
        "degree": degree,
        "antialiased": gaussians.antialiased,
        "scales": scale_range,
        "colors": color_range,
        "bands": bands,
    }
    return Packed(tables=tables, header=header)


def choose_points(points: PointCloud, most: int) -> Int[np.ndarray, " n"]:
    """Return the indices of finite points, thinned evenly where there are more than ``most``."""
    keep = points.points.isfinite().all(dim=1).nonzero()[:, 0].cpu().numpy()
    if len(keep) > most:
        keep = keep[np.linspace(0, len(keep) - 1, most).round().astype(np.int64)]
    return keep


def pack_points(
    points: PointCloud,
    *,
    max_points: int,
    seen: Bool[Tensor, "N V"] | None = None,
    sky: Bool[Tensor, " N"] | None = None,
    paint: Float[Tensor, "N 3"] | None = None,
) -> Packed:
    """Pack points as float32 positions and 8-bit colours, the most confident first.

    Args:
        points: Any number; points with values that are not finite are left out.
        max_points: Where there are more, they are thinned evenly.
        seen: Which views saw them.
        sky: Which of them lie in the sky.
        paint: Their other colours in [0, 1], such as those of features.
    """
    positions = _array(points.points).astype(np.float32)
    keep = choose_points(points, max_points)
    if points.confidence is not None:
        confidence = np.nan_to_num(_array(points.confidence)[keep], nan=-np.inf)
        keep = keep[np.argsort(-confidence, kind="stable")]
    tables = {
        "positions": _bytes(np.ascontiguousarray(positions[keep])),
        "point_colors": _color_bytes(points.colors)[keep],
    }
    if seen is not None:
        tables["point_seen"] = np.packbits(seen.cpu().numpy()[keep], axis=1, bitorder="little")
    if sky is not None:
        tables["point_sky"] = sky.cpu().numpy()[keep, None].astype(np.uint8)
    if paint is not None:
        tables["point_paint"] = _color_bytes(paint)[keep]
    header = {
        "count": len(keep),
        "total": len(points.points),
        "shown": None,
    }
    if points.confidence is not None:
        rising = _array(points.confidence)[keep[::-1]]
        header["shown"] = _shown_by_percent(np.nan_to_num(rising, nan=-np.inf))
    return Packed(tables=tables, header=header)


def _shown_by_percent(rising: Float[np.ndarray, " n"]) -> list[int]:
    """Return how many points stay when 0, 1, ... 99 percent are hidden; equals stay together.

    As `sightline.io.export.confident`: with many equal values, fewer are hidden.
    """
    ranks = np.arange(100) * len(rising) // 100
    return (len(rising) - np.searchsorted(rising, rising[ranks], side="left")).tolist()


def encode_table(table: UInt8[np.ndarray, "rows bytes"]) -> str:
    """Return a table's byte planes, packed by zlib, as base64."""
    planes = np.ascontiguousarray(table.T)
    return base64.b64encode(zlib.compress(planes.data, 6)).decode("ascii")


def _color_bytes(colors: Float[Tensor, "N 3"]) -> UInt8[np.ndarray, "N 3"]:
    return (np.nan_to_num(_array(colors)).clip(0, 1) * 255).round().astype(np.uint8)


def _array(tensor: Tensor) -> Float[np.ndarray, "..."]:
    return tensor.detach().float().cpu().numpy()


def _bytes(table: UInt32[np.ndarray, "n w"] | Float[np.ndarray, "n w"]) -> UInt8[np.ndarray, "n b"]:
    # Little endian whatever the machine; the page runs on little-endian ones.
    return table.astype(table.dtype.newbyteorder("<"), copy=False).view(np.uint8)


def _range(values: Float[np.ndarray, "n 3"]) -> list[float]:
    if not len(values):
        return [0.0, 1.0]
    low, high = float(values.min()), float(values.max())
    return [low, max(high, low + 1e-6)]


def _steps(
    values: Float[np.ndarray, "n c"], span: list[float], most: int
) -> UInt32[np.ndarray, "n c"]:
    fraction = (values - span[0]) / (span[1] - span[0])
    return (fraction * most).round().clip(0, most).astype(np.uint32)


def _opacity_steps(opacities: Float[np.ndarray, " n"]) -> UInt32[np.ndarray, "n 1"]:
    return (opacities * 255).round().clip(0, 255).astype(np.uint32)[:, None]


def _pack_bits(values: UInt32[np.ndarray, "n c"], bits: int) -> UInt32[np.ndarray, " n"]:
    shifts = np.arange(values.shape[1], dtype=np.uint32) * np.uint32(bits)
    return np.bitwise_or.reduce(values << shifts, axis=1).astype(np.uint32)


def _pack_quaternions(quats: Float[np.ndarray, "n 4"]) -> UInt32[np.ndarray, " n"]:
    quats = quats / np.linalg.norm(quats, axis=1, keepdims=True)
    rows = np.arange(len(quats))
    largest = np.abs(quats).argmax(axis=1)
    quats = quats * np.where(quats[rows, largest] < 0, -1.0, 1.0)[:, None]
    others = quats[np.arange(4) != largest[:, None]].reshape(-1, 3)
    steps = ((others * np.sqrt(0.5) + 0.5) * 1023).round().clip(0, 1023)
    return _pack_bits(steps.astype(np.uint32), 10) | (largest.astype(np.uint32) << np.uint32(30))


def _morton(points: Float[np.ndarray, "n 3"]) -> Int[np.ndarray, " n"]:
    """Return keys that keep near points near: better packing, and better caching on the GPU."""
    if not len(points):
        return np.empty(0, np.int64)
    low, high = np.quantile(points, [0.01, 0.99], axis=0)
    cell = ((points - low) / np.maximum(high - low, 1e-12) * 1023).clip(0, 1023).astype(np.int64)
    key = np.zeros(len(points), np.int64)
    for bit in range(10):
        for axis in range(3):
            key |= ((cell[:, axis] >> bit) & 1) << (3 * bit + axis)
    return key
