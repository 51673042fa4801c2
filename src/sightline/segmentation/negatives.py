"""Negative references: what a bank takes for a class by mistake on annotated pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sightline.segmentation.coco import Annotation, CocoDataset, Id, image_path
from sightline.segmentation.references import Reference
from sightline.segmentation.rle import decode_segmentation

LEAST_OVERLAP = 0.1
"""Box IoU with a true object of the class from which on a prediction is no mistake."""


def false_positives(
    dataset: CocoDataset, results: Sequence[dict], most: int
) -> dict[int, list[dict]]:
    """Return the best scored mistakes of each category, at most ``most``.

    A mistake is a prediction whose box has an IoU below 0.1 with every true object of its class.

    Args:
        dataset: Annotated support pictures.
        results: Rows of a COCO results file for them.
        most: Mistakes a class.
    """
    truth: dict[tuple[Id, int], list[Annotation]] = {}
    for item in dataset.annotations:
        truth.setdefault((item.image_id, item.category_id), []).append(item)
    found: dict[int, list[dict]] = {key: [] for key in dataset.category_ids}
    for row in sorted(results, key=lambda r: -r["score"]):
        rows = found.get(row["category_id"])
        if rows is None or len(rows) >= most or row["image_id"] not in dataset.images:
            continue
        objects = truth.get((row["image_id"], row["category_id"]), [])
        if all(_iou(row["bbox"], item.bbox) < LEAST_OVERLAP for item in objects):
            rows.append(row)
    return found


def negative_references(
    dataset: CocoDataset, mistakes: dict[int, list[dict]], images: Path
) -> list[Reference]:
    """Return mistakes as references under the label they were given by mistake."""
    import torch

    found = []
    for category, rows in mistakes.items():
        for row in rows:
            picture = dataset.images[row["image_id"]]
            mask = decode_segmentation(row["segmentation"], picture.height, picture.width)
            x, y, width, height = row["bbox"]
            found.append(
                Reference(
                    image=image_path(images, picture),
                    label=dataset.categories[category],
                    mask=torch.from_numpy(np.ascontiguousarray(mask)),
                    box=(float(x), float(y), float(width) + 1, float(height) + 1),
                    category_id=category,
                    name=f"{picture.file_name}#mistake {row['score']:.3f}",
                )
            )
    return found


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    union = a[2] * a[3] + b[2] * b[3] - inter
    return inter / union if union > 0 else 0.0
