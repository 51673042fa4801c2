"""Lift the masks of a run's views onto its splats: ``sightline segment lift``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from sightline.errors import InputError
from sightline.io.arrays import write_npz
from sightline.io.atomic import atomic_folder
from sightline.io.images import is_image
from sightline.io.ply import write_gaussian_ply
from sightline.io.undistort import pinhole_intrinsics, split_lenses, undistort_image
from sightline.protocols import Progress
from sightline.results import Run, open_run
from sightline.segmentation.pictures import class_colour, write_png
from sightline.segmentation.scene_objects import (
    LiftOptions,
    SceneObjects,
    fit_masks,
    lift_objects,
    render_objects,
)
from sightline.types import Gaussians, InstanceMasks, Lenses

if TYPE_CHECKING:
    from sightline.segmentation.segmenter import FewShotSegmenter

_MOST_OBJECTS = 1000
"""In one view: more are noise, or not masks at all."""
_TINT = 0.55
_LEAST_SHARE = 0.01
"""Smaller ones are not written."""


def lift_run(
    scene: Path,
    output: Path,
    *,
    masks: Path | None = None,
    segmenter: "FewShotSegmenter | None" = None,
    numbered: bool = True,
    options: LiftOptions | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Make objects of a run's splats from the masks of its views.

    Writes ``objects.json`` (class, splats and views of each object, and how far each view's mask was
    believed), ``objects.npz`` (``owner [N]``; ``splat``, ``object`` and ``share`` of all shares that are
    not next to nothing), ``objects/NUMBER_NAME.ply`` (each as splats of its own),
    ``without/NUMBER_NAME.ply`` (the scene from which it was removed), ``rest.ply`` (all that belongs to
    none), and for every view with a pose ``masks/VIEW.png`` (0 for nothing, else the object's number in
    ``objects.json``) and ``overlays/VIEW.png``.

    Args:
        scene: The run.
        output: The folder to write.
        masks: Pictures named like the views, in which 0 is nothing and every other value an object;
            or one folder an object, with a black and white picture for each view. Views without a
            picture say nothing.
        segmenter: Finds the masks, in place of ``masks``.
        numbered: The same value means the same object in all views; else that is found out.
        options: Numbers.
        overwrite: Replace ``output``.
        progress: Called with the stages ``lift masks``, ``fit values`` and ``render objects``.

    Raises:
        InputError: The run has no splats, masks are missing or do not fit, or ``output`` exists.
        OutputError: The folder cannot be written.
    """
    run = open_run(scene)
    gaussians = run.splats()
    if gaussians is None:
        raise InputError(
            f"{scene} has no splats to carry masks; make them with sightline reconstruct"
        )
    if (masks is None) == (segmenter is None):
        raise InputError("masks come from a folder or from a memory bank; give --masks or --bank")
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists already; give another -o, or --overwrite")
    if masks is not None:
        index, found, names = _read_masks(run, masks)
        known = [instances.labels for instances in found] if numbered else None
        if not numbered:
            found = [_without_classes(instances) for instances in found]
    else:
        assert segmenter is not None
        index, found, names = _find_masks(run, segmenter)
        known = None
    camera_file = run.camera_file()
    cameras = camera_file.cameras.map(lambda t: t.float())
    objects = lift_objects(
        gaussians,
        cameras.select(index),
        found,
        known=known,
        options=options,
        progress=progress,
    )
    posed = camera_file.registered.nonzero()[:, 0].tolist()
    drawn = render_objects(gaussians, objects, cameras.select(posed), progress)
    with atomic_folder(output) as folder:
        _write_objects(folder, gaussians, objects, names, [camera_file.names[i] for i in index])
        _write_pictures(folder, run, posed, drawn)
    return [output / name for name in ("objects.json", "objects", "masks", "overlays")]


def _read_masks(run: Run, folder: Path) -> tuple[list[int], list[InstanceMasks], list[str]]:
    """Return the views that have masks, their masks, and the objects' names."""
    if not folder.is_dir():
        raise InputError(f"expected a folder of masks, but {folder} is not one; check the path")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    cameras = run.camera_file()
    posed = cameras.registered.nonzero()[:, 0].tolist()
    files = {p.stem: p for p in folder.iterdir() if p.is_file() and is_image(p)}
    index, found = [], []
    for view in posed:
        stem = Path(cameras.names[view]).stem
        if names:
            layers = {n: _named(folder / name, stem) for n, name in enumerate(names)}
            planes = {n: _values(p) > 127 for n, p in layers.items() if p is not None}
        else:
            values = _values(files[stem]) if stem in files else np.zeros((0, 0), np.int64)
            numbers = [int(n) for n in np.unique(values) if n]
            if len(numbers) > _MOST_OBJECTS:
                raise InputError(
                    f"expected a picture of object numbers in {files[stem]}, got {len(numbers)} "
                    "different values; give masks, not photos"
                )
            planes = {n - 1: values == n for n in numbers} if stem in files else {}
        if not planes and stem not in files:
            continue
        index.append(view)
        found.append(_instances(run, view, planes))
    if not index:
        raise InputError(
            f"no picture in {folder} is named like a view of {run.path}, such as "
            f"{Path(cameras.names[0]).stem}.png; rename the masks"
        )
    return index, found, names


def _named(folder: Path, stem: str) -> Path | None:
    return next((p for p in sorted(folder.iterdir()) if p.stem == stem and is_image(p)), None)


def _values(path: Path) -> Int64[np.ndarray, "h w"]:
    try:
        with Image.open(path) as picture:
            plane = (
                picture if picture.mode in ("L", "P", "I", "I;16", "1") else picture.convert("L")
            )
            return np.asarray(plane).astype(np.int64) * (255 if picture.mode == "1" else 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"the mask {path} cannot be read ({error}); write it anew") from error


def _instances(run: Run, view: int, planes: dict[int, np.ndarray]) -> InstanceMasks:
    """Bring masks of the full-size picture, or of the view's own size, to the view."""
    cameras = run.camera_file()
    size = (cameras.cameras.height, cameras.cameras.width)
    own = tuple(cameras.sizes[view].tolist())
    original = tuple(cameras.original_size[view].tolist())
    labels = torch.tensor(sorted(planes), dtype=torch.int64)
    shape = next(iter(planes.values())).shape if planes else original
    if any(plane.shape != shape for plane in planes.values()) or shape not in (original, own):
        raise InputError(
            f"expected masks of {cameras.names[view]} at {original[1]} x {original[0]} pixels, the "
            f"size of the photo, got {shape[1]} x {shape[0]}; resize them"
        )
    stacked = np.zeros((len(planes), *shape), bool)
    for row, number in enumerate(sorted(planes)):
        stacked[row] = planes[number]
    at_view = shape == own and own != original
    if not at_view and cameras.lenses is not None:
        stacked = _undistorted(stacked, cameras.lenses, view)
    given = InstanceMasks(
        masks=torch.from_numpy(stacked),
        boxes=torch.zeros(len(planes), 4),
        labels=labels,
        scores=torch.ones(len(planes)),
    )
    eye = torch.eye(3, dtype=cameras.from_original.dtype)
    return fit_masks(given, eye if at_view else cameras.from_original[view], size)


def _undistorted(masks: np.ndarray, lenses: Lenses, view: int) -> np.ndarray:
    lens = split_lenses(lenses)[view]
    if not lens.distortion.any() and not lens.fisheye:
        return masks
    new_K = pinhole_intrinsics(lenses)[view].numpy()
    planes = [
        undistort_image(m.astype(np.uint8) * 255, lens.K, lens.distortion, lens.fisheye, new_K)[0]
        for m in masks
    ]
    return np.stack(planes) > 127 if planes else masks


def _without_classes(found: InstanceMasks) -> InstanceMasks:
    return InstanceMasks(
        masks=found.masks,
        boxes=found.boxes,
        labels=torch.full_like(found.labels, -1),
        scores=found.scores,
    )


def _find_masks(
    run: Run, segmenter: "FewShotSegmenter"
) -> tuple[list[int], list[InstanceMasks], list[str]]:
    """Segment the views' pictures as they were fitted."""
    views, cameras = run.views(), run.camera_file()
    posed = cameras.registered.nonzero()[:, 0].tolist()
    height, width = views.images.shape[-2:]
    found = []
    for view in posed:
        rows, columns = cameras.sizes[view].tolist()
        picture = views.images[view, :, :rows, :columns].float() / 255
        (instances,) = segmenter.predict([picture])
        padded = torch.zeros(len(instances.labels), height, width, dtype=torch.bool)
        padded[:, :rows, :columns] = instances.masks
        found.append(
            InstanceMasks(
                masks=padded,
                boxes=instances.boxes,
                labels=instances.labels,
                scores=instances.scores,
            )
        )
    assert segmenter.bank is not None
    return posed, found, list(segmenter.bank.names)


def _write_objects(
    folder: Path,
    gaussians: Gaussians,
    objects: SceneObjects,
    names: Sequence[str],
    views: Sequence[str],
) -> None:
    rows = []
    for number, label in enumerate(objects.labels.tolist()):
        name = names[label] if 0 <= label < len(names) else f"object {number + 1}"
        part = objects.select(gaussians, number)
        safe = "".join(c if c.isalnum() else "_" for c in name)[:60]
        file = f"{number + 1:03d}_{safe}.ply"
        if len(part):
            write_gaussian_ply(folder / "objects" / file, part)
        if len(part) < len(gaussians):
            others = objects.select(gaussians, number, keep=False)
            write_gaussian_ply(folder / "without" / file, others)
        trust = (
            {}
            if objects.trust is None
            else dict(zip(views, objects.trust[number].tolist(), strict=True))
        )
        rows.append(
            {
                "number": number + 1,
                "name": name,
                "splats": len(part),
                "file": f"objects/{file}" if len(part) else None,
                "without": f"without/{file}" if len(part) < len(gaussians) else None,
                "views": [views[i] for i in objects.views[number].nonzero()[:, 0].tolist()],
                "trust": {view: round(value, 3) for view, value in trust.items() if value > 0},
            }
        )
    rest = gaussians.map(lambda t: t[(objects.owner < 0).to(t.device)])
    if len(rest):
        write_gaussian_ply(folder / "rest.ply", rest)
    (folder / "objects.json").write_text(
        json.dumps({"objects": rows}, indent=1) + "\n", encoding="utf-8"
    )
    splat, number = (objects.shares > _LEAST_SHARE).nonzero().unbind(1)
    arrays = {
        "owner": objects.owner.int(),
        "splat": splat.int(),
        "object": number.int(),
        "share": objects.shares[splat, number].half(),
    }
    write_npz(folder / "objects.npz", arrays)


def _write_pictures(
    folder: Path, run: Run, views: Sequence[int], drawn: Int64[Tensor, "V H W"]
) -> None:
    cameras, images = run.camera_file(), run.geometry_file().images
    for name in ("masks", "overlays"):
        (folder / name).mkdir()
    colors = np.array([class_colour(n) for n in range(int(drawn.max()) + 1 if len(drawn) else 0)])
    for view, plane in zip(views, drawn.numpy(), strict=True):
        rows, columns = cameras.sizes[view].tolist()
        plane = plane[:rows, :columns]
        stem = Path(cameras.names[view]).stem
        numbers = (plane + 1).astype(np.uint8 if plane.max() < 255 else np.uint16)
        Image.fromarray(numbers).save(folder / "masks" / f"{stem}.png")
        photo: UInt8[np.ndarray, "h w 3"] = (
            images[view, :, :rows, :columns].permute(1, 2, 0).contiguous().numpy().copy()
        )
        inside = plane >= 0
        mixed = (1 - _TINT) * photo[inside] + _TINT * colors[plane[inside]] if inside.any() else 0
        photo[inside] = np.asarray(mixed).astype(np.uint8)
        write_png(folder / "overlays" / f"{stem}.png", photo)
