"""Which test pixels the training views show: the rule of Splatt3R's evaluation."""

import io

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sightline.geometry.camera import project_points, unproject_depth
from sightline.probing.frames import Size
from sightline.probing.protocols import Protocol
from sightline.types import Cameras


def visible_pixels(
    test_depth: Float[Tensor, "T h w"],
    test: Cameras,
    train_depth: Float[Tensor, "V h w"],
    train: Cameras,
    protocol: Protocol,
) -> Bool[Tensor, "T h w"]:
    """Mark test pixels that training views see.

    A pixel with depth above 1e-6 counts if its point projects strictly inside at least one training
    view, and if in at least one of them (perhaps another) its depth agrees with the depth there,
    read bilinearly: within ``mask_tolerance`` of the depth, or with the quirk
    ``absolute_tolerance`` within ``mask_tolerance`` units plus 1e-5 of it, where the reference
    looks: cameras then count pixels from whole numbers, and only depth above 0 at the pixel itself
    is asked for.

    Args:
        test_depth: z-depth; not positive where unknown.
        test: Cameras at the size of the maps.
        train_depth: As ``test_depth``.
        train: As ``test``.
        protocol: Tolerance and quirk.
    """
    absolute = protocol.quirks.absolute_tolerance
    # There pixel (i, j) lies at (i, j), but is looked up half a pixel to its upper left.
    lifted = shift_pixels(test, 0.5) if absolute else test
    points = unproject_depth(test_depth.double(), lifted.map(lambda t: t.double()))
    size = torch.tensor([train.width, train.height], dtype=torch.float64, device=points.device)
    tolerance = protocol.mask_tolerance
    masks = []
    for view in range(len(test)):
        flat = points[view].flatten(0, 1)
        pixels, depth = project_points(flat, train.map(lambda t: t.double()))
        inside = ((pixels > 0) & (pixels < size)).all(-1)
        where = torch.nan_to_num(2 * pixels / size - 1, nan=2.0)[:, None]
        maps = train_depth.double()[:, None]
        there = functional.grid_sample(maps, where, align_corners=False)[:, 0, 0]
        if absolute:
            agrees = (depth - there).abs() <= tolerance + 1e-5 * there.abs()
        else:
            agrees = inside & (there > 0) & ((depth - there).abs() <= tolerance * depth.abs())
        seen = inside.any(0) & agrees.any(0) & (test_depth[view].flatten() > 1e-6)
        masks.append(seen.view(test.height, test.width))
    return torch.stack(masks) if masks else test_depth > 1e-6


def shift_pixels(cameras: Cameras, by: float) -> Cameras:
    """Return cameras that count pixels from elsewhere: principal points move by ``by`` pixels."""
    K = cameras.K.clone()
    K[:, :2, 2] += by
    return Cameras(w2c=cameras.w2c, K=K, height=cameras.height, width=cameras.width)


def lay_out_masks(
    masks: Bool[Tensor, "T h w"],
    names: tuple[str, ...],
    original: Size,
    target: Size,
    protocol: Protocol,
) -> Float[Tensor, "T H W"]:
    """Bring masks to the size of the rendered pictures, 1 where a pixel counts.

    Enlarged to the original by nearest pixel and reduced by an antialiased bilinear resize. With
    the quirk ``jpeg_masks``, masks of JPEG pictures go through a JPEG file, which blurs borders.
    `counted_pixels` says what is scored.
    """
    whole = functional.interpolate(masks[:, None].float(), original, mode="nearest")
    if protocol.quirks.jpeg_masks:
        for i, name in enumerate(names):
            if name.lower().endswith((".jpg", ".jpeg")):
                whole[i, 0] = _through_jpeg(whole[i, 0])
    if target != original:
        whole = functional.interpolate(
            whole, target, mode="bilinear", align_corners=False, antialias=True
        )
    return whole[:, 0].clamp(0, 1)


def counted_pixels(masks: Float[Tensor, "T H W"]) -> Bool[Tensor, "T H W"]:
    """Return the pixels that are scored: those whose mask is 255 when it is written as 8 bits."""
    return (masks * 255).round() == 255


def _through_jpeg(mask: Float[Tensor, "H W"]) -> Float[Tensor, "H W"]:
    buffer = io.BytesIO()
    Image.fromarray((mask * 255).byte().cpu().numpy()).save(buffer, "JPEG")
    return torch.from_numpy(np.asarray(Image.open(buffer)).astype(np.float32) / 255).to(mask)
