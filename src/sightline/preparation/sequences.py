"""One value range for the deep pictures of a sequence, so that its brightness does not flicker."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sightline.errors import InputError
from sightline.io.decoding import image_format, read_head
from sightline.io.ranges import EIGHT_BIT, ValueRange
from sightline.preparation.execute import run_tasks
from sightline.preparation.journal import Journal
from sightline.preparation.load import load, needs_range
from sightline.preparation.metadata import Metadata
from sightline.preparation.options import PrepareOptions
from sightline.preparation.ranges import Tally, choose_range, float_budget, stated_range, tally
from sightline.preparation.scan import Source
from sightline.protocols import Progress

_STAGE = "measure ranges"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Survey:
    """One deep picture that shares its range with others of its kind."""

    source: Source
    options: PrepareOptions
    modality: str | None
    budget: int


def _survey(task: _Survey) -> tuple[tuple[Any, ...], Tally]:
    """Return the kind of a picture, and its values."""
    loaded = load(task.source, alpha=task.options.alpha, modality=task.modality)
    height, width, channels = loaded.samples.shape
    # Another size is another sensor, whose counts mean something else.
    kind = (
        task.source.group,
        (min(height, width), max(height, width)),
        channels,
        loaded.samples.dtype.str,
        loaded.modality,
    )
    return kind, tally(loaded.samples, loaded.valid, budget=task.budget)


def _shares_range(source: Source, told: Metadata) -> bool:
    if told.modality == "depth" or (told.modality is None and source.is_depth):
        return False
    try:
        raster = told.modality == "satellite" and image_format(read_head(source.path)) == "tiff"
        return not raster and needs_range(source)
    except InputError:
        return False  # named when it is prepared


def sequence_ranges(
    sources: Sequence[Source],
    metadata: Sequence[Metadata],
    digests: Sequence[Any],
    options: PrepareOptions,
    journal: Journal,
    progress: Progress | None,
) -> dict[str, ValueRange]:
    """Return the range of each deep picture by its source, one for all of a kind in a group.

    Args:
        sources: What is prepared.
        metadata: What is known of each.
        digests: SHA-256 of each, or why it cannot be read.
        options: How ranges are chosen, and where the work is done.
        journal: Keeps what was measured; unchanged sequences are not measured again.
        progress: Called with the number of pictures measured.

    Raises:
        InputError: If a picture is damaged; with ``keep_going`` it is left for `process` to name.
    """
    tasks: list[_Survey] = []
    members = []
    for source, told, digest in zip(sources, metadata, digests, strict=True):
        if not isinstance(digest, str) or not _shares_range(source, told):
            continue
        group = told.group or source.group
        tasks.append(
            _Survey(
                source=replace(source, group=group),
                options=options,
                modality=told.modality,
                budget=0,
            )
        )
        members.append([source.source, digest, group, told.modality])
    choice = options.range_choice()
    if choice.kind in ("fixed", "celsius"):
        shared = stated_range(choice, options.gain, options.offset)
        return {task.source.source: shared for task in tasks}
    key = hashlib.sha256(json.dumps(members).encode()).hexdigest()
    if journal.ranges.get("key") == key:
        found = journal.ranges["ranges"]
        return {name: _range_from(value) for name, value in found.items()}
    budget = float_budget(len(tasks))
    tasks = [replace(task, budget=budget) for task in tasks]
    totals: dict[tuple[Any, ...], Tally] = {}
    kinds: dict[str, tuple[Any, ...]] = {}
    floats: dict[int, tuple[tuple[Any, ...], Tally]] = {}
    with closing(
        run_tasks(_survey, tasks, workers=options.workers, cluster=options.cluster)
    ) as results:
        for done, (at, result) in enumerate(results, 1):
            if progress is not None:
                progress(_STAGE, float(done), float(len(tasks)))
            if isinstance(result, InputError):
                if not options.keep_going:
                    raise result
                continue  # named when it is prepared
            kind, values = result
            kinds[tasks[at].source.source] = kind
            if values.counts is None:
                floats[at] = (
                    result  # joined in order, so that the sum does not depend on the workers
                )
            else:
                totals[kind] = totals[kind] + values if kind in totals else values
    for _, (kind, values) in sorted(floats.items()):
        totals[kind] = totals[kind] + values if kind in totals else values
    of_kind = {
        kind: choose_range(
            values, dtype=np.dtype(kind[3]), channels=kind[2], satellite=False, choice=choice
        )
        for kind, values in totals.items()
    }
    ranges = {name: of_kind[kind] for name, kind in kinds.items()}
    if tasks:
        journal.add_ranges(key, {name: _range_plain(r) for name, r in ranges.items()})
    return ranges


def _range_plain(value: ValueRange) -> list[Any]:
    return [value.rule, value.low, value.high, list(value.minimum), list(value.maximum)]


def _range_from(row: Sequence[Any]) -> ValueRange:
    rule, low, high, minimum, maximum = row
    if rule == "none":
        return EIGHT_BIT
    return ValueRange(rule=rule, low=low, high=high, minimum=tuple(minimum), maximum=tuple(maximum))
