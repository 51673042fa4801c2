"""SAM 2 as proposer and masker, with a tiny network of random weights."""

import pytest
import torch

from sightline.errors import InputError
from sightline.models.sam2 import SAM2
from sightline.segmentation import sam
from sightline.segmentation.matching import grid_points
from sightline.segmentation.references import Reference
from sightline.segmentation.segmenter import FewShotSegmenter, SegmentOptions
from tests.segmentation import toy


@pytest.fixture(scope="module")
def model() -> SAM2:
    torch.manual_seed(3)
    hiera = {
        "embed_dim": 8, "stages": (1, 1, 2, 1), "global_att_blocks": (3,), "num_heads": 1
    }  # fmt: skip
    neck = {"d_model": 32}
    return SAM2(128, hiera=hiera, neck=neck).eval()


def test_the_grid_is_the_published_one():
    points = grid_points(32, 1024)
    assert points.shape == (1024, 2)
    assert points[:2].tolist() == [[0.5, 0.5], [0.5, 33.5]]  # x varies slowest
    assert points[-1].tolist() == [1023.5, 1023.5]


@pytest.mark.parametrize("batch", [7, 25, 100])
def test_points_of_the_last_batch_are_not_lost(model, batch):
    image, _ = toy.squares(["red", "blue"])
    proposer = sam.PointProposer(model=model, points_per_side=5, point_batch=batch, iou_thr=0.0)
    found = proposer.propose(image)
    assert found.logits.shape == (25, 32, 32)
    whole = sam.PointProposer(model=model, points_per_side=5, iou_thr=0.0).propose(image)
    torch.testing.assert_close(found.quality, whole.quality, atol=1e-5, rtol=1e-4)
    few = sam.PointProposer(model=model, points_per_side=5, iou_thr=1.0).propose(image)
    assert len(few.logits) == 0


def test_automatic_masks_obey_their_thresholds(model):
    image, _ = toy.squares(["red", "blue"])
    options = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    every = sam.AutomaticMasks(model=model, box_nms_thresh=1.0, **options).propose(image)
    fewer = sam.AutomaticMasks(model=model, box_nms_thresh=0.5, **options).propose(image)
    assert 0 < len(fewer.logits) <= len(every.logits) <= 48
    none = sam.AutomaticMasks(model=model, **{**options, "pred_iou_thresh": 1.0}).propose(image)
    assert none.logits.shape[0] == 0
    cropped = sam.AutomaticMasks(model=model, crop_n_layers=1, **options).propose(image)
    assert cropped.logits.shape[1:] == (32, 32)
    cleaned = sam.AutomaticMasks(model=model, min_mask_region_area=20, **options).propose(image)
    assert len(cleaned.logits) <= len(every.logits)
    with pytest.raises(InputError, match="use_m2m"):
        sam.AutomaticMasks(model=model, use_m2m=True)


def test_specks_and_holes_go():
    logits = -torch.ones(1, 16, 16)
    logits[0, 4:12, 4:12] = 1
    logits[0, 7, 7] = -1
    logits[0, 0, 0] = 1
    got = sam._without_specks(logits, (16, 16), 4)[0] > 0
    assert got[7, 7]
    assert not got[0, 0]
    assert int(got.sum()) == 64


def test_crops_cover_the_picture_and_their_masks_come_back(model):
    masks = sam.AutomaticMasks(model=model, crop_n_layers=1)
    crops = masks._crops(60, 100)
    assert len(crops) == 5
    seen = torch.zeros(60, 100)
    for crop in crops[1:]:
        x0, y0, x1, y1 = crop.box
        seen[y0:y1, x0:x1] += 1
    assert (seen > 0).all()
    pasted = sam._paste(torch.ones(1, 32, 32), (50, 30, 100, 60), (60, 100))
    inside = pasted[0] > 0
    assert inside[16:, 16:].all()
    assert int(inside.sum()) == 256


@pytest.mark.parametrize("kind", ["box", "points", "one point", "scribble"])
def test_prompts_become_masks(model, kind):
    image, masks = toy.squares(["red"])
    marks = {
        "box": {"box": (2.0, 8.0, 40.0, 30.0)},
        "points": {
            "points": torch.tensor([[20.0, 20.0], [1.0, 1.0]]),
            "inside": torch.tensor([True, False]),
        },
        "one point": {"points": torch.tensor([[20.0, 20.0]])},
        "scribble": {"scribble": masks[0], "scribble_outside": ~masks[0]},
    }
    reference = Reference(image=image, label="red", **marks[kind])
    mask = sam.SamMasker(model=model).mask(reference)
    assert mask.shape == (48, 48)
    assert mask.dtype == torch.bool


@pytest.mark.parametrize("kind", ["default", "amg"])
def test_the_whole_way_with_sam(model, kind):
    image, _ = toy.squares(["red", "blue"])
    if kind == "amg":
        proposer = sam.AutomaticMasks(
            model=model, points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0
        )
    else:
        proposer = sam.PointProposer(model=model, points_per_side=3, iou_thr=0.0)
    segmenter = FewShotSegmenter(
        toy.encoder(), proposer, sam.SamMasker(model=model), options=SegmentOptions(model=kind)
    )
    (found,) = segmenter.fit(toy.references(["red", "blue"])).predict([image])
    assert found.masks.shape[1:] == (48, 48)
    assert (found.scores[:-1] >= found.scores[1:]).all()
