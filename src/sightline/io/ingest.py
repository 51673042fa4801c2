"""Read everything that was given into a run folder: ``images/``, ``masks/``, ``inputs.json``.

Upright 8-bit RGB JPEGs and PNGs are copied byte for byte; everything else becomes a lossless PNG.
Stored pictures need no rotation. The manifest is written last: a folder that has one is complete.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sightline.errors import FileFormatError, InputError, OutputError
from sightline.io.atomic import atomic_folder
from sightline.io.decoding import MAX_PIXELS
from sightline.io.frames import FrameOptions, plan_frames, read_frames, spread
from sightline.io.given import GivenPoints, GivenScene, depth_points, read_given
from sightline.io.images import Alpha, is_deep, read_samples
from sightline.io.ingested import (
    EXTRAS,
    IMAGES,
    MANIFEST,
    MASKS,
    Ingested,
    load_ingested,
    write_points,
)
from sightline.io.inputs import Kind, Source, discover, unique_names
from sightline.io.intrinsics import parse_intrinsics
from sightline.io.manifest import write_manifest
from sightline.io.masks import find_masks
from sightline.io.ranges import ValueRange, measure_range
from sightline.io.store import Item, Job, Places, Stored, store_frame, store_photo, tokens
from sightline.io.sums import sha256
from sightline.protocols import Progress

_STAGE = "read inputs"
_DEPTH = ("depth", "disp")
_SAMPLED = 200_000  # values a picture that a sequence's range is measured on


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestOptions:
    """How inputs are read."""

    kind: Kind | None = None
    """Take every input as this kind instead of finding out."""
    frames: FrameOptions = field(default_factory=FrameOptions)
    """Which frames of videos; ``max_frames`` caps the number of all views together."""
    alpha: Alpha = "white"
    """What transparent pictures are laid on; ``ignore`` drops their alpha plane."""
    masks: Path | None = None
    """A folder of masks, or one mask for all; default: a folder ``masks`` beside the pictures."""
    invert_masks: bool = False
    """Masks are black where the picture counts."""
    intrinsics: str | None = None
    """``fx,fy,cx,cy`` in pixels of the pictures, or a file; see `intrinsics.parse_intrinsics`."""
    keep_going: bool = False
    """Skip unreadable files instead of stopping."""
    max_pixels: int = MAX_PIXELS
    workers: int | None = None
    """Threads; default: the cores, at most 4."""


def ingest(
    inputs: Sequence[str | Path],
    folder: Path,
    options: IngestOptions | None = None,
    progress: Progress | None = None,
) -> Ingested:
    """Read inputs into a run folder.

    Args:
        inputs: As for `inputs.discover`.
        folder: The run folder; made when missing. Its former pictures are replaced.
        options: How to read.
        progress: Called with fractions of the videos surveyed, then of the views stored.

    Returns:
        The same as `load_ingested` of the folder.

    Raises:
        InputError: If an input is missing, or options and inputs contradict each other.
        FileFormatError: If a file is damaged; with ``keep_going`` only if nothing is left.
        MissingExtraError: If a format needs an extra.
        OutputError: If the folder cannot be written or the disk is full.
        Cancelled: If ``progress`` raises it; the folder then has no manifest.
    """
    options = options or IngestOptions()
    lenses = parse_intrinsics(options.intrinsics) if options.intrinsics else ()
    sources = discover(inputs, kind=options.kind, keep_going=options.keep_going)
    notes = [note for source in sources for note in source.notes]
    notes += [f"skipped {path}: not readable" for s in sources for path in s.unreadable]
    items, scene = _plan(sources, options, notes, progress)
    ranges = _deep_ranges(items, options)
    stems = unique_names([item.path for item in items], [""] * len(items))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {(error.strerror or str(error))}") from error
    with ExitStack() as stack:
        images, masks, extras = (
            stack.enter_context(atomic_folder(folder / part)) for part in (IMAGES, MASKS, EXTRAS)
        )
        places = Places(images=images, masks=masks, depth=extras / "depth")
        jobs = [
            Job(
                item=item,
                stem=stem,
                value_range=ranges.get(item.path),
                lenses=lenses,
                alpha=options.alpha,
                invert_masks=options.invert_masks,
                max_pixels=options.max_pixels,
            )
            for item, stem in zip(items, stems, strict=True)
        ]
        stored = list(_store_all(jobs, places, options, notes, progress))
        notes += [note for one in stored for note in one.notes]
        kept = _given_points(stored, scene, images)
        if kept is not None:
            write_points(extras, kept)
        empty = [
            folder / part
            for part, made in ((MASKS, masks), (EXTRAS, extras))
            if not any(made.iterdir())
        ]
    for leftover in empty:
        leftover.rmdir()
    records = [one.record for one in stored]
    write_manifest(folder / MANIFEST, records, options=_options_json(options), notes=notes)
    return load_ingested(folder)


def _plan(
    sources: Sequence[Source],
    options: IngestOptions,
    notes: list[str],
    progress: Progress | None,
) -> tuple[list[Item], GivenScene | None]:
    """List the views of all sources in order, capped at ``max_frames``; and the known cameras."""
    items: list[Item] = []
    known: GivenScene | None = None
    posed: list[Path] = []
    videos = [source.path for source in sources if source.kind == "video"]
    video_groups = iter(unique_names(videos, [""] * len(videos)))
    mask_errors: list[InputError] = []
    masks_found = False
    for source in sources:
        if source.kind == "video":
            new = _plan_video(source, next(video_groups), options, notes, progress)
        elif source.kind == "photos":
            new = _plan_photos(source, notes)
        else:
            scene = read_given(source.kind, source.path, keep_going=options.keep_going)
            notes += scene.notes
            new = [
                Item(
                    path=view.file,
                    source=view.file,
                    group=view.group,
                    given=view,
                    given_kind="colmap" if source.kind == "colmap" else "given",
                    mask=view.mask,
                )
                for view in scene.views
            ]
            if any(view.w2c is not None for view in scene.views):
                posed.append(source.path)
                known = scene
        try:
            new = _with_masks(new, source, options, notes)
            masks_found = True
        except FileFormatError:
            raise
        except InputError as error:
            mask_errors.append(error)
        items += new
    if mask_errors and not masks_found:
        raise mask_errors[0]
    notes += [str(error) for error in mask_errors]
    if len(posed) > 1:
        raise InputError(
            f"{posed[0]} and {posed[1]} both bring cameras, each in its own world; give one of them"
        )
    kept = spread(np.arange(len(items)), options.frames.max_frames)
    if len(kept) < len(items):
        notes.append(f"took {len(kept)} of {len(items)} views, evenly spread (--max-frames)")
    return [items[i] for i in kept.tolist()], known


def _plan_video(
    source: Source,
    group: str,
    options: IngestOptions,
    notes: list[str],
    progress: Progress | None,
) -> list[Item]:
    plan = plan_frames(
        source.path, options.frames, max_pixels=options.max_pixels, progress=progress
    )
    notes += plan.notes
    return [
        Item(
            path=source.path.parent / plan.name(frame),
            source=source.path,
            group=group,
            plan=plan,
            frame=frame,
        )
        for frame in plan.frames
    ]


def _plan_photos(source: Source, notes: list[str]) -> list[Item]:
    depth = [path for path in source.files if tokens(path) & set(_DEPTH) and is_deep(path)]
    if depth and len(depth) < len(source.files):
        notes.append(f"left out {len(depth)} 16-bit pictures that are named as depth maps")
        files = [path for path in source.files if path not in set(depth)]
    else:
        files = list(source.files)
    return [Item(path=path, source=path) for path in files]


def _with_masks(
    items: list[Item], source: Source, options: IngestOptions, notes: list[str]
) -> list[Item]:
    if options.masks is None and any(item.mask is not None for item in items):
        return items
    folder = source.path if source.path.is_dir() else source.path.parent
    found, said = find_masks([item.path for item in items], root=folder, masks=options.masks)
    notes += said
    used = sum(mask is not None for mask in found)
    if options.masks is None and used:
        places = sorted({str(mask.parent) for mask in found if mask is not None})
        notes.append(f"used {used} masks of {', '.join(places)}: what is black there is ignored")
    return [replace(item, mask=mask) for item, mask in zip(items, found, strict=True)]


def _deep_ranges(items: Sequence[Item], options: IngestOptions) -> dict[Path, ValueRange]:
    """Measure one range for all deep pictures of a folder and sensor, so that none flickers."""
    groups: dict[tuple[Any, ...], list[tuple[Path, np.ndarray]]] = {}
    for item in items:
        if item.plan is not None or not is_deep(item.path):
            continue
        try:
            raster = read_samples(item.path, max_pixels=options.max_pixels)
        except FileFormatError:
            continue  # reported when it is stored
        height, width, channels = raster.samples.shape
        values = raster.samples.reshape(-1, 1, channels)
        if raster.valid is not None:
            values = values[raster.valid.reshape(-1)]
        values = values[:: len(values) // _SAMPLED + 1].copy()
        # Another size is another sensor, whose counts mean something else.
        size = (min(height, width), max(height, width), channels)
        kind = (item.path.parent, size, values.dtype.str, raster.satellite)
        groups.setdefault(kind, []).append((item.path, values))
    ranges: dict[Path, ValueRange] = {}
    for (*_, satellite), members in groups.items():
        shared = measure_range([values for _, values in members], satellite=satellite)
        ranges |= {path: shared for path, _ in members}
    return ranges


def _store_all(
    jobs: Sequence[Job],
    places: Places,
    options: IngestOptions,
    notes: list[str],
    progress: Progress | None,
) -> Iterator[Stored]:
    """Write all views with a few threads, in order; at most a few pictures are held."""
    threads = options.workers or min(4, os.cpu_count() or 1)
    failed: list[FileFormatError] = []
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        for outcome in _in_order(pool, _tasks(jobs, places, options), 2 * threads):
            done += 1
            if progress is not None:
                progress(_STAGE, float(done), float(len(jobs)))
            if isinstance(outcome, Stored):
                yield outcome
                continue
            if not options.keep_going:
                raise outcome
            failed.append(outcome)
            notes.append(f"skipped {outcome}")
    if len(failed) == len(jobs):
        raise failed[0]


def _tasks(
    jobs: Sequence[Job], places: Places, options: IngestOptions
) -> Iterator[Callable[[], Stored]]:
    """Yield what is to be done, in order; frames are decoded here, one after the other."""
    hashes: dict[Path, str] = {}
    at = 0
    while at < len(jobs):
        plan = jobs[at].item.plan
        if plan is None:
            yield partial(store_photo, jobs[at], places)
            at += 1
            continue
        stop = at
        while stop < len(jobs) and jobs[stop].item.plan is plan:
            stop += 1
        chosen = tuple(frame for job in jobs[at:stop] if (frame := job.item.frame) is not None)
        digest = hashes.setdefault(plan.path, sha256(plan.path))
        pictures = read_frames(replace(plan, frames=chosen), max_pixels=options.max_pixels)
        for job, (_, pixels) in zip(jobs[at:stop], pictures, strict=True):
            yield partial(store_frame, job, pixels, digest, places)
        at = stop


def _in_order(
    pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], Stored]], ahead: int
) -> Iterator[Stored | FileFormatError]:
    """Run tasks with at most ``ahead`` begun and not yet taken; damaged files come as errors."""

    def take(future: Future[Stored]) -> Stored | FileFormatError:
        try:
            return future.result()
        except FileFormatError as error:
            return error

    waiting: list[Future[Stored]] = []
    for task in tasks:
        waiting.append(pool.submit(task))
        if len(waiting) >= ahead:
            yield take(waiting.pop(0))
    while waiting:
        yield take(waiting.pop(0))


def _given_points(
    stored: Sequence[Stored], scene: GivenScene | None, images: Path
) -> GivenPoints | None:
    """Return given points, or else points from depth maps, with tracks in terms of these views."""
    if scene is None:
        return None
    at = {one.item.given: i for i, one in enumerate(stored) if one.item.given is not None}
    if scene.points is not None:
        made, index = scene.points, np.array([at.get(view, -1) for view in scene.views])
    else:
        known = [(view, i) for view, i in at.items() if view in set(scene.views)]
        views = [replace(view, lens=stored[i].lens) for view, i in known]
        files = [images / Path(stored[i].record.file).name for _, i in known]
        made, index = depth_points(views, files), np.array([i for _, i in known])
        if made is None:
            return None
    tracks = np.stack([made.tracks[:, 0], index[made.tracks[:, 1]]], -1)
    return replace(made, tracks=tracks[tracks[:, 1] >= 0])


def _options_json(options: IngestOptions) -> dict[str, Any]:
    frames = {
        name: value
        for name in FrameOptions.__dataclass_fields__
        if (value := getattr(options.frames, name)) is not None
        and not (isinstance(value, float) and math.isinf(value))
    }
    return {
        "frames": frames,
        "alpha": options.alpha,
        "masks": str(options.masks) if options.masks is not None else None,
        "invert_masks": options.invert_masks,
        "intrinsics": options.intrinsics,
        "keep_going": options.keep_going,
    }
