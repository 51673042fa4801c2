"""Pictures as the published pipeline prepares them: reference crops and square targets."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sightline.segmentation.pooling import resize_square

Box = tuple[float, float, float, float]


def crop_window(box: Box, size: tuple[int, int], context: float) -> tuple[int, int, int, int]:
    """Return ``x0 y0 x1 y1`` of the square around a box, clamped to the picture.

    Args:
        box: x, y, width, height; corners are cut to whole pixels.
        size: Height and width of the picture.
        context: How much longer than the box's long side the square is.
    """
    x0, y0, x1, y1 = int(box[0]), int(box[1]), int(box[0] + box[2]), int(box[1] + box[3])
    half = max(x1 - x0, y1 - y0) * (1 + context) / 2
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    height, width = size
    left, top = max(int(x - half), 0), max(int(y - half), 0)
    right, bottom = min(int(x + half), width), min(int(y + half), height)
    # A box thinner than a pixel, or outside, still needs something to look at.
    left, top = min(left, width - 1), min(top, height - 1)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def reference_crop(
    image: Float[Tensor, "3 h w"],
    mask: Float[Tensor, "h w"],
    box: Box,
    size: int,
    context: float = 0.2,
) -> tuple[Float[Tensor, "3 {size} {size}"], Float[Tensor, "{size} {size}"]]:
    """Return picture and soft mask around an object, both stretched to a square.

    The picture is resized with bicubic interpolation (no antialiasing; it may overshoot [0, 1]),
    the mask bilinearly.
    """
    height, width = mask.shape
    left, top, right, bottom = crop_window(box, (height, width), context)
    piece = resize_square(image[:, top:bottom, left:right], size, size)
    part = mask[None, None, top:bottom, left:right]
    return piece, functional.interpolate(part, (size, size), mode="bilinear")[0, 0]


def square_target(image: Float[Tensor, "3 h w"], size: int) -> Float[Tensor, "3 {size} {size}"]:
    """Return a picture stretched to a square by Pillow's bicubic filter, through 8 bits."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    small = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
    array = torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255
    return array.to(image.device)


def grid_mask(mask: Float[Tensor, "h w"], grid: tuple[int, int]) -> Float[Tensor, "a b"]:
    """Return a soft mask on the patch grid by the nearest pixel."""
    return functional.interpolate(mask[None, None], grid, mode="nearest")[0, 0]


def scaled_boxes(
    boxes: Float[Tensor, "n 4"], size: tuple[int, int], side: int
) -> Float[Tensor, "n 4"]:
    """Return boxes ``x0 y0 x1 y1`` of a picture of ``size`` (height, width) on its square."""
    height, width = size
    scale = boxes.new_tensor([side / width, side / height] * 2)
    return boxes * scale


def mask_box(mask: Tensor) -> Box:
    """Return x, y, width, height around what is positive; the whole picture when nothing is."""
    height, width = mask.shape
    rows: Int64[Tensor, " r"] = (mask > 0).any(1).nonzero()[:, 0]
    columns: Int64[Tensor, " c"] = (mask > 0).any(0).nonzero()[:, 0]
    if len(rows) == 0:
        return 0.0, 0.0, float(width), float(height)
    x, y = int(columns[0]), int(rows[0])
    return float(x), float(y), float(int(columns[-1]) + 1 - x), float(int(rows[-1]) + 1 - y)
