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
    ``absolute_tolerance`` within ``mask_tolerance`` units plus 1e-5 of it, at integer pixels.

    Args:
        test_depth: z-depth; not positive where unknown.
        test: Cameras at the size of the maps.
        train_depth: As ``test_depth``.
        train: As ``test``.
        protocol: Tolerance and quirk.
    """
    absolute = protocol.quirks.absolute_tolerance
    if absolute:  # the reference lets the ray of pixel (i, j) start at (i, j)
        test, train = _shifted(test), _shifted(train)
    points = unproject_depth(test_depth.double(), test.map(lambda t: t.double()))
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
        limit = tolerance + 1e-5 * there.abs() if absolute else tolerance * depth.abs()
        agrees = inside & ((depth - there).abs() <= limit) & (there > 0)
        seen = inside.any(0) & agrees.any(0) & (test_depth[view].flatten() > 1e-6)
        masks.append(seen.view(test.height, test.width))
    return torch.stack(masks) if masks else test_depth > 1e-6


def _shifted(cameras: Cameras) -> Cameras:
    K = cameras.K.clone()
    K[:, :2, 2] += 0.5
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
    Only pixels that are exactly 1 are scored.
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


def _through_jpeg(mask: Float[Tensor, "H W"]) -> Float[Tensor, "H W"]:
    buffer = io.BytesIO()
    Image.fromarray((mask * 255).byte().cpu().numpy()).save(buffer, "JPEG")
    return torch.from_numpy(np.asarray(Image.open(buffer)).astype(np.float32) / 255).to(mask)
