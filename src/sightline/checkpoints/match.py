"""Put weights into a network of the official names: every tensor has to find its place."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sightline.checkpoints.read import State, printable
from sightline.errors import CheckpointError

CHUNK = re.compile(r"(blocks\.)\d+\.(?=\d+\.)")
"""Block names of training checkpoints carry a chunk number that published files do not."""

PREFIXES = (
    "",
    "module.",
    "backbone.",
    "module.backbone.",
    "model.",
    "encoder.",
    "net.",
    "_orig_mod.",
    "module._orig_mod.",
    "teacher.backbone.",
    "student.backbone.",
    "model.module.",
)
"""What training scripts put before the official names, in the order tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How the tensors of a file compare with those of a network.

    Attributes:
        network: Class of the network.
        wanted: Count of the network's tensors.
        given: Count of the file's tensors, after prefixes and chunk numbers were dropped.
        missing: Names that the file lacks.
        unexpected: Names that the network lacks.
        shapes: ``NAME (file) instead of (network)``.
        prefix: What stood before the official names and was dropped.
        outside: Tensors of the file without that prefix, such as the heads of a training.
        held: Group -> count of tensors that are checked and kept, but never used.
    """

    network: str
    wanted: int
    given: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    prefix: str = ""
    outside: int = 0
    held: Mapping[str, int]

    @property
    def strict(self) -> bool:
        """Whether every tensor has its place."""
        return not (self.missing or self.unexpected or self.shapes)

    def sentence(self, source: str, cause: str = "") -> str:
        """Return what differs, and what the likely cause is."""
        parts = [
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("wrong shape", self.shapes),
        ]
        found = "; ".join(f"{len(rows)} {what}: {some(rows)}" for what, rows in parts if rows)
        cause = cause or "it is probably another model or another size of it"
        return (
            f"expected the {self.wanted} tensors of {self.network} in {source}, got {self.given} "
            f"({found}); {cause}"
        )


def compare(model: nn.Module, state: Mapping[str, Tensor]) -> Report:
    """Compare names and shapes; no number is read."""
    return _fit(model, state)[1]


def load_strict(model: nn.Module, state: Mapping[str, Tensor], source: str = "the file") -> None:
    """Put weights into a model of the official names; every tensor has to find its place.

    Prefixes of training scripts and chunk numbers in block names are dropped, and tensors that the
    original lists under two names may be given under one. A model on the meta device becomes real,
    with the file's own numbers as its weights.

    Raises:
        CheckpointError: A tensor is missing, unexpected, of another shape, or not finite.
    """
    given, report = _fit(model, state)
    if not report.strict:
        raise CheckpointError(report.sentence(source))
    refuse_broken(given, source)
    wanted = model.state_dict()
    # On the meta device there is nothing to copy into: the file's tensors become the weights.
    given = {name: tensor.to(wanted[name].dtype) for name, tensor in given.items()}
    model.load_state_dict(given, assign=any(t.is_meta for t in wanted.values()))


def refuse_broken(state: Mapping[str, Tensor], source: str) -> None:
    """Raise a `CheckpointError` when a tensor holds NaN or infinity."""
    broken = broken_names(state)
    if broken:
        msg = f"expected finite weights in {source}, but {some(broken)} hold NaN or infinity"
        raise CheckpointError(msg)


def broken_names(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that hold NaN or infinity, read one at a time."""
    return [name for name, tensor in state.items() if not _finite(tensor)]


def aliases(model: nn.Module) -> list[list[str]]:
    """Return the groups of state names that stand for one tensor."""
    groups: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def some(rows: Iterable[str], count: int = 3) -> str:
    """Return the first few of many, and how many more there are."""
    rows = [printable(row) for row in rows]
    more = f" and {len(rows) - count} more" if len(rows) > count else ""
    return ", ".join(rows[:count]) + more


def strip_prefix(state: Mapping[str, Tensor], wanted: Iterable[str]) -> tuple[State, str]:
    """Drop the prefix and the chunk numbers that keep names from matching; tell the prefix."""
    names = set(wanted)
    best: tuple[State, str] = ({}, "")
    score = -1
    for prefix in PREFIXES:
        inside = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        found = {n if n in names else CHUNK.sub(r"\1", n): t for n, t in inside.items()}
        hits = len(found.keys() & names)
        if hits > score:
            best, score = (found, prefix), hits
    return best


def _fit(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[State, Report]:
    wanted = model.state_dict()
    stripped, prefix = strip_prefix(state, wanted)
    given = _with_aliases(model, stripped)
    shapes = sorted(
        f"{name} {tuple(given[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted.keys() & given.keys()
        if given[name].shape != wanted[name].shape
    )
    held: dict[str, int] = {}
    for name in getattr(model, "held_names", ()):
        group = name.split(".")[0]
        held[group] = held.get(group, 0) + (name in given)
    report = Report(
        network=type(model).__name__,
        wanted=len(wanted),
        given=len(given),
        missing=tuple(sorted(wanted.keys() - given.keys())),
        unexpected=tuple(sorted(given.keys() - wanted.keys())),
        shapes=tuple(shapes),
        prefix=prefix,
        outside=len(state) - len(stripped),
        held=dict(sorted(held.items())),
    )
    return given, report


def _with_aliases(model: nn.Module, given: State) -> State:
    """Give every name of a group the tensor that the file has under one of them."""
    full = dict(given)
    for group in aliases(model):
        present = [name for name in group if name in given]
        if present:
            full.update({name: given[present[0]] for name in group if name not in given})
    return full


def _finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
        return True
    if tensor.element_size() == 1:  # no reductions for 8-bit floats
        return all(bool(part.half().isfinite().all()) for part in tensor.flatten().split(1 << 24))
    # One pass without a temporary: both ends are finite only if all are.
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))
