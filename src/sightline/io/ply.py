"""PLY files: point clouds, and 3D Gaussians with the raw values of the original 3DGS.

Reading goes by property names, never by position, from ASCII and both byte orders, whatever else
the file holds. Writing is little endian (ASCII on request for points), with properties in the order
that other tools expect.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sightline.errors import InputError
from sightline.geometry.sh import C0
from sightline.io.atomic import atomic_path
from sightline.io.ply_table import PlyTable, read_ply_table
from sightline.io.reading import bad_file
from sightline.io.splat_arrays import (
    COEFFICIENTS,
    gaussians_from_arrays,
    splat_arrays,
    to_bytes,
    to_numpy,
)
from sightline.types import Gaussians, PointCloud

log = logging.getLogger(__name__)

_MIP = "SplatRenderMode: mip"
_OPACITY_MARGIN = 1e-6  # logit(0) and logit(1) are infinite
_COLOR_NAMES = (
    ("red", "green", "blue"),
    ("r", "g", "b"),
    ("diffuse_red", "diffuse_green", "diffuse_blue"),
)
_COLOR_RANGE = {"u1": 255.0, "i1": 127.0, "u2": 65535.0, "i2": 32767.0}
_GREY = 0.5


def write_point_ply(
    path: Path, cloud: PointCloud, *, ascii_text: bool = False, comments: Sequence[str] = ()
) -> None:
    """Write a point cloud: ``x y z [nx ny nz] red green blue [confidence]``.

    Args:
        path: The ``.ply`` file.
        cloud: World points; colours become sRGB bytes.
        ascii_text: Readable text instead of 15 bytes and more a point.
        comments: One header line each.

    Raises:
        InputError: If a value is not finite.
        OutputError: If the file cannot be written.
    """
    columns = {"xyz": to_numpy(cloud.points), "rgb": to_numpy(cloud.colors)}
    fields: list[tuple[str, str, int]] = [("xyz", "<f4", 3)]
    properties = ["float x", "float y", "float z"]
    if cloud.normals is not None:
        fields.append(("normal", "<f4", 3))
        properties += ["float nx", "float ny", "float nz"]
        columns["normal"] = to_numpy(cloud.normals)
    fields.append(("rgb", "u1", 3))
    properties += ["uchar red", "uchar green", "uchar blue"]
    if cloud.confidence is not None:
        fields.append(("confidence", "<f4", 1))
        properties.append("float confidence")
        columns["confidence"] = to_numpy(cloud.confidence)[:, None]
    for name, column in columns.items():
        if not np.isfinite(column).all():
            raise InputError(f"points must have finite {name}, got NaN or infinity; drop such rows")
    columns["rgb"] = to_bytes(255 * columns["rgb"])
    count = len(columns["xyz"])
    header = _header("ascii" if ascii_text else "binary_little_endian", count, properties, comments)
    with atomic_path(path) as tmp, tmp.open("wb") as file:
        file.write(header)
        if ascii_text:
            table = np.concatenate([columns[name] for name, _, _ in fields], axis=1)
            style = [
                "%d" if kind == "u1" else "%.9g" for _, kind, width in fields for _ in range(width)
            ]
            np.savetxt(file, table, fmt=style)
        else:
            records = np.empty(count, [(name, kind, (width,)) for name, kind, width in fields])
            for name, column in columns.items():
                records[name] = column
            file.write(records.view(np.uint8).data)


def read_point_ply(path: Path) -> PointCloud:
    """Read the points of any PLY file.

    Colours may be bytes, 16-bit or floats in [0, 1]; points without any are grey. The file of a
    Gaussian scene gives the splats' centres and view-independent colours. Normals that are all
    zero (as in 3DGS files) count as absent.

    Raises:
        InputError: If the file is missing.
        FileFormatError: If it is no PLY file, damaged, has no positions or not finite ones.

    >>> import tempfile, torch
    >>> cloud = PointCloud(points=torch.rand(5, 3), colors=torch.ones(5, 3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_point_ply(Path(folder) / "cloud.ply", cloud)
    ...     read_point_ply(Path(folder) / "cloud.ply").points.equal(cloud.points)
    True
    """
    table = read_ply_table(path)
    points = _finite(table, ("x", "y", "z"))
    normals = None
    if table.has("nx", "ny", "nz"):
        values = _finite(table, ("nx", "ny", "nz"))
        normals = torch.from_numpy(values) if values.any() else None
    confidence = None
    if table.has("confidence"):
        confidence = torch.from_numpy(_finite(table, ("confidence",))[:, 0])
    return PointCloud(
        points=torch.from_numpy(points),
        colors=torch.from_numpy(_colors(table)),
        normals=normals,
        confidence=confidence,
    )


def write_gaussian_ply(
    path: Path,
    gaussians: Gaussians,
    *,
    sh_degree: int | None = None,
    comments: Sequence[str] = (),
) -> None:
    """Write splats as the original 3D Gaussian Splatting does, with the raw values.

    ``x y z nx ny nz f_dc_* f_rest_* opacity scale_* rot_*``, all float32: logit of opacity (clipped
    to 1e-6 from 0 and 1), natural logarithm of scales, unit ``wxyz`` quaternions, and ``f_rest``
    channel by channel. Normals are zero. A header comment marks antialiased scenes.

    Args:
        path: The ``.ply`` file.
        gaussians: Splats on any device.
        sh_degree: Highest colour degree to write; default 3 at most, since viewers stop there.
        comments: One header line each.

    Raises:
        InputError: If a value cannot be written (NaN, scale 0, ...).
        OutputError: If the file cannot be written.
    """
    degree = min(3, gaussians.sh_degree) if sh_degree is None else sh_degree
    splats = splat_arrays(gaussians, degree)
    count, coefficients = splats.sh.shape[:2]
    names = ["x", "y", "z", "nx", "ny", "nz", *_numbered("f_dc", 3)]
    names += _numbered("f_rest", 3 * (coefficients - 1))
    names += ["opacity", *_numbered("scale", 3), *_numbered("rot", 4)]
    comments = [*comments, _MIP] if gaussians.antialiased else comments
    values = np.zeros((count, len(names)), "<f4")
    values[:, 0:3] = splats.means
    values[:, 6:9] = splats.sh[:, 0]
    values[:, 9:-8] = splats.sh[:, 1:].transpose(0, 2, 1).reshape(count, -1)
    alpha = splats.opacities.astype(np.float64).clip(_OPACITY_MARGIN, 1 - _OPACITY_MARGIN)
    values[:, -8] = np.log(alpha / (1 - alpha))
    values[:, -7:-4] = np.log(splats.scales)
    values[:, -4:] = splats.quats
    properties = [f"float {name}" for name in names]
    header = _header("binary_little_endian", count, properties, comments)
    with atomic_path(path) as tmp, tmp.open("wb") as file:
        file.write(header)
        file.write(values.data)


def read_gaussian_ply(path: Path) -> Gaussians:
    """Read splats of any writer of 3DGS files, degree 0 to 3 (4 is cut to 3 with a notice).

    Returns:
        Activated values in float32; ``antialiased`` if a header comment says so.

    Raises:
        InputError: If the file is missing.
        FileFormatError: If it is no PLY file, damaged, lacks a property or has values that cannot
            be drawn.
    """
    table = read_ply_table(path)
    if "packed_position" in table.names:
        raise bad_file(
            table.path,
            "an uncompressed 3DGS PLY",
            "SuperSplat's compressed PLY",
            "convert it with: splat-transform in.compressed.ply out.ply",
        )
    rest = sum(name.startswith("f_rest_") for name in table.names)
    if rest not in [3 * (count - 1) for count in COEFFICIENTS]:
        raise bad_file(table.path, "0, 9, 24, 45 or 72 f_rest properties", f"{rest}")
    coefficients = 1 + rest // 3
    if coefficients > COEFFICIENTS[3]:
        log.warning("%s: colours cut from degree 4 to degree 3", table.path.name)
    sh = np.empty((table.count, min(coefficients, COEFFICIENTS[3]), 3), np.float32)
    sh[:, 0] = table.columns(_numbered("f_dc", 3))
    wide = table.columns(_numbered("f_rest", rest)).reshape(table.count, 3, coefficients - 1)
    sh[:, 1:] = wide[:, :, : sh.shape[1] - 1].transpose(0, 2, 1)
    with np.errstate(all="ignore"):  # what cannot be drawn is refused below
        scales = np.exp(table.columns(_numbered("scale", 3)))
        raw = table.columns(["opacity"])[:, 0].astype(np.float64)
        opacities = (1 / (1 + np.exp(-raw))).astype(np.float32)
    return gaussians_from_arrays(
        table.path,
        antialiased=_MIP in table.comments,
        means=table.columns(["x", "y", "z"]),
        quats=table.columns(_numbered("rot", 4)),
        scales=scales,
        opacities=opacities,
        sh=sh,
    )


def is_gaussian_ply(path: Path) -> bool:
    """Tell whether a PLY file holds splats rather than plain points, from its header alone."""
    names = read_ply_table(path, header_only=True).names
    return {"rot_0", "scale_0", "opacity"} <= set(names) or "packed_position" in names


def _header(form: str, count: int, properties: list[str], comments: Sequence[str]) -> bytes:
    for comment in comments:
        if not (comment.isprintable() and comment.isascii()):
            raise InputError(f"PLY comments are single ASCII lines, got {comment!r}; shorten it")
    lines = ["ply", f"format {form} 1.0"]
    lines += [f"comment {comment}" for comment in comments]
    lines += [f"element vertex {count}", *(f"property {p}" for p in properties), "end_header"]
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def _numbered(name: str, count: int) -> list[str]:
    return [f"{name}_{i}" for i in range(count)]


def _finite(table: PlyTable, names: Sequence[str]) -> np.ndarray:
    values = table.columns(names)
    finite = np.isfinite(values).all(1)
    if not finite.all():
        row = int(finite.argmin())
        raise bad_file(table.path, f"finite {' '.join(names)}", f"NaN or infinity in vertex {row}")
    return values


def _colors(table: PlyTable) -> np.ndarray:
    for names in _COLOR_NAMES:
        if table.has(*names):
            scale = _COLOR_RANGE.get(table.kind(names[0]), 1.0)
            return _finite(table, names).clip(0, scale) / np.float32(scale)
    if table.has("f_dc_0", "f_dc_1", "f_dc_2"):
        return (0.5 + C0 * _finite(table, _numbered("f_dc", 3))).clip(0, 1).astype(np.float32)
    return np.full((table.count, 3), _GREY, np.float32)
