"""The segmenter's work on many machines: shares of references and pictures, as tasks of a cluster.

Shares are whole batches, so that every batch is what it would be in one process, and results come
back in order: the answer is the same.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sightline.errors import InputError
from sightline.preparation.execute import run_tasks
from sightline.protocols import Progress
from sightline.segmentation.memory import BankClass, MemoryBank
from sightline.segmentation.references import Reference
from sightline.segmentation.rle import decode_segmentation, encode_mask
from sightline.segmentation.segmenter import FewShotSegmenter, Picture
from sightline.segmentation.shots import Shots, join_shots
from sightline.types import InstanceMasks

_BATCHES = 2
"""Of a share: few enough to spread, many enough to be worth sending."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Share = tuple[Any, ...]
Open = Callable[[], FewShotSegmenter]

_opened: dict[str, FewShotSegmenter] = {}
"""A worker's segmenter, by the key of its work: weights are read once a process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Where shares go, and how a worker there makes its segmenter."""

    address: str
    open: Open
    """Of a module, with plain arguments (``functools.partial``)."""
    key: str
    """Tells works apart that open different segmenters."""
    gpus: float = 0.0
    """What a worker takes."""


class SpreadSegmenter(FewShotSegmenter):
    """A `FewShotSegmenter` whose references and pictures are encoded and matched on a cluster.

    Attributes:
        cluster: Where.
    """

    def __init__(self, local: FewShotSegmenter, cluster: Cluster) -> None:
        """Take over the parts of a segmenter of this process, equal to what ``cluster`` opens."""
        super().__init__(
            local.encoder, local.proposer, local.masker, options=local.options, bank=local.bank
        )
        self.cluster = cluster

    def with_bank(self, bank: MemoryBank) -> "SpreadSegmenter":
        """Return the same segmenter over another bank."""
        return SpreadSegmenter(super().with_bank(bank), self.cluster)

    def collect(
        self,
        references: Sequence[Reference],
        classes: Sequence[BankClass],
        *,
        progress: Progress | None = None,
    ) -> Shots:
        """Return what the bank keeps of references, see `FewShotSegmenter.collect`."""
        work = partial(_collect, self.cluster.open, self.cluster.key, tuple(classes))
        there = [
            replace(r, image=r.image.absolute()) if isinstance(r.image, Path) else r
            for r in references
        ]
        return join_shots(list(self._spread(work, there, "references", progress)))

    def iterate(
        self, images: Sequence[Picture], *, progress: Progress | None = None
    ) -> Iterator[InstanceMasks]:
        """Yield what `predict` returns, in order, as shares come back."""
        work = partial(_predict, self.cluster.open, self.cluster.key, self._bank())
        there = [i.absolute() if isinstance(i, Path) else i for i in images]
        for rows in self._spread(work, there, "predict", progress):
            yield from (_unpacked(*row) for row in rows)

    def _spread(
        self,
        work: Callable[[Share], Result],
        items: Sequence[Item],
        stage: str,
        progress: Progress | None,
    ) -> Generator[Result, None, None]:
        """Yield the results of all shares, in order."""
        size = _BATCHES * self.options.batch
        shares = [tuple(items[at : at + size]) for at in range(0, len(items), size)]
        early: dict[int, Result] = {}
        following, done = 0, 0
        tasks = run_tasks(work, shares, cluster=self.cluster.address, gpus=self.cluster.gpus)
        with closing(tasks):
            for at, result in tasks:
                if isinstance(result, InputError):
                    raise result
                early[at] = result
                done += len(shares[at])
                if progress is not None:
                    progress(stage, float(done), float(len(items)))
                while following in early:
                    yield early.pop(following)
                    following += 1


def _segmenter(make: Open, key: str) -> FewShotSegmenter:
    if key not in _opened:
        _opened.clear()  # one work at a time: weights are large
        _opened[key] = make()
    return _opened[key]


def _collect(make: Open, key: str, classes: tuple[BankClass, ...], share: Share) -> Shots:
    return _segmenter(make, key).collect(share, classes)


def _predict(make: Open, key: str, bank: MemoryBank, share: Share) -> list[tuple[Any, ...]]:
    segmenter = _segmenter(make, key).with_bank(bank)
    return [_packed(found) for found in segmenter.iterate(share)]


def _packed(found: InstanceMasks) -> tuple[Any, ...]:
    """Return instances with masks as run lengths, which travel lighter."""
    masks = found.masks.cpu().numpy()
    runs = [encode_mask(mask) for mask in masks]
    return tuple(masks.shape[1:]), runs, found.boxes.cpu(), found.labels.cpu(), found.scores.cpu()


def _unpacked(
    size: tuple[int, int], runs: list[Any], boxes: Tensor, labels: Tensor, scores: Tensor
) -> InstanceMasks:
    masks = torch.zeros(len(runs), *size, dtype=torch.bool)
    for row, run in zip(masks, runs, strict=True):
        row.copy_(torch.from_numpy(decode_segmentation(run, *size)))
    return InstanceMasks(masks=masks, boxes=boxes, labels=labels, scores=scores)
