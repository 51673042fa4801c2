"""Make the records and files of one source; the same source gives the same bytes everywhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from sightline.errors import FileFormatError, InputError
from sightline.io.frames import FrameOptions, plan_frames, read_frames, sharpness
from sightline.io.images import orient, read_samples, upright_to_stored
from sightline.io.intrinsics import fit_lens
from sightline.io.manifest import Record
from sightline.io.masks import read_mask
from sightline.io.ranges import EIGHT_BIT, ValueRange, apply_range
from sightline.io.reading import read_whole
from sightline.preparation.fit import Fit, choose_fit, fit_camera, tile_starts
from sightline.preparation.job import Item, Job, Made
from sightline.preparation.load import Loaded, load
from sightline.preparation.options import PrepareOptions
from sightline.preparation.ranges import choose_range, stated_range, tally
from sightline.preparation.scan import Source
from sightline.preparation.writer import COPIED, DEPTH, IMAGES, RAW, Writer

_INFRARED = {"ir", "nir"}


def process(job: Job) -> Made:
    """Write the files of one source, and describe them.

    Raises:
        InputError: If the source cannot be read; nothing else is lost.
        OutputError: If a file cannot be written.
    """
    if job.source.kind == "video":
        return _video(job)
    told = job.metadata.modality
    if told == "depth" or (told is None and job.source.is_depth):
        return _depth_alone(job)
    return _picture(job)


def look_of(luma: UInt8[np.ndarray, "height width"]) -> int:
    """Return a 64-bit perceptual hash: which of 8 x 8 places are darker than their right neighbour.

    The difference hash of N. Krawetz ("Kind of like that", 2013).
    """
    small = cv2.resize(luma, (9, 8), interpolation=cv2.INTER_AREA)
    bits = (small[:, 1:] > small[:, :-1]).reshape(-1)
    return int(np.packbits(bits).view(">u8")[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    """A part of an upright picture: all of it, or a tile."""

    row: int
    column: int
    height: int
    width: int
    suffix: str = ""


def _windows(loaded: Loaded, options: PrepareOptions) -> Iterator[_Window]:
    height, width = loaded.samples.shape[:2]
    if loaded.geo is None or options.tile is None:
        yield _Window(row=0, column=0, height=height, width=width)
        return
    tile = options.tile
    for row in tile_starts(height, tile, options.overlap):
        for column in tile_starts(width, tile, options.overlap):
            yield _Window(
                row=row,
                column=column,
                height=min(tile, height),
                width=min(tile, width),
                suffix=f"_r{row:05d}_c{column:05d}",
            )


def _picture(job: Job) -> Made:
    source, options = job.source, job.options
    known = job.metadata
    loaded = load(
        source,
        alpha=options.alpha,
        modality=known.modality,
        bands=known.bands if known.bands is not None else options.bands,
    )
    value_range = job.value_range or _own_range(loaded, options)
    notes: list[str] = []
    drawn = None
    if source.mask is not None:
        drawn, note = read_mask(
            source.mask, size=loaded.samples.shape[:2], orientation=loaded.orientation
        )
        notes += [note] if note else []
    items, empty = [], 0
    windows = list(_windows(loaded, options))
    for window in windows:
        item = _part(job, loaded, window, value_range, drawn)
        if item is None:
            empty += 1
        else:
            items.append(item)
    if empty:
        notes.append(f"{source.path.name}: left out {empty} of {len(windows)} parts without data")
    return Made(items=tuple(items), notes=tuple(notes))


def _own_range(loaded: Loaded, options: PrepareOptions) -> ValueRange:
    choice = options.range_choice()
    satellite = loaded.geo is not None
    shown = loaded.samples[..., : loaded.shown]
    if not satellite and shown.dtype == np.uint8:
        return EIGHT_BIT
    if choice.kind in ("fixed", "celsius"):
        return stated_range(choice, options.gain, options.offset)
    return choose_range(
        tally(shown, loaded.valid),
        dtype=shown.dtype,
        channels=loaded.shown,
        satellite=satellite,
        choice=choice,
    )


def _part(
    job: Job,
    loaded: Loaded,
    window: _Window,
    value_range: ValueRange,
    drawn: Bool[np.ndarray, "h w"] | None,
) -> Item | None:
    """Write a picture or a tile; None when nothing of a raster's tile has data."""
    source, options = job.source, job.options
    raster = loaded.geo is not None
    rows = slice(window.row, window.row + window.height)
    columns = slice(window.column, window.column + window.width)
    samples = loaded.samples[rows, columns]
    valid = None if loaded.valid is None else np.ascontiguousarray(loaded.valid[rows, columns])
    if raster and valid is not None and not valid.any():
        return None
    fit = choose_fit(
        window.height, window.width, 0 if window.suffix else options.size, options.mode
    )
    # Missing data must not be mixed into what is there; transparent pixels have their colour.
    fitted, mask = fit.apply(samples, valid if raster else None)
    if valid is not None and not raster:
        mask = _both(mask, fit.apply_mask(valid))
    if drawn is not None:
        mask = _both(mask, fit.apply_mask(drawn[rows, columns]))
    writer = Writer(job.output, job.stem + window.suffix)
    shown = fitted[..., : loaded.shown]
    pixels, levels, value_range = _display(shown, loaded, value_range, options)
    copied = options.size == 0 and loaded.plain and loaded.format in COPIED
    file = writer.copy(source.path, loaded.format) if copied else writer.png(IMAGES, pixels)
    bands = None if loaded.bands is None else list(loaded.bands)
    record = Record(
        id=writer.name,
        file=file,
        width=fit.size[1],
        height=fit.size[0],
        source=source.source,
        sha256=job.digest,
        modality=loaded.modality,
        kind="tile" if window.suffix else "image",
        channels=pixels.shape[-1],
        dtype=str(pixels.dtype),
        source_width=loaded.source_size[1],
        source_height=loaded.source_size[0],
        source_channels=loaded.source_channels,
        source_dtype=loaded.source_dtype,
        transform=_transform(loaded, window, fit),
        range=_range_json(value_range, loaded, levels, options),
        raw_file=_keep_raw(writer, source, loaded),
        bands=bands,
        bands_file=writer.bands(fitted) if bands and len(bands) > loaded.shown else None,
        camera=None if raster else fit_camera(_camera(job, loaded), fit),
        pose=_pose(job),
        depth=_depth(writer, job, loaded, fit),
        geo=_geo(loaded, window, fit),
        exif=loaded.exif or None,
        mask=None if mask is None or mask.all() else writer.mask(mask),
        group=source.group,
        split=None if source.given is None else source.given.split,
    )
    luma = _luma(pixels)
    sharp = None
    if options.min_sharpness > 0:
        whole = apply_range(samples[..., : loaded.shown], value_range)
        sharp = sharpness(_luma(whole))
    return _item(writer, record, luma, sharp)


def _display(
    shown: Shaped[np.ndarray, "h w c"],
    loaded: Loaded,
    value_range: ValueRange,
    options: PrepareOptions,
) -> tuple[Shaped[np.ndarray, "h w shown"], int, ValueRange]:
    """Return the stored pixels, their top value and the range that undoes them."""
    levels = 65535 if options.keep_16bit and shown.dtype != np.uint8 else 255
    if levels == 65535 and shown.dtype == np.uint16:
        value_range = ValueRange(rule="full", minimum=(0.0,), maximum=(65535.0,))
        return shown, levels, value_range
    pixels = apply_range(shown, value_range, levels)
    if levels == 255 and pixels.shape[-1] == 1:
        grey = pixels[..., 0]
        if options.local_contrast and loaded.modality == "thermal":
            grey = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(grey)
        pixels = np.repeat(grey[..., None], 3, axis=-1)
    return pixels, levels, value_range


def _range_json(
    value_range: ValueRange, loaded: Loaded, levels: int, options: PrepareOptions
) -> dict[str, Any] | None:
    """Return what undoes the stretch: value = min + stored / levels x (max - min)."""
    if value_range.rule == "none":
        return None
    record = value_range.to_json() | {"levels": levels}
    if options.range_choice().kind == "celsius" and value_range.rule == "fixed":
        record |= {"unit": "celsius", "gain": options.gain, "offset": options.offset}
    if options.local_contrast and loaded.modality == "thermal" and levels == 255:
        record["local_contrast"] = True
    return record


def _transform(loaded: Loaded, window: _Window, fit: Fit) -> list[list[float]]:
    stored = np.eye(3)
    stored[:2] = upright_to_stored(loaded.orientation, *loaded.source_size)
    moved = np.array([[1, 0, window.column], [0, 1, window.row], [0, 0, 1.0]])
    return (stored @ moved @ fit.source_from_fitted)[:2].tolist()


def _geo(loaded: Loaded, window: _Window, fit: Fit) -> dict[str, Any] | None:
    if loaded.geo is None:
        return None
    place = fit.source_from_fitted
    found = loaded.geo.to_json(
        column=float(window.column + place[0, 2]),
        row=float(window.row + place[1, 2]),
        step=(float(place[0, 0]), float(place[1, 1])),
        size=fit.size,
    )
    return found or None


def _keep_raw(writer: Writer, source: Source, loaded: Loaded) -> str | None:
    if loaded.modality != "thermal" or loaded.source_dtype == "uint8":
        return None
    if loaded.counts is not None:
        return writer.png(RAW, loaded.counts[..., None])
    return writer.bytes(RAW, source.path.suffix.lower(), read_whole(source.path))


def _camera(job: Job, loaded: Loaded) -> dict[str, Any]:
    """Return the camera of the upright picture: as told, as given, by EXIF, or guessed."""
    height, width = loaded.samples.shape[:2]
    if job.metadata.camera is not None:
        return job.metadata.camera
    given = job.source.given
    if given is not None and given.lens is not None:
        lens = fit_lens(given.lens, height, width)
        if lens is None:
            raise InputError(
                f"{job.source.path.name} is {width} x {height} pixels, but its camera says "
                f"{given.lens.width} x {given.lens.height}; give the pictures that it belongs to"
            )
        return lens.to_json(job.source.given_kind)
    return {
        "model": "SIMPLE_PINHOLE",
        "params": [loaded.focal.pixels, width / 2, height / 2],
        "source": "guessed" if loaded.focal.guessed else "exif",
    }


def _pose(job: Job) -> list[list[float]] | None:
    given = job.source.given
    if job.metadata.pose is not None or given is None or given.w2c is None:
        return job.metadata.pose
    return np.linalg.inv(given.w2c).tolist()


def _depth(writer: Writer, job: Job, loaded: Loaded, fit: Fit) -> dict[str, Any] | None:
    """Write the depth map of a view, fitted like the view, without mixing neighbours."""
    source, told = job.source, job.metadata.depth
    path = source.depth if told is None else Path(told["file"])
    if path is None:
        return None
    steps = _read_steps(path)
    if steps.shape != loaded.samples.shape[:2] and steps.shape == loaded.source_size:
        steps = np.ascontiguousarray(orient(steps, loaded.orientation))
    file = writer.png(DEPTH, fit.apply_nearest(steps)[..., None])
    scale = source.depth_scale if told is None else told["scale"]
    unit = source.depth_unit if told is None else told["unit"]
    return {"file": file, "scale": scale, "unit": unit, "invalid": 0}


def _depth_alone(job: Job) -> Made:
    """Keep a depth map that belongs to no picture; no encoder is ever shown it."""
    source, options = job.source, job.options
    steps = _read_steps(source.path)
    fit = choose_fit(steps.shape[0], steps.shape[1], options.size, options.mode)
    fitted = fit.apply_nearest(steps)
    writer = Writer(job.output, job.stem)
    file = writer.png(DEPTH, fitted[..., None])
    scale = 0.001 if job.metadata.depth is None else job.metadata.depth["scale"]
    record = Record(
        id=writer.name,
        file=file,
        width=fit.size[1],
        height=fit.size[0],
        source=source.source,
        sha256=job.digest,
        modality="depth",
        channels=1,
        dtype="uint16",
        source_width=steps.shape[1],
        source_height=steps.shape[0],
        source_channels=1,
        source_dtype="uint16",
        transform=fit.source_from_fitted[:2].tolist(),
        depth={"file": file, "scale": scale, "unit": "m", "invalid": 0},
        group=source.group,
    )
    luma = apply_range(
        fitted[..., None], ValueRange(rule="full", minimum=(0.0,), maximum=(65535.0,))
    )
    return Made(items=(_item(writer, record, luma[..., 0]),))


def _read_steps(path: Path) -> Shaped[np.ndarray, "h w"]:
    samples = read_samples(path).samples
    if samples.dtype != np.uint16 or samples.shape[-1] != 1:
        raise FileFormatError(
            f"{path.name}: expected a 16-bit depth map with one channel, got {samples.dtype} with "
            f"{samples.shape[-1]}; give a depth map"
        )
    return samples[..., 0]


def _video(job: Job) -> Made:
    source, options = job.source, job.options
    plan = plan_frames(
        source.path,
        FrameOptions(
            fps=options.fps,
            num_frames=options.num_frames,
            every=options.every,
            start=options.start,
            end=options.end,
            max_frames=options.max_video_frames,
            select=options.select,
            min_sharpness=options.min_sharpness,
            allow_still=True,
        ),
    )
    items = []
    for frame, pixels in read_frames(plan):
        height, width = pixels.shape[:2]
        fit = choose_fit(height, width, options.size, options.mode)
        fitted, mask = fit.apply(pixels)
        writer = Writer(job.output, f"{job.stem}_{frame.number:06d}")
        grey = bool((np.ptp(fitted.astype(np.int16), axis=2) <= 4).mean() > 0.99)
        guess = "ir" if grey and source.words & _INFRARED else "visible"
        camera = job.metadata.camera
        record = Record(
            id=writer.name,
            file=writer.png(IMAGES, fitted),
            width=fit.size[1],
            height=fit.size[0],
            source=source.source,
            sha256=job.digest,
            modality=job.metadata.modality or guess,
            kind="frame",
            channels=3,
            dtype="uint8",
            source_width=width,
            source_height=height,
            source_channels=3,
            source_dtype="uint8",
            transform=fit.source_from_fitted[:2].tolist(),
            video={
                "frame": frame.number,
                "time_s": round(frame.time, 6),
                "sharpness": round(frame.sharpness, 2),
            },
            camera=None if camera is None else fit_camera(camera, fit),
            mask=None if mask is None else writer.mask(mask),
            group=source.group,
        )
        items.append(_item(writer, record, _luma(fitted)))
    return Made(items=tuple(items), notes=plan.notes)


def _both(
    first: Bool[np.ndarray, "h w"] | None, second: Bool[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    return second if first is None else first & second


def _item(
    writer: Writer,
    record: Record,
    luma: UInt8[np.ndarray, "h w"],
    sharp: float | None = None,
) -> Item:
    """Return a record with what the writer has written of it."""
    return Item(
        record=record,
        files=tuple(writer.files),
        sums=tuple(writer.sums),
        look=look_of(luma),
        sharpness=sharp,
    )


def _luma(pixels: Shaped[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w"]:
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.shape[-1] == 1:
        return np.ascontiguousarray(pixels[..., 0])
    return cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
