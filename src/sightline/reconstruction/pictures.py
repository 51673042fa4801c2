"""What the SfM worker must know about views: files, masks, physical cameras and their order."""

import math
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from sightline.errors import InputError, ShapeError
from sightline.io.colmap_model import camera_from_lens
from sightline.io.images import read_image
from sightline.reconstruction.job import CameraSpec
from sightline.types import Cameras, Images, Lenses, Views


def picture_files(views: Views, folder: Path) -> tuple[tuple[str, ...], tuple[str | None, ...]]:
    """Return the paths of pictures and masks, absolute.

    Views without files are written below ``folder``, without their padding; their masks too.
    """
    if views.files is not None:
        masks = views.mask_files or (None,) * len(views)
        missing = [str(file) for file in views.files if not Path(file).is_file()]
        if missing:
            raise InputError(
                f"expected {len(views)} picture files, {len(missing)} are missing (first: "
                f"{missing[0]}); put them back or leave those views out"
            )
        return (
            tuple(str(Path(file).resolve()) for file in views.files),
            tuple(None if mask is None else str(Path(mask).resolve()) for mask in masks),
        )
    target = folder / "input"
    target.mkdir(exist_ok=True)
    files, masks = [], []
    for i, (height, width) in enumerate(views.sizes.tolist()):
        file = target / f"{i:06d}.png"
        _write_png(file, as_bytes(views.images[i : i + 1])[0, :height, :width, ::-1])
        files.append(str(file.resolve()))
        mask = None if views.masks is None else views.masks[i, :height, :width]
        if mask is None or bool(mask.all()):
            masks.append(None)
            continue
        file = target / f"{i:06d}.mask.png"
        _write_png(file, mask.cpu().numpy().astype(np.uint8) * 255)
        masks.append(str(file.resolve()))
    return tuple(files), tuple(masks)


def as_bytes(images: Images) -> UInt8[np.ndarray, "V H W 3"]:
    """Return pictures as 8-bit values, channels last."""
    if images.dtype != torch.uint8:
        images = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return images.permute(0, 2, 3, 1).cpu().numpy()


def _write_png(path: Path, pixels: np.ndarray) -> None:
    # Fast compression: the file is read once or twice and removed with its folder.
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    path.write_bytes(cv2.imencode(".png", np.ascontiguousarray(pixels), options)[1].tobytes())


def camera_specs(views: Views) -> tuple[tuple[CameraSpec, ...], tuple[int, ...]]:
    """Tell physical cameras apart, and which one took each view.

    Views share a camera when their known lens is the same; else when they have the same size, the
    same group and the same focal prior. Fewer unknowns make better cameras, and the pictures of
    one scene nearly always come from one lens.

    Raises:
        ShapeError: If a known lens belongs to a picture of another size.
    """
    lenses = views.lenses
    if lenses is None and views.files is None and views.cameras is not None:
        lenses = pinhole_lenses(views.cameras, views.sizes)
    found: dict[tuple[str, CameraSpec], int] = {}
    camera_of_view = []
    for i, (height, width) in enumerate(source_sizes(views)):
        if lenses is not None:
            group, spec = "", known_spec(lenses, i)
            if (spec.height, spec.width) != (height, width):
                raise ShapeError(
                    f"{views.names[i]} is {width} x {height}, but its lens was measured at "
                    f"{spec.width} x {spec.height}; scale K to the picture"
                )
        else:
            group = "" if views.groups is None else views.groups[i]
            prior = math.nan if views.focal_priors is None else float(views.focal_priors[i])
            focal = round(prior, 2) if math.isfinite(prior) and prior > 0 else None
            spec = CameraSpec(width=width, height=height, focal=focal)
        camera_of_view.append(found.setdefault((group, spec), len(found)))
    return tuple(spec for _, spec in found), tuple(camera_of_view)


def source_sizes(views: Views) -> list[tuple[int, int]]:
    """Return height and width of the full-size pictures."""
    if views.files is None:
        return [(int(height), int(width)) for height, width in views.sizes.tolist()]
    scale = torch.stack([views.from_original[:, 1, 1], views.from_original[:, 0, 0]], 1)
    exact = views.sizes / scale
    sizes = exact.round()
    if bool(((exact - sizes).abs() < 0.05).all()):
        return [(int(height), int(width)) for height, width in sizes.tolist()]
    return [read_image(Path(file)).size for file in views.files]  # views that are crops


def pinhole_lenses(cameras: Cameras, sizes: Int64[Tensor, "V 2"]) -> Lenses:
    """Return the lenses of pinhole cameras."""
    views = len(cameras)
    return Lenses(
        K=cameras.K.double(),
        distortion=torch.zeros(views, 8, dtype=torch.float64),
        fisheye=torch.zeros(views, dtype=torch.bool),
        sizes=sizes,
    )


def known_spec(lenses: Lenses, view: int) -> CameraSpec:
    """Return a known lens as a COLMAP camera."""
    height, width = lenses.sizes[view].tolist()
    camera = camera_from_lens(
        1,
        lenses.K[view].double().numpy(),
        lenses.distortion[view].double().numpy(),
        fisheye=bool(lenses.fisheye[view]),
        width=width,
        height=height,
    )
    return CameraSpec(width=width, height=height, model=camera.model, params=camera.params)


def sequences(views: Views) -> tuple[tuple[int, ...], ...]:
    """Return the views of each video in the order of time; photos are in none."""
    if views.times is None:
        return ()
    times = views.times.tolist()
    groups = views.groups or ("",) * len(views)
    lines: dict[str, list[int]] = {}
    for i, time in enumerate(times):
        if math.isfinite(time):
            lines.setdefault(groups[i], []).append(i)
    return tuple(
        tuple(sorted(line, key=times.__getitem__)) for line in lines.values() if len(line) > 2
    )
