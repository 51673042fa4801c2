"""Pictures with exactly known instances, for smoke runs and tests: no network, no weights.

Three classes of striped, dotted and plain shapes of their own colours lie apart from each other on
a softly mottled ground, in changing sizes, turns and light.
"""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from sightline.segmentation.coco import write_json
from sightline.segmentation.pictures import write_png
from sightline.segmentation.rle import encode_mask

CLASSES = ("coin", "leaf", "tile")
_COLOURS = {"coin": (225, 170, 40), "leaf": (40, 150, 60), "tile": (70, 80, 200)}

Pixels = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]


def make_picture(
    generator: np.random.Generator, height: int, width: int, objects: int = 6
) -> tuple[Pixels, list[tuple[str, Mask]]]:
    """Return a picture and its objects; every class appears when there is room for it."""
    coarse = generator.normal(0, 1, (height // 16 + 2, width // 16 + 2, 3)).astype(np.float32)
    ground = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    base = generator.uniform(120, 190)
    picture = base + 6 * ground + generator.normal(0, 2, (height, width, 3))
    found: list[tuple[str, Mask]] = []
    taken = np.zeros((height, width), bool)
    for number in range(objects):
        name = CLASSES[number % len(CLASSES)]
        for _ in range(50):
            radius = generator.uniform(0.1, 0.16) * min(height, width)
            x = generator.uniform(1.3 * radius, width - 1.3 * radius)
            y = generator.uniform(1.3 * radius, height - 1.3 * radius)
            mask = _shape(name, x, y, radius, generator.uniform(0, np.pi), height, width)
            if not (taken & mask).any():
                break
        else:
            continue
        taken |= cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
        picture[mask] = _paint(name, mask, generator)
        found.append((name, mask))
    light = generator.uniform(0.85, 1.1)
    return (picture * light).clip(0, 255).astype(np.uint8), found


def _shape(
    name: str, x: float, y: float, radius: float, turn: float, height: int, width: int
) -> Mask:
    v, u = np.mgrid[:height, :width].astype(np.float32)
    a = (u + 0.5 - x) * np.cos(turn) + (v + 0.5 - y) * np.sin(turn)
    b = -(u + 0.5 - x) * np.sin(turn) + (v + 0.5 - y) * np.cos(turn)
    if name == "coin":
        return a**2 + b**2 < radius**2
    if name == "leaf":
        return (a / (1.25 * radius)) ** 2 + (b / (0.7 * radius)) ** 2 < 1
    return np.maximum(np.abs(a), np.abs(b)) < 0.8 * radius


def _paint(name: str, mask: Mask, generator: np.random.Generator) -> np.ndarray:
    v, u = np.nonzero(mask)
    colour = np.array(_COLOURS[name]) + generator.normal(0, 8, 3)
    if name == "leaf":
        tone = 1 + 0.12 * np.sign(np.sin((u + v) / 2.5))
    elif name == "tile":
        tone = 1 + 0.12 * (np.sin(u / 2) * np.sin(v / 2) > 0.3)
    else:
        tone = np.ones(len(u))
    return colour * tone[:, None] + generator.normal(0, 3, (len(u), 3))


def write_dataset(
    folder: Path, pictures: int = 12, *, height: int = 240, width: int = 320, seed: int = 0
) -> Path:
    """Write a COCO folder: ``instances.json``, ``images/`` and ``fewshot.json``; return it.

    The first third of the pictures (at least one) is for references, the rest for scoring.
    """
    generator = np.random.default_rng(seed)
    images, annotations = [], []
    for number in range(pictures):
        pixels, objects = make_picture(generator, height, width)
        name = f"{number:04d}.png"
        write_png(folder / "images" / name, pixels)
        images.append({"id": number + 1, "file_name": name, "height": height, "width": width})
        for label, mask in objects:
            rows, columns = np.nonzero(mask)
            x, y = int(columns.min()), int(rows.min())
            box = [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": CLASSES.index(label) + 1,
                    "bbox": box,
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": encode_mask(mask),
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(folder / "instances.json", content)
    support = max(1, pictures // 3)
    ids = list(range(1, pictures + 1))
    split = {"support_images": ids[:support], "query_images": ids[support:]}
    write_json(folder / "fewshot.json", split)
    return folder
