"""A camera path through splats as a video, with colour, depth and normals side by side."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sightline.errors import InputError
from sightline.geometry.camera import resize_cameras
from sightline.geometry.pointmap import depth_to_normals
from sightline.geometry.trajectory import make_trajectory
from sightline.io.video_writer import write_video
from sightline.protocols import Progress
from sightline.report.colormap import TURBO, apply_colormap
from sightline.report.figures import depth_fraction, depth_mask, depth_range, to_pixels
from sightline.splatting.render import render_gaussians
from sightline.types import Cameras, Gaussians, Rendering

_MAX_SIDE = 8192
_MAX_FRAMES = 100_000
_SOLID = 0.5
"""Less covered pixels have no meaningful depth."""


def render_video(
    gaussians: Gaussians,
    cameras: Cameras,
    path: Path,
    *,
    trajectory: str,
    modes: tuple[str, ...],
    frames: int,
    fps: float,
    size: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Render a named camera path.

    Args:
        gaussians: The scene.
        cameras: Registered reference cameras, from which the path is derived.
        path: The ``.mp4`` to write.
        trajectory: A name known to ``geometry.trajectory.make_trajectory``.
        modes: Some of ``rgb``, ``depth``, ``normal``, from left to right.
        frames: Number of frames, 1 to 100,000.
        fps: Frames a second.
        size: Width and height of one mode's picture in pixels; default the cameras'.
        progress: Called as ``progress("render", done, total)``.

    Raises:
        InputError: If a number is out of range or the path's name is unknown.
        OutputError: If the video cannot be written.
    """
    if not 1 <= frames <= _MAX_FRAMES:
        raise InputError(f"--frames must be 1 to {_MAX_FRAMES}, got {frames}; change it")
    if not 0 < fps <= 240:
        raise InputError(f"--fps must be above 0 and at most 240, got {fps}; change it")
    width, height = size or (cameras.width, cameras.height)
    if not (16 <= width <= _MAX_SIDE and 16 <= height <= _MAX_SIDE):
        raise InputError(f"--size must be 16 to {_MAX_SIDE} pixels a side, got {width}x{height}")
    # VP9 and H.264 store colour for pairs of pixels.
    width, height = width // 2 * 2, height // 2 * 2
    lens = _fit(cameras.map(lambda t: t.float()), height, width)
    way = make_trajectory(trajectory, lens, frames)
    pictures = _frames(gaussians, way, modes, progress)
    write_video(path, pictures, fps)
    return path


def _fit(cameras: Cameras, height: int, width: int) -> Cameras:
    """Return the cameras for another picture size, unstretched, with all of the old view in it."""
    scale = min(height / cameras.height, width / cameras.width)
    inner_h, inner_w = cameras.height * scale, cameras.width * scale
    K = cameras.K.clone()
    K[:, :2] *= scale
    K[:, 0, 2] += (width - inner_w) / 2
    K[:, 1, 2] += (height - inner_h) / 2
    return Cameras(w2c=cameras.w2c, K=K, height=height, width=width)


def _frames(
    gaussians: Gaussians, way: Cameras, modes: tuple[str, ...], progress: Progress | None
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    limits: tuple[float, float] | None = None
    if "depth" in modes:
        # One scale for the whole video, so that colours do not flicker.
        probe = torch.linspace(0, len(way) - 1, min(8, len(way))).long()
        some = resize_cameras(way.select(probe), max(1, way.height // 4), max(1, way.width // 4))
        seen = render_gaussians(gaussians, some)
        depths, masks = zip(*(_known_depth(seen, i) for i in range(len(probe))), strict=True)
        limits = depth_range(depths, masks)
    for index in range(len(way)):
        camera = way.select([index])
        rendering = render_gaussians(gaussians, camera)
        parts = []
        for mode in modes:
            if mode == "rgb":
                parts.append(to_pixels(rendering.rgb[0]))
            elif mode == "depth":
                assert limits is not None
                depth, known = _known_depth(rendering, 0)
                colors = apply_colormap(depth_fraction(depth.numpy(), *limits), TURBO)
                colors[~known.numpy()] = 0
                parts.append(colors)
            else:
                parts.append(_normal_picture(rendering, camera))
        if progress is not None:
            progress("render", index + 1, len(way))
        yield np.ascontiguousarray(np.concatenate(parts, axis=1))


def _known_depth(rendering: Rendering, index: int) -> tuple[Float[Tensor, "H W"], Tensor]:
    assert rendering.depth is not None
    depth = rendering.depth[index].cpu()
    return depth, depth_mask(depth) & (rendering.alpha[index].cpu() > _SOLID)


def _normal_picture(rendering: Rendering, camera: Cameras) -> UInt8[np.ndarray, "H W 3"]:
    """Colour normals as (n + 1) / 2 with y and z turned so that up is green and near is blue."""
    assert rendering.depth is not None
    normals = depth_to_normals(rendering.depth, camera)[0].cpu()
    colors = (normals * torch.tensor([0.5, -0.5, -0.5]) + 0.5).nan_to_num(0.0)
    colors[rendering.alpha[0].cpu() <= _SOLID] = 0
    return to_pixels(colors.movedim(-1, 0))
