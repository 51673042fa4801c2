"""Matching and merging: equal to the plain formulation, and correct where that one fails."""

import math

import pytest
import torch
from torch.nn.functional import interpolate, normalize

from sightline.errors import InputError
from sightline.segmentation import matching, overlaps, pooling, prototypes, similarity

LR = 32


def blobs(count: int, side: int = LR, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 1, 6, 6, generator=generator)
    return interpolate(noise, (side, side), mode="bicubic")[:, 0]


@pytest.mark.parametrize(
    ("grid", "side"), [((5, 7), (32, 20)), ((37, 37), (16, 16)), ((1, 3), (9, 2))]
)
def test_pooling_masks_equals_resizing_features(grid, side):
    features = torch.randn(6, *grid)
    masks = torch.rand(4, *side) > 0.4
    got = pooling.pool_features(features, masks)
    if 1 in grid:  # torch's own antialiased resize is wrong for a width of one
        full = features.expand(-1, side[0], -1) if grid[0] == 1 else features
        full = torch.einsum("cij,kj->cik", full, pooling.resize_matrix(grid[1], side[1]))
    else:
        full = interpolate(features[None], side, mode="bilinear", antialias=True)[0]
    want = torch.stack([full[:, m].mean(1) for m in masks])
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("grid", "side"), [((5, 7), (32, 20)), ((37, 37), (16, 16))])
def test_both_ways_of_pooling_logits_agree(grid, side):
    logits = torch.randn(5, *side)
    logits[2] = -1
    one, other = pooling.pool_logits(logits, grid), pooling.pool_logits(logits.double(), grid)
    torch.testing.assert_close(one.weights.double(), other.weights, atol=1e-6, rtol=0)
    assert torch.equal(one.areas, other.areas)
    assert torch.equal(one.boxes, other.boxes)
    features = torch.randn(6, *grid)
    want = pooling.pool_features(features, logits > 0)[[0, 1, 3, 4]]
    got = one.weights[[0, 1, 3, 4]] @ features.flatten(1).T
    torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-5)


def test_chunks_do_not_change_the_pool(monkeypatch):
    features, masks = torch.randn(3, 8, 8), torch.rand(9, 16, 16) > 0.5
    whole = pooling.pool_features(features, masks)
    monkeypatch.setattr(pooling, "CHUNK_BYTES", 4 * 16 * 16 * 2)
    torch.testing.assert_close(pooling.pool_features(features, masks), whole)


def test_boxes_are_inclusive_and_zero_for_nothing():
    masks = torch.zeros(3, 6, 9, dtype=torch.bool)
    masks[0, 2:4, 3:8] = True
    masks[1, 5, 8] = True
    want = torch.tensor([[3.0, 2, 7, 3], [8, 5, 8, 5], [0, 0, 0, 0]])
    assert torch.equal(pooling.mask_boxes(masks), want)


@pytest.mark.parametrize("width", [1, 63, 64, 65, 130])
def test_packed_masks_round_trip_and_count(width):
    masks = torch.rand(5, 7, width) > 0.5
    masks[4] = False
    packed = overlaps.pack_masks(masks)
    assert torch.equal(packed.unpack(), masks)
    assert torch.equal(packed.areas(), masks.flatten(1).sum(1))
    flat = masks.flatten(1).double()
    want = (flat @ flat.T).long()
    assert torch.equal(overlaps.intersections(packed, packed), want)
    assert torch.equal(overlaps.intersections(packed), want.tril(-1))
    groups = torch.tensor([0, 1, 0, 1, 0])
    same = groups[:, None] == groups[None]
    assert torch.equal(overlaps.intersections(packed, groups_a=groups), (want * same).tril(-1))


@pytest.mark.parametrize("size", [(50, 41), (32, 32), (20, 130), (7, 5)])
def test_packing_resized_logits_is_what_interpolate_gives(size):
    logits = blobs(12) - 0.5
    logits[5] = -1
    rows = torch.tensor([3, 5, 0, 11])
    packed = overlaps.pack_logits(logits, *size, rows)
    want = pooling.resize_logits(logits[rows], *size)
    assert torch.equal(packed.unpack(), want)
    assert torch.equal(packed.boxes, pooling.mask_boxes(want))
    same = overlaps.pack_logits(logits.double(), *size, rows)  # the other path
    assert torch.equal(same.unpack(), want)
    assert len(overlaps.pack_logits(logits[:0], *size)) == 0


def test_suppression_is_class_wise_stable_and_strict():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 20, 20]])
    scores = torch.tensor([0.5, 0.9, 0.5, 0.5])
    one = torch.zeros(4, dtype=torch.int64)
    # An IoU of exactly the threshold stays; a box without area suppresses nothing.
    assert overlaps.suppress_boxes(boxes, scores, one, 0.5).tolist() == [1, 2, 3]
    assert overlaps.suppress_boxes(boxes, scores, one, 0.49).tolist() == [1, 3]
    groups = torch.tensor([0, 1, 0, 0])
    assert overlaps.suppress_boxes(boxes, scores, groups, 0.49).tolist() == [1, 0, 3]


def reference_formulation(features, logits, quality, unit, size, options):
    """The paper's steps written out: features at the size of the masks, every pair of masks."""
    side = logits.shape[-1]
    pixels = interpolate(features[None], (side, side), mode="bilinear", antialias=True)[0]
    inside = logits > 0
    objects = normalize(torch.stack([pixels[:, m].mean(1) for m in inside]), dim=-1)
    scores, labels = (objects @ unit.T).clamp(min=0).max(1)
    boxes = pooling.mask_boxes(inside)
    order, kept = quality.argsort(descending=True).tolist(), []
    for i in order:
        ok = True
        for j in kept:
            low = torch.maximum(boxes[i, :2], boxes[j, :2])
            high = torch.minimum(boxes[i, 2:], boxes[j, 2:])
            inter = float((high - low).clamp(min=0).prod())
            area = [float((boxes[k, 2:] - boxes[k, :2]).prod()) for k in (i, j)]
            if labels[i] == labels[j] and inter > options.nms_thr * (sum(area) - inter):
                ok = False
        kept += [i] if ok else []
    kept = [i for i in kept[: 8 * options.num_out_instance] if scores[i] > 0]
    full = interpolate(logits[kept, None], size, mode="bilinear", antialias=True)[:, 0] > 0
    final = []
    for a, i in enumerate(kept):
        worst = 0.0
        for b, j in enumerate(kept[:a]):
            if labels[i] == labels[j]:
                share = float((full[a] & full[b]).sum()) / max(float(full[a].sum()), 1)
                worst = max(worst, share * max(0.0, float(objects[i] @ objects[j])))
        final.append(float(scores[i]) * math.sqrt(max(0.0, 1 - worst)))
    best = sorted(range(len(kept)), key=lambda a: -final[a])[: options.num_out_instance]
    masks = full[best]
    return masks, labels[[kept[a] for a in best]], torch.tensor([final[a] for a in best])


@pytest.mark.parametrize("seed", [0, 1])
def test_the_default_model_equals_the_formulation_written_out(seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(12, 9, 9, generator=generator)
    logits = blobs(40, seed=seed)
    quality = torch.rand(40, generator=generator)
    unit = normalize(torch.randn(4, 12, generator=generator), dim=-1)
    options = matching.MatchOptions(num_out_instance=6)
    found = matching.match_proposals(features, logits, quality, unit, (50, 41), options)
    masks, labels, scores = reference_formulation(
        features, logits, quality, unit, (50, 41), options
    )
    assert torch.equal(found.masks, masks)
    assert torch.equal(found.labels, labels)
    torch.testing.assert_close(found.scores, scores, atol=1e-5, rtol=0)
    assert torch.equal(found.boxes, pooling.mask_boxes(masks))


def test_nothing_found_is_an_empty_result():
    features, unit = torch.randn(3, 4, 4), normalize(torch.randn(2, 3), dim=-1)
    for logits in (torch.zeros(0, 8, 8), -torch.ones(3, 8, 8)):
        found = matching.match_proposals(features, logits, torch.ones(len(logits)), unit, (10, 12))
        assert found.masks.shape == (0, 10, 12)
        assert matching.match_amg(features, logits, unit, (10, 12)).masks.shape == (0, 10, 12)
    away = -unit.sum(0).view(3, 1, 1).expand(3, 4, 4)  # like no class: every cosine is clamped
    away = away - (away[:, 0, 0] @ unit.T).clamp(min=0).sum() * unit.sum(0).view(3, 1, 1)
    found = matching.match_proposals(away, torch.ones(1, 8, 8), torch.ones(1), unit, (10, 12))
    assert len(found.scores) <= 1


def test_all_class_mode_gives_a_mask_to_several_classes():
    unit = torch.eye(3)
    features = torch.tensor([1.0, 0.9, 0.1]).view(3, 1, 1).expand(3, 4, 4)
    logits = torch.ones(1, 8, 8)
    one = matching.match_proposals(features, logits, torch.ones(1), unit, (8, 8))
    options = matching.MatchOptions(cls_num_per_mask=-1)
    every = matching.match_proposals(features, logits, torch.ones(1), unit, (8, 8), options)
    assert one.labels.tolist() == [0]
    assert every.labels.tolist() == [0, 1]  # the third is below 0.6 of the best


def test_amg_orders_ties_by_class_then_mask_and_merges_on_request():
    features = torch.ones(2, 4, 4)
    means = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    logits = torch.stack((torch.ones(8, 8), torch.ones(8, 8), -torch.ones(8, 8)))
    found = matching.match_amg(features, logits, means, (8, 8))
    assert found.labels.tolist() == [0, 0, 1, 1]
    options = matching.AmgOptions(nms_thr=0.5, merge=True)
    found = matching.match_amg(features, logits, means, (8, 8), options)
    assert found.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "wrong", [{"nms_thr": 0.0}, {"num_out_instance": 0}, {"cls_num_per_mask": 0}]
)
def test_numbers_that_mean_nothing_are_refused(wrong):
    with pytest.raises(InputError):
        matching.MatchOptions(**wrong)


def test_kmeans_keeps_a_centre_that_loses_its_tokens():
    tokens = torch.tensor([[1.0, 0], [1, 0.01], [0, 1]])
    centres = prototypes.cosine_kmeans(tokens, torch.tensor([0, 0, 2]))
    assert centres.isfinite().all()
    torch.testing.assert_close(centres[2], torch.tensor([0.0, 1]))


def test_one_shot_agrees_with_itself_and_few_cells_are_refused():
    features, masks = torch.randn(2, 1, 6, 3), torch.ones(2, 1, 6)
    assert prototypes.instance_agreement(features, masks).tolist() == [1.0, 1.0]
    with pytest.raises(InputError, match="fewer axes"):
        prototypes.principal_axes(torch.randn(2, 8), 3)


def test_negatives_lower_the_similarity_only_where_nearer():
    objects = normalize(torch.tensor([[1.0, 0.2], [0.2, 1.0]]), dim=-1)
    means = torch.tensor([[1.0, 0.0]])
    negatives = torch.tensor([[[0.0, 1.0]]])
    plain = similarity.cosine(objects, means)
    got = similarity.with_negatives(objects, means, negatives, 0.8)
    assert got[0] == plain[0]
    assert got[1] < plain[1]
    none = torch.zeros(1, 1, dtype=torch.bool)
    assert torch.equal(similarity.with_negatives(objects, means, negatives, 0.8, none), plain)
