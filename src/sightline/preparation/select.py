"""Choose among prepared records: without duplicates, without blurred ones, split for training."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sightline.preparation.options import PrepareOptions

_LISTED = 10
_BITS = np.unpackbits(np.arange(2**16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(
    1, dtype=np.uint8
)
"""How many bits are set in each 16-bit number; NumPy counts them itself only from version 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Brief:
    """What selection needs to know of one record."""

    id: str
    digest: str
    """Of its source."""
    look: int
    """Perceptual hash."""
    sharpness: float | None = None
    split: str | None = None
    modality: str = "visible"
    key: str = ""
    """Of its source in the journal."""
    place: int = 0
    """Among the records of its source."""


def select(items: Sequence[Brief], options: PrepareOptions) -> tuple[list[Brief], list[str]]:
    """Leave out blurred pictures and duplicates of earlier ones.

    Returns:
        What stays, in order, and sentences about what does not.
    """
    notes: list[str] = []
    kept = list(items)
    if options.min_sharpness > 0:
        scored = [(i, np.inf if i.sharpness is None else i.sharpness) for i in kept]
        blurred = [i for i, score in scored if score < options.min_sharpness]
        kept = [i for i, score in scored if score >= options.min_sharpness]
        if blurred:
            shown = ", ".join(f"{i.id} ({i.sharpness:.3g})" for i in blurred[:_LISTED])
            notes.append(f"left out {len(blurred)} blurred pictures (sharpness): {shown}")
    if options.dedup:
        first = duplicates([i.look for i in kept], options.dedup_distance)
        twins = [(i, kept[at]) for i, at in zip(kept, first, strict=True) if at >= 0]
        kept = [i for i, at in zip(kept, first, strict=True) if at < 0]
        if twins:
            shown = ", ".join(f"{a.id} (like {b.id})" for a, b in twins[:_LISTED])
            notes.append(f"left out {len(twins)} duplicates: {shown}")
    return kept, notes


def duplicates(looks: Sequence[int], distance: int) -> list[int]:
    """Return, for each hash, the first kept one before it within ``distance`` bits, or -1."""
    kept = np.empty(len(looks), np.uint64)
    places: list[int] = []
    found = []
    for i, look in enumerate(looks):
        words = (kept[: len(places)] ^ np.uint64(look)).view(np.uint16).reshape(-1, 4)
        near = _BITS[words].sum(1) <= distance
        at = int(np.argmax(near)) if near.any() else -1
        found.append(places[at] if at >= 0 else -1)
        if at < 0:
            kept[len(places)] = look
            places.append(i)
    return found


def split(items: Sequence[Brief], options: PrepareOptions) -> tuple[list[Brief], list[str]]:
    """Give a share of the records to validation; splits that were given stay.

    All records of one source (frames of a video, tiles of a raster) go together, so that nothing
    seen in training is judged. Which sources is decided by their bytes and the seed alone. A
    single source gives its last records.
    """
    if options.val_split == 0:
        return list(items), []
    free = [i for i in items if i.split is None]
    wanted = round(options.val_split * len(free))
    sources: dict[str, int] = {}
    for item in free:
        digest = item.digest
        sources[digest] = sources.get(digest, 0) + 1
    notes: list[str] = []
    chosen: set[str] = set()  # of record ids
    if len(sources) == 1:
        chosen = {i.id for i in free[len(free) - wanted :]}
        notes.append("all records come from one file: its last ones are for validation")
    else:
        order = sorted(
            sources, key=lambda d: hashlib.sha256(f"{options.seed}:{d}".encode()).digest()
        )
        taken: set[str] = set()
        count = 0
        for digest in order:
            # Take a source when that brings the share nearer to what was asked for.
            if abs(count + sources[digest] - wanted) < abs(count - wanted):
                taken.add(digest)
                count += sources[digest]
        chosen = {i.id for i in free if i.digest in taken}
        if count != wanted:
            notes.append(
                f"{count} records are for validation instead of {wanted}: files stay whole"
            )
    return [
        i if i.split is not None else replace(i, split="val" if i.id in chosen else "train")
        for i in items
    ], notes
