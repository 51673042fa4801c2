"""The headerless ``.splat`` format of antimatter15: 32 bytes a splat, no view-dependent colour.

float32 position, float32 linear scale, RGBA bytes (``rgb = 0.5 + C0 * sh0``, linear opacity) and
the quaternion ``wxyz`` as bytes ``128 q + 128``. The most visible splats come first, so that viewers
can draw while they load.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from sightline.geometry.sh import C0
from sightline.io.atomic import atomic_path
from sightline.io.reading import bad_file, read_whole
from sightline.io.splat_arrays import gaussians_from_arrays, splat_arrays, to_bytes
from sightline.types import Gaussians

_RECORD = np.dtype(
    [("mean", "<f4", 3), ("scale", "<f4", 3), ("rgb", "u1", 3), ("alpha", "u1"), ("quat", "u1", 4)]
)


def write_splat(path: Path, gaussians: Gaussians) -> None:
    """Write splats, sorted by decreasing volume times opacity.

    Colours, opacities and rotations are rounded to bytes: at most 1/510 off in rgb and opacity,
    1/128 in a quaternion's component. Higher spherical harmonics are dropped.

    Raises:
        InputError: If a value cannot be written (NaN, scale 0, ...).
        OutputError: If the file cannot be written.
    """
    splats = splat_arrays(replace(gaussians, sh=gaussians.sh[:, :1]))
    visibility = np.log(splats.scales.astype(np.float64)).sum(1)
    visibility += np.log(np.maximum(splats.opacities, np.finfo(np.float32).tiny))
    order = np.argsort(-visibility, kind="stable")
    records = np.empty(len(order), _RECORD)
    records["mean"] = splats.means[order]
    records["scale"] = splats.scales[order]
    records["rgb"] = to_bytes(255 * (0.5 + C0 * splats.sh[order, 0]))
    records["alpha"] = to_bytes(255 * splats.opacities[order])
    records["quat"] = to_bytes(128 * splats.quats[order] + 128)
    with atomic_path(path) as tmp, tmp.open("wb") as file:
        file.write(records.view(np.uint8).data)


def read_splat(path: Path) -> Gaussians:
    """Read splats; colours of degree 0, quaternions normalised again.

    Raises:
        InputError: If the file is missing.
        FileFormatError: If its length is not a multiple of 32, or a value cannot be drawn.
    """
    path = Path(path)
    data = read_whole(path)
    if not data or len(data) % _RECORD.itemsize:
        raise bad_file(path, "one or more records of 32 bytes", f"{len(data)} bytes")
    records = np.frombuffer(data, _RECORD)
    rgb = records["rgb"].astype(np.float32) / 255
    return gaussians_from_arrays(
        path,
        antialiased=False,
        means=records["mean"].astype(np.float32),
        quats=records["quat"].astype(np.float32) / 128 - 1,
        scales=records["scale"].astype(np.float32),
        opacities=records["alpha"].astype(np.float32) / 255,
        sh=((rgb - 0.5) / C0).astype(np.float32)[:, None],
    )
