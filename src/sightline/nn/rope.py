"""Rotary position embeddings in two dimensions: the integer grid of CroCo and VGGT, and DINOv3's.

Both turn pairs of channels of queries and keys by an angle that grows with the patch position, and
differ in the angles and in which channels form a pair. A `RotaryTable` holds the result for one
grid, so that all blocks of a network share it.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sightline.nn.options import Device, DType, Number
from sightline.nn.tables import TableCache


class RotaryTable(NamedTuple):
    """Cosines and signed sines, ready to be applied to ``[B, heads, N, D]``.

    Attributes:
        cos: ``[N, D]``, or ``[B, 1, N, D]`` where samples have different positions.
        sin: The same shape; the half that is subtracted carries its sign.
        groups: How many parts of ``D`` rotate on their own: channel ``k`` of a part of width ``d``
            is paired with channel ``k + d/2``.
    """

    cos: Tensor
    sin: Tensor
    groups: int

    def rotate(self, tokens: Float[Tensor, "b heads n d"]) -> Float[Tensor, "b heads n d"]:
        """Rotate queries or keys, in the wider of the two dtypes, and cast back."""
        swapped = tokens.unflatten(-1, (self.groups, 2, -1)).flip(-2).flatten(-3)
        return (tokens * self.cos).add_(swapped * self.sin).to(tokens.dtype)


def rotary_table(angles: Float[Tensor, "*rows groups half"]) -> RotaryTable:
    """Return the table of the angles ``[..., groups, D / groups / 2]``."""
    groups = angles.shape[-2]
    cos, sin = angles.cos(), angles.sin()
    cos = torch.stack((cos, cos), -2).flatten(-3)
    sin = torch.stack((-sin, sin), -2).flatten(-3)
    return RotaryTable(cos, sin, groups)


def grid_positions(height: int, width: int, device: Device = None) -> Int[Tensor, "n 2"]:
    """Return the integer ``(row, column)`` of every patch, row by row."""
    rows = torch.arange(height, device=device)
    cols = torch.arange(width, device=device)
    return torch.cartesian_prod(rows, cols).view(-1, 2)


def grid_rotary(
    positions: Int[Tensor, "*batch n 2"], head_dim: int, base: Number = 100.0
) -> RotaryTable:
    """Return the table of integer positions ``(row, column)`` as in CroCo, DUSt3R and VGGT.

    The first half of the head turns with the row and the second with the column; channel ``k`` of
    a half of width ``d`` turns by ``position * base^(-2k/d)``. Position (0, 0) is left unchanged.
    Positions with a batch axis give a table ``[B, 1, N, D]``.
    """
    if head_dim % 4:
        msg = f"expected a head width that is a multiple of 4 for 2-D rotation, got {head_dim}"
        raise ValueError(msg)
    half = head_dim // 2
    exponent = torch.arange(0, half, 2, device=positions.device).float() / half
    # Written as the originals do: another order of rounding shows in points far from the camera.
    angles = positions.unsqueeze(-1).float() * (1.0 / base**exponent)
    return rotary_table(angles.unsqueeze(-4) if positions.ndim > 2 else angles)


class RotaryPositionEmbedding2D(nn.Module):
    """VGGT's interface to `grid_rotary`: ``rope(tokens, positions)``; it has no parameters."""

    def __init__(self, frequency: Number = 100.0, scaling_factor: float = 1.0) -> None:
        """Rotate with base ``frequency``; ``scaling_factor`` multiplies nothing in VGGT either."""
        super().__init__()
        self.base_frequency = frequency
        self.scaling_factor = scaling_factor

    def forward(
        self, tokens: Float[Tensor, "b heads n d"], positions: Int[Tensor, "b n 2"]
    ) -> Float[Tensor, "b heads n d"]:
        """Rotate queries or keys by their integer positions ``(row, column)``."""
        return grid_rotary(positions, tokens.shape[-1], self.base_frequency).rotate(tokens)


class PositionGetter:
    """VGGT's interface to `grid_positions`, for a batch."""

    def __call__(
        self, batch_size: int, height: int, width: int, device: torch.device | str
    ) -> Int[Tensor, "b n 2"]:
        """Return ``[batch_size, height * width, 2]``."""
        return grid_positions(height, width, device).expand(batch_size, -1, -1).clone()


ROPE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class RopePositionEmbedding(nn.Module):
    """DINOv3's embedding: patch centres in [-1, 1], and one buffer ``periods``.

    Channel ``j`` of a quarter of the head turns by ``2 pi * coordinate / period_j``; rows come
    first, then columns, and the whole head is one group. While training, the coordinates may be
    shifted by up to ``shift_coords``, stretched for each axis by up to ``jitter_coords`` and
    together by up to ``rescale_coords`` (the last two log-uniform), drawn anew at every call.
    """

    periods: Tensor

    def __init__(
        self,
        embed_dim: int,
        *,
        num_heads: int,
        base: Number | None = 100.0,
        min_period: Number | None = None,
        max_period: Number | None = None,
        normalize_coords: Literal["min", "max", "separate"] = "separate",
        shift_coords: Number | None = None,
        jitter_coords: Number | None = None,
        rescale_coords: Number | None = None,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the periods from ``base``, or from ``min_period`` and ``max_period``.

        Raises:
            ValueError: Both or neither of the two are given, or the head width is no multiple of 4.
        """
        super().__init__()
        head_dim = embed_dim // num_heads
        if embed_dim % num_heads or head_dim % 4:
            msg = (
                "expected a head width (embed_dim / num_heads) that is a multiple of 4, got "
                f"{embed_dim} / {num_heads}"
            )
            raise ValueError(msg)
        by_range = min_period is not None and max_period is not None
        if (base is None) != by_range or (base is not None and (min_period or max_period)):
            msg = (
                "expected either base or both min_period and max_period, got "
                f"base={base}, min_period={min_period}, max_period={max_period}"
            )
            raise ValueError(msg)
        self.head_dim = head_dim
        self.base = base
        self.period_range = (min_period, max_period)
        self.normalize_coords = normalize_coords
        self.shift_coords = shift_coords
        self.jitter_coords = jitter_coords
        self.rescale_coords = rescale_coords
        self.register_buffer("periods", torch.empty(head_dim // 4, device=device, dtype=dtype))
        self._tables = TableCache[RotaryTable]()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Write the periods that the options describe."""
        shortest, longest = self.period_range
        count = self.head_dim // 4
        step = torch.arange(count, device=self.periods.device, dtype=self.periods.dtype)
        if self.base is not None:
            periods = self.base ** (2 * step / (self.head_dim // 2))
        else:
            assert shortest is not None
            assert longest is not None
            unit = torch.linspace(0, 1, count, device=self.periods.device, dtype=self.periods.dtype)
            periods = longest * (longest / shortest) ** (unit - 1)
        self.periods.copy_(periods)

    @property
    def augments(self) -> bool:
        """Whether coordinates are drawn anew at every call in training mode."""
        return bool(self.shift_coords or self.jitter_coords or self.rescale_coords)

    def forward(self, *, H: int, W: int, prefix: int = 0) -> RotaryTable:
        """Return the table of an ``H`` x ``W`` grid after ``prefix`` tokens that do not turn."""
        if self.training and self.augments:
            return self._make(H, W, prefix, augment=True)
        return self._tables.get(
            (H, W, prefix),
            lambda: self._make(H, W, prefix, augment=False),
            buffers=[self.periods],
        )

    def coordinates(self, height: int, width: int) -> Float[Tensor, "n 2"]:
        """Return the centre ``(row, column)`` of every patch, in [-1, 1] along the chosen side."""
        whole = {
            "separate": (height, width),
            "max": (max(height, width),) * 2,
            "min": (min(height, width),) * 2,
        }[self.normalize_coords]
        kind = {"device": self.periods.device, "dtype": self.periods.dtype}
        rows = (torch.arange(height, **kind) + 0.5) / whole[0]
        cols = (torch.arange(width, **kind) + 0.5) / whole[1]
        return 2.0 * torch.cartesian_prod(rows, cols).view(-1, 2) - 1.0

    def _make(self, height: int, width: int, prefix: int, *, augment: bool) -> RotaryTable:
        coords = self.coordinates(height, width)
        if augment:
            coords = self._augment(coords)
        angles = 2 * math.pi * coords.unsqueeze(-1) / self.periods
        still = angles.new_zeros(prefix, *angles.shape[1:])
        return rotary_table(torch.cat((still, angles)).flatten(1).unsqueeze(1))

    def _augment(self, coords: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        if self.shift_coords:
            coords = coords + coords.new_empty(2).uniform_(-self.shift_coords, self.shift_coords)
        for limit, count in ((self.jitter_coords, 2), (self.rescale_coords, 1)):
            if limit:
                reach = math.log(limit)
                coords = coords * coords.new_empty(count).uniform_(-reach, reach).exp()
        return coords


def sincos_grid(height: int, width: int, dim: int) -> Float[np.ndarray, "n d"]:
    """Return CroCo v1's fixed table of a grid, float32, ``dim`` a multiple of 4.

    The first half of the channels encodes the column and the second the row; each is the sines and
    then the cosines of ``position * 10000^(-2k/(dim/2))``.
    """
    rate = 10000.0 ** -(np.arange(dim // 4, dtype=np.float64) / (dim / 4))
    row, col = np.divmod(np.arange(height * width, dtype=np.float64), width)
    parts = [np.outer(position, rate) for position in (col, row)]
    waves = [wave(part) for part in parts for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=1).astype(np.float32)
