"""Scores against true masks: COCO's average precision and recall, and a mean IoU of classes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from sightline.segmentation import kernels
from sightline.segmentation.coco import Annotation, CocoDataset, CocoImage, Id
from sightline.segmentation.overlaps import intersections, pack_masks
from sightline.segmentation.rle import decode_segmentation

Kind = Literal["bbox", "segm"]
Results = Iterable[Mapping[str, Any]]

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
MOST = (1, 10, 100)
"""Detections an image and class that count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceScores:
    """COCO's twelve numbers and the classes' own, in percent; NaN where nothing could be scored."""

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar_1: float
    ar_10: float
    ar_100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    classes: dict[str, tuple[float, float]]
    """Name -> (AP, AP50)."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, None for NaN; ``nap50`` is AP50 over the given classes."""
        names = [name for name in self.__slots__ if name != "classes"]
        table: dict[str, Any] = {name: _finite(getattr(self, name)) for name in names}
        table["nap50"] = table["ap50"]
        table["classes"] = {
            name: {"ap": _finite(ap), "ap50": _finite(ap50)}
            for name, (ap, ap50) in self.classes.items()
        }
        return table


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticScores:
    """Mean IoU in percent over classes that occur, and the IoU of each."""

    miou: float
    classes: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"miou": _finite(self.miou), "classes": self.classes}


def _finite(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


class _Outcome(NamedTuple):
    """Detections of one class in one image, for one range of areas, by falling score."""

    scores: np.ndarray  # [D]
    matched: np.ndarray  # [T, D]
    ignored: np.ndarray  # [T, D]
    wanted: int


def evaluate_instances(
    dataset: CocoDataset, results: Results, kind: Kind = "segm"
) -> InstanceScores:
    """Score detections as COCO does.

    Detections of classes and images that the data set lacks are left out. Areas of true objects are
    those of the file, areas of detections those of their masks (``segm``) or boxes (``bbox``). Unlike
    pycocotools, an object whose id is 0 counts like any other.

    Args:
        dataset: True objects.
        results: Rows of a COCO results file.
        kind: Compare masks or boxes.
    """
    found: dict[Id, list[Mapping[str, Any]]] = {key: [] for key in dataset.images}
    for row in results:
        if row["image_id"] in found and row["category_id"] in dataset.categories:
            found[row["image_id"]].append(row)
    outcomes: dict[int, dict[str, list[_Outcome]]] = {
        key: {area: [] for area in AREAS} for key in dataset.categories
    }
    truth = dataset.by_image()
    compare = _mask_ious if kind == "segm" else _box_ious
    for key in _ordered(dataset.images):
        _score_image(dataset.images[key], truth[key], found[key], compare, outcomes)
    return _summarize(outcomes, dataset)


def _ordered(keys: Iterable[Id]) -> list[Id]:
    """Return image ids in COCO's order, which decides between detections of equal score."""
    return sorted(keys, key=lambda key: (isinstance(key, str), key))


Compare = Callable[
    [CocoImage, Sequence[Annotation], Sequence[Mapping[str, Any]]], tuple[np.ndarray, np.ndarray]
]


def _score_image(
    image: CocoImage,
    truth: Sequence[Annotation],
    found: Sequence[Mapping[str, Any]],
    compare: Compare,
    outcomes: dict[int, dict[str, list[_Outcome]]],
) -> None:
    for category in {a.category_id for a in truth} | {r["category_id"] for r in found}:
        objects = [a for a in truth if a.category_id == category]
        rows = [r for r in found if r["category_id"] == category]
        scores = np.array([r["score"] for r in rows], dtype=np.float64)
        order = np.argsort(-scores, kind="mergesort")[: MOST[-1]]
        rows, scores = [rows[i] for i in order], scores[order]
        ious, areas = compare(image, objects, rows)
        crowd = np.array([a.crowd for a in objects], dtype=bool)
        sizes = np.array([a.area for a in objects], dtype=np.float64)
        for name, (low, high) in AREAS.items():
            ignored = crowd | (sizes < low) | (sizes > high)
            first = np.argsort(ignored, kind="mergesort")
            matched = np.zeros((len(IOUS), len(rows)), bool)
            passed = np.zeros((len(IOUS), len(rows)), bool)
            kernels.match_detections(
                np.ascontiguousarray(ious[:, first]),
                ignored[first],
                crowd[first],
                IOUS,
                matched,
                passed,
            )
            outside = (areas < low) | (areas > high)
            passed |= ~matched & outside
            wanted = int((~ignored).sum())
            outcomes[category][name].append(_Outcome(scores, matched, passed, wanted))


def _mask_ious(
    image: CocoImage, truth: Sequence[Annotation], rows: Sequence[Mapping[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return IoUs ``[D, G]`` of masks (over the detection alone for crowds), and areas ``[D]``."""
    size = (image.height, image.width)

    def packed(segmentations: Sequence[Any]) -> Any:  # noqa: ANN401
        masks = np.zeros((len(segmentations), *size), bool)
        for mask, segmentation in zip(masks, segmentations, strict=True):
            if segmentation is not None:
                mask[:] = decode_segmentation(segmentation, *size)
        return pack_masks(torch.from_numpy(masks))

    a, b = packed([r["segmentation"] for r in rows]), packed([t.segmentation for t in truth])
    inter = intersections(a, b).numpy().astype(np.float64)
    own, true = a.areas().numpy().astype(np.float64), b.areas().numpy().astype(np.float64)
    return _ratio(inter, own, true, truth), own


def _box_ious(
    image: CocoImage, truth: Sequence[Annotation], rows: Sequence[Mapping[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return IoUs ``[D, G]`` of boxes (over the detection alone for crowds), and areas ``[D]``."""
    a = np.array([r["bbox"] for r in rows], dtype=np.float64).reshape(-1, 4)
    b = np.array([t.bbox for t in truth], dtype=np.float64).reshape(-1, 4)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, :2] + a[:, None, 2:], b[None, :, :2] + b[None, :, 2:])
    inter = (high - low).clip(min=0).prod(-1)
    return _ratio(inter, a[:, 2:].prod(1), b[:, 2:].prod(1), truth), a[:, 2:].prod(1)


def _ratio(
    inter: np.ndarray, own: np.ndarray, true: np.ndarray, truth: Sequence[Annotation]
) -> np.ndarray:
    crowd = np.array([t.crowd for t in truth], dtype=bool)
    union = np.where(crowd[None], own[:, None], own[:, None] + true[None] - inter)
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def _curves(outcomes: Sequence[_Outcome], most: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return precision at `RECALLS` ``[T, 101]`` and final recall ``[T]``; None without objects."""
    wanted = sum(o.wanted for o in outcomes)
    if wanted == 0:
        return None
    scores = np.concatenate([o.scores[:most] for o in outcomes])
    order = np.argsort(-scores, kind="mergesort")
    matched = np.concatenate([o.matched[:, :most] for o in outcomes], 1)[:, order]
    ignored = np.concatenate([o.ignored[:, :most] for o in outcomes], 1)[:, order]
    right = (matched & ~ignored).cumsum(1).astype(np.float64)
    wrong = (~matched & ~ignored).cumsum(1).astype(np.float64)
    precision = np.zeros((len(IOUS), len(RECALLS)))
    recall = np.zeros(len(IOUS))
    if len(scores) == 0:
        return precision, recall
    share = right / wanted
    exact = right / (right + wrong + np.spacing(1))
    exact = np.maximum.accumulate(exact[:, ::-1], 1)[:, ::-1]
    for t in range(len(IOUS)):
        at = np.searchsorted(share[t], RECALLS, side="left")
        reached = at < len(scores)
        precision[t, reached] = exact[t, at[reached]]
    return precision, share[:, -1]


def _summarize(
    outcomes: dict[int, dict[str, list[_Outcome]]], dataset: CocoDataset
) -> InstanceScores:
    def table(area: str, most: int = MOST[-1]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        curves = {key: _curves(rows[area], most) for key, rows in outcomes.items()}
        return {key: value for key, value in curves.items() if value is not None}

    def precision(
        curves: dict[int, tuple[np.ndarray, np.ndarray]], t: slice = slice(None)
    ) -> float:
        return _mean([p[t] for p, _ in curves.values()])

    def recall(curves: dict[int, tuple[np.ndarray, np.ndarray]]) -> float:
        return _mean([r for _, r in curves.values()])

    full = table("all")
    small, medium, large = (table(name) for name in ("small", "medium", "large"))
    half = slice(0, 1)
    return InstanceScores(
        ap=precision(full),
        ap50=precision(full, half),
        ap75=precision(full, slice(5, 6)),
        ap_small=precision(small),
        ap_medium=precision(medium),
        ap_large=precision(large),
        ar_1=recall(table("all", 1)),
        ar_10=recall(table("all", 10)),
        ar_100=recall(full),
        ar_small=recall(small),
        ar_medium=recall(medium),
        ar_large=recall(large),
        classes={
            dataset.categories[key]: (100 * float(p.mean()), 100 * float(p[half].mean()))
            for key, (p, _) in full.items()
        },
    )


def _mean(rows: Sequence[np.ndarray]) -> float:
    return 100 * float(np.mean(rows)) if rows else float("nan")


def evaluate_semantic(
    dataset: CocoDataset, results: Results, *, least_score: float = 0.5
) -> SemanticScores:
    """Return the IoU of each class's pixels, summed over all images, and their mean.

    Our own definition: predictions of at least ``least_score`` are painted by rising score, so that
    the surest lies on top; true objects by falling area, so that small ones stay visible; crowds
    are left out of both sides. Classes without a true pixel do not enter the mean.
    """
    classes = {key: i for i, key in enumerate(dataset.category_ids)}
    count = len(classes)
    confusion = np.zeros((count + 1, count + 1), np.int64)  # the last index is background
    found: dict[Id, list[Mapping[str, Any]]] = {key: [] for key in dataset.images}
    for row in results:
        known = row["image_id"] in found and row["category_id"] in classes
        if known and row["score"] >= least_score:
            found[row["image_id"]].append(row)
    truth = dataset.by_image()
    for key, image in dataset.images.items():
        size = (image.height, image.width)
        want = np.full(size, count)
        void = np.zeros(size, bool)
        for item in sorted(truth[key], key=lambda a: -a.area):
            mask = item.mask(*size)
            if mask is None:
                continue
            if item.crowd:
                void |= mask
            else:
                want[mask] = classes[item.category_id]
        got = np.full(size, count)
        for row in sorted(found[key], key=lambda r: r["score"]):
            if row.get("segmentation") is not None:
                got[decode_segmentation(row["segmentation"], *size)] = classes[row["category_id"]]
        void &= want == count
        flat = want[~void] * (count + 1) + got[~void]
        confusion += np.bincount(flat, minlength=(count + 1) ** 2).reshape(count + 1, count + 1)
    right = np.diag(confusion)[:count].astype(np.float64)
    union = confusion.sum(1)[:count] + confusion.sum(0)[:count] - right
    occurs = confusion.sum(1)[:count] > 0
    ious = {
        dataset.categories[key]: 100 * float(right[i] / union[i])
        for key, i in classes.items()
        if occurs[i]
    }
    return SemanticScores(
        miou=float(np.mean(list(ious.values()))) if ious else float("nan"), classes=ious
    )
