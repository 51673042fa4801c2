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

    def network(self, **options: Any) -> nn.Module:
        """Return one of our networks, drawn or read from the checkpoint, on the device.

        Raises:
            CheckpointError: There are no weights, or they do not fit.
        """
        if self.random:
            options.pop("weights", None)
            with drawn_from(self.seed):
                network = models.load(self.source, False, dtype=self.dtype, **options)
        else:
            if self.checkpoint is None:
                raise self.no_weights()
            network = models.load(self.source, self.checkpoint, dtype=self.dtype, **options)
        return network.to(self.device)

    def no_weights(self, download: str | None = None) -> CheckpointError:
        """Return the error that says where weights may come from."""
        return CheckpointError(
            f"{self.name} needs weights: give a file with --checkpoint (checkpoint=), fetch them "
            f'with "sightline models download {download or self.source}", or take '
            f"random:{self.name} for random weights"
        )


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Draw what the body draws from a seed of its own, and leave the caller's generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
