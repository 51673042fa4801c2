"""Videos of probes along the published paths, with the published settings of each scene."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sightline.geometry.pose import invert_se3, look_at, rigid_matrix
from sightline.geometry.trajectory import (
    TrajectoryOptions,
    focus_point,
    make_trajectory,
    mean_up,
)
from sightline.io.arrays import read_npz
from sightline.io.ply import read_gaussian_ply
from sightline.io.video_writer import write_video
from sightline.probing.clouds import Cloud
from sightline.probing.protocols import Protocol, Quirks
from sightline.protocols import Progress
from sightline.report.figures import to_pixels
from sightline.splatting import render_gaussians
from sightline.types import Cameras, Gaussians

FPS = 30.0
_FRAMES = 300
Number = int | float
"""A name, because the tests' type checker takes no integer for a float."""
PATHS = ("arc", "spiral", "lemniscate", "wander", "ellipse", "interpolate")


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """What the authors chose for a scene; None where the table has no entry."""

    arc: Number | None = 180
    spiral: tuple[Number, Number] | None = (0.5, 1)
    """Depth waves a turn, and turns."""
    lemniscate: Number | None = 45
    wander: Number | None = 48


SETTINGS: dict[str, Setting] = {
    "Infer/paper4": Setting(200, lemniscate=80, wander=100),
    "Infer/coffee": Setting(lemniscate=80),
    "Infer/plant": Setting(lemniscate=80),
    "Infer/bread": Setting(lemniscate=80),
    "Infer/brunch": Setting(lemniscate=80),
    "Infer/stuff": Setting(lemniscate=80),
    "Infer/xbox": Setting(lemniscate=80),
    "Infer/plushies": Setting(120, lemniscate=60),
    "Infer/erhai": Setting(lemniscate=80, wander=200),
    "Infer/cy_crop1": Setting(lemniscate=80, wander=60),
    "Infer/cy_crop": Setting(lemniscate=60),
    "Infer/paper": Setting(240, lemniscate=60),
    "Infer/house": Setting(240, lemniscate=60),
    "Infer/home": Setting(90, lemniscate=80),
    "Infer/paper3": Setting(180, lemniscate=80),
    "Infer/castle": Setting(spiral=(2, 2)),
    "Infer/hogwarts": Setting(wander=100),
    "Tanks/Auditorium": Setting(lemniscate=30, wander=80),
    "Tanks/Caterpillar": Setting(240, lemniscate=60),
    "Tanks/Family": Setting(lemniscate=60),
    "Tanks/Ignatius": Setting(330, lemniscate=80),
    "Tanks/Train": Setting(lemniscate=60),
    **{
        f"DL3DV/{scene}": Setting(lemniscate=60)
        for scene in ("Center", "Electrical", "Museum", "Supermarket2", "Temple")
    },
    "MipNeRF360/garden": Setting(270, lemniscate=80),
    "MipNeRF360/kitchen": Setting(lemniscate=80),
    "MipNeRF360/room": Setting(lemniscate=60),
    "MVimgNet/bench": Setting(lemniscate=80),
    "MVimgNet/car": Setting(lemniscate=60),
    "MVimgNet/suv": Setting(lemniscate=60),
    "LLFF/fortress": Setting(lemniscate=30),
    "LLFF/horns": Setting(lemniscate=60),
    "LLFF/orchids": Setting(lemniscate=30),
    "LLFF/room": Setting(lemniscate=30),
    "LLFF/trex": Setting(spiral=(1, 1), lemniscate=30),
}
"""Published settings where they differ from the defaults."""


def frame_count(num_train: int) -> int:
    """Return the published length: 300 frames shared out between the gaps of training views."""
    return max(1, int(_FRAMES / num_train) * (num_train - 1))


def probe_path(name: str, cameras: Cameras, frames: int, scene: str, quirks: Quirks) -> Cameras:
    """Return a path through a probed scene, with the reference's errors where quirks keep them.

    Args:
        name: One of `PATHS`, or any other of `make_trajectory`.
        cameras: Of the training views.
        frames: How many.
        scene: Looked up in `SETTINGS`.
        quirks: ``arc_about_origin`` and ``interpolate_w2c``.
    """
    setting = SETTINGS.get(scene, Setting())
    spiral = setting.spiral or (0.5, 1.0)
    options = TrajectoryOptions(
        arc_degrees=float(setting.arc or 180),
        spiral_depth_rate=float(spiral[0]),
        spiral_turns=float(spiral[1]),
        lemniscate_degrees=float(setting.lemniscate or 45),
        wander_fraction=float(setting.wander or 48) / max(cameras.width, 1),
    )
    if name == "interpolate" and quirks.interpolate_w2c and len(cameras) > 1:
        w2c = interpolate_matrices(cameras.w2c, max(1, frames // (len(cameras) - 1)))
        return _like(cameras, w2c)
    way = make_trajectory(name, cameras, frames, options=options)
    if name == "arc" and quirks.arc_about_origin:
        focus = focus_point(cameras).to(way.w2c)
        eyes = way.centers - focus
        return _like(way, invert_se3(look_at(eyes, focus, mean_up(cameras).to(way.w2c))))
    return way


def interpolate_matrices(w2c: Float[Tensor, "V 4 4"], steps: int) -> Float[Tensor, "F 4 4"]:
    """Join matrices as the reference does: position, look-at and up points move on straight lines.

    The points are those of the matrix itself (position, position - 0.1 z, position + 0.1 y); each
    is made orthonormal again; the end of each gap is left out.
    """
    position, y, z = w2c[:, :3, 3], w2c[:, :3, 1], w2c[:, :3, 2]
    points = torch.stack([position, position - 0.1 * z, position + 0.1 * y], 1)  # [V, 3, 3]
    share = (torch.arange(steps) / steps).to(w2c)[:, None, None]
    between = torch.cat(
        [(1 - share) * points[i] + share * points[i + 1] for i in range(len(points) - 1)]
    )
    at, look, up = between.unbind(1)
    back = torch.nn.functional.normalize(at - look, dim=-1)
    right = torch.nn.functional.normalize(torch.linalg.cross(up - at, back), dim=-1)
    above = torch.linalg.cross(back, right)
    return rigid_matrix(torch.stack([right, above, back], -1), at)


def _like(cameras: Cameras, w2c: Tensor) -> Cameras:
    K = cameras.K[:1].expand(len(w2c), 3, 3).clone()
    return Cameras(w2c=w2c, K=K, height=cameras.height, width=cameras.width)


def square_canvas(cameras: Cameras) -> Cameras:
    """Return the cameras on a square of the longer side, cut to multiples of 16, same focal."""
    side = max(cameras.height, cameras.width)
    side = max(16, side // 16 * 16)
    K = cameras.K.clone()
    K[:, 0, 2] = K[:, 1, 2] = side / 2
    return Cameras(w2c=cameras.w2c, K=K, height=side, width=side)


def scale_depth(depth: Float[np.ndarray, "F H W"], quirks: Quirks) -> Float[np.ndarray, "F H W"]:
    """Map depth to [0, 1]: by the whole video's range, or as the reference did frame by frame.

    With the quirk ``flickering_depth`` each frame is divided by its own range, but at most by 1.
    """
    if quirks.flickering_depth:
        low = depth.min((1, 2), keepdims=True)
        span = np.minimum(depth.max((1, 2), keepdims=True) - low, 1.0)
        return (depth - low) / np.maximum(span, 1e-9)
    low = float(depth.min())
    return (depth - low) / max(float(depth.max()) - low, 1e-9)


def render_probe_video(
    probe: Path,
    cloud: Cloud,
    out: Path,
    params: Mapping[str, Any],
    protocol: Protocol,
    progress: Progress | None = None,
) -> Path:
    """Render a finished probe along a path; returns the file."""
    gaussians = read_gaussian_ply(probe / "splats.ply")
    cameras = cloud.train.map(lambda t: t.float())
    poses = probe / "poses.npz"
    if poses.is_file():
        w2c = torch.from_numpy(read_npz(poses, ["train_w2c"])["train_w2c"]).float()
        cameras = dataclasses.replace(cameras, w2c=w2c)
    frames = frame_count(len(cameras)) if len(cameras) > 1 else 120
    way = probe_path(params["path"], cameras, frames, params["scene"], protocol.quirks)
    path = out / f"{params['path']}.mp4"
    write_video(path, _frames(gaussians, square_canvas(way), protocol, progress), FPS)
    return path


def _frames(
    gaussians: Gaussians, way: Cameras, protocol: Protocol, progress: Progress | None
) -> Iterator[np.ndarray]:
    white = torch.ones(3) if protocol.quirks.white_video else None
    for i in range(len(way)):
        seen = render_gaussians(gaussians, way.select([i]), background=white, with_depth=False)
        if progress is not None:
            progress("video", float(i + 1), float(len(way)))
        yield to_pixels(seen.rgb[0])
