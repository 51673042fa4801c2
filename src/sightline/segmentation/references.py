"""Marked objects: masks, polygons, boxes, points or scribbles, from memory or from files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sightline.errors import FileFormatError, InputError, ShapeError
from sightline.io.images import is_image, read_image
from sightline.io.masks import find_masks, read_mask
from sightline.io.reading import bad_file, inside, read_json
from sightline.segmentation.cdfsod import is_cdfsod, read_shots
from sightline.segmentation.coco import (
    Annotation,
    CocoDataset,
    image_path,
    read_coco,
)
from sightline.segmentation.rle import fill_polygons
from sightline.segmentation.sampling import Shots as Chosen
from sightline.segmentation.sampling import Source, sample_shots
from sightline.segmentation.voc import is_voc, read_voc

MAX_REFERENCES = 1_000_000
_MAX_POINTS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """One object, marked in one picture; give one kind of mark, or none for the whole picture.

    Points and scribbles go together; a box may be given with them.
    """

    image: Float[Tensor, "3 h w"] | Path
    """RGB in [0, 1], or a file."""
    label: str
    mask: Bool[Tensor, "h w"] | Float[Tensor, "h w"] | None = None
    """May be soft, in [0, 1]."""
    polygons: tuple[tuple[float, ...], ...] | None = None
    """Each x0, y0, x1, y1, ... in pixels."""
    box: tuple[float, float, float, float] | None = None
    """x, y, width, height in pixels; also sets the crop when a mask is given."""
    points: Float[Tensor, "n 2"] | None = None
    """x, y in pixels."""
    inside: Bool[Tensor, " n"] | None = None
    """Which points are on the object; all by default."""
    scribble: Bool[Tensor, "h w"] | None = None
    """Painted on the object."""
    scribble_outside: Bool[Tensor, "h w"] | None = None
    """Painted beside the object."""
    category_id: int | None = None
    name: str = ""
    """Where it came from, for reports."""

    def loaded(self) -> "Reference":
        """Return the reference with its picture in memory.

        Raises:
            InputError: The picture is missing or unreadable.
        """
        return (
            self if isinstance(self.image, Tensor) else replace(self, image=load_image(self.image))
        )


@runtime_checkable
class Masker(Protocol):
    """Anything that turns a mark into a mask."""

    def mask(self, reference: Reference) -> Bool[Tensor, "h w"]:
        """Return the mask of a marked object; the picture is in memory."""
        ...


def load_image(path: Path) -> Float[Tensor, "3 h w"]:
    """Read a picture as RGB in [0, 1]; errors as `io.images.read_image`."""
    return torch.from_numpy(read_image(path).pixels).permute(2, 0, 1).float() / 255


def resolve_mask(reference: Reference, masker: Masker) -> tuple[Float[Tensor, "h w"], str]:
    """Return the (soft) mask of a reference in memory, and what it came from.

    Raises:
        ShapeError: A mask or scribble is not of the picture's size.
        InputError: The mark is outside of the picture.
    """
    image = reference.image
    assert isinstance(image, Tensor)
    size = tuple(image.shape[1:])
    for kind in ("mask", "scribble", "scribble_outside"):
        value = getattr(reference, kind)
        if value is not None and tuple(value.shape) != size:
            raise ShapeError(
                f"{kind} of reference {reference.name} must be {list(size)} like its picture, got "
                f"{list(value.shape)}; resize it"
            )
    if reference.mask is not None:
        return reference.mask.float(), "mask"
    if reference.polygons is not None:
        filled = fill_polygons(reference.polygons, *size)
        return torch.from_numpy(filled).float(), "polygons"
    marks = (reference.box, reference.points, reference.scribble)
    if all(mark is None for mark in marks):
        return torch.ones(size), "whole picture"
    _check_marks(reference, size)
    kind = "box" if reference.points is None and reference.scribble is None else "strokes"
    return masker.mask(reference).float(), kind


def _check_marks(reference: Reference, size: tuple[int, ...]) -> None:
    height, width = size
    if reference.box is not None:
        x, y, w, h = reference.box
        if w <= 0 or h <= 0 or x >= width or y >= height or x + w <= 0 or y + h <= 0:
            raise InputError(
                f"the box of reference {reference.name} is empty or outside of its "
                f"{width} x {height} picture; boxes are x, y, width, height in pixels"
            )
    if reference.points is not None:
        points = reference.points
        limit = points.new_tensor([width, height])
        if len(points) == 0 or not bool(((points >= 0) & (points < limit)).all()):
            raise InputError(
                f"a point of reference {reference.name} is outside of its {width} x {height} "
                "picture; points are x, y in pixels"
            )


# -- files ----------------------------------------------------------------------------------


def coco_reference(dataset: CocoDataset, item: Annotation, images: Path) -> Reference:
    """Return an annotation as a reference; without segmentation its box is the mark."""
    picture = dataset.images[item.image_id]
    mask = item.mask(picture.height, picture.width)
    return Reference(
        image=image_path(images, picture),
        label=dataset.categories[item.category_id],
        mask=None if mask is None else torch.from_numpy(mask),
        box=item.bbox,
        category_id=item.category_id,
        name=f"{picture.file_name}#{item.id}",
    )


def chosen_references(dataset: CocoDataset, chosen: Chosen, images: Path) -> list[Reference]:
    """Return sampled annotations as references; the first of each entry's ids counts.

    Raises:
        InputError: An id is not in the data set.
    """
    by_id = {a.id: a for a in dataset.annotations}
    found = []
    for category in sorted(chosen):
        for _, ids in chosen[category]:
            item = by_id.get(ids[0])
            if item is None or item.category_id != category:
                raise InputError(
                    f"annotation {ids[0]} of category {category} is not in the annotation file; "
                    "use the file that the references were sampled from"
                )
            found.append(coco_reference(dataset, item, images))
    return found


def read_references(
    path: Path,
    *,
    images: Path | None = None,
    shots: int | None = None,
    seed: int = 42,
    source: Source = "coco",
    classes: Sequence[str] | None = None,
) -> list[Reference]:
    """Read references from a file or a folder.

    Args:
        path: A COCO annotation file; a JSON list of marks (``docs/segmentation.md``); a folder with
            ``instances.json`` and ``images/``, whose ``fewshot.json`` may fix references for each
            number of shots; a VOC folder (``Annotations/``, ``JPEGImages/``); one of CD-FSOD; or one with one sub-folder of pictures for each class, with masks
            beside them where there are any.
        images: Picture folder of a COCO file; by default ``images`` beside it, or its own folder.
        shots: References a class, sampled as published; all by default.
        seed: Of the sampling.
        source: How unclear objects are treated, see `sampling.sample_shots`.
        classes: Only these.

    Raises:
        InputError: There is nothing to read, or too few objects.
        FileFormatError: A file is damaged or of another kind.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"there is no file or folder {path}; check --references")
    fixed: Any = {}
    if path.is_dir() and is_voc(path):
        dataset = read_voc(path)
        dataset = dataset if classes is None else dataset.select_classes(classes)
        return _sampled(dataset, path / "JPEGImages", shots, seed, "voc", {})
    if path.is_dir() and is_cdfsod(path):
        dataset = read_shots(path, shots)
        dataset = dataset if classes is None else dataset.select_classes(classes)
        return _sampled(dataset, path, None, seed, source, {})
    if path.is_dir():
        if not (path / "instances.json").is_file():
            return _class_folders(path, shots, seed, classes)
        fixed = read_split(path)
        path = path / "instances.json"
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("references"), list):
        return _marks(path, content["references"], images or path.parent, classes)
    dataset = read_coco(path)
    if classes is not None:
        dataset = dataset.select_classes(classes)
    if isinstance(fixed.get("support_images"), list):
        dataset = dataset.select_images(fixed["support_images"])
    folder = picture_folder(path, images)
    return _sampled(dataset, folder, shots, seed, source, fixed)


def _sampled(
    dataset: CocoDataset,
    folder: Path,
    shots: int | None,
    seed: int,
    source: Source,
    split: dict[str, Any],
) -> list[Reference]:
    if shots is None:
        items = [a for a in dataset.annotations if not a.crowd]
        if not items:
            raise InputError("the annotations have no objects to learn from; give others")
        return [coco_reference(dataset, a, folder) for a in items]
    given = _fixed_shots(split, shots, dataset)
    if given is None:
        given = sample_shots(dataset, shots, seed, source)
    return chosen_references(dataset, given, folder)


def picture_folder(annotations: Path, images: Path | None) -> Path:
    """Return where the pictures of an annotation file are."""
    if images is not None:
        if not images.is_dir():
            raise InputError(f"there is no picture folder {images}; check --images")
        return images
    beside = annotations.parent / "images"
    return beside if beside.is_dir() else annotations.parent


def read_split(folder: Path) -> dict[str, Any]:
    """Return what a COCO folder's ``fewshot.json`` says; empty without one.

    ``support_images`` and ``query_images`` are image ids for references and for scoring;
    ``reference`` fixes annotation ids for a number of shots: ``{"1": {"cat": [17]}}``.
    """
    path = folder / "fewshot.json"
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise bad_file(path, "an object with support_images and query_images", "another value")
    for name in ("support_images", "query_images"):
        ids = content.get(name)
        if isinstance(ids, list) and not all(isinstance(i, int | str) for i in ids):
            raise bad_file(path, f"ids of pictures as {name}", "other values")
    return content


def _fixed_shots(split: dict[str, Any], shots: int, dataset: CocoDataset) -> Chosen | None:
    """Return references that a split fixes for a number of shots; None when it does not."""
    table = split.get("reference")
    rows = table.get(str(shots)) if isinstance(table, dict) else None
    if rows is None:
        return None
    ids = {name: key for key, name in dataset.categories.items()}
    by_id = {a.id: a for a in dataset.annotations}
    try:
        return {
            ids[name]: [(by_id[i].image_id, [i]) for i in items]
            for name, items in rows.items()
            if name in ids
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "fewshot.json expects annotation ids of its own support pictures for each class, got "
            "others; correct it"
        ) from error


def _class_folders(
    path: Path, shots: int | None, seed: int, classes: Sequence[str] | None
) -> list[Reference]:
    import random

    folders = sorted(p for p in path.iterdir() if p.is_dir() and p.name not in ("masks", "images"))
    found = []
    for number, folder in enumerate(folders):
        if classes is not None and folder.name not in classes:
            continue
        files = sorted(p for p in folder.iterdir() if p.is_file() and is_image(p))
        if shots is not None and len(files) > shots:
            files = sorted(random.Random(seed).sample(files, shots))
        masks, _ = find_masks(files, root=folder) if files else ((), ())
        for file, mask in zip(files, masks, strict=True):
            array = None if mask is None else _read_size(file, mask)
            found.append(
                Reference(
                    image=file,
                    label=folder.name,
                    mask=array,
                    category_id=number + 1,
                    name=f"{folder.name}/{file.name}",
                )
            )
    if not found:
        raise InputError(
            f"{path} has neither instances.json nor sub-folders of pictures named after classes; "
            "see docs/segmentation.md"
        )
    return found


def _read_size(file: Path, mask: Path) -> Bool[Tensor, "h w"]:
    photo = read_image(file)
    array, _ = read_mask(mask, size=photo.size, orientation=photo.orientation)
    return torch.from_numpy(np.ascontiguousarray(array))


def _marks(
    path: Path, rows: list[Any], folder: Path, classes: Sequence[str] | None
) -> list[Reference]:
    if len(rows) > MAX_REFERENCES:
        raise bad_file(path, f"at most {MAX_REFERENCES} references", str(len(rows)))
    found = []
    known = {"image", "class", "mask", "polygons", "box", "points", "inside", "scribble"}
    known |= {"scribble_outside", "category_id"}
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            raise bad_file(path, "an image for every reference", f"entry {number} without one")
        unknown = sorted(set(row) - known)
        if unknown:
            raise bad_file(path, f"keys of {', '.join(sorted(known))}", f'"{str(unknown[0])[:40]}"')
        if not isinstance(row.get("class"), str):
            raise bad_file(path, "a class for every reference", f"entry {number} without one")
        if classes is not None and row["class"] not in classes:
            continue
        found.append(_mark(path, row, number, folder))
    if not found:
        raise InputError(f"{path.name} has no references of the classes asked for; check them")
    return found


def _mark(path: Path, row: dict[str, Any], number: int, folder: Path) -> Reference:
    file = folder / inside(path, row["image"])
    pictures = {}
    for kind in ("mask", "scribble", "scribble_outside"):
        if row.get(kind) is not None:
            if not isinstance(row[kind], str):
                raise bad_file(path, f"a file as {kind}", f"another value in entry {number}")
            pictures[kind] = _read_size(file, folder / inside(path, row[kind]))
    try:
        box = row.get("box")
        points = row.get("points")
        if points is not None and len(points) > _MAX_POINTS:
            raise ValueError
        flags = row.get("inside")
        category = row.get("category_id")
        return Reference(
            image=file,
            label=row["class"],
            polygons=(
                tuple(tuple(float(v) for v in p) for p in row["polygons"])
                if row.get("polygons") is not None
                else None
            ),
            box=None if box is None else tuple(float(v) for v in _four(box)),  # type: ignore[arg-type]
            points=(
                None if points is None else torch.tensor(points, dtype=torch.float32).view(-1, 2)
            ),
            inside=None if flags is None else torch.tensor([bool(f) for f in flags]),
            category_id=None if category is None else int(category),
            name=f"{row['image']}#{number}",
            **pictures,
        )
    except FileFormatError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise bad_file(path, "numbers as marks", f"other values in entry {number}") from error


def _four(box: Any) -> list[Any]:  # noqa: ANN401
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError
    return box
