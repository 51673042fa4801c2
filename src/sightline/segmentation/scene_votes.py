"""Which masks of different views show one object, and which of them to believe.

Each mask is carried onto the splats that paint its pixels. Masks of different views that fall on
the same splats are one object; a mask that the other views of its object do not confirm counts
little or nothing.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sightline.splatting.lift import lift_to_gaussians
from sightline.types import Cameras, Gaussians, InstanceMasks

_TOLD = 0.02
"""Least part of a mask on splats that other views of its object saw, for these to tell about it."""
_DOUBT = 3
"""A mask counts by its overlap with the other views, as a part of the object's best one, to the power
of this."""
_ROUNDS = 3
_GONE = 0.05
"""An object that would show this part of its usual pixels is missed if it has no mask."""


class Carried:
    """One view's masks on the splats that it sees: n of all, m masks."""

    def __init__(self, gaussians: Gaussians, camera: Cameras, found: InstanceMasks) -> None:
        """Carry the masks of one camera."""
        masks = found.masks.to(gaussians.means.device).float()
        lifted = lift_to_gaussians(gaussians, camera, [masks])
        self.rows: Int64[Tensor, " n"] = (lifted.weights > 0).nonzero()[:, 0]
        self.weights: Float[Tensor, " n"] = lifted.weights[self.rows]
        """Pixels of each splat."""
        self.parts: Float[Tensor, "n m"] = lifted.values[self.rows]
        """How much of them lies in each mask."""

    def part(self, ids: Tensor, number: int) -> Float[Tensor, " n"]:
        """Return how much of each splat lies in the masks of one object."""
        return self.parts[:, (ids == number).to(self.parts.device)].sum(1).clamp(max=1)


class Votes:
    """For each object and splat: how much was seen, and how much of that lay in its masks."""

    def __init__(self, count: int, device: torch.device) -> None:
        """Begin without objects."""
        self.labels: list[int] = []
        self.inside = torch.zeros(0, count, device=device)
        self.seen = torch.zeros(0, count, device=device)

    def extend(self, labels: Sequence[int]) -> None:
        """Add objects of which nothing is known but the class."""
        more = self.inside.new_zeros(len(labels), self.inside.shape[1])
        self.labels = [*self.labels, *labels]
        self.inside, self.seen = torch.cat([self.inside, more]), torch.cat([self.seen, more])

    def add(self, ids: Tensor, view: Carried, trust: Tensor | None = None) -> None:
        """Count one view's masks for their objects (-1: none), by ``trust [objects]``."""
        for number in ids.unique().tolist():
            if number >= 0:
                weights = view.weights if trust is None else view.weights * trust[number]
                self.inside[number, view.rows] += weights * view.part(ids, number)
                self.seen[number, view.rows] += weights

    def shares(self) -> Tensor:
        """Return for each object and splat the part in its masks; 0 where nothing was seen."""
        return self.inside / self.seen.clamp(min=1e-6)

    def match(self, view: Carried, labels: Tensor, least: float) -> Tensor:
        """Return the object of each mask of a view; -1 where none fits."""
        weights, parts = view.weights, view.parts
        found = torch.full((parts.shape[1],), -1)
        if not self.labels or not len(found):
            return found
        seen = self.seen[:, view.rows]
        shares = self.inside[:, view.rows] / seen.clamp(min=1e-6)
        # [O n]: a splat counts as much as both have seen of it; at rims that is next to nothing.
        known = torch.minimum(weights, seen)
        both = (known * shares) @ parts
        union = (known * shares).sum(1)[:, None] + known @ parts - both
        iou = both / union.clamp(min=1e-6)
        # A mask that lies nearly all on splats which the object's views never saw tells nothing.
        iou *= (known @ parts) > _TOLD * (weights @ parts)
        own = torch.tensor(self.labels)[:, None]
        apart = (own != labels.cpu()) & (own >= 0) & (labels.cpu() >= 0)
        iou = iou.cpu().masked_fill(apart, 0.0)
        rows, columns = linear_sum_assignment(iou.numpy(), maximize=True)
        good = iou[rows, columns] >= least
        found[torch.from_numpy(columns)[good]] = torch.from_numpy(rows)[good]
        return found

    def grow(self, view: Carried, labels: Tensor, least: float) -> None:
        """Match a view's masks to the objects so far; the others become new ones."""
        ids = self.match(view, labels, least)
        new = (ids < 0).nonzero()[:, 0]
        ids[new] = torch.arange(len(new)) + len(self.labels)
        self.extend(labels.cpu()[new].tolist())
        self.add(ids, view)


def count_votes(
    views: Sequence[Carried], of_mask: Sequence[Tensor], labels: Sequence[int], splats: int
) -> tuple[Votes, Float[Tensor, "V O"]]:
    """Return the votes of all views, and how far each view is believed about each object.

    A view is compared with what the others say of the object, on splats that both see. Views that no
    other can judge are believed. A view without a mask of an object that would hardly show there is
    believed too: the object is not there; else the mask is missing, and the view says nothing.
    """
    device = views[0].weights.device if views else torch.device("cpu")
    count = len(labels)
    trust = torch.zeros(len(views), count, device=device)
    for number, ids in enumerate(of_mask):
        trust[number, ids[ids >= 0].to(device)] = 1.0
    present = trust > 0
    votes = Votes(splats, device)
    for round_ in range(_ROUNDS + 1):
        votes = Votes(splats, device)
        votes.extend(labels)
        for view, ids, believed in zip(views, of_mask, trust, strict=True):
            votes.add(ids, view, believed)
        if round_ < _ROUNDS:
            agreed = torch.stack(
                [_agreement(votes, *row) for row in zip(views, of_mask, trust, strict=True)]
            )
            best = agreed.nan_to_num(0).amax(0).clamp(min=1e-6)
            sure = (agreed / best).pow(_DOUBT)
            trust = torch.where(present, sure.nan_to_num(1).clamp(0, 1), 0.0)
    shares = votes.shares()
    shown = torch.stack([shares[:, v.rows] @ v.weights for v in views])
    usual = (shown * present).sum(0) / present.sum(0).clamp(min=1)
    absent = ~present & (shown < _GONE * usual)
    return votes, trust + absent


def _agreement(votes: Votes, view: Carried, ids: Tensor, trust: Tensor) -> Float[Tensor, " O"]:
    """Return a view's overlap with the other views' votes; NaN where these tell nothing."""
    found = view.weights.new_full((len(votes.labels),), torch.nan)
    for number in ids.unique().tolist():
        if number < 0:
            continue
        part, own = view.part(ids, number), view.weights * trust[number]
        seen = (votes.seen[number, view.rows] - own).clamp(min=0)
        share = (votes.inside[number, view.rows] - own * part).clamp(min=0)
        share = (share / seen.clamp(min=1e-6)).clamp(max=1)
        known = torch.minimum(view.weights, seen)
        if (known * part).sum() > _TOLD * (view.weights * part).sum():
            both = (known * torch.minimum(share, part)).sum()
            found[number] = both / (known * torch.maximum(share, part)).sum().clamp(min=1e-6)
    return found
