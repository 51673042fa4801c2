"""What a factory of backbones is asked for, and how it gets a network with weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sightline import models
from sightline.errors import CheckpointError
from sightline.hub import CATALOGUE, cached, resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call of `sightline.create_backbone`, as the factories see it.

    Attributes:
        name: The backbone's name.
        source: What the name stands for: a network of `sightline.models`, a repository or a folder.
        checkpoint: A file or folder of weights, or None.
        device: Where the network goes.
        dtype: Its number type.
        random: Draw the weights instead of reading them.
        seed: Of random weights.
        options: Of `base.NetworkBackbone`: ``norm``, ``fit``, ``chunk``.
    """

    name: str
    source: str
    checkpoint: str | Path | None
    device: torch.device
    dtype: torch.dtype
    random: bool = False
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def network(self, published: str | None = None, **options: Any) -> nn.Module:
        """Return one of our networks, drawn or with its weights, on the device.

        Args:
            published: Name of the weights in `sightline.hub.CATALOGUE`, by default the source's.
            options: Of the network's constructor.

        Raises:
            CheckpointError: There are no weights, or they do not fit.
        """
        if self.random:
            with drawn_from(self.seed):
                network = models.load(self.source, False, dtype=self.dtype, **options)
        else:
            weights = self.weights(published or self.source)
            network = models.load(self.source, weights, dtype=self.dtype, **options)
        return network.to(self.device)

    def weights(self, published: str, where: str | None = None) -> Path:
        """Return the file of weights: the checkpoint, or the published ones if they are cached.

        A checkpoint may also be a URL or ``REPO_ID/FILENAME``, which is then fetched.

        Args:
            published: Name in `sightline.hub.CATALOGUE`.
            where: Address of weights that have no such name.

        Raises:
            CheckpointError: There are none.
            InputError: The checkpoint does not exist.
        """
        if self.checkpoint is not None:
            return resolve(self.checkpoint)
        found = cached(published) if published in CATALOGUE else None
        if found is None:
            raise self.no_weights(where or published)
        return found

    def no_weights(self, download: str) -> CheckpointError:
        """Return the error that says where weights may come from."""
        return CheckpointError(
            f"{self.name} needs weights: give a file with --checkpoint (checkpoint=), fetch them "
            f'with "sightline models download {download}", or take '
            f"random:{self.name} for random weights"
        )


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Draw what the body draws from a seed of its own, and leave the caller's generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
