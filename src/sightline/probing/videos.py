"""Videos of probes: colour, depth and normals along the published paths or the safe ones."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sightline.geometry.camera import resize_cameras, unproject_depth
from sightline.geometry.pose import invert_se3, look_at
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
from sightline.probing.paths import (
    PATHS,
    SETTINGS,
    Setting,
    frame_count,
    interpolate_matrices,
    published_path,
)
from sightline.probing.protocols import Protocol, Quirks
from sightline.protocols import Progress
from sightline.report.colormap import TURBO, apply_colormap
from sightline.report.figures import to_pixels
from sightline.splatting import render_gaussians
from sightline.types import Cameras, Gaussians

FPS = 30.0
_SOLID = 0.5
_ALONE = 120
"""Frames around a single training view."""
_SPECTRAL = np.array(
    [
        *((158, 1, 66), (213, 62, 79), (244, 109, 67), (253, 174, 97), (254, 224, 139)),
        *((255, 255, 191), (230, 245, 152), (171, 221, 164), (102, 194, 165)),
        *((50, 136, 189), (94, 79, 162)),
    ],
    np.float64,
)
"""ColorBrewer's eleven colours (Brewer and Harrower, Pennsylvania State University)."""


def _spectral() -> UInt8[np.ndarray, "256 3"]:
    at = np.linspace(0, len(_SPECTRAL) - 1, 256)
    knots = np.arange(len(_SPECTRAL))
    channels = [np.interp(at, knots, _SPECTRAL[:, c]) for c in range(3)]
    return np.stack(channels, 1).round().astype(np.uint8)


SPECTRAL = _spectral()


def probe_path(name: str, cameras: Cameras, frames: int, scene: str, protocol: Protocol) -> Cameras:
    """Return a path through a probed scene.

    With ``published_videos`` it is the reference's own formula, with its errors where quirks keep
    them; otherwise the path of `make_trajectory`, which is safe for any capture.

    Args:
        name: One of `paths.PATHS`, or any other of `make_trajectory`.
        cameras: Of the training views.
        frames: How many.
        scene: Looked up in `paths.SETTINGS`.
        protocol: Its quirks ``arc_about_origin`` and ``interpolate_w2c``.
    """
    setting, quirks = SETTINGS.get(scene, Setting()), protocol.quirks
    if protocol.published_videos and name in PATHS and len(cameras) > 1:
        return _like(cameras, published_path(name, cameras, frames, setting, quirks))
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


def _like(cameras: Cameras, w2c: Tensor) -> Cameras:
    K = cameras.K[:1].expand(len(w2c), 3, 3).clone()
    return Cameras(w2c=w2c.to(K), K=K, height=cameras.height, width=cameras.width)


def square_canvas(cameras: Cameras) -> Cameras:
    """Return the cameras on a square of the longer side, cut to multiples of 16, same focal."""
    side = max(cameras.height, cameras.width)
    side = max(16, side // 16 * 16)
    K = cameras.K.clone()
    K[:, 0, 2] = K[:, 1, 2] = side / 2
    return Cameras(w2c=cameras.w2c, K=K, height=side, width=side)


def scale_depth(
    depth: Float[np.ndarray, "F H W"], quirks: Quirks, span: tuple[float, float] | None = None
) -> Float[np.ndarray, "F H W"]:
    """Map depth to [0, 1]: by the whole video's range, or as the reference did frame by frame.

    With the quirk ``flickering_depth`` each frame is divided by its own range, but at most by 1.

    Args:
        depth: Of some frames.
        quirks: See above.
        span: Least and largest depth of the whole video; by default of these frames.
    """
    if quirks.flickering_depth:
        low = depth.min((1, 2), keepdims=True)
        width = np.minimum(depth.max((1, 2), keepdims=True) - low, 1.0)
        return (depth - low) / np.maximum(width, 1e-9)
    first, last = span or (float(depth.min()), float(depth.max()))
    return (depth - first) / max(last - first, 1e-9)


def normal_pixels(
    depth: Float[Tensor, "H W"], alpha: Float[Tensor, "H W"], camera: Cameras
) -> UInt8[np.ndarray, "H W 3"]:
    """Colour world normals of expected depth as the reference does.

    They are cross products of central differences of lifted points, which face the camera, with a
    border of one pixel that is zero; times alpha, then halved and moved to [0, 1].
    """
    points = unproject_depth(depth[None], camera)[0].nan_to_num(0.0)
    down = points[2:, 1:-1] - points[:-2, 1:-1]
    across = points[1:-1, 2:] - points[1:-1, :-2]
    normals = torch.zeros_like(points)
    crossed = torch.linalg.cross(down, across)
    normals[1:-1, 1:-1] = torch.nn.functional.normalize(crossed, dim=-1)
    colors = normals * alpha[..., None] * 0.5 + 0.5
    return to_pixels(colors.movedim(-1, 0))


def render_probe_video(
    probe: Path,
    cloud: Cloud,
    out: Path,
    params: Mapping[str, Any],
    protocol: Protocol,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Render a finished probe along ``params["path"]``; returns the file's name of each mode."""
    gaussians = read_gaussian_ply(probe / "splats.ply")
    w2c = torch.from_numpy(read_npz(probe / "poses.npz", ["train_w2c"])["train_w2c"]).float()
    cameras = dataclasses.replace(cloud.train.map(lambda t: t.float()), w2c=w2c)
    frames = frame_count(len(cameras)) if len(cameras) > 1 else _ALONE
    name = params["path"]
    way = square_canvas(probe_path(name, cameras, frames, params["scene"], protocol))
    files = {}
    for mode in params["modes"]:
        files[mode] = f"{name}.mp4" if mode == "rgb" else f"{name}_{mode}.mp4"
        pictures = _frames(gaussians, way, mode, protocol, progress)
        write_video(out / files[mode], pictures, FPS)
    return files


def _frames(
    gaussians: Gaussians, way: Cameras, mode: str, protocol: Protocol, progress: Progress | None
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    white = torch.ones(3) if protocol.quirks.white_video else None
    table = SPECTRAL if protocol.published_videos else TURBO
    span = _span(gaussians, way) if mode == "depth" else None
    for i in range(len(way)):
        camera = way.select([i])
        plain = mode == "rgb"
        seen = render_gaussians(gaussians, camera, background=white, with_depth=not plain)
        if progress is not None:
            progress("video", float(i + 1), float(len(way)))
        if plain:
            yield to_pixels(seen.rgb[0])
            continue
        assert seen.depth is not None
        depth = seen.depth[0].nan_to_num(0.0)
        if mode == "normal":
            yield normal_pixels(depth, seen.alpha[0], camera)
        else:
            share = scale_depth(depth[None].cpu().numpy(), protocol.quirks, span)[0]
            yield apply_colormap(np.clip(share, 0, 1), table)


def _span(gaussians: Gaussians, way: Cameras) -> tuple[float, float]:
    """Return the range of depth over a whole video, looked at in quarter size where it is solid."""
    low, high = float("inf"), 0.0
    for i in range(len(way)):
        camera = resize_cameras(way.select([i]), max(1, way.height // 4), max(1, way.width // 4))
        seen = render_gaussians(gaussians, camera)
        assert seen.depth is not None
        known = seen.depth[(seen.alpha > _SOLID) & seen.depth.isfinite()]
        if len(known):
            low, high = min(low, float(known.min())), max(high, float(known.max()))
    return (low, high) if high > 0 else (0.0, 1.0)
