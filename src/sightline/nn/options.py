"""Types of constructor options that recur in every layer."""

import torch

Number = int | float
Pair = int | tuple[int, int] | list[int]
Device = torch.device | str | None
DType = torch.dtype | None


def as_pair(value: Pair) -> tuple[int, int]:
    """Return ``(height, width)`` of a number or a pair."""
    if isinstance(value, int):
        return value, value
    height, width = value
    return int(height), int(width)
