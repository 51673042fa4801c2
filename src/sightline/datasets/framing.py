"""From pictures on disk to views of one size: crops about the optical axis that keep cameras true.

Networks of the VGGT and DUSt3R families take the principal point for the middle of the picture.
Here it becomes so exactly: the crop is a box of the target's shape with the principal point in its
middle, at fractions of a pixel, and one scale for both axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, UInt8
from numpy import ndarray
from PIL import Image

from sightline.errors import InputError
from sightline.types import MultiView

_CENTRAL = 0.2
"""Share of a side that has to be left on either hand of the principal point."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PosedPicture:
    """One picture with its camera and, where there is one, its depth."""

    name: str
    image: UInt8[ndarray, "height width 3"]
    depth: Float32[ndarray, "height width"]
    """z-depth, 0 where it is not known."""
    w2c: Float64[ndarray, "4 4"]
    K: Float64[ndarray, "3 3"]
    """Pixels of ``image``, its corner at 0."""
    mask: Bool[ndarray, "height width"] | None = None
    """The object."""


def frame_picture(
    picture: PosedPicture, height: int, width: int, keep: float = 1.0
) -> PosedPicture:
    """Cut and resize a picture so that its optical axis is in the middle.

    Args:
        picture: Of any size; depth and mask are at the size of the image.
        height: Wanted.
        width: Wanted.
        keep: Share of the largest possible crop that is kept, along each side; above one all.

    Returns:
        The picture by Lanczos' filter; depth and mask at the nearest pixel, since between two
        surfaces there is nothing in the middle.

    Raises:
        InputError: If the principal point is too near to the border to be the middle of a crop.
    """
    rows, columns = picture.depth.shape
    cx, cy = float(picture.K[0, 2]), float(picture.K[1, 2])
    across, down = min(cx, columns - cx), min(cy, rows - cy)
    if across < _CENTRAL * columns or down < _CENTRAL * rows:
        msg = (
            f"{picture.name}: expected a principal point near the middle of {columns} x {rows} "
            f"pixels, got ({cx:.0f}, {cy:.0f}); leave this picture out or correct its camera"
        )
        raise InputError(msg)
    scale = max(width / (2 * across), height / (2 * down)) / min(keep, 1.0)
    left, top = cx - width / scale / 2, cy - height / scale / 2
    box = (
        max(left, 0.0),
        max(top, 0.0),
        min(left + width / scale, columns),
        min(top + height / scale, rows),
    )
    image = Image.fromarray(picture.image).resize((width, height), Image.Resampling.LANCZOS, box)
    u = np.clip(left + (np.arange(width) + 0.5) / scale, 0, columns - 1).astype(np.intp)
    v = np.clip(top + (np.arange(height) + 0.5) / scale, 0, rows - 1).astype(np.intp)
    K = np.array(
        [
            [picture.K[0, 0] * scale, 0.0, width / 2],
            [0.0, picture.K[1, 1] * scale, height / 2],
            [0.0, 0.0, 1.0],
        ]
    )
    return PosedPicture(
        name=picture.name,
        image=np.asarray(image),
        depth=picture.depth[v[:, None], u],
        w2c=picture.w2c,
        K=K,
        mask=None if picture.mask is None else picture.mask[v[:, None], u],
    )


def sample_of(
    pictures: Sequence[PosedPicture],
    scene: str,
    *,
    metric: bool,
    num_context: int = 0,
) -> MultiView:
    """Make a sample of framed pictures of one size."""
    depth = torch.from_numpy(np.stack([p.depth for p in pictures]))
    images = torch.from_numpy(np.stack([p.image for p in pictures]))
    masks = [p.mask for p in pictures if p.mask is not None]
    return MultiView(
        images=images.movedim(-1, 1).contiguous().float() / 255,
        w2c=torch.from_numpy(np.stack([p.w2c for p in pictures])).float(),
        K=torch.from_numpy(np.stack([p.K for p in pictures])).float(),
        depth=depth,
        valid=depth > 0,
        metric=torch.tensor(metric),
        masks=torch.from_numpy(np.stack(masks)) if len(masks) == len(pictures) else None,
        scenes=(scene,),
        names=(tuple(p.name for p in pictures),),
        num_context=num_context,
    )
