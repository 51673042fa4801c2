"""A network's maps carried back to the pixels of the views."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from sightline.geometry.camera import pixel_grid
from sightline.geometry.pointmap import depth_edges

_EDGE = 0.05
"""Relative depth step across which depth is not blended."""
_INSIDE = 1e-6
"""Pixels; rounding of the affine maps."""


def depth_on_view(
    depth: Float[Tensor, "h w"],
    confidence: Float[Tensor, "h w"],
    grid_from_view: Float[Tensor, "3 3"],
    content: Int64[Tensor, "4"],
    size: tuple[int, int],
) -> tuple[Float[Tensor, "H W"], Float[Tensor, "H W"], Bool[Tensor, "H W"]]:
    """Resample depth and confidence at the centres of a view's pixels.

    Inverse depth is blended, which keeps planes planes; beside depth steps the nearest value is
    taken, so that no point hangs between two surfaces. Nothing is read from outside ``content``.

    Args:
        depth: z-depth at the centres of the frame's pixels; not positive means missing.
        confidence: Of each pixel.
        grid_from_view: Maps continuous pixels of the view to those of the frame.
        content: Part of the frame that shows the picture: left, top, right, bottom.
        size: Height and width of the view.

    Returns:
        Depth (0 where missing), confidence (0 there) and where there is any.
    """
    left, top, right, bottom = content.tolist()
    depth, confidence = depth[top:bottom, left:right], confidence[top:bottom, left:right]
    centres = pixel_grid(*size, dtype=torch.float64)
    scale = torch.diagonal(grid_from_view)[:2]
    at = centres * scale + grid_from_view[:2, 2] - torch.tensor([left, top])
    extent = torch.tensor([right - left, bottom - top], dtype=torch.float64)
    inside = ((at > -_INSIDE) & (at < extent + _INSIDE)).all(-1)
    where = (2 * at / extent - 1).float()[None]
    known = (depth > 0) & depth.isfinite()
    near = _sample(torch.where(known, depth, 0.0), where, "nearest")
    inverse = torch.where(known, 1 / torch.where(known, depth, 1.0), 0.0)
    blended = 1 / _sample(inverse, where, "bilinear").clamp_min(torch.finfo(depth.dtype).tiny)
    # Beside a step, and beside a hole, a blend would invent a surface.
    rough = depth_edges(depth[None], _EDGE)[0] | (_grow(~known) & known)
    exact = _sample(rough.float(), where, "bilinear") > 0
    result = torch.where(exact, near, blended)
    sure = _sample(torch.where(known, confidence, 0.0), where, "bilinear")
    valid = inside & (near > 0) & result.isfinite()
    return torch.where(valid, result, 0.0), torch.where(valid, sure, 0.0), valid


def _sample(values: Float[Tensor, "h w"], where: Tensor, mode: str) -> Float[Tensor, "H W"]:
    return functional.grid_sample(
        values[None, None], where, mode=mode, padding_mode="border", align_corners=False
    )[0, 0]


def _grow(mask: Bool[Tensor, "h w"]) -> Bool[Tensor, "h w"]:
    return functional.max_pool2d(mask.float()[None], 3, 1, 1)[0] > 0
