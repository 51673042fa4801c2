"""How much memory a pass through a VGGT-like network takes, and how much there is."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sightline.nn.dpt import frames_at_once
from sightline.run import free_memory_bytes

_LIVE = 13.0
"""Token-sized buffers alive at once inside a block: the stream, the norm, queries, keys and values
before and after their norms and rotation, or the two hidden layers of an MLP four times as wide."""
_HEAD_BYTES = 2200.0
"""Bytes a pixel that a DPT head of 256 channels takes while it works on a frame."""
_MAP_BYTES = 72.0
"""Bytes a pixel of all frames: pictures, depth, points and confidences, once more while joined."""
_SPARE = 0.3e9
"""For buffers that do not grow with the work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """A pass takes ``fixed + frames * frame`` bytes, without the weights."""

    weights: float
    fixed: float
    frame: float

    def total(self, frames: int, *, loaded: bool = False) -> float:
        """Return the bytes of a pass; ``loaded`` leaves out weights that are in memory already."""
        return (0.0 if loaded else self.weights) + self.fixed + frames * self.frame

    def most_frames(self, free: float, *, loaded: bool = False) -> int:
        """Return how many frames fit."""
        return int((free - self.total(0, loaded=loaded)) / self.frame)


def memory_need(model: nn.Module, height: int, width: int, device: torch.device) -> MemoryNeed:
    """Estimate a pass from the network's own sizes; modules of other kinds count by their weights.

    Args:
        model: May be on the meta device.
        height: Of a frame, in pixels.
        width: Of a frame, in pixels.
        device: Where it will run.
    """
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    pixels = height * width
    frame = _MAP_BYTES * pixels
    aggregator: Any = getattr(model, "aggregator", None)
    patch, channels = (getattr(aggregator, name, None) for name in ("patch_size", "embed_dim"))
    if not isinstance(patch, int) or not isinstance(channels, int):
        return MemoryNeed(weights=float(weights), fixed=_SPARE, frame=frame)
    start = getattr(aggregator, "patch_start_idx", getattr(aggregator, "patch_token_start", 1))
    tokens = pixels // patch**2 + start
    read: Any = getattr(model, "layers_read", None)
    entries: Any = read() if callable(read) else getattr(aggregator, "keep", None)
    kept = 4 if entries is None else len(entries)
    # The stream and what is kept of it are float32; autocast halves what lives inside a block.
    inside = 4.0 if device.type == "cpu" else 2.0
    stream = tokens * channels * (_LIVE * inside + 4.0 * 2 * kept)
    head = _HEAD_BYTES * pixels * frames_at_once(height, width, device)
    return MemoryNeed(weights=float(weights), fixed=_SPARE + head, frame=frame + stream)


def free_memory(device: torch.device) -> float | None:
    """Return the bytes that can still be taken on a device; None where nobody tells."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return free_memory_bytes()
