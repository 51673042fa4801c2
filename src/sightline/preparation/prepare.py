"""``prepare()``: inputs of any modality to pictures of one form and a manifest, start to end."""

import filecmp
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from sightline.errors import FileFormatError, InputError, OutputError
from sightline.io.decoding import image_format, read_head
from sightline.io.geotiff import read_geo
from sightline.io.inputs import unique_names
from sightline.io.manifest import Record, read_created, read_manifest, write_manifest
from sightline.io.sums import sha256
from sightline.preparation.execute import run_tasks
from sightline.preparation.fit import tile_starts
from sightline.preparation.job import Item, Job
from sightline.preparation.journal import JOURNAL, Journal
from sightline.preparation.metadata import Metadata, match_metadata, read_metadata
from sightline.preparation.options import PrepareOptions
from sightline.preparation.process import process
from sightline.preparation.scan import Source, scan
from sightline.preparation.select import Brief, select, split
from sightline.preparation.sequences import sequence_ranges
from sightline.preparation.writer import FOLDERS, sum_of
from sightline.protocols import Progress

MANIFEST = "manifest.json"

_HASH, _PREPARE = "read files", "prepare"
_LISTED = 10
_DERIVED = re.compile(r"^(.*)(?:_\d{6}|_r\d{5}_c\d{5})$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What `prepare` left on disk."""

    manifest: Path
    modalities: dict[str, int]
    """How many records of each."""
    notes: tuple[str, ...]
    """Sentences for the user, those in the manifest."""
    skipped: tuple[str, ...]
    """One sentence for each unreadable file, with ``keep_going``."""
    made: int
    """Sources prepared now."""
    reused: int
    """Sources that an earlier run had finished."""

    @property
    def records(self) -> tuple[Record, ...]:
        """The manifest's records, read from the file."""
        return read_manifest(self.manifest)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One source that would be prepared."""

    source: str
    kind: str
    """picture, video, raster or depth."""
    name: str
    """Of its files below the output."""
    records: int | None
    """How many it gives; None for videos, whose number their frames decide."""


def plan(
    inputs: Sequence[str | Path], output: Path, options: PrepareOptions | None = None
) -> tuple[tuple[Planned, ...], tuple[str, ...]]:
    """Say what `prepare` would do, from headers alone; nothing is written.

    Returns:
        What would be prepared, and sentences for the user.

    Raises:
        InputError: As `prepare`, for what is known without decoding.
    """
    options = options or PrepareOptions()
    found = scan(inputs, output, keep_going=options.keep_going)
    _, said = _metadata(found.sources, options)
    notes = [*found.notes, *(f"skipped {p}: not readable" for p in found.unreadable), *said]
    stems = _stems(found.sources)
    planned = []
    for source, stem in zip(found.sources, stems, strict=True):
        try:
            kind, records = _expect(source, options)
        except InputError as error:
            if not options.keep_going:
                raise
            notes.append(f"skipped {error}")
            continue
        planned.append(Planned(source=source.source, kind=kind, name=stem, records=records))
    return tuple(planned), tuple(notes)


def prepare(
    inputs: Sequence[str | Path],
    output: Path,
    options: PrepareOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Prepared:
    """Prepare inputs, or go on with what an earlier run began.

    A finished source (same bytes, same options) is never done again. Threads, a cluster and one
    worker give the same files.

    Args:
        inputs: Pictures, rasters, videos, folders, glob patterns, COLMAP workspaces,
            ``transforms.json``, prepared data.
        output: The folder to write; empty, missing, or of an earlier run with the same inputs and
            options.
        options: What to make.
        overwrite: Remove what an earlier run with other inputs or options made, and start again.
        progress: Called with the number of files read, measured and prepared.

    Raises:
        InputError: If an input is missing or damaged (with ``keep_going``: if all are), or the
            folder holds something else. What is finished is kept.
        MissingExtraError: If a format needs an extra.
        OutputError: If the folder cannot be written or the disk is full.
        Cancelled: If ``progress`` raises it; what is finished is kept.
    """
    options = options or PrepareOptions()
    found = scan(inputs, output, keep_going=options.keep_going)
    metadata, said = _metadata(found.sources, options)
    skipped = [f"{path}: not readable as a picture or video" for path in found.unreadable]
    if overwrite:
        _clear(output)
    header = {"inputs": [str(i) for i in inputs], "options": options.content()}
    with Journal(output, header) as journal:
        _remove_torn(output)
        sources, known = list(found.sources), list(metadata)
        digests = _digests(sources, options, progress)
        ranges = sequence_ranges(sources, known, digests, options, journal, progress)
        jobs = [
            Job(
                source=source if told.group is None else replace(source, group=told.group),
                stem=stem,
                digest=digest,
                value_range=ranges.get(source.source),
                metadata=told,
                options=options,
                output=output,
            )
            for source, told, stem, digest in zip(
                sources, known, _stems(sources), digests, strict=True
            )
            if isinstance(digest, str)
        ]
        errors = {i: d for i, d in enumerate(digests) if isinstance(d, InputError)}
        _refuse(errors, options)
        skipped += [str(error) for error in errors.values()]
        keys, failed, reused = _make(jobs, journal, options, progress)
        skipped += failed
        told_of = {key: job.metadata for key, job in zip(keys, jobs, strict=True)}
        briefs, said_of = _briefs(told_of, journal)
        if not briefs:
            raise FileFormatError(
                f"nothing could be prepared: {skipped[0] if skipped else 'no part has data'}"
            )
        kept, left_out = select(briefs, options)
        if not kept:
            raise InputError(f"nothing is left: {left_out[0]}; lower --min-sharpness")
        kept, divided = split(kept, options)
        notes = [*found.notes, *said, *said_of, *left_out, *divided]
        notes += [f"skipped {sentence}" for sentence in skipped]
        again = _settle(output, kept, dict(zip(keys, jobs, strict=True)), journal, options)
        path = output / MANIFEST
        contents = {"inputs": header["inputs"], **header["options"]}
        _write(path, partial(_records, kept, told_of, journal), contents, notes)
    modalities: dict[str, int] = {}
    for brief in kept:
        modalities[brief.modality] = modalities.get(brief.modality, 0) + 1
    return Prepared(
        manifest=path,
        modalities=modalities,
        notes=tuple(notes),
        skipped=tuple(skipped),
        made=len(jobs) - reused - len(failed) + again,
        reused=reused - again,
    )


def _metadata(
    sources: Sequence[Source], options: PrepareOptions
) -> tuple[list[Metadata], list[str]]:
    """Return what is known of each source, and sentences about what matches nothing."""
    if options.metadata_json is None:
        return [Metadata()] * len(sources), []
    path = Path(options.metadata_json)
    entries = read_metadata(path)
    matched, unused, without = match_metadata(entries, [s.name for s in sources])
    notes = []
    if unused:
        notes.append(f"{len(unused)} entries of {path.name} match no file: {_listed(unused)}")
    if without:
        notes.append(f"{len(without)} files have no entry in {path.name}: {_listed(without)}")
    if notes and options.strict:
        raise InputError(f"{'; '.join(notes)}; correct them, or leave out --strict")
    return matched, notes


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def _stems(sources: Sequence[Source]) -> list[str]:
    """Return one unique name a source; frames and tiles add to theirs without meeting another."""
    stems = list(unique_names([s.path for s in sources], [""] * len(sources)))
    taken = {stem.casefold() for stem in stems}
    bases = {m[1].casefold() for stem in stems if (m := _DERIVED.match(stem))}
    for i, source in enumerate(sources):
        if stems[i].casefold() in bases and _is_divided(source):
            name, number = f"{stems[i]}_parts", 2
            while name.casefold() in taken | bases:
                name, number = f"{stems[i]}_parts{number}", number + 1
            taken.add(name.casefold())
            stems[i] = name
    return stems


def _is_divided(source: Source) -> bool:
    return source.kind == "video" or image_format(read_head(source.path)) == "tiff"


def _expect(source: Source, options: PrepareOptions) -> tuple[str, int | None]:
    if source.kind == "video":
        return "video", None
    if source.is_depth:
        return "depth", 1
    if image_format(read_head(source.path)) != "tiff":
        return "picture", 1
    geo = read_geo(source.path)
    if not geo.is_raster:
        return "picture", 1
    if options.tile is None:
        return "raster", 1
    down, across = (
        len(tile_starts(side, options.tile, options.overlap)) for side in (geo.height, geo.width)
    )
    return "raster", down * across


def _digests(
    sources: Sequence[Source], options: PrepareOptions, progress: Progress | None
) -> list[str | InputError]:
    """Return the SHA-256 of each source, or why it cannot be read."""
    digests: list[str | InputError] = [""] * len(sources)
    with closing(run_tasks(sha256, [s.path for s in sources], workers=options.workers)) as results:
        for done, (at, result) in enumerate(results, 1):
            digests[at] = result
            if progress is not None:
                progress(_HASH, float(done), float(len(sources)))
    return digests


def _make(
    jobs: Sequence[Job], journal: Journal, options: PrepareOptions, progress: Progress | None
) -> tuple[list[str], list[str], int]:
    """Prepare what is not finished; return all keys, what failed, and how many were there."""
    keys = [job.key() for job in jobs]
    todo = [i for i, key in enumerate(keys) if key not in journal]
    reused = len(jobs) - len(todo)
    errors: dict[int, InputError] = {}
    tasks = [jobs[i] for i in todo]
    with closing(
        run_tasks(process, tasks, workers=options.workers, cluster=options.cluster)
    ) as results:
        for done, (at, result) in enumerate(results, reused + 1):
            if isinstance(result, InputError):
                errors[todo[at]] = result
                if not options.keep_going:
                    break
            else:
                journal.add(keys[todo[at]], result)
            if progress is not None:
                progress(_PREPARE, float(done), float(len(jobs)))
    _refuse(errors, options)
    return keys, [str(errors[i]) for i in sorted(errors)], reused


def _refuse(errors: dict[int, InputError], options: PrepareOptions) -> None:
    if errors and not options.keep_going:
        raise errors[min(errors)]


def _briefs(told_of: dict[str, Metadata], journal: Journal) -> tuple[list[Brief], list[str]]:
    """Return what selection needs of every finished record, and their sources' sentences."""
    briefs: list[Brief] = []
    notes: list[str] = []
    for key, told in told_of.items():
        if key not in journal:
            continue
        made = journal.read(key)
        notes += made.notes
        briefs += [
            Brief(
                id=item.record.id,
                digest=item.record.sha256 or "",
                look=item.look,
                sharpness=item.sharpness,
                split=told.split or item.record.split,
                modality=item.record.modality,
                key=key,
                place=place,
            )
            for place, item in enumerate(made.items)
        ]
    return briefs, notes


def _records(
    kept: Sequence[Brief], told_of: dict[str, Metadata], journal: Journal
) -> Iterator[Record]:
    """Yield the records of the manifest, one at a time."""
    for key, group in groupby(kept, key=lambda brief: brief.key):
        made, labels = journal.read(key), told_of[key].labels
        for brief in group:
            record = made.items[brief.place].record
            yield replace(record, split=brief.split, labels=dict(labels))


def _settle(
    output: Path,
    kept: Sequence[Brief],
    jobs: dict[str, Job],
    journal: Journal,
    options: PrepareOptions,
) -> int:
    """Make the files on disk those of the records.

    What is gone (removed by hand, or left out by an earlier choice) or damaged is made again; what
    no record names any more (duplicates, sources that changed) is removed.

    Returns:
        How many sources were made again.
    """
    used: set[str] = set()
    lost: set[str] = set()
    for key, group in groupby(kept, key=lambda brief: brief.key):
        items = journal.read(key).items
        for item in {brief.place: items[brief.place] for brief in group}.values():
            used.update(item.files)
            if key not in lost and not _is_whole(output, item, fresh=key in journal.added):
                lost.add(key)
    tasks = [jobs[key] for key in jobs if key in lost]
    with closing(
        run_tasks(process, tasks, workers=options.workers, cluster=options.cluster)
    ) as results:
        for at, result in results:
            if isinstance(result, InputError):
                raise result
            journal.add(tasks[at].key(), result)
    for key in journal.keys():  # noqa: SIM118  # not a dictionary
        for item in journal.read(key).items:
            for file in item.files:
                if file not in used:
                    (output / file).unlink(missing_ok=True)
    return len(lost)


def _is_whole(output: Path, item: Item, *, fresh: bool) -> bool:
    """Tell whether a record's files are there, and as they were written unless just made."""
    if fresh or not item.sums:
        return all((output / file).is_file() for file in item.files)
    return len(item.sums) == len(item.files) and all(
        sum_of(output / file) == known for file, known in zip(item.files, item.sums, strict=True)
    )


def _remove_torn(output: Path) -> None:
    """Remove the half-written files that a kill leaves; the journal's lock says they are nobody's."""
    for part in FOLDERS:
        for file in (output / part).glob(".*.tmp.*"):
            file.unlink(missing_ok=True)


def _clear(output: Path) -> None:
    """Remove an earlier result of ours; anything else in the folder is left and refused."""
    if not (output / JOURNAL).is_file():
        return
    try:
        for part in FOLDERS:
            shutil.rmtree(output / part, ignore_errors=True)
        (output / MANIFEST).unlink(missing_ok=True)
        (output / JOURNAL).unlink()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"cannot empty {output}: {reason}; choose another -o") from error


def _write(
    path: Path,
    records: Callable[[], Iterable[Record]],
    options: dict[str, Any],
    notes: Sequence[str],
) -> None:
    """Write the manifest, unless the same is there already: nothing done means nothing changed."""
    created = read_created(path)
    if created is not None:
        fresh = path.with_name(f".{path.name}")
        try:
            write_manifest(fresh, records(), options=options, notes=notes, created=created)
            if filecmp.cmp(fresh, path, shallow=False):
                return
        finally:
            fresh.unlink(missing_ok=True)
    write_manifest(path, records(), options=options, notes=notes)
