"""COCO annotation files, read with suspicion, and COCO result files.

The same reader serves COCO, LVIS (file names from ``coco_url``), and own files. Ids are whole
numbers or text, as the file has them.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Bool

from sightline.errors import InputError
from sightline.io.atomic import atomic_write_text
from sightline.io.images import MAX_PIXELS
from sightline.io.reading import (
    MAX_ANNOTATION_BYTES,
    bad_file,
    inside,
    read_json,
)
from sightline.segmentation.rle import decode_segmentation, encode_mask
from sightline.types import InstanceMasks

Id = int | str

_MAX_ROWS = 20_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoImage:
    """One picture of a data set."""

    id: Id
    file_name: str
    """Below the picture folder; never leads out of it."""
    height: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Annotation:
    """One marked object."""

    id: Id
    image_id: Id
    category_id: int
    bbox: tuple[float, float, float, float]
    """x, y, width, height in pixels."""
    area: float
    crowd: bool = False
    segmentation: Any = None
    """Polygons or run lengths as in the file; None when only the box is known."""

    def mask(self, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"] | None:
        """Return the decoded mask; None when only the box is known."""
        if self.segmentation is None:
            return None
        return decode_segmentation(self.segmentation, height, width)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CocoDataset:
    """Pictures, objects in file order, and category names by id."""

    images: dict[Id, CocoImage]
    annotations: tuple[Annotation, ...]
    categories: dict[int, str]
    frequencies: dict[int, str]
    """LVIS only: ``r``, ``c`` or ``f`` for each category."""

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Ids in ascending order, which is the order of class indices."""
        return tuple(sorted(self.categories))

    def by_image(self) -> dict[Id, list[Annotation]]:
        """Return the objects of every picture."""
        found: dict[Id, list[Annotation]] = {key: [] for key in self.images}
        for item in self.annotations:
            found[item.image_id].append(item)
        return found

    def by_class(self) -> dict[int, list[Annotation]]:
        """Return the objects of every class that has any, in order of first appearance."""
        found: dict[int, list[Annotation]] = {}
        for item in self.annotations:
            found.setdefault(item.category_id, []).append(item)
        return found

    def select_classes(self, names: Iterable[str]) -> "CocoDataset":
        """Return the data set with only these classes' objects; pictures stay.

        Raises:
            InputError: A name is not in the file.
        """
        wanted = set(names)
        unknown = sorted(wanted - set(self.categories.values()))
        if unknown:
            raise InputError(
                f'there is no class "{unknown[0]}" in the annotations; they have '
                f"{', '.join(sorted(self.categories.values())[:20])}"
            )
        kept = {key: name for key, name in self.categories.items() if name in wanted}
        rows = tuple(a for a in self.annotations if a.category_id in kept)
        frequencies = {key: f for key, f in self.frequencies.items() if key in kept}
        return CocoDataset(
            images=self.images, annotations=rows, categories=kept, frequencies=frequencies
        )

    def select_images(self, ids: Iterable[Id]) -> "CocoDataset":
        """Return the data set with only these pictures."""
        wanted = set(ids)
        return CocoDataset(
            images={key: image for key, image in self.images.items() if key in wanted},
            annotations=tuple(a for a in self.annotations if a.image_id in wanted),
            categories=self.categories,
            frequencies=self.frequencies,
        )


def read_coco(path: Path) -> CocoDataset:
    """Read an instance annotation file.

    Raises:
        InputError: If it is missing.
        FileFormatError: If it is no JSON, or a row lacks or contradicts what COCO files have.
    """
    path = Path(path)
    content = read_json(path, MAX_ANNOTATION_BYTES)
    return parse_coco(content, path)


def parse_coco(content: Any, path: Path) -> CocoDataset:  # noqa: ANN401
    """Check the content of an annotation file; ``path`` names it in errors."""
    if not isinstance(content, Mapping):
        raise bad_file(path, "an object with images, annotations, categories", "another JSON value")
    categories, frequencies = {}, {}
    for row in _rows(content, "categories", path):
        key = _number(row, "id", path, whole=True)
        if key in categories:
            raise bad_file(path, "one category an id", f"two with id {key}")
        name = row.get("name")
        if not isinstance(name, str) or not name or len(name) > 256:
            raise bad_file(path, "a name for every category", f"{str(name)[:40]!r}")
        categories[key] = name
        if isinstance(row.get("frequency"), str):
            frequencies[key] = row["frequency"]
    images = {}
    for row in _rows(content, "images", path):
        image = _image(row, path)
        if image.id in images:
            raise bad_file(path, "one image an id", f"two with id {image.id}")
        images[image.id] = image
    annotations = []
    for index, row in enumerate(_rows(content, "annotations", path)):
        item = _annotation(row, index, path)
        if item.image_id not in images or item.category_id not in categories:
            raise bad_file(
                path,
                "annotations of listed images and categories",
                f"annotation {item.id} of image {item.image_id}, category {item.category_id}",
            )
        annotations.append(item)
    return CocoDataset(
        images=images,
        annotations=tuple(annotations),
        categories=categories,
        frequencies=frequencies,
    )


def _rows(content: Mapping[str, Any], key: str, path: Path) -> Sequence[Mapping[str, Any]]:
    rows = content.get(key)
    good = isinstance(rows, list) and len(rows) <= _MAX_ROWS
    if not good or not all(isinstance(row, Mapping) for row in rows or []):
        raise bad_file(path, f"a list of objects under {key}", type(rows).__name__)
    return rows or []


def _number(row: Mapping[str, Any], key: str, path: Path, *, whole: bool = False) -> Any:  # noqa: ANN401
    value = row.get(key)
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or (whole and value != int(value)):  # type: ignore[arg-type]
        raise bad_file(
            path, f"a {'whole ' if whole else ''}number as {key}", f"{str(value)[:40]!r}"
        )
    return int(value) if whole else float(value)  # type: ignore[arg-type]


def _id(value: Any, path: Path) -> Id:  # noqa: ANN401
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise bad_file(path, "a whole number or text as id", f"{str(value)[:40]!r}")
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


def _image(row: Mapping[str, Any], path: Path) -> CocoImage:
    height = _number(row, "height", path, whole=True)
    width = _number(row, "width", path, whole=True)
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise bad_file(path, f"images of 1 to {MAX_PIXELS} pixels", f"{width} x {height}")
    name = row.get("file_name")
    if name is None and isinstance(row.get("coco_url"), str):  # LVIS
        name = PurePosixPath(row["coco_url"]).name
    if not isinstance(name, str):
        raise bad_file(path, "a file_name for every image", f"{str(name)[:40]!r}")
    return CocoImage(
        id=_id(row.get("id"), path), file_name=inside(path, name), height=height, width=width
    )


def _annotation(row: Mapping[str, Any], index: int, path: Path) -> Annotation:
    box = row.get("bbox")
    numbers = isinstance(box, list) and len(box) == 4
    if not numbers or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
        for v in box or []
    ):
        raise bad_file(path, "bbox as x, y, width, height", f"{str(box)[:60]!r}")
    x, y, width, height = (float(v) for v in box or ())
    if width < 0 or height < 0:
        raise bad_file(path, "boxes of positive size", f"{str(box)[:60]!r}")
    segmentation = row.get("segmentation") or None
    if segmentation is not None and not isinstance(segmentation, list | dict):
        raise bad_file(path, "polygons or run lengths", type(segmentation).__name__)
    area = _number(row, "area", path) if "area" in row else width * height
    return Annotation(
        id=_id(row.get("id", index), path),
        image_id=_id(row.get("image_id"), path),
        category_id=_number(row, "category_id", path, whole=True),
        bbox=(x, y, width, height),
        area=area,
        crowd=row.get("iscrowd") in (1, True),
        segmentation=segmentation,
    )


def encode_results(
    found: InstanceMasks, image_id: Id, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Return COCO result rows; boxes of inclusive corners, so one pixel short, as published.

    Args:
        found: Instances; labels index ``category_ids``; negative ones (unknown) are left out.
        image_id: Of the picture.
        category_ids: Category of each class index.
    """
    rows = []
    masks = found.masks.cpu().numpy()
    for mask, box, label, score in zip(
        masks, found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True
    ):
        if label < 0:
            continue
        x0, y0, x1, y1 = box
        rows.append(
            {
                "image_id": image_id,
                "category_id": category_ids[label],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": score,
                "segmentation": encode_mask(mask),
            }
        )
    return rows


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read a COCO results file.

    Raises:
        InputError: If it is missing.
        FileFormatError: If it is not a list of results.
    """
    rows = read_json(path, MAX_ANNOTATION_BYTES)
    if not isinstance(rows, list) or len(rows) > _MAX_ROWS:
        raise bad_file(path, "a list of results", type(rows).__name__)
    out = []
    for row in rows:
        if not isinstance(row, Mapping):
            raise bad_file(path, "a list of results", "other entries")
        item = _annotation(row, 0, path)
        score = _number(row, "score", path)
        out.append(
            {
                "image_id": item.image_id,
                "category_id": item.category_id,
                "bbox": list(item.bbox),
                "score": score,
                "segmentation": item.segmentation,
            }
        )
    return out


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401
    """Write JSON as one line, whole or not at all."""
    atomic_write_text(path, json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")


def image_path(folder: Path, image: CocoImage) -> Path:
    """Return where a picture lies below ``folder``.

    Raises:
        InputError: It is not there.
    """
    path = folder / image.file_name
    if not path.is_file():
        flat = folder / PurePosixPath(image.file_name).name  # LVIS names its split folder
        if flat.is_file():
            return flat
        raise InputError(f"there is no picture {path}; check the picture folder")
    return path
