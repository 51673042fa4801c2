"""Pictures by the thousand for self-supervised training: a folder, or prepared data with any bands.

Three channels are pictures as people see them. Any other number are the values themselves, as
`sightline prepare` kept them: raw thermal counts, or the bands of a raster.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from sightline.errors import InputError
from sightline.io.arrays import read_npz
from sightline.io.images import is_deep, read_image, read_samples
from sightline.io.inputs import discover
from sightline.io.manifest import Record, read_manifest

Pixels = UInt8[np.ndarray, "_ _ 3"] | Float32[np.ndarray, "_ _ channels"]

_MEASURED = 256  # pictures that statistics are taken from
_STRIDE = 5  # of the pixels in them


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureEntry:
    """One picture of a set and what is known of it."""

    name: str
    file: Path
    """Of 8 bits, in colour; or values of 16 bits or bands."""
    scale: tuple[float, float] = (0.0, 1.0)
    """Of 16-bit values: black, and the step of one."""
    mask: Path | None = None
    label: str | None = None
    split: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PictureSet:
    """A sequence of pictures that are read when they are asked for."""

    entries: tuple[PictureEntry, ...]
    channels: int
    """3: colour, 8 bits. Otherwise values as measured."""

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.entries)

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the names of the classes, sorted; empty unless every picture has one of several."""
        names = [entry.label for entry in self.entries]
        found = sorted({name for name in names if name is not None})
        return tuple(found) if len(found) > 1 and None not in names else ()

    def read(self, index: int, short_side: int = 0) -> Pixels:
        """Return one picture, shrunk to a short side if it is larger; masked values are NaN.

        Raises:
            FileFormatError: If it is damaged.
            InputError: If it cannot be read, or has another number of bands.
        """
        entry = self.entries[index]
        if self.channels == 3:
            return _shrink(read_image(entry.file).pixels, short_side)
        values = self._values(entry)
        if values.shape[-1] != self.channels:
            raise InputError(
                f"{entry.name} has {values.shape[-1]} bands, expected {self.channels}; give "
                "--channels as many, or prepare the pictures with the same --bands"
            )
        return _shrink(values, short_side)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and deviation of each channel over an even sample, as stored or measured."""
        step = max(1, len(self) // _MEASURED)
        rows = []
        for index in range(0, len(self), step):
            pixels = self.read(index)[::_STRIDE, ::_STRIDE].reshape(-1, self.channels)
            rows.append(pixels[np.isfinite(pixels).all(1)].astype(np.float64))
        found = np.concatenate(rows)
        if not len(found):
            raise InputError("the pictures hold no valid values; prepare them again")
        deviation = np.maximum(found.std(0), 1e-6)
        return tuple(found.mean(0).tolist()), tuple(deviation.tolist())

    def subset(self, indices: Sequence[int]) -> "PictureSet":
        """Return some of the pictures."""
        return PictureSet(entries=tuple(self.entries[i] for i in indices), channels=self.channels)

    def _values(self, entry: PictureEntry) -> Float32[np.ndarray, "height width channels"]:
        if entry.file.suffix == ".npz":
            values = read_npz(entry.file, ("values",))["values"].astype(np.float32)
            if values.ndim != 3:
                raise InputError(
                    f"{entry.name}: expected bands [height width bands]; prepare again"
                )
        else:
            low, step = entry.scale
            values = read_samples(entry.file).samples.astype(np.float32) * np.float32(step) + low
        if entry.mask is not None:
            valid = _mask(entry.mask, values.shape[:2])
            values = np.where(valid[..., None], values, np.float32(np.nan))
        return np.ascontiguousarray(values, np.float32)


def read_picture_set(path: Path, *, channels: int = 3, label: str | None = None) -> PictureSet:
    """List the pictures of a folder, or of prepared data (a ``manifest.json`` or its folder).

    In a folder with several subfolders of pictures, the subfolder is the class. In prepared data
    it is the entry ``label`` of the metadata, or by default ``label`` or ``class`` there, or else
    the group.

    Args:
        path: Folder or manifest.
        channels: 3 for colour; 1 for raw counts of prepared thermal pictures; otherwise the bands
            that were prepared.
        label: Key of the metadata.

    Raises:
        InputError: If there are no pictures, or none with so many channels.
    """
    path = Path(path)
    manifest = path / "manifest.json" if path.is_dir() else path
    if manifest.name == "manifest.json" and manifest.is_file():
        return _prepared(manifest, channels, label)
    if not path.is_dir():
        raise InputError(f"there is no folder {path}; give a folder of pictures, or prepared data")
    if channels != 3:
        raise InputError(
            f"{path} is a folder of pictures, which have 3 channels, not {channels}; run `sightline "
            f"prepare {path} --bands all -o data/` and give data/"
        )
    files = [f for s in discover([path], kind="photos") for f in s.files]
    root = path.resolve()
    parents = [file.resolve().relative_to(root).parts[:-1] for file in files]
    classes = {parts[0] for parts in parents if parts}
    labelled = len(classes) > 1 and all(parents)
    entries = [
        PictureEntry(
            name=file.resolve().relative_to(root).as_posix(),
            file=file,
            label=parts[0] if labelled else None,
        )
        for file, parts in zip(files, parents, strict=True)
    ]
    deep = next((entry for entry in entries if is_deep(entry.file)), None)
    if deep is not None:
        raise InputError(
            f"{deep.name} has more than 8 bits and needs a range of values; run `sightline prepare "
            f"{path} -o data/` and give data/"
        )
    return PictureSet(entries=tuple(entries), channels=3)


def _prepared(manifest: Path, channels: int, label: str | None) -> PictureSet:
    records, _ = read_manifest(manifest)
    entries = []
    for record in records:
        file, scale, sized = _source(record, channels)
        if file is None:
            continue
        entries.append(
            PictureEntry(
                name=record.id,
                file=manifest.parent / file,
                scale=scale,
                mask=manifest.parent / record.mask if record.mask and sized else None,
                label=_label(record, label),
                split=record.split,
            )
        )
    if not entries:
        found = sorted({len(r.bands) for r in records if r.bands_file and r.bands})
        have = f"bands: {', '.join(map(str, found))}" if found else "no bands"
        raise InputError(
            f"{manifest} has no pictures of {channels} channels ({have}); give another --channels, "
            "or prepare them again with --bands"
        )
    return PictureSet(entries=tuple(entries), channels=channels)


def _source(record: Record, channels: int) -> tuple[str | None, tuple[float, float], bool]:
    """Return the file with a picture's values, their scale, and whether its mask fits it."""
    plain = (0.0, 1.0)
    if channels == 3:
        return record.file, plain, True
    if record.bands_file is not None:
        return record.bands_file, plain, True
    if channels == 1 and record.raw_file is not None:
        return record.raw_file, plain, False
    if channels == record.channels and record.range and "levels" in record.range:
        low, high = record.range.get("min"), record.range.get("max")
        if isinstance(low, (int, float)) and isinstance(high, (int, float)):
            return record.file, (float(low), (high - low) / record.range["levels"]), True
    if channels == record.channels:
        return record.file, plain, True
    return None, plain, False


def _label(record: Record, key: str | None) -> str | None:
    keys = (key,) if key else ("label", "class")
    found = next((record.labels[k] for k in keys if k in record.labels), None)
    if found is not None:
        return str(found)
    return None if key else record.group


def _mask(path: Path, shape: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    mask = read_samples(path).samples[..., 0]
    if mask.shape != shape:
        mask = cv2.resize(mask, shape[::-1], interpolation=cv2.INTER_NEAREST)
    return mask > 0


def resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """Return a picture of any number of channels at another size: areas down, cubic up."""
    pixels = np.ascontiguousarray(pixels)
    smaller = pixels.shape[0] * pixels.shape[1] > height * width
    how = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    parts = [  # OpenCV takes four channels at a time
        cv2.resize(pixels[..., first : first + 4], (width, height), interpolation=how)
        for first in range(0, pixels.shape[-1], 4)
    ]
    return np.concatenate([part.reshape(height, width, -1) for part in parts], -1)


def _shrink(pixels: Pixels, short_side: int) -> Pixels:
    height, width = pixels.shape[:2]
    scale = short_side / min(height, width)
    if not 0 < scale < 1:
        return pixels
    return resize(pixels, max(1, round(height * scale)), max(1, round(width * scale)))
