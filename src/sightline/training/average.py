"""The moving average of a task's trained weights."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@torch.no_grad()
def move_towards(values: Iterable[Tensor], targets: Iterable[Tensor], share: float) -> None:
    """Move tensors in place by a share of the way to others, in few kernels."""
    goals = [target.detach() for target in targets]
    torch._foreach_lerp_(list(values), goals, share)  # pyright: ignore[reportPrivateImportUsage]


def is_share(value: Tensor) -> bool:
    """Tell whether this process may hold a part of a tensor only (a ``DTensor``).

    Asked this way because the class's own module takes a second to import.
    """
    return hasattr(value, "full_tensor")


def whole(value: Tensor) -> Tensor:
    """Return a tensor of which this process may hold a share, whole."""
    return value.full_tensor() if is_share(value) else value  # pyright: ignore[reportAttributeAccessIssue]


class WeightAverage:
    """Keeps ``average = decay * average + (1 - decay) * weights`` of what is trained."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Start from the present weights."""
        self.decay = decay
        self._weights = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.values = {n: p.detach().clone() for n, p in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the present weights."""
        move_towards(self.values.values(), self._weights.values(), 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average in the place of the weights for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._weights.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """Return the values whole; with sharded weights every process must call."""
        return {name: whole(value) for name, value in self.values.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take the values of a checkpoint, in place."""
        for name, value in self.values.items():
            given = state[name].to(value.device)
            if is_share(value):
                from torch.distributed.tensor import distribute_tensor

                given = distribute_tensor(given, value.device_mesh, value.placements)  # pyright: ignore[reportAttributeAccessIssue]
            value.copy_(given)
