"""Randomness as a pure function of where training is, so that any step can be made again.

No generator lives longer than what it draws for: each is made from the seed, the names of what is
drawn, and the number of the step or item. Resuming needs no random state, and how many processes or
data workers share the work changes nothing.
"""

import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch


def generator(seed: int, *keys: int | str) -> np.random.Generator:
    """Return a generator that belongs to a seed and any names and numbers."""
    words = [zlib.crc32(key.encode()) if isinstance(key, str) else int(key) for key in keys]
    # The length is a key too: numpy takes [1] and [1, 0] for the same.
    entropy = np.random.SeedSequence([seed, len(words), *words])
    return np.random.Generator(np.random.Philox(entropy))


def torch_seed(seed: int, *keys: int | str) -> int:
    """Return the seed of a torch generator that belongs to a seed and any names and numbers."""
    return int(generator(seed, *keys).integers(2**63 - 1))


def torch_generator(seed: int, *keys: int | str) -> torch.Generator:
    """Return a torch generator on the CPU; see `generator`."""
    return torch.Generator().manual_seed(torch_seed(seed, *keys))


def shuffled(index: int, count: int, seed: int) -> int:
    """Return the item of an endless stream: all ``count`` items in a new order in every pass."""
    epoch, place = divmod(index, count)
    return int(_order(seed, epoch, count)[place])


@lru_cache(maxsize=4)  # a batch may reach into the next pass
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return generator(seed, "order", epoch).permutation(count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One process's share of one step: what a batch is made from.

    A step uses ``parts * size`` consecutive items of the stream; each process and each accumulated
    batch takes its own ``size`` of them. Two processes, or two accumulated batches, therefore make
    of the stream what one of twice the size does.
    """

    seed: int
    step: int
    """Counted from 0."""
    part: int
    """Which share of the step."""
    parts: int
    """Shares a step: processes times accumulated batches."""
    size: int
    """Items a share."""

    @property
    def items(self) -> range:
        """Numbers of the items in the stream."""
        first = (self.step * self.parts + self.part) * self.size
        return range(first, first + self.size)

    def of_item(self, index: int, *keys: int | str) -> np.random.Generator:
        """Return the generator of one item of the stream."""
        return generator(self.seed, "item", index, *keys)

    def of_step(self, *keys: int | str) -> np.random.Generator:
        """Return a generator that all shares of the step have in common."""
        return generator(self.seed, "step", self.step, *keys)

    def of_part(self, *keys: int | str) -> np.random.Generator:
        """Return the generator of this share."""
        return generator(self.seed, "part", self.step, self.part, *keys)
