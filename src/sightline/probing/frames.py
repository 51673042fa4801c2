"""From the picture on disk to what points are made for and what is rendered, and back."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from sightline.errors import InputError
from sightline.probing.protocols import Protocol
from sightline.types import Cameras

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
        crop: As ``window``, where the working picture is cut from another place than the protocol
            takes it to be (DTU as the reference has it).
    """

    original: Size
    target: Size
    working: Size
    window: tuple[float, float, float, float]
    kept: tuple[float, float, float, float]
    squeezed: Size | None = None
    crop: tuple[float, float, float, float] | None = None

    @property
    def source(self) -> tuple[float, float, float, float]:
        """Where the working picture is cut from."""
        return self.crop or self.window

    def working_from_original(self) -> Float[Tensor, "3 3"]:
        """Return the map of pixels, float64."""
        return _map(self.source, self.working)

    def target_from_original(self) -> Float[Tensor, "3 3"]:
        """Return the map of pixels, float64."""
        return _map(self.kept, self.target)


def _map(box: tuple[float, float, float, float], size: Size) -> Float[Tensor, "3 3"]:
    top, left, height, width = box
    sx, sy = size[1] / width, size[0] / height
    rows = [[sx, 0, -left * sx], [0, sy, -top * sy], [0, 0, 1]]
    return torch.tensor(rows, dtype=torch.float64)


def make_frame(
    original: Size, protocol: Protocol, center: tuple[float, float] | None = None
) -> Frame:
    """Choose the sizes of a scene's pictures.

    The long side becomes ``protocol.long_side`` (each side rounded). What is left over 16 is
    cropped evenly, or with the quirk ``stretched_pictures`` squeezed away. Rendered are whole
    pictures, reduced to ``render_width`` where wider (truncated); without ``render_width`` the
    working pictures themselves.

    Args:
        original: On disk.
        protocol: Its sizes and quirks.
        center: Principal point (x, y) about which the working picture is cut (DTU); with the quirk
            ``stretched_pictures`` it is then taken to show the whole picture all the same.

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
    crop = None
    if center is not None:
        squeezed, window = None, _centered(original, working, center)
        if protocol.quirks.stretched_pictures:
            crop, window = window, whole
    if protocol.render_width is None:
        return Frame(
            original=original,
            target=working,
            working=working,
            window=window,
            kept=window,
            squeezed=squeezed,
            crop=crop,
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
        crop=crop,
    )


def _centered(
    original: Size, working: Size, center: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Return the largest window about a rounded centre that has the working shape (DUSt3R)."""
    (height, width), (h, w) = original, working
    x, y = round(center[0]), round(center[1])
    margin_x, margin_y = min(x, width - x), min(y, height - y)
    if margin_x <= width / 5 or margin_y <= height / 5:
        raise InputError(
            f"expected a principal point near the centre of {width} x {height} pixels, got "
            f"({center[0]:.0f}, {center[1]:.0f}); check the cameras"
        )
    scale = max(w / (2 * margin_x), h / (2 * margin_y))
    high, wide = h / scale, w / scale
    return (y - high / 2, x - wide / 2, high, wide)


def working_picture(image: UInt8[np.ndarray, "H W 3"], frame: Frame) -> UInt8[np.ndarray, "h w 3"]:
    """Resize an original picture for points and features.

    Lanczos where it shrinks, bicubic where it grows (as DUSt3R does). Where the whole picture is
    kept, that happens at the unrounded size first and a bilinear resize to whole patches follows.
    """
    top, left, height, width = frame.source
    h, w = frame.working
    picture = Image.fromarray(image)
    shrinks = max(frame.squeezed) < max(frame.original) if frame.squeezed else h < height
    kind = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
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
    top, left, height, width = frame.source
    h, w = frame.working
    rows = top + (np.arange(h) + 0.5) * height / h
    columns = left + (np.arange(w) + 0.5) * width / w
    y = np.clip((rows * values.shape[0] / frame.original[0]).astype(int), 0, values.shape[0] - 1)
    x = np.clip((columns * values.shape[1] / frame.original[1]).astype(int), 0, values.shape[1] - 1)
    return values[y[:, None], x]


def lift_intrinsics(
    K: Float[Tensor, "V 3 3"], frame: Frame, protocol: Protocol, *, shared: bool = False
) -> Float[Tensor, "V 3 3"]:
    """Turn intrinsics of working pictures into those of rendered ones.

    With the quirk ``one_focal_ratio`` fx and fy are scaled alike to the original picture, by the
    horizontal ratio of half its width to the principal point, and from there to the rendered size
    each by its own side; principal points are centred.

    Args:
        K: Of working pictures.
        frame: Sizes.
        protocol: Its quirk.
        shared: Give all views the mean focal length and a centred principal point first.
    """
    h, w = frame.working
    H, W = frame.target
    if shared:
        focal = K[:, [0, 1], [0, 1]].mean()
        K = torch.zeros_like(K)
        K[:, 0, 0] = K[:, 1, 1] = focal
        K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = w / 2, h / 2, 1
    if protocol.quirks.one_focal_ratio:
        _, _, high, wide = frame.kept
        ratio = (wide / 2) / K[:, 0, 2]
        lifted = torch.zeros_like(K)
        lifted[:, 0, 0], lifted[:, 1, 1] = (
            K[:, 0, 0] * ratio * W / wide,
            K[:, 1, 1] * ratio * H / high,
        )
        lifted[:, 0, 2], lifted[:, 1, 2], lifted[:, 2, 2] = W / 2, H / 2, 1
        return lifted
    move = frame.target_from_original() @ torch.linalg.inv(frame.working_from_original())
    return move.to(K) @ K


def stack_pictures(pictures: Sequence[np.ndarray]) -> UInt8[Tensor, "V 3 h w"]:
    """Return pictures of one size, channels last, as one tensor with channels first."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def stack_cameras(
    w2c: Sequence[np.ndarray], K: Sequence[np.ndarray], images: UInt8[Tensor, "V 3 h w"]
) -> Cameras:
    """Return the cameras of stacked pictures."""
    return Cameras(
        w2c=torch.from_numpy(np.stack(w2c)),
        K=torch.from_numpy(np.stack(K)),
        height=images.shape[2],
        width=images.shape[3],
    )
