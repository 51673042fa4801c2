"""The evaluator: an oracle gets 100, hand-computed values come out, pycocotools agrees."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.segmentation import coco, evaluate
from sightline.segmentation.matching import match_proposals
from sightline.segmentation.rle import encode_mask
from tests.segmentation import detections

ORDER = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)


def dataset_of(content: dict) -> coco.CocoDataset:
    return coco.parse_coco(content, Path("toy.json"))


def numbers(scores: evaluate.InstanceScores) -> np.ndarray:
    return np.array([getattr(scores, name) for name in ORDER])


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("name", detections.CASES)
def test_agrees_with_the_values_of_pycocotools(name, kind):
    content, results = detections.build(*detections.CASES[name])
    want = np.array(json.loads(detections.TABLE.read_text(encoding="utf-8"))[name][kind])
    got = numbers(evaluate.evaluate_instances(dataset_of(content), results, kind))
    want = np.where(want < 0, np.nan, 100 * want)
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_agrees_with_pycocotools_itself(kind):
    pytest.importorskip("pycocotools")
    content, results = detections.build(7, 0.1)
    want = np.array(detections.official(content, results, kind))
    got = numbers(evaluate.evaluate_instances(dataset_of(content), results, kind))
    np.testing.assert_allclose(got, np.where(want < 0, np.nan, 100 * want), atol=1e-6)


def squares(count: int = 4, side: int = 20, height: int = 60, width: int = 200) -> dict:
    annotations = []
    for i in range(count):
        mask = np.zeros((height, width), bool)
        mask[20 : 20 + side, 10 + 45 * i : 10 + 45 * i + side] = True
        annotations.append(detections.row(mask, 1, 1 + i % 2, id=i, area=side * side, iscrowd=0))
    return {
        "images": [{"id": 1, "file_name": "a.png", "height": height, "width": width}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }


def test_true_masks_and_labels_score_exactly_100():
    content = squares()
    dataset = dataset_of(content)
    masks = torch.stack([torch.from_numpy(a.mask(60, 200)) for a in dataset.annotations])
    # True labels as features: each place carries the one-hot vector of its class.
    features = torch.zeros(2, 60, 200)
    for mask, item in zip(masks, dataset.annotations, strict=True):
        features[item.category_id - 1, mask] = 1
    found = match_proposals(features, masks.float() * 2 - 1, torch.ones(4), torch.eye(2), (60, 200))
    rows = coco.encode_results(found, 1, dataset.category_ids)
    for row, _ in zip(rows, found.boxes, strict=True):
        row["bbox"] = [row["bbox"][0], row["bbox"][1], row["bbox"][2] + 1, row["bbox"][3] + 1]
    for kind in ("bbox", "segm"):
        scores = evaluate.evaluate_instances(dataset, rows, kind)
        assert (scores.ap, scores.ap50, scores.ar_100) == (100.0, 100.0, 100.0)
    assert evaluate.evaluate_semantic(dataset, rows).miou == 100.0


def test_a_shifted_oracle_scores_what_the_hand_computes():
    # 20 x 20 squares moved by 2 pixels: IoU = 18 / 22 = 0.818, so the thresholds 0.5 ... 0.8 (seven
    # of ten) are passed and AP = 70. By 5 pixels: 15 / 25 = 0.6, three of ten, AP = 30.
    dataset = dataset_of(squares())
    for shift, want, half, iou in (
        (2, 70.0, 100.0, 18 / 22),
        (5, 30.0, 100.0, 0.6),
        (11, 0, 0, 9 / 31),
    ):
        rows = []
        for item in dataset.annotations:
            mask = np.roll(item.mask(60, 200), shift, 1)
            rows.append(detections.row(mask, 1, item.category_id, score=0.9))
        for kind in ("bbox", "segm"):
            scores = evaluate.evaluate_instances(dataset, rows, kind)
            assert scores.ap == pytest.approx(want, abs=1e-9)
            assert scores.ap50 == pytest.approx(half, abs=1e-9)
        miou = evaluate.evaluate_semantic(dataset, rows).miou
        assert miou == pytest.approx(100 * iou, abs=1e-9)


def test_a_missed_object_and_a_false_one():
    # Two objects of one class, one found, one false detection ranked above it: precision 1/2 up to
    # recall 1/2, so AP = 51/101 * 1/2.
    content = squares(2)
    for item in content["annotations"]:
        item["category_id"] = 1
    dataset = dataset_of(content)
    good = dict(content["annotations"][0], score=0.5)
    false = detections.row(np.roll(dataset.annotations[0].mask(60, 200), 90, 1), 1, 1, score=0.9)
    scores = evaluate.evaluate_instances(dataset, [good, false])
    assert scores.ap == pytest.approx(100 * 51 / 101 / 2, abs=1e-9)
    assert scores.classes["a"][0] == pytest.approx(scores.ap)
    assert scores.as_dict()["ap_large"] is None  # nothing of that size
    assert scores.as_dict()["classes"]["a"]["ap"] == scores.as_dict()["nap50"]


def test_nothing_found_is_zero_and_no_objects_is_nan():
    dataset = dataset_of(squares())
    assert evaluate.evaluate_instances(dataset, []).ap == 0
    empty = dataset_of({**squares(0), "annotations": []})
    assert np.isnan(evaluate.evaluate_instances(empty, []).ap)
    assert np.isnan(evaluate.evaluate_semantic(empty, []).miou)


def test_surer_predictions_lie_on_top_and_crowds_count_for_nobody():
    content = squares(2)
    content["annotations"][1]["iscrowd"] = 1
    dataset = dataset_of(content)
    a = dict(content["annotations"][0], score=0.9)
    wrong = dict(a, category_id=2, score=0.6)
    weak = dict(a, category_id=2, score=0.4)
    on_crowd = dict(content["annotations"][1], category_id=1, score=0.9)
    scores = evaluate.evaluate_semantic(dataset, [a, wrong, weak, on_crowd])
    assert scores.classes == {"a": 100.0}
    assert scores.miou == 100.0


def test_unknown_classes_and_images_are_left_out():
    content = squares()
    rows = [dict(a, score=1.0) for a in content["annotations"]]
    rows.append(dict(rows[0], category_id=77))
    rows.append(dict(rows[0], image_id=5))
    assert evaluate.evaluate_instances(dataset_of(content), rows).ap == 100.0
    assert encode_mask(np.zeros((2, 2), bool))["counts"]
