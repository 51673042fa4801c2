"""Store one view in a run folder, and say in its record what it was and what was done to it."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from sightline.errors import InputError, OutputError
from sightline.io.frames import Frame, FramePlan
from sightline.io.given import GivenView
from sightline.io.images import Alpha, Photo, read_image, read_samples, upright_to_stored
from sightline.io.ingested import EXTRAS, IMAGES, MASKS
from sightline.io.intrinsics import Lens, choose_lens, fit_lens
from sightline.io.manifest import Record
from sightline.io.masks import read_mask, write_mask
from sightline.io.ranges import ValueRange
from sightline.io.sums import sha256

_THERMAL, _INFRARED = ("thermal", "lwir", "flir"), ("ir", "nir")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item:
    """One view to be: a picture, or a frame of a video."""

    path: Path
    """The picture, or where a frame would lie beside its video."""
    source: Path
    """The file that was given."""
    group: str | None = None
    plan: FramePlan | None = None
    frame: Frame | None = None
    given: GivenView | None = None
    given_kind: str = "given"
    mask: Path | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Stored:
    """One view on disk."""

    item: Item
    record: Record
    lens: Lens | None
    notes: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Folders that views are written to."""

    images: Path
    masks: Path
    depth: Path


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """What it takes to store one view."""

    item: Item
    stem: str
    """Of its files, unique."""
    value_range: ValueRange | None
    """Of the sequence that a deep picture belongs to."""
    lenses: tuple[Lens, ...]
    """Of ``--intrinsics``."""
    alpha: Alpha
    invert_masks: bool
    max_pixels: int


def store_photo(job: Job, places: Places) -> Stored:
    """Copy or re-encode a picture, upright, with its mask and depth.

    Raises:
        InputError: If it cannot be read, or its camera belongs to pictures of another size.
        FileFormatError: If it is damaged.
    """
    item = job.item
    reading = {
        "max_pixels": job.max_pixels,
        "alpha": job.alpha,
        "value_range": job.value_range,
    }
    photo = read_image(item.path, **reading)
    notes: list[str] = []
    given = item.given.lens if item.given is not None else None
    if given is not None and photo.orientation != 1 and fit_lens(given, *photo.source_size):
        # Its camera was found on the pixels as stored, by a program that knows no orientation.
        photo = read_image(item.path, **reading, upright=False)
    height, width = photo.size
    lens = _lens(job, given, height, width, notes)
    copied = photo.plain and photo.source_channels == 3 and photo.format in _COPIED
    if copied:
        suffix = item.path.suffix
        suffix = suffix if suffix.lower() in _COPIED[photo.format] else _COPIED[photo.format][0]
        shutil.copyfile(item.path, places.images / f"{job.stem}{suffix}")
    else:
        suffix = ".png"
        _write_png(places.images / f"{job.stem}.png", photo.pixels)
    mask = photo.mask
    if item.mask is not None:
        drawn, note = read_mask(
            item.mask,
            size=photo.size,
            orientation=photo.orientation,
            invert=job.invert_masks,
            max_pixels=job.max_pixels,
        )
        notes += [note] if note else []
        mask = drawn if mask is None else mask & drawn
    record = Record(
        id=job.stem,
        file=f"{IMAGES}/{job.stem}{suffix}",
        width=width,
        height=height,
        source=str(item.source),
        sha256=sha256(item.path),
        modality=_modality(item.path, photo),
        channels=3,
        dtype="uint8",
        source_width=photo.source_size[1],
        source_height=photo.source_size[0],
        source_channels=photo.source_channels,
        source_dtype=photo.source_dtype,
        transform=upright_to_stored(photo.orientation, *photo.source_size).tolist(),
        range=photo.value_range.to_json() if photo.value_range.rule != "none" else None,
        bands=list(photo.bands) if photo.bands is not None else None,
        camera=_camera(lens, photo, item, bool(job.lenses)),
        pose=_pose(item.given),
        depth=_keep_depth(job, places),
        exif=photo.exif,
        mask=_keep_mask(job, places, mask),
        group=item.group or _camera_group(photo, item),
        split=item.given.split if item.given is not None else None,
    )
    return Stored(item=item, record=record, lens=lens, notes=notes)


_COPIED = {"jpeg": (".jpg", ".jpeg"), "png": (".png",)}


def store_frame(
    job: Job,
    pixels: UInt8[np.ndarray, "h w 3"],
    digest: str,
    places: Places,
) -> Stored:
    """Write a decoded frame of the video with the SHA-256 ``digest``, and its mask."""
    item, frame = job.item, job.item.frame
    assert frame is not None
    height, width = pixels.shape[:2]
    notes: list[str] = []
    lens = _lens(job, None, height, width, notes)
    _write_png(places.images / f"{job.stem}.png", pixels)
    mask = None
    if item.mask is not None:
        mask, note = read_mask(
            item.mask,
            size=(height, width),
            invert=job.invert_masks,
            max_pixels=job.max_pixels,
        )
        notes += [note] if note else []
    record = Record(
        id=job.stem,
        file=f"{IMAGES}/{job.stem}.png",
        width=width,
        height=height,
        source=str(item.source),
        sha256=digest,
        kind="frame",
        channels=3,
        dtype="uint8",
        source_width=width,
        source_height=height,
        source_channels=3,
        source_dtype="uint8",
        video={
            "frame": frame.number,
            "time_s": round(frame.time, 6),
            "sharpness": round(frame.sharpness, 2),
        },
        camera=None if lens is None else lens.to_json("given"),
        mask=_keep_mask(job, places, mask),
        group=item.group,
    )
    return Stored(item=item, record=record, lens=lens, notes=notes)


def _lens(job: Job, given: Lens | None, height: int, width: int, notes: list[str]) -> Lens | None:
    """Return the known lens of a picture of this size; ``--intrinsics`` wins."""
    name = job.item.path.name
    if job.lenses:
        return choose_lens(job.lenses, height, width, name)
    if given is None:
        return None
    lens = fit_lens(given, height, width)
    if lens is None:
        raise InputError(
            f"{name} is {width} x {height} pixels, but its camera says {given.width} x "
            f"{given.height}; give the pictures that the camera belongs to"
        )
    if given.height and (given.height, given.width) != (height, width):
        notes.append(
            f"{name} is {width} x {height} pixels and its camera for {given.width} x "
            f"{given.height}; scaled the camera"
        )
    return lens


def _camera(lens: Lens | None, photo: Photo, item: Item, from_option: bool) -> dict[str, Any]:
    if lens is not None:
        return lens.to_json("given" if from_option else item.given_kind)
    height, width = photo.size
    return {
        "model": "SIMPLE_PINHOLE",
        "params": [photo.focal.pixels, width / 2, height / 2],
        "source": "guessed" if photo.focal.guessed else "exif",
    }


def _pose(given: GivenView | None) -> list[list[float]] | None:
    if given is None or given.w2c is None:
        return None
    c2w = np.eye(4)
    rotation = given.w2c[:3, :3]
    c2w[:3, :3] = rotation.T
    c2w[:3, 3] = -rotation.T @ given.w2c[:3, 3]
    return c2w.tolist()


def _keep_mask(job: Job, places: Places, mask: np.ndarray | None) -> str | None:
    if mask is None:
        return None
    write_mask(places.masks / f"{job.stem}.png", mask)
    return f"{MASKS}/{job.stem}.png"


def _keep_depth(job: Job, places: Places) -> dict[str, Any] | None:
    given = job.item.given
    if given is None or given.depth is None:
        return None
    if not given.depth.is_file():
        raise InputError(f"there is no depth map {given.depth}; put it in place")
    read_samples(given.depth)  # a damaged one is found now
    places.depth.mkdir(exist_ok=True)
    name = f"{job.stem}{given.depth.suffix.lower()}"
    shutil.copyfile(given.depth, places.depth / name)
    file = (EXTRAS / "depth" / name).as_posix()
    return {"file": file, "scale": given.depth_scale, "unit": "scene", "invalid": 0}


def _camera_group(photo: Photo, item: Item) -> str:
    """Return a name that pictures of one camera at one zoom share."""
    height, width = photo.size
    exif = photo.exif
    if "Model" not in exif:
        return f"{item.path.parent.name or 'photos'} {width}x{height}"
    parts = [exif.get("Make"), exif.get("Model"), exif.get("LensModel")]
    focal = exif.get("FocalLengthIn35mmFilm") or exif.get("FocalLength")
    parts += [f"{focal:g} mm" if isinstance(focal, (int, float)) else None, f"{width}x{height}"]
    return " ".join(str(part) for part in parts if part)


def _modality(path: Path, photo: Photo) -> str:
    if photo.bands is not None:
        return "satellite"
    if photo.source_channels != 1:
        return "visible"
    words = tokens(path)
    if photo.source_dtype == "uint16":
        return "thermal" if words & set(_THERMAL) else "other"
    return "ir" if words & set(_INFRARED) else "visible"


def tokens(path: Path) -> set[str]:
    """Return the words in a picture's name and its folder's."""
    words = (path.parent.name + " " + path.stem).lower()
    return set("".join(c if c.isalpha() else " " for c in words).split())


def _write_png(path: Path, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
    made, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), _PNG)
    if not made:
        raise OutputError(f"cannot write {path.name}: the picture could not be encoded")
    path.write_bytes(data.tobytes())


# Level 1 with one filter for all lines: on 12-million-pixel photos a seventh of the default
# level's time (0.26 s) for a tenth more bytes. OpenCV before 5 cannot choose the filter.
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1]
if hasattr(cv2, "IMWRITE_PNG_FILTER_UP"):
    _PNG += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
