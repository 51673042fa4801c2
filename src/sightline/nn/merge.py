"""Token merging: similar tokens share one row of an attention. Inexact, for long sequences.

Bolya et al. 2023 (arXiv 2210.09461); VGGT's global attention with it: Shen et al. 2025, FastVGGT
(arXiv 2509.02560). Tokens are divided into destinations, which always stay, and sources; the
sources that are most like a destination are averaged into it before the attention and get its
output afterwards.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from sightline.nn.block import Block
from sightline.nn.drop import add_scaled
from sightline.nn.options import Device, Number
from sightline.nn.rope import RotaryTable

ROWS = 4096
"""Sources whose similarities are in memory at a time."""


class Merging(NamedTuple):
    """Which tokens of each sample stay, and which join which.

    Attributes:
        kept: ``[B, M]`` indices of the tokens that stay.
        joined: ``[B, R]`` indices of the tokens that join another.
        target: ``[B, R]`` rows of ``kept`` that they join.
    """

    kept: Tensor
    joined: Tensor
    target: Tensor

    def merge(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b m d"]:
        """Return the tokens that stay, each the mean of itself and those that join it."""
        width = x.shape[-1]
        base, added = (
            x.gather(1, rows.unsqueeze(-1).expand(-1, -1, width))
            for rows in (self.kept, self.joined)
        )
        place = self.target.unsqueeze(-1).expand(-1, -1, width)
        return base.scatter_reduce(1, place, added, "mean", include_self=True)

    def unmerge(self, y: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        """Give every token the row of the one that it is or has joined."""
        batch, count = len(y), self.kept.shape[1] + self.joined.shape[1]
        row = self.kept.new_empty(batch, count)
        stay = torch.arange(self.kept.shape[1], device=y.device).expand(batch, -1)
        row = row.scatter(1, self.kept, stay).scatter(1, self.joined, self.target)
        return y.gather(1, row.unsqueeze(-1).expand(-1, -1, y.shape[-1]))


def match_tokens(
    x: Float[Tensor, "b n d"], destination: Bool[Tensor, " n"], ratio: Number
) -> Merging:
    """Choose the share ``ratio`` of the sources that are most like a destination (cosine)."""
    into, sources = destination.nonzero().flatten(), (~destination).nonzero().flatten()
    unit = functional.normalize(x.detach(), dim=-1)
    goal = unit[:, into].mT
    best = [(unit[:, part] @ goal).max(-1) for part in sources.split(ROWS)]
    likeness = torch.cat([values for values, _ in best], 1)
    nearest = torch.cat([indices for _, indices in best], 1)
    order = likeness.argsort(1, descending=True)
    count = int(ratio * len(sources))
    joined, staying = order[:, :count], order[:, count:]
    kept = torch.cat((into.expand(len(x), -1), sources[staying]), 1)
    return Merging(kept, sources[joined], nearest.gather(1, joined))


def merging_destinations(
    rows: int, cols: int, frames: int, special: int, device: Device = None
) -> Bool[Tensor, " n"]:
    """Return which tokens of frames in a row stay.

    They are all tokens of the first frame, whose camera is the world, the ``special`` tokens before
    the patches of every frame, and every second patch of every second row.
    """
    grid = torch.zeros(rows, cols, dtype=torch.bool, device=device)
    grid[::2, ::2] = True
    frame = torch.cat((grid.new_ones(special), grid.flatten()))
    found = frame.repeat(frames, 1)
    found[0] = True
    return found.flatten()


def run_merged(
    block: Block,
    x: Float[Tensor, "b n d"],
    table: RotaryTable | None,
    destination: Bool[Tensor, " n"],
    ratio: Number,
) -> Float[Tensor, "b n d"]:
    """Run a block whose attention sees merged tokens; feed-forward and residuals see all."""
    normed = block.norm1(x)
    merging = match_tokens(normed, destination, ratio)
    if table is not None:
        cos, sin = (t[merging.kept].unsqueeze(1) for t in (table.cos, table.sin))
        table = RotaryTable(cos, sin, table.groups)
    x = add_scaled(x, block.ls1, merging.unmerge(block.attn(merging.merge(normed), table)))
    return add_scaled(x, block.ls2, block.mlp(block.norm2(x)))
