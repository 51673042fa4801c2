"""Which objects become references: the published sampling, bit for bit, and named class lists."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sightline.errors import InputError, UnknownNameError
from sightline.segmentation.coco import Annotation, CocoDataset, Id

Shots = dict[int, list[tuple[Id, list[Id]]]]
"""Category id -> (image id, annotation ids) of each reference."""

Source = Literal["coco", "lvis", "voc"]

SEEDS = (42, 13, 27, 36, 88, 33, 69, 55, 77, 99)
"""The ten published seeds of reference sets; 33 is the headline one."""

SHOTS = {"coco": (1, 2, 3, 5, 10, 30), "voc": (1, 2, 3, 5, 10), "semantic": (1, 5)}
"""Published numbers of references a class."""

MIN_SIDE = 32
BORDER = 10

COCO_CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat"),
    *("dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack"),
    *("umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball"),
    *("kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket"),
    *("bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair"),
    *("couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse"),
    *("remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink"),
    *("refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier"),
    "toothbrush",
)
FEW_SHOT_CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "boat", "bird", "cat"),
    *("dog", "horse", "sheep", "cow", "bottle", "chair", "couch", "potted plant", "dining table"),
    "tv",
)
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
CLASS_LISTS: dict[str, tuple[str, ...]] = {
    "default_classes": COCO_CLASSES,
    "few_shot_classes": FEW_SHOT_CLASSES,
    **{f"coco_semantic_split_{i + 1}": COCO_CLASSES[i::4] for i in range(4)},
    "pascal_voc": VOC_CLASSES,
    "pascal_voc_split_1": ("bus", "sofa", "cow", "bird", "motorbike"),
    "pascal_voc_split_2": ("horse", "aeroplane", "sofa", "cow", "bottle"),
    "pascal_voc_split_3": ("sheep", "sofa", "boat", "cat", "motorbike"),
}
"""Named class lists whose names are fixed; LVIS lists come from the annotation file."""

_LVIS = {"lvis": "rcf", "lvis_frequent": "f", "lvis_common": "c", "lvis_rare": "r"}


def class_list(name: str, dataset: CocoDataset | None = None) -> tuple[str, ...]:
    """Return a named class list.

    Args:
        name: One of `CLASS_LISTS`, or ``lvis``, ``lvis_frequent``, ``lvis_common``, ``lvis_rare``,
            also with ``minival`` in the name.
        dataset: The LVIS annotations, whose ``frequency`` decides.

    Raises:
        UnknownNameError: There is no such list.
        InputError: An LVIS list needs an LVIS file.
    """
    plain = name.replace("_minival", "").replace("minival_", "")
    if plain in _LVIS:
        if dataset is None or not dataset.frequencies:
            raise InputError(
                f'the class list "{name}" needs an LVIS annotation file, whose categories have a '
                "frequency; give one"
            )
        wanted = _LVIS[plain]
        frequencies = dataset.frequencies
        keys = [key for key in dataset.category_ids if frequencies.get(key, "-") in wanted]
        return tuple(dataset.categories[key] for key in keys)
    if name not in CLASS_LISTS:
        raise UnknownNameError("class list", name, [*CLASS_LISTS, *_LVIS])
    return CLASS_LISTS[name]


def _is_clear(item: Annotation, dataset: CocoDataset) -> bool:
    x, y, width, height = item.bbox
    image = dataset.images[item.image_id]
    if item.crowd or min(width, height) < MIN_SIDE:
        return False
    far = min(image.width - x - width, image.height - y - height)
    return min(x, y, far) >= BORDER


def sample_shots(dataset: CocoDataset, shots: int, seed: int, source: Source = "coco") -> Shots:
    """Draw references as published.

    Classes come in order of first appearance; the objects of each are shuffled once and taken in
    that order, one an image, leaving out crowds, boxes with a side below 32 pixels and boxes within
    10 pixels of the border.

    Args:
        dataset: The annotations to draw from.
        shots: References a class.
        seed: Of Python's generator.
        source: ``lvis`` also takes unclear objects, then repeats, where a class has too few.

    Raises:
        InputError: A class has too few objects.
    """
    generator = random.Random(seed)
    found: Shots = {}
    for category, items in dataset.by_class().items():
        order = list(items)
        generator.shuffle(order)
        chosen = _one_an_image([a for a in order if _is_clear(a, dataset)], shots, [])
        if len(chosen) < shots and source == "lvis":
            chosen = _one_an_image(order, shots, chosen)
            chosen = [chosen[i % len(chosen)] for i in range(shots)]
        if len(chosen) < shots:
            raise InputError(
                f'expected {shots} clear objects of "{dataset.categories[category]}" in different '
                f"pictures, found {len(chosen)}; ask for fewer shots or leave the class out"
            )
        found[category] = [(a.image_id, [a.id]) for a in chosen]
    return found


def _one_an_image(
    items: Sequence[Annotation], most: int, chosen: Sequence[Annotation]
) -> list[Annotation]:
    out = list(chosen)
    used = {a.image_id for a in out}
    for item in items:
        if len(out) >= most:
            break
        if item.image_id not in used:
            used.add(item.image_id)
            out.append(item)
    return out


def all_shots(dataset: CocoDataset, target: int) -> Shots:
    """Return every object as a reference, filled up to ``target`` a class by repetition.

    As the original's conversion of whole annotation files: an image with m objects of a class
    appears m times, each time with all m ids; missing entries are drawn with one call a class of a
    generator seeded with 42. A class may have more than ``target``.
    """
    generator = random.Random(42)
    found: Shots = {}
    for category, items in dataset.by_class().items():
        groups: dict[Id, list[Id]] = {}
        for item in items:
            groups.setdefault(item.image_id, []).append(item.id)
        rows = [(image, list(ids)) for image, ids in groups.items() for _ in ids]
        if len(rows) < target:
            rows += generator.choices(rows, k=target - len(rows))
        found[category] = rows
    return found


def shots_to_json(shots: Shots) -> dict[str, Any]:
    """Return the published structure: ``{category: [{"img_id": ..., "ann_ids": [...]}, ...]}``."""
    return {
        str(category): [{"img_id": image, "ann_ids": ids} for image, ids in rows]
        for category, rows in shots.items()
    }


def shots_from_json(content: Any) -> Shots:  # noqa: ANN401
    """Check and return references in the published structure.

    Raises:
        InputError: It is not of that structure.
    """
    shots: Shots = {}
    try:
        if not isinstance(content, Mapping):
            raise TypeError
        for category, rows in content.items():
            found: list[tuple[Id, list[Id]]] = []
            for row in rows:
                ids = row["ann_ids"]
                if not isinstance(ids, list) or not ids:
                    raise TypeError
                if not all(isinstance(i, int | str) for i in (row["img_id"], *ids)):
                    raise TypeError
                found.append((row["img_id"], list(ids)))
            shots[int(category)] = found
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(
            "expected references as {category id: [{img_id, ann_ids: [...]}, ...]}, got another "
            "structure; sample them again"
        ) from error
    return shots
