"""Masks beside pictures: find them, read them, fit them to the upright picture.

Black (0) is ignored and any other value is kept. A mask is a file ``NAME.png`` or, as COLMAP has
it, ``NAME.EXT.png`` in a folder ``masks``, or one file for all pictures of a camera.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool

from sightline.errors import FileFormatError, InputError, OutputError
from sightline.io.atomic import atomic_write_bytes
from sightline.io.images import MAX_PIXELS, is_image, orient, read_samples

MASK_FOLDERS = ("masks", "mask")
"""Names of folders whose pictures are masks of the pictures beside them."""

_IMAGE_FOLDERS = ("images", "image", "color", "rgb")


def read_mask(
    path: Path,
    *,
    size: tuple[int, int],
    orientation: int = 1,
    invert: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> tuple[Bool[np.ndarray, "height width"], str | None]:
    """Read a mask and fit it to its picture.

    Args:
        path: Any supported picture; a pixel is kept where any colour is above 0 and alpha is too.
        size: Height and width of the picture, upright.
        orientation: The EXIF orientation of the picture; a mask drawn over the stored pixels
            is turned with them.
        invert: Keep what is black.
        max_pixels: Refuse larger masks.

    Returns:
        The mask, true where the picture counts, and one sentence about anything odd.
    """
    raster = read_samples(path, max_pixels=max_pixels)
    mask = np.any(raster.samples != 0, axis=2, keepdims=True)[..., 0]
    if raster.alpha is not None:
        mask = mask & (raster.alpha > 0)
    note = None
    if not raster.oriented:
        mask = orient(mask, raster.orientation)
    if mask.shape != size and orientation >= 5 and mask.shape == size[::-1]:
        mask = orient(mask, orientation)
        note = f"the mask {path.name} was drawn before its picture was turned; turned it too"
    elif mask.shape != size:
        note = (
            f"the mask {path.name} is {mask.shape[1]} x {mask.shape[0]} and its picture "
            f"{size[1]} x {size[0]}; resized it to the nearest pixel"
        )
        mask = resize_mask(np.ascontiguousarray(mask), *size)
    if invert:
        mask = ~mask
    if not mask.any():
        note = f"the mask {path.name} keeps nothing of its picture" + (
            "" if invert else "; black is ignored, see --invert-masks"
        )
    return np.ascontiguousarray(mask), note


def write_mask(path: Path, mask: Bool[np.ndarray, "height width"]) -> None:
    """Write an 8-bit PNG: 255 keeps, 0 ignores.

    Raises:
        OutputError: If the file cannot be written.
    """
    made, data = cv2.imencode(".png", mask.astype(np.uint8) * 255)
    if not made:
        raise OutputError(f"cannot write {path}: the mask could not be encoded")
    atomic_write_bytes(path, data.tobytes())


def resize_mask(
    mask: Bool[np.ndarray, "h w"], height: int, width: int
) -> Bool[np.ndarray, "height width"]:
    """Return the mask at another size by the nearest pixel centre."""
    rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(np.intp)
    return mask[rows[:, None], columns]


def find_masks(
    files: Sequence[Path], *, root: Path | None = None, masks: Path | None = None
) -> tuple[tuple[Path | None, ...], tuple[str, ...]]:
    """Match pictures with their masks.

    Args:
        files: The pictures.
        root: The folder they were found in; masks may repeat its sub-folders.
        masks: A folder of masks, or one mask for all. Without it, a folder ``masks`` within the
            root, beside each picture, or beside a root named ``images`` is looked for.

    Returns:
        One path or None a picture, and sentences about pictures without a mask.

    Raises:
        InputError: If ``masks`` is missing, or is a folder in which nothing fits any picture.
        FileFormatError: If ``masks`` is a file but no picture.
    """
    if masks is not None and not masks.is_dir():
        if not masks.exists():
            raise InputError(f"there is no mask file or folder {masks}; check --masks")
        if not is_image(masks):
            raise FileFormatError(f"{masks.name}: expected a mask picture, got other bytes")
        return (masks,) * len(files), ()
    found = tuple(_find_mask(file, root, masks) for file in files)
    folders = [masks] if masks is not None else _folders(files, root)
    if not any(found):
        single = _single(folders)
        if single is not None:
            return (single,) * len(files), (f"used the one mask {single.name} for all pictures",)
        if masks is not None:
            raise InputError(
                f"no mask in {masks} fits a picture by name; expected for instance "
                f"{files[0].stem}.png or {files[0].name}.png"
            )
        return found, ()
    without = [file.name for file, mask in zip(files, found, strict=True) if mask is None]
    if not without:
        return found, ()
    shown = ", ".join(without[:5]) + (", ..." if len(without) > 5 else "")
    return found, (f"{len(without)} of {len(files)} pictures have no mask ({shown}): all counts",)


def _find_mask(file: Path, root: Path | None, masks: Path | None) -> Path | None:
    below = file.relative_to(root).parent if root and file.is_relative_to(root) else Path()
    for folder in [masks] if masks is not None else _folders([file], root):
        for place in dict.fromkeys((folder / below, folder)):
            # The longer name first: it tells a.jpg and a.png apart.
            for name in (f"{file.name}.png", f"{file.stem}.png"):
                if (place / name).is_file() and place / name != file:
                    return place / name
    return None


def _folders(files: Sequence[Path], root: Path | None) -> list[Path]:
    places = [file.parent for file in files] + ([root] if root is not None else [])
    places += [place.parent for place in places if place.name.lower() in _IMAGE_FOLDERS]
    folders = (place / name for place in dict.fromkeys(places) for name in MASK_FOLDERS)
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _single(folders: Sequence[Path]) -> Path | None:
    if len(folders) != 1:
        return None
    inside = [p for p in sorted(folders[0].iterdir()) if p.is_file() and not p.name.startswith(".")]
    return inside[0] if len(inside) == 1 and is_image(inside[0]) else None
