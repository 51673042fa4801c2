"""Write the files of one record."""

import zlib
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Shaped

from sightline.errors import InputError, OutputError
from sightline.io.arrays import write_npz
from sightline.io.atomic import atomic_write_bytes
from sightline.io.masks import write_mask
from sightline.io.reading import read_whole

IMAGES, MASKS, DEPTH, RAW, BANDS = FOLDERS = ("images", "masks", "depth", "raw", "bands")

COPIED = {"jpeg": (".jpg", ".jpeg"), "png": (".png",)}
"""Formats whose bytes may be kept, and their suffixes."""

_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1]  # a seventh of the default level's time

_BLOCK = 1 << 20


class Writer:
    """Writes the files of one record, and remembers which."""

    def __init__(self, output: Path, name: str) -> None:
        """Start a record of that name below ``output``; nothing is written yet."""
        self.name = name
        self.files: list[str] = []
        self.sums: list[int] = []
        """Of the files, in order; see `sum_of`."""
        self._output = output

    def bytes(self, folder: str, suffix: str, data: bytes) -> str:
        """Write a file as it is; return its path relative to the output, as all below."""
        file = f"{folder}/{self.name}{suffix}"
        atomic_write_bytes(self._output / file, data)
        self.files.append(file)
        self.sums.append(zlib.crc32(data))
        return file

    def png(self, folder: str, pixels: Shaped[np.ndarray, "h w c"]) -> str:
        """Write one or three channels (RGB) of 8 or 16 bits."""
        stored = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.shape[-1] == 3 else pixels
        made, data = cv2.imencode(".png", np.ascontiguousarray(stored), _PNG)
        if not made:
            raise OutputError(f"cannot write {self.name}: the picture could not be encoded")
        return self.bytes(folder, ".png", data.tobytes())

    def copy(self, path: Path, kind: str) -> str:
        """Keep the bytes of a JPEG or PNG."""
        suffix = path.suffix.lower()
        suffix = suffix if suffix in COPIED[kind] else COPIED[kind][0]
        return self.bytes(IMAGES, suffix, read_whole(path))

    def mask(self, mask: Bool[np.ndarray, "h w"]) -> str:
        """Write what counts."""
        file = f"{MASKS}/{self.name}.png"
        write_mask(self._output / file, mask)
        return self._remember(file)

    def bands(self, values: Shaped[np.ndarray, "h w c"]) -> str:
        """Write bands, unstretched."""
        file = f"{BANDS}/{self.name}.npz"
        write_npz(self._output / file, {"values": values})
        return self._remember(file)

    def _remember(self, file: str) -> str:
        self.files.append(file)
        self.sums.append(sum_of(self._output / file) or 0)
        return file


def sum_of(path: Path) -> int | None:
    """Return the CRC-32 of a file, by which later damage is seen; None where it is missing."""
    total = 0
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                total = zlib.crc32(block, total)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"cannot read {path}: {reason}; check the disk") from error
    return total
