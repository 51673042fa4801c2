"""Pictures for pages: sized, coloured and packed as JPEG within a budget of bytes."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from sightline.report.colormap import MAGMA, TURBO, apply_colormap

Picture = UInt8[Tensor, "3 H W"] | Float[Tensor, "3 H W"]
"""RGB, channels first; floats in [0, 1]."""
Pixels = UInt8[np.ndarray, "_ _ 3"]

ERROR_LIMIT = 0.2
"""Mean absolute difference, of the full range 1, that gets magma's last colour."""

_SMALLEST_SIDE = 32  # of a picture's long side; below it, shrinking further says nothing
_STRIDE = 7  # samples every seventh pixel when a range is estimated


def to_pixels(picture: Picture) -> Pixels:
    """Return a picture as 8-bit rows on the CPU."""
    picture = picture.detach().cpu()
    if picture.dtype != torch.uint8:
        picture = (picture.float().nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(picture.permute(1, 2, 0).numpy())


def shrink(pixels: Pixels, long_side: int) -> Pixels:
    """Return the picture with its long side at most ``long_side`` pixels; never enlarged."""
    height, width = pixels.shape[:2]
    scale = long_side / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def encode_jpeg(pixels: Pixels, quality: int = 85) -> bytes:
    """Return a baseline JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def encode_jpegs(
    pictures: Sequence[Pixels], *, long_side: int, budget: int, quality: int = 85
) -> list[bytes]:
    """Pack pictures as JPEG files that together take at most about ``budget`` bytes.

    Args:
        pictures: Of any sizes.
        long_side: Pixels of the longer side at most; smaller pictures keep their size.
        budget: Bytes for all files together. Where they would take more, all shrink alike, at
            worst down to 32 pixels.
        quality: Of the JPEG files, 1 to 95.

    Returns:
        One file a picture, in order.
    """
    longest = max((max(pixels.shape[:2]) for pixels in pictures), default=0)
    long_side = min(long_side, longest)
    while True:
        files = [encode_jpeg(shrink(pixels, long_side), quality) for pixels in pictures]
        size = sum(map(len, files))
        if size <= budget or long_side <= _SMALLEST_SIDE:
            return files
        # Bytes go about with the area; the margin makes the second round nearly always the last.
        long_side = max(_SMALLEST_SIDE, int(long_side * 0.9 * (budget / size) ** 0.5))


def depth_mask(
    depth: Float[Tensor, "H W"], valid: Bool[Tensor, "H W"] | None = None
) -> Bool[Tensor, "H W"]:
    """Return where depth is known: finite, positive and marked valid."""
    known = depth.isfinite() & (depth > 0)
    return known if valid is None else known & valid


def depth_range(
    depths: Sequence[Float[Tensor, "_ _"]], masks: Sequence[Bool[Tensor, "_ _"]]
) -> tuple[float, float]:
    """Return the 2nd and 98th percentile of the known depths of all pictures together."""
    samples = [
        depth[mask][::_STRIDE].float().cpu() for depth, mask in zip(depths, masks, strict=True)
    ]
    known = torch.cat(samples) if samples else torch.empty(0)
    if len(known) == 0:
        return 1.0, 2.0
    near, far = np.quantile(known.numpy(), [0.02, 0.98])
    return float(near), float(max(far, near * 1.001))


def depth_fraction(
    depth: Float[np.ndarray, "*s"], near: float, far: float
) -> Float[np.ndarray, "*s"]:
    """Return where depths lie on the colour scale: 0 at ``far``, 1 at ``near``.

    The scale is even in inverse depth, so that what is close keeps its detail.
    """
    return (1 / depth - 1 / far) / (1 / near - 1 / far)


def depth_picture(
    depth: Float[Tensor, "H W"], mask: Bool[Tensor, "H W"], near: float, far: float
) -> Pixels:
    """Colour depth in turbo: near is red, far is blue, unknown is grey."""
    known = torch.where(mask, depth.float(), torch.nan).cpu().numpy()
    return apply_colormap(depth_fraction(known, near, far), TURBO)


def error_picture(render: Picture, photo: Picture) -> Pixels:
    """Colour the mean absolute difference of the channels in magma, up to `ERROR_LIMIT`."""
    difference = to_pixels(render).astype(np.float32) - to_pixels(photo).astype(np.float32)
    error = np.abs(difference).mean(axis=2) / 255
    return apply_colormap(error / ERROR_LIMIT, MAGMA)
