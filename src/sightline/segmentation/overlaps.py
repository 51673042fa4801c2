"""Overlaps of many masks: packed to one bit a pixel, and only where they can overlap."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sightline.segmentation import kernels
from sightline.segmentation.pooling import mask_boxes, pool_logits, resize_logits, resize_taps

_CHUNK_PIXELS = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedMasks:
    """Masks on the CPU, one bit a pixel: an eighth of the memory of Boolean ones."""

    words: np.ndarray
    """``[N, H, ceil(W / 64)]`` uint64."""
    boxes: Float[Tensor, "n 4"]
    """Inclusive ``x0 y0 x1 y1``."""
    width: int

    def __len__(self) -> int:
        """Return the number of masks."""
        return len(self.words)

    @property
    def height(self) -> int:
        """Rows of every mask."""
        return self.words.shape[1]

    def areas(self) -> Int64[Tensor, " n"]:
        """Return the number of pixels of each mask."""
        out = np.zeros(len(self.words), np.int64)
        kernels.areas(self.words, out)
        return torch.from_numpy(out)

    def select(self, index: Int64[Tensor, " m"]) -> "PackedMasks":
        """Return the chosen masks."""
        index = index.cpu()
        return PackedMasks(
            words=self.words[index.numpy()], boxes=self.boxes[index], width=self.width
        )

    def unpack(self) -> Bool[Tensor, "n h w"]:
        """Return Boolean masks."""
        bits = np.unpackbits(self.words.view(np.uint8), axis=-1, bitorder="little")
        return torch.from_numpy(bits[..., : self.width].astype(bool))


def pack_masks(masks: Bool[Tensor, "n h w"]) -> PackedMasks:
    """Pack masks; ``mask_boxes`` are computed on the way."""
    count, height, width = masks.shape
    words = np.zeros((count, height, -(-width // 64)), np.uint64)
    boxes = torch.zeros(count, 4)
    octets = words.view(np.uint8)
    step = max(1, _CHUNK_PIXELS // max(1, height * width))
    for start in range(0, count, step):
        part = masks[start : start + step]
        boxes[start : start + step] = mask_boxes(part).cpu()
        packed = np.packbits(part.cpu().numpy(), axis=-1, bitorder="little")
        octets[start : start + step, :, : packed.shape[-1]] = packed
    return PackedMasks(words=words, boxes=boxes, width=width)


def pack_logits(
    logits: Float[Tensor, "n h w"],
    height: int,
    width: int,
    rows: Int64[Tensor, " m"] | None = None,
    boxes: Float[Tensor, "m 4"] | None = None,
    *,
    align_corners: bool = False,
) -> PackedMasks:
    """Resize logits (bilinear, antialiased) and pack where they are positive.

    On the CPU only what a positive cell can reach is computed, bit by bit; nothing of full size
    exists as numbers.

    Args:
        logits: On any grid over the picture.
        height: Of the result.
        width: Of the result.
        rows: Which of the logits, in order; all by default.
        boxes: Around the positive cells of each row, where they are known.
        align_corners: As in torch's ``interpolate``.
    """
    if rows is None:
        rows = torch.arange(len(logits))
    if logits.device.type == "cpu" and logits.dtype == torch.float32 and not align_corners:
        if boxes is None:
            boxes = pool_logits(logits, (1, 1)).boxes[rows]
        return _pack_resized(logits, height, width, rows, boxes)
    if len(rows) == 0:
        return pack_masks(torch.zeros(0, height, width, dtype=torch.bool))
    step = max(1, _CHUNK_PIXELS // (height * width))
    parts = [
        pack_masks(resize_logits(logits[part], height, width, align_corners=align_corners))
        for part in rows.to(logits.device).split(step)
    ]
    return PackedMasks(
        words=np.concatenate([p.words for p in parts]),
        boxes=torch.cat([p.boxes for p in parts]),
        width=width,
    )


def _pack_resized(
    logits: Float[Tensor, "n h w"],
    height: int,
    width: int,
    rows: Int64[Tensor, " m"],
    boxes: Float[Tensor, "m 4"],
) -> PackedMasks:
    words = np.zeros((len(rows), height, -(-width // 64)), np.uint64)
    spans = np.zeros((len(rows), 4), np.int64)
    y_first, y_weights = resize_taps(logits.shape[1], height)
    x_first, x_weights = resize_taps(logits.shape[2], width)
    kernels.pack_resized(
        logits.contiguous().numpy(),
        rows.numpy(),
        boxes.long().numpy(),
        y_first.numpy(),
        y_weights.numpy(),
        x_first.numpy(),
        x_weights.numpy(),
        np.empty(logits.shape[2], np.float32),
        words,
        spans,
    )
    return PackedMasks(words=words, boxes=torch.from_numpy(spans).float(), width=width)


def intersections(
    a: PackedMasks,
    b: PackedMasks | None = None,
    groups_a: Int64[Tensor, " n"] | None = None,
    groups_b: Int64[Tensor, " m"] | None = None,
) -> Int64[Tensor, "n m"]:
    """Return ``|A_i and B_j|`` for masks of the same group; without ``b``, only ``j < i``."""
    other = a if b is None else b
    if groups_a is None:
        groups_a = torch.zeros(len(a), dtype=torch.int64)
    if b is None:
        groups_b = groups_a
    elif groups_b is None:
        groups_b = torch.zeros(len(b), dtype=torch.int64)
    assert groups_b is not None
    out = np.zeros((len(a), len(other)), np.int64)
    kernels.pair_overlaps(
        a.words,
        other.words,
        a.boxes.long().numpy(),
        other.boxes.long().numpy(),
        groups_a.cpu().numpy(),
        groups_b.cpu().numpy(),
        b is None,
        out,
    )
    return torch.from_numpy(out)


def suppress_boxes(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, " n"],
    groups: Int64[Tensor, " n"],
    threshold: float,
) -> Int64[Tensor, " m"]:
    """Return rows kept by greedy suppression within each group, best score first.

    A box goes when its IoU with a better kept one of its group is above ``threshold``; equal
    scores keep their order.
    """
    order = scores.argsort(descending=True, stable=True)
    kept = np.empty(len(boxes), np.int64)
    count = kernels.suppress(
        boxes[order].double().cpu().numpy(), groups[order].cpu().numpy(), float(threshold), kept
    )
    return order[torch.from_numpy(kept[:count]).to(order.device)]
