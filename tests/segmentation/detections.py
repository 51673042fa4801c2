"""Annotated pictures and imperfect detections of them, for scoring; all drawn from one seed.

``python -m tests.segmentation.detections`` writes what pycocotools says about them.
"""

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from sightline.segmentation.rle import encode_mask

TABLE = Path(__file__).parent / "pycocotools_scores.json"
CASES = {"plain": (0, 0.0), "crowded": (1, 0.15), "sparse": (2, 0.05)}
"""Name -> seed and share of crowds."""


def build(seed: int, crowds: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    generator = np.random.RandomState(seed)  # whose numbers never change between versions
    images, annotations, results = [], [], []
    for number in range(8):
        height, width = 120 + 7 * number, 150
        images.append(
            {"id": number + 1, "file_name": f"{number}.png", "height": height, "width": width}
        )
        for _ in range(generator.randint(0, 9)):
            h, w = generator.randint(6, 110, 2)
            y, x = generator.randint(0, height - 5), generator.randint(0, width - 5)
            mask = np.zeros((height, width), bool)
            mask[y : y + h, x : x + w] = True
            category = int(generator.choice([3, 5, 9]))
            annotations.append(row(mask, number + 1, category, id=len(annotations) + 1))
            annotations[-1]["area"] = int(mask.sum())
            annotations[-1]["iscrowd"] = int(generator.rand() < crowds)
            for _ in range(generator.randint(0, 4)):
                moved = np.roll(mask, generator.randint(-6, 7, 2), (0, 1))
                label = category if generator.rand() < 0.85 else int(generator.choice([3, 5, 9]))
                results.append(row(moved, number + 1, label, score=round(generator.rand(), 1)))
    names = [{"id": i, "name": f"c{i}"} for i in (3, 5, 9, 12)]
    return {"images": images, "annotations": annotations, "categories": names}, results


def row(mask: np.ndarray, image: int, category: int, **more: Any) -> dict[str, Any]:
    ys, xs = np.nonzero(mask)
    box = [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
    return {
        "image_id": image,
        "category_id": category,
        "bbox": [int(v) for v in box],
        "segmentation": encode_mask(mask),
        **more,
    }


def official(content: dict[str, Any], results: list[dict[str, Any]], kind: str) -> list[float]:
    """Return pycocotools' twelve numbers."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(content)
        truth.createIndex()
        rows = [{k: v for k, v in r.items() if kind == "bbox" or k != "bbox"} for r in results]
        scores = COCOeval(truth, truth.loadRes(copy.deepcopy(rows)), kind)
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    return [float(value) for value in scores.stats]


if __name__ == "__main__":
    table = {
        name: {kind: official(*build(*case), kind) for kind in ("bbox", "segm")}
        for name, case in CASES.items()
    }
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
