"""References reduced to what a memory bank keeps of them, one row each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from sightline.errors import InputError
from sightline.segmentation.prototypes import masked_mean
from sightline.types import TensorStruct

TOKENS_PER_SHOT = 32
"""Foreground features kept of each shot, for centres and axes; spread evenly over the mask."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shots(TensorStruct):
    """References, one row each; N rows, C channels."""

    labels: Int64[Tensor, " n"]
    """Class index."""
    means: Float[Tensor, "n c"]
    """Mean feature weighted by the soft mask."""
    unit_means: Float[Tensor, "n c"]
    """The same of features that were made unit length first."""
    hard_means: Float[Tensor, "n c"]
    """Mean over the cells that the mask touches at all."""
    weights: Float[Tensor, " n"]
    """Sum of the soft mask over the cells."""
    hard_counts: Float[Tensor, " n"]
    """Number of cells that the mask touches."""
    context: Float[Tensor, "n c"]
    """Mean feature of the crop outside of the mask; zero where there is none."""
    tokens: Float[Tensor, "m c"]
    """Some foreground features, half precision."""
    token_shots: Int64[Tensor, " m"]
    """Which shot each belongs to."""
    names: tuple[str, ...]
    """Where each came from, for people."""

    def __len__(self) -> int:
        """Return the number of shots."""
        return len(self.names)

    def select(self, index: Int64[Tensor, " k"]) -> "Shots":
        """Return the chosen shots, in order."""
        place = torch.full((len(self),), -1, dtype=torch.int64)
        place[index] = torch.arange(len(index))
        kept = place[self.token_shots] >= 0
        rows = ("labels", "means", "unit_means", "hard_means", "weights", "hard_counts", "context")
        return replace(
            self,
            **{name: getattr(self, name)[index] for name in rows},
            tokens=self.tokens[kept],
            token_shots=place[self.token_shots[kept]],
            names=tuple(self.names[i] for i in index.tolist()),
        )

    def relabelled(self, labels: Int64[Tensor, " n"]) -> "Shots":
        """Return the shots under other class indices."""
        return replace(self, labels=labels)


def no_shots(channels: int) -> Shots:
    """Return a table without rows."""
    rows = torch.zeros(0, channels)
    return Shots(
        labels=torch.zeros(0, dtype=torch.int64),
        means=rows,
        unit_means=rows,
        hard_means=rows,
        weights=torch.zeros(0),
        hard_counts=torch.zeros(0),
        context=rows,
        tokens=rows.half(),
        token_shots=torch.zeros(0, dtype=torch.int64),
        names=(),
    )


def join_shots(tables: Sequence[Shots]) -> Shots:
    """Return the rows of all tables, in order."""
    starts = [0]
    for table in tables:
        starts.append(starts[-1] + len(table))
    rows = ("labels", "means", "unit_means", "hard_means", "weights", "hard_counts", "context")
    return Shots(
        **{name: torch.cat([getattr(t, name) for t in tables]) for name in (*rows, "tokens")},
        token_shots=torch.cat([t.token_shots + s for t, s in zip(tables, starts, strict=False)]),
        names=tuple(name for t in tables for name in t.names),
    )


def summarize_shots(
    features: Float[Tensor, "n cells c"],
    masks: Float[Tensor, "n cells"],
    labels: Int64[Tensor, " n"],
    names: Sequence[str],
    tokens_per_shot: int | None = TOKENS_PER_SHOT,
    unit_features: Float[Tensor, "n cells c"] | None = None,
) -> Shots:
    """Reduce reference features to what the bank keeps.

    Args:
        features: Of each reference crop, not normalised.
        masks: Soft masks on the same cells.
        labels: Class index of each.
        names: Where each came from.
        tokens_per_shot: Foreground features kept of each; None keeps all.
        unit_features: What unit means are taken of; ``features`` by default.

    Raises:
        InputError: A mask touches no cell.
    """
    hard = (masks > 0).to(features.dtype)
    empty = (hard.sum(1) == 0).nonzero()[:, 0].tolist()
    if empty:
        raise InputError(
            f"the mask of reference {names[empty[0]]} touches no cell of the feature grid; mark "
            "the object larger"
        )
    kept, owners = [], []
    for shot in range(len(labels)):
        rows = (masks[shot] > 0).nonzero()[:, 0]
        if tokens_per_shot is not None and len(rows) > tokens_per_shot:
            spread = torch.linspace(0, len(rows) - 1, tokens_per_shot) if tokens_per_shot else []
            rows = rows[torch.as_tensor(spread).long()]
        kept.append(features[shot, rows].half())
        owners.append(torch.full((len(rows),), shot, dtype=torch.int64))
    outside = (1 - masks).clamp(0, 1) * (masks == 0)
    unit = normalize(features if unit_features is None else unit_features, dim=-1)
    table = Shots(
        labels=labels,
        means=masked_mean(features, masks),
        unit_means=masked_mean(unit, masks),
        hard_means=masked_mean(features, hard),
        weights=masks.sum(1),
        hard_counts=hard.sum(1),
        context=masked_mean(features, outside),
        tokens=torch.cat(kept) if kept else features.new_zeros(0, features.shape[-1]).half(),
        token_shots=torch.cat(owners) if owners else torch.zeros(0, dtype=torch.int64),
        names=tuple(names),
    )
    return table.to("cpu")
