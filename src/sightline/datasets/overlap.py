"""What views of one scene have in common, told from their depth and cameras."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from sightline.datasets.multiview import world_points
from sightline.errors import ShapeError
from sightline.metrics.splatt3r import seen_mask
from sightline.types import MultiView


def shown_in(
    sample: MultiView, view: int, other: int, tolerance: float = 0.02
) -> tuple[Float[Tensor, "H W 2"], Bool[Tensor, "H W"]]:
    """Find the pixels of one view in another.

    Args:
        sample: Without batch axes.
        view: Whose pixels.
        other: Where to look for them.
        tolerance: Share of its depth by which a point may lie off the other view's surface.

    Returns:
        Places in the other view in pixels, and where the other view really shows the point: its
        depth is known on all sides of the place, and agrees.
    """
    points = world_points(sample)[view]
    w2c, K = sample.w2c[other], sample.K[other]
    local = points @ w2c[:3, :3].mT + w2c[:3, 3]
    z = local[..., 2]
    front = z > 1e-6
    pixels = (local @ K.mT)[..., :2] / torch.where(front, z, 1.0)[..., None]
    height, width = sample.size
    size = pixels.new_tensor([width, height])
    inside = ((pixels > 0.499) & (pixels < size - 0.499)).all(-1)
    grid = (pixels / size * 2 - 1)[None]
    known = torch.stack([sample.depth[other], sample.valid[other].to(z.dtype)])[None]
    found, sure = functional.grid_sample(known, grid, align_corners=False)[0]
    agrees = (found - z).abs() <= tolerance * z
    return pixels, sample.valid[view] & front & inside & (sure > 0.99) & agrees


def coverage(sample: MultiView, tolerance: float = 0.02) -> Float[Tensor, "S S"]:
    """Return which share of the known pixels of one view (row) each other view (column) shows."""
    views = range(len(sample))
    shares = [[shown_in(sample, a, b, tolerance)[1].float().mean() for b in views] for a in views]
    known = sample.valid.float().mean((1, 2)).clamp_min(1e-9)
    return (torch.stack([torch.stack(row) for row in shares]) / known[:, None]).clamp(max=1.0)


def target_masks(batch: MultiView) -> Bool[Tensor, "B T H W"]:
    """Return where the target views show what a context view shows too, as Splatt3R masks its loss.

    Args:
        batch: With one batch axis and ``num_context`` context views in front.

    Raises:
        ShapeError: If there is no batch axis, or there are no context or no target views.
    """
    if batch.images.ndim != 5 or not 0 < batch.num_context < len(batch):
        msg = (
            f"expected a batch with context and target views, got {len(batch)} views of which "
            f"{batch.num_context} are context; set num_context, and collate the samples"
        )
        raise ShapeError(msg)
    # The original counts pixel centres at whole numbers.
    K = batch.K.clone()
    K[..., :2, 2] -= 0.5
    c2w = torch.linalg.inv(batch.w2c)
    views = [
        {
            "depthmap": torch.where(batch.valid[:, v], batch.depth[:, v], 0.0),
            "camera_intrinsics": K[:, v],
            "camera_pose": c2w[:, v],
        }
        for v in range(len(batch))
    ]
    contexts = views[: batch.num_context]
    return torch.stack([seen_mask(contexts, v) for v in views[batch.num_context :]], 1)
