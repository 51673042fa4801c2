"""Sums and gathers over all training processes; each does nothing where there is one process."""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def all_sum(value: Tensor) -> Tensor:
    """Return the sum over processes; no gradient flows."""
    if world_size() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def all_mean(value: Tensor) -> Tensor:
    """Return the mean over processes; no gradient flows."""
    return all_sum(value) / world_size()


@torch.no_grad()
def all_logsumexp(rows: Tensor) -> Tensor:
    """Return ``logsumexp`` over the rows of all processes, as one row; no gradient flows."""
    own = rows.logsumexp(0, keepdim=True)  # of no rows: minus infinity
    if world_size() == 1:
        return own
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own)
    return torch.cat(parts).logsumexp(0, keepdim=True)


@torch.no_grad()
def all_max(value: Tensor) -> Tensor:
    """Return the maximum over processes."""
    if world_size() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of ranks; gradients flow to all of them.

    Every process must have as many. A loss over the gathered rows, computed on every process and
    averaged over them, has the gradient that one process with all rows has.
    """
    if world_size() == 1:
        return rows
    return _Gather.apply(rows)  # pyright: ignore[reportReturnType]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Every process's loss reads these rows: add what all of them ask for, keep our own.
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        rows = total.shape[0] // world_size()
        first = dist.get_rank() * rows
        return total[first : first + rows]


def share_loss(numerator: Tensor, count: Tensor) -> Tensor:
    """Return what each process adds so that the mean over them is ``sum / sum of counts``.

    For losses over a number of things that differs between processes, such as valid pixels.

    Args:
        numerator: This process's sum, with gradient.
        count: This process's count; where no process has any, the result is 0.
    """
    total = all_sum(count.to(numerator.dtype)).clamp(min=1)
    return numerator * (world_size() / total)
