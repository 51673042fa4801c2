"""One source to prepare, and what became of it."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from sightline.errors import InputError
from sightline.io.manifest import Record
from sightline.io.ranges import ValueRange
from sightline.io.sums import sha256
from sightline.preparation.metadata import Metadata
from sightline.preparation.options import PrepareOptions
from sightline.preparation.scan import Source


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """What it takes to prepare one source, anywhere."""

    source: Source
    stem: str
    """Of its files; frames and tiles add to it."""
    digest: str
    """SHA-256 of the source."""
    value_range: ValueRange | None
    """Of the sequence that a deep picture belongs to."""
    metadata: Metadata
    options: PrepareOptions
    output: Path

    def key(self) -> str:
        """Return a digest of everything that decides the outcome, paths left out."""
        source, known = self.source, self.metadata
        given = source.given
        lens = None if given is None or given.lens is None else given.lens.to_json("given")
        pose = None if given is None or given.w2c is None else given.w2c.tolist()
        parts = [
            *(self.stem, self.digest, source.source, source.group, sorted(source.words)),
            None if self.value_range is None else asdict(self.value_range),
            *(known.modality, known.camera, known.pose, known.bands),
            *(lens, pose, source.given_kind, source.depth_scale, source.depth_unit),
            *(_digest(p) for p in (source.mask, source.depth)),
            None if known.depth is None else [known.depth, _digest(Path(known.depth["file"]))],
        ]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One record with what selection needs to know of it."""

    record: Record
    files: tuple[str, ...]
    """Relative to the output."""
    sums: tuple[int, ...] = ()
    """CRC-32 of each; none where an older version has made them."""
    look: int
    """Perceptual hash, 64 bits."""
    sharpness: float | None = None
    """Of pictures, where it is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What became of one source."""

    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()


def _digest(path: Path | None) -> str | None:
    """Return a file's digest, or None; that it cannot be read is said when it is needed."""
    try:
        return None if path is None else sha256(path)
    except InputError:
        return None
