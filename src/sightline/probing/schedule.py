"""Learning rates by iteration, and the order in which views are drawn."""

import math
import random
from collections.abc import Iterator

import torch

from sightline.probing.protocols import HEADS, Protocol


def log_linear(first: float, last: float, share: float) -> float:
    """Return ``first`` at 0 and ``last`` at 1, straight in the logarithm, constant outside."""
    share = min(max(share, 0.0), 1.0)
    return math.exp((1 - share) * math.log(first) + share * math.log(last))


def warm_rate(protocol: Protocol, iteration: int) -> float:
    """Return the rate of all groups at a warm iteration, counted from 1."""
    return log_linear(*protocol.warm_rate, iteration / max(protocol.warm_steps, 1))


def photometric_rates(
    protocol: Protocol, iteration: int, extent: float, *, baseline: bool = False
) -> dict[str, float]:
    """Return the rate of each parameter.

    Args:
        protocol: Its `Rates`.
        iteration: Of the photometric stage, counted from 1.
        extent: See `camera_extent`.
        baseline: Use InstantSplat's pose rates.
    """
    rates = protocol.rates
    pose = protocol.baseline_pose if baseline else (rates.pose, rates.pose_final)
    return {
        "xyz": extent * log_linear(rates.xyz, rates.xyz_final, iteration / rates.xyz_steps),
        **{name: getattr(rates, name) for name in HEADS[1:]},
        "pose": log_linear(*pose, iteration / rates.pose_steps),
        "features": rates.features,
    }


def camera_extent(centers: torch.Tensor) -> float:
    """Return 1.1 times the largest distance of a camera centre from their mean (1 if that is 0)."""
    extent = 1.1 * float((centers - centers.mean(0)).norm(dim=-1).max())
    return extent if extent > 0 else 1.0


def view_order(count: int, seed: int, *, python: bool) -> Iterator[int]:
    """Draw views without replacement, again and again.

    Args:
        count: Number of views.
        seed: Of the order.
        python: Draw as the reference does, by ``random.randint`` from what is left.
    """
    if python:
        source = random.Random(seed)
        while True:
            left = list(range(count))
            while left:
                yield left.pop(source.randint(0, len(left) - 1))
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
