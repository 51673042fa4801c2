"""From the picture on disk to what points are made for and what is rendered, and back."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from sightline.errors import InputError
from sightline.probing.protocols import Protocol

PATCH = 16
"""Sides of working pictures are multiples of this."""

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Sizes of one scene's pictures; all (height, width).

    Attributes:
        original: On disk, upright.
        target: Rendered and scored.
        working: What points and features are made for.
        window: (top, left, height, width) of the working picture in pixels of the original.
        kept: (top, left, height, width) of the target in pixels of the original.
        squeezed: Size before the second resize, where that stretches.
    """

    original: Size
    target: Size
    working: Size
    window: tuple[float, float, float, float]
    kept: tuple[float, float, float, float]
    squeezed: Size | None = None

    def working_from_original(self) -> Float[Tensor, "3 3"]:
        """Return the map of pixels, float64."""
        return _map(self.window, self.working)

    def target_from_original(self) -> Float[Tensor, "3 3"]:
        """Return the map of pixels, float64."""
        return _map(self.kept, self.target)


def _map(box: tuple[float, float, float, float], size: Size) -> Float[Tensor, "3 3"]:
    top, left, height, width = box
    sx, sy = size[1] / width, size[0] / height
    rows = [[sx, 0, -left * sx], [0, sy, -top * sy], [0, 0, 1]]
    return torch.tensor(rows, dtype=torch.float64)


def make_frame(original: Size, protocol: Protocol) -> Frame:
    """Choose the sizes of a scene's pictures.

    The long side becomes ``protocol.long_side`` (each side rounded). What is left over 16 is
    cropped evenly, or with the quirk ``stretched_pictures`` squeezed away. Rendered are whole
    pictures, reduced to ``render_width`` where wider (truncated); without ``render_width`` the
    working pictures themselves.

    Raises:
        InputError: If a working side would be under 16 pixels.
    """
    height, width = original
    scale = protocol.long_side / max(original)
    scaled = (round(height * scale), round(width * scale))
    working = (scaled[0] // PATCH * PATCH, scaled[1] // PATCH * PATCH)
    if min(working) < PATCH:
        raise InputError(
            f"pictures of {width} x {height} pixels are too narrow to be probed at a long side of "
            f"{protocol.long_side}: expected at least {PATCH} pixels on the short side; crop them"
        )
    whole = (0.0, 0.0, float(height), float(width))
    window, squeezed = whole, scaled
    if not protocol.quirks.stretched_pictures:
        squeezed = None
        inner = (working[0] / scaled[0] * height, working[1] / scaled[1] * width)
        window = ((height - inner[0]) / 2, (width - inner[1]) / 2, *inner)
    if protocol.render_width is None:
        return Frame(
            original=original,
            target=working,
            working=working,
            window=window,
            kept=window,
            squeezed=squeezed,
        )
    target = original
    if width > protocol.render_width:
        ratio = width / protocol.render_width
        target = (int(height / ratio), int(width / ratio))
    return Frame(
        original=original,
        target=target,
        working=working,
        window=window,
        kept=whole,
        squeezed=squeezed,
    )


def working_picture(image: UInt8[np.ndarray, "H W 3"], frame: Frame) -> UInt8[np.ndarray, "h w 3"]:
    """Resize an original picture for points and features.

    Lanczos where it shrinks, bicubic where it grows (as DUSt3R does). Where the whole picture is
    kept, that happens at the unrounded size first and a bilinear resize to whole patches follows.
    """
    top, left, height, width = frame.window
    h, w = frame.working
    picture = Image.fromarray(image)
    kind = Image.Resampling.LANCZOS if h < height else Image.Resampling.BICUBIC
    if frame.squeezed is not None:
        first = np.asarray(picture.resize((frame.squeezed[1], frame.squeezed[0]), kind))
        return cv2.resize(first, (w, h), interpolation=cv2.INTER_LINEAR)
    box = (left, top, left + width, top + height)
    return np.asarray(picture.resize((w, h), kind, box=box))


def target_picture(image: UInt8[np.ndarray, "H W 3"], frame: Frame) -> UInt8[np.ndarray, "h w 3"]:
    """Resize an original picture to what is rendered: bicubic where whole, else as the working."""
    if frame.kept == frame.window and frame.target == frame.working:
        return working_picture(image, frame)
    if frame.target == frame.original:
        return image
    size = (frame.target[1], frame.target[0])
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def nearest_map(values: np.ndarray, frame: Frame) -> np.ndarray:
    """Read a map of an original picture at the centres of the working pixels, without mixing."""
    top, left, height, width = frame.window
    h, w = frame.working
    rows = top + (np.arange(h) + 0.5) * height / h
    columns = left + (np.arange(w) + 0.5) * width / w
    y = np.clip((rows * values.shape[0] / frame.original[0]).astype(int), 0, values.shape[0] - 1)
    x = np.clip((columns * values.shape[1] / frame.original[1]).astype(int), 0, values.shape[1] - 1)
    return values[y[:, None], x]


def lift_intrinsics(
    K: Float[Tensor, "V 3 3"], frame: Frame, protocol: Protocol
) -> Float[Tensor, "V 3 3"]:
    """Turn intrinsics of working pictures into those of rendered ones.

    With ``shared_focal`` all views get the mean focal length and centred principal points; the
    reference then scales fx and fy alike, by the horizontal ratio (quirk ``one_focal_ratio``).
    """
    h, w = frame.working
    H, W = frame.target
    if protocol.shared_focal:
        focal = K[:, [0, 1], [0, 1]].mean()
        K = torch.zeros_like(K)
        K[:, 0, 0] = K[:, 1, 1] = focal
        K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = w / 2, h / 2, 1
    if protocol.quirks.one_focal_ratio:
        ratio = (W / 2) / K[:, 0, 2]
        lifted = torch.zeros_like(K)
        lifted[:, 0, 0], lifted[:, 1, 1] = K[:, 0, 0] * ratio, K[:, 1, 1] * ratio
        lifted[:, 0, 2], lifted[:, 1, 2], lifted[:, 2, 2] = W / 2, H / 2, 1
        return lifted
    move = frame.target_from_original() @ torch.linalg.inv(frame.working_from_original())
    return move.to(K) @ K
