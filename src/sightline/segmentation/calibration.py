"""What the bank tells about itself: thresholds for "unknown", and which references are poor."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from sightline.segmentation.memory import MemoryBank

_FEW_CELLS = 4
_LOOSE = 0.5


def class_evidence(bank: MemoryBank, label: int) -> tuple[Float[Tensor, " p"], Float[Tensor, " n"]]:
    """Return similarities that should be high, and that should be low, for one class.

    High: each shot to the prototype of the class's other shots. Low: to the class's prototype, the
    shots of other classes, negatives, and what lay around the references.
    """
    means, labels = bank.shots.means, bank.shots.labels
    own = means[labels == label]
    unit = normalize(own, dim=-1)
    high = own.new_zeros(0)
    if len(own) > 1:
        rest = (own.sum(0, keepdim=True) - own) / (len(own) - 1)
        high = (unit * normalize(rest, dim=-1)).sum(-1)
    prototype = bank.prototypes()[label]
    context = bank.shots.context
    negatives = bank.negatives.means[bank.negatives.labels == label]
    rivals = [means[labels != label], context[context.norm(dim=1) > 0]]
    rivals += [negatives] if len(negatives) else []
    low = normalize(torch.cat(rivals), dim=-1) @ prototype
    return high.clamp(min=0), low.clamp(min=0)


def calibrate(bank: MemoryBank) -> MemoryBank:
    """Return the bank with a threshold a class, below which the answer is "unknown".

    With two shots or more, the cut between high and low evidence of the best balanced accuracy (the
    middle of the widest such gap). With one shot nothing says how low a true match may be, so only
    what is no more alike than a known non-object is refused. Without any low evidence, zero.
    """
    thresholds = torch.zeros(len(bank.classes))
    for label in range(len(bank.classes)):
        high, low = class_evidence(bank, label)
        if len(low) == 0:
            continue
        if len(high) == 0:
            thresholds[label] = low.max()
            continue
        values = torch.cat((high, low)).sort().values
        cuts = (values[1:] + values[:-1]) / 2
        right = (high[None] >= cuts[:, None]).float().mean(1)
        wrong = (low[None] >= cuts[:, None]).float().mean(1)
        score = right - wrong
        best = score >= score.max() - 1e-9
        gap = torch.where(best, values[1:] - values[:-1], -1.0)
        thresholds[label] = cuts[gap.argmax()]
    return replace(bank, thresholds=thresholds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShotQuality:
    """How good one reference is."""

    index: int
    name: str
    label: str
    cells: int
    """Cells of the feature grid that its mask touches."""
    own: float | None
    """Cosine to the prototype of the class's other shots; None for a single shot."""
    rival: float | None
    """Largest cosine to another class's prototype."""
    rival_label: str | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def reference_report(bank: MemoryBank) -> list[ShotQuality]:
    """Return one row a reference, with notes on those that look poor."""
    prototypes = bank.prototypes()
    unit = normalize(bank.shots.means, dim=-1)
    cosines = unit @ prototypes.T
    counts = bank.counts
    rows = []
    for index, label in enumerate(bank.shots.labels.tolist()):
        own = None
        if int(counts[label]) > 1:
            same = bank.shots.means[bank.shots.labels == label]
            rest = normalize(same.sum(0) - bank.shots.means[index], dim=-1)
            own = float(unit[index] @ rest)
        rival, rival_label = None, None
        if len(bank.classes) > 1:
            others = cosines[index].clone()
            others[label] = -2
            rival, rival_label = float(others.max()), bank.names[int(others.argmax())]
        cells = int(bank.shots.hard_counts[index])
        notes = []
        if cells < _FEW_CELLS:
            notes.append(f"touches only {cells} feature cells: mark a larger view of the object")
        if own is not None and rival is not None and rival > own:
            notes.append(f"looks more like {rival_label} than like the other shots of its class")
        elif own is not None and own < _LOOSE:
            notes.append("looks unlike the other shots of its class")
        rows.append(
            ShotQuality(
                index=index,
                name=bank.shots.names[index],
                label=bank.names[label],
                cells=cells,
                own=own,
                rival=rival,
                rival_label=rival_label,
                notes=tuple(notes),
            )
        )
    return rows
