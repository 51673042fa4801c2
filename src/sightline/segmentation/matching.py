"""Proposals of one image to labelled instances: both matching models of the paper.

`match_proposals` is the default model (points, no automatic mask generator): similarity, class-wise
suppression, soft merging. `match_amg` is the model over an automatic mask generator: every class
is paired with every mask and the best pairs win.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import normalize

from sightline.errors import InputError
from sightline.segmentation.overlaps import (
    PackedMasks,
    intersections,
    pack_logits,
    suppress_boxes,
)
from sightline.segmentation.pooling import (
    mask_boxes,
    pool_features,
    pool_logits,
    resize_logits,
)
from sightline.segmentation.similarity import cosine
from sightline.types import InstanceMasks


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchOptions:
    """Numbers of the default model; names and defaults are the paper's (``sam2_infer_cfgs``)."""

    nms_thr: float = 0.5
    num_out_instance: int = 100
    cls_num_per_mask: int = 1
    """Classes tried for a mask; -1 tries all and drops scores of at most 0.6 times the best."""
    semantic_merging: bool = True
    """Weigh overlaps by how alike the two masks look."""
    merge_earlier_only: bool = True
    """Only masks of higher predicted IoU take score away."""
    merge_exponent: float = 0.5

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if not 0 < self.nms_thr <= 1:
            raise InputError(f"nms_thr must be above 0 and at most 1, got {self.nms_thr}")
        if self.num_out_instance < 1:
            raise InputError(f"num_out_instance must be 1 or more, got {self.num_out_instance}")
        if self.cls_num_per_mask < 1 and self.cls_num_per_mask != -1:
            raise InputError(
                f"cls_num_per_mask must be 1 or more, or -1 for all, got {self.cls_num_per_mask}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AmgOptions:
    """Numbers of the AMG model; ``nms_thr`` and ``merge`` are off in the published one."""

    num_out_instance: int = 100
    nms_thr: float | None = None
    merge: bool = False


def object_features(
    features: Float[Tensor, "c h w"], masks: Bool[Tensor, "p H W"]
) -> Float[Tensor, "p c"]:
    """Return unit mean features of the proposals; NaN for an empty mask."""
    return normalize(pool_features(features, masks), dim=-1)


def merge_factors(
    masks: PackedMasks,
    objects: Float[Tensor, "p c"],
    labels: Int64[Tensor, " p"],
    *,
    semantic: bool = True,
    earlier_only: bool = True,
) -> Float[Tensor, " p"]:
    """Return the largest share of each mask that another of its class covers, times likeness.

    ``r_i = max_j |M_i and M_j| / |M_i| * max(0, o_i . o_j)`` over masks of the same class, by
    default the earlier ones only; zero without any.
    """
    if len(masks) == 0:
        return torch.zeros(0)
    overlap = intersections(masks, groups_a=labels)
    if not earlier_only:
        overlap = overlap + overlap.T
    ratio = overlap / masks.areas().clamp(min=1)[:, None]
    if semantic:
        ratio = ratio * cosine(objects.cpu(), objects.cpu())
    return ratio.amax(1)


def _candidates(
    similarity: Float[Tensor, "p k"], count: int
) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"], Float[Tensor, " m"]]:
    """Return (proposal, label, score) of the classes tried for each proposal."""
    classes = similarity.shape[1]
    if count == 1:
        scores, labels = similarity.max(1, keepdim=True)  # of equal classes the first, unlike topk
    else:
        scores, labels = similarity.topk(classes if count == -1 else min(count, classes), dim=1)
    if count == -1:
        scores = scores * (scores > 0.6 * scores[:, :1])
    rows = torch.arange(len(similarity), device=similarity.device)[:, None].expand_as(labels)
    return rows.flatten(), labels.flatten(), scores.flatten()


def select_candidates(
    similarity: Float[Tensor, "p k"],
    boxes: Float[Tensor, "p 4"],
    quality: Float[Tensor, " p"],
    options: MatchOptions,
) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"], Float[Tensor, " m"]]:
    """Return (proposal, label, score) after class-wise suppression, by falling ``quality``."""
    rows, labels, scores = _candidates(similarity, options.cls_num_per_mask)
    keep = suppress_boxes(boxes[rows], quality[rows], labels, options.nms_thr)
    keep = keep[: 8 * options.num_out_instance]
    keep = keep[scores[keep] > 0]
    return rows[keep], labels[keep], scores[keep]


def finish(
    logits: Float[Tensor, "p h w"],
    rows: Int64[Tensor, " m"],
    boxes: Float[Tensor, "m 4"],
    objects: Float[Tensor, "m c"],
    labels: Int64[Tensor, " m"],
    scores: Float[Tensor, " m"],
    size: tuple[int, int],
    options: MatchOptions,
) -> InstanceMasks:
    """Merge softly at the original size and keep the best.

    Args:
        logits: Of all proposals.
        rows: Which are candidates, by falling predicted IoU; one that vanishes at full size is
            dropped.
        boxes: Around their positive logits.
        objects: Unit features of the candidates.
        labels: Their classes.
        scores: Their similarities.
        size: Original height and width.
        options: Numbers of the model.

    Returns:
        The instances, best first.
    """
    packed = pack_logits(logits, *size, rows, boxes)
    scores, labels = scores.cpu(), labels.cpu()
    ratio = merge_factors(
        packed,
        objects,
        labels,
        semantic=options.semantic_merging,
        earlier_only=options.merge_earlier_only,
    )
    scores = scores * (1 - ratio).clamp(min=0) ** options.merge_exponent
    order = scores.argsort(descending=True, stable=True)
    order = order[packed.areas()[order] > 0][: options.num_out_instance]
    masks = resize_logits(logits[rows[order.to(rows.device)]], *size).cpu()
    return InstanceMasks(
        masks=masks, boxes=mask_boxes(masks), labels=labels[order], scores=scores[order]
    )


def match_proposals(
    features: Float[Tensor, "c h w"],
    logits: Float[Tensor, "p H W"],
    quality: Float[Tensor, " p"],
    prototypes: Float[Tensor, "k c"],
    size: tuple[int, int],
    options: MatchOptions | None = None,
    *,
    similarity: Callable[[Float[Tensor, "p c"]], Float[Tensor, "p l"]] | None = None,
) -> InstanceMasks:
    """Run the default model on one image.

    Args:
        features: Of the image, on the patch grid, not normalised.
        logits: Mask logits of the proposals.
        quality: Predicted IoU of each proposal.
        prototypes: One unit vector a class.
        size: Height and width of the result.
        options: The paper's numbers by default.
        similarity: Another measure of unit object features; ``prototypes`` are then unused.

    Returns:
        At most ``num_out_instance`` instances by falling score; none when nothing is found.
    """
    options = options or MatchOptions()
    pooled = pool_logits(logits, (features.shape[1], features.shape[2]))
    alive = (pooled.areas > 0).nonzero()[:, 0]
    objects = normalize(pooled.weights[alive] @ features.flatten(1).T, dim=-1)
    alike = cosine(objects, prototypes) if similarity is None else similarity(objects)
    boxes = pooled.boxes[alive]
    rows, labels, scores = select_candidates(alike, boxes, quality[alive], options)
    kept = alive[rows]
    return finish(logits, kept, boxes[rows], objects[rows], labels, scores, size, options)


def amg_similarity(
    features: Float[Tensor, "c h w"],
    logits: Float[Tensor, "p H W"],
    class_means: Float[Tensor, "k c"],
) -> tuple[Float[Tensor, "k m"], Int64[Tensor, " m"], Float[Tensor, "m c"]]:
    """Return class-mask scores of the AMG model, which masks they are for, and mean features.

    Masks are brought to the patch grid (bilinear, antialiased, corners aligned); those that vanish
    there are left out. Features are unit tokens, their mean is not normalised again.
    """
    grid = functional.interpolate(
        logits[None], features.shape[1:], mode="bilinear", antialias=True, align_corners=True
    )[0]
    inside = grid > 0
    alive = inside.flatten(1).any(1).nonzero()[:, 0]
    weights = inside[alive].flatten(1).to(features.dtype)
    unit = normalize(features.flatten(1).T, dim=-1)
    means = weights @ unit / weights.sum(1, keepdim=True)
    return (class_means @ means.T + 1) / 2, alive, means


def match_amg(
    features: Float[Tensor, "c h w"],
    logits: Float[Tensor, "p H W"],
    class_means: Float[Tensor, "k c"],
    size: tuple[int, int],
    options: AmgOptions | None = None,
) -> InstanceMasks:
    """Run the AMG model on one image.

    Args:
        features: Of the image, on the patch grid.
        logits: Mask logits of the automatic masks.
        class_means: Mean of the unit reference tokens of each class.
        size: Height and width of the result.
        options: The published numbers by default.

    Returns:
        The best class-mask pairs by falling score; a mask may appear under several classes.
    """
    options = options or AmgOptions()
    if len(logits) == 0:
        return _none(size)
    scores, alive, means = amg_similarity(features, logits, class_means)
    if len(alive) == 0:
        return _none(size)
    count = scores.numel() if options.nms_thr is not None else options.num_out_instance
    # Masks of the same grid cells score the same; a stable sort keeps them in order, topk does not.
    best, index = (x[:count] for x in scores.flatten().sort(descending=True, stable=True))
    labels, rows = index // len(alive), index % len(alive)
    if options.nms_thr is not None:
        boxes = mask_boxes(logits[alive] > 0)[rows]
        keep = suppress_boxes(boxes, best, labels, options.nms_thr)
        keep = keep[: options.num_out_instance]
        best, labels, rows = best[keep], labels[keep], rows[keep]
    used, back = rows.unique(return_inverse=True)
    masks = resize_logits(logits[alive[used]], *size, align_corners=True)
    boxes = mask_boxes(masks)
    if options.merge:
        packed = pack_logits(logits[alive[used]], *size, align_corners=True).select(back)
        ratio = merge_factors(packed, normalize(means[rows], dim=-1), labels.cpu())
        best = best * (1 - ratio.to(best.device)).clamp(min=0).sqrt()
        best, order = best.sort(descending=True, stable=True)
        labels, back = labels[order], back[order]
    return InstanceMasks(
        masks=masks[back].cpu(), boxes=boxes[back].cpu(), labels=labels.cpu(), scores=best.cpu()
    )


def _none(size: tuple[int, int]) -> InstanceMasks:
    return InstanceMasks(
        masks=torch.zeros(0, *size, dtype=torch.bool),
        boxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
        scores=torch.zeros(0),
    )


def grid_points(per_side: int, side: int) -> Float[Tensor, "n 2"]:
    """Return the default model's prompts: pixels ``(x, y)`` of a square, x varying slowest."""
    at = torch.linspace(0, side - 1, per_side) + 0.5
    x, y = torch.meshgrid(at, at, indexing="ij")
    return torch.stack((x, y), -1).flatten(0, 1)


def patch_grid(cells: int) -> tuple[int, int]:
    """Return height and width of a square patch grid of so many cells.

    Raises:
        InputError: The number is no square.
    """
    side = math.isqrt(cells)
    if side * side != cells:
        raise InputError(f"expected a square number of grid cells, got {cells}; give the grid size")
    return side, side
