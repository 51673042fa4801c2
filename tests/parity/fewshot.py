"""Golden family fewshot: bank, similarities, merging, both models, and the data set steps."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from sightline.segmentation import coco, crops, matching, pooling, prototypes, sampling, similarity
from sightline.segmentation.overlaps import pack_logits, pack_masks
from sightline.types import InstanceMasks
from tests.parity.compare import read_config, read_io

GROUPS = ("post", "mid", "sim", "decay", "ios", "final", "amg", "refcrop", "target")
STEPS = ("sampling", "coco_to_pkl", "encode_results")


def cases(folder: Path) -> list[str]:
    names = {name.split(".")[1] for name in read_io(folder) if name.startswith("out.")}
    toy = read_config(folder).get("toy_dataset", {})
    return [*sorted(names), *(step for step in STEPS if step in toy)]


@torch.no_grad()
def run_case(folder: Path, case: str) -> None:
    config, io = read_config(folder), read_io(folder)
    if case in STEPS:
        return run_step(config["toy_dataset"], config["sizes"], case)
    assert case in GROUPS, f"unknown group {case}"
    wanted = sorted(name for name in io if name.startswith(f"out.{case}."))
    got = {"amg": amg, "refcrop": reference, "target": target}.get(case, matched)(config, io)
    for name in wanted:
        assert name in got, f"never compared: {name}"
        same(config, name, got[name], io[name])
    return None


def same(config: dict[str, Any], name: str, got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape, f"{name}: shape {tuple(got.shape)} != {tuple(want.shape)}"
    if not want.dtype.is_floating_point:
        assert torch.equal(got.to(want.dtype), want), f"{name}: not equal"
        return
    tolerances = config["tolerances"]
    key = "pca_components_abs" if "pca_components" in name else "default_abs"
    if name in ("out.refcrop.img", "out.target.img"):
        key = "images_abs"
    worst = (got.double() - want.double()).abs().max()
    assert worst <= tolerances.get(key, tolerances["default_abs"]), (
        f"{name}: differs by {worst:.3g}"
    )


class Case:
    """Inputs of a file and what the first steps make of them."""

    def __init__(self, config: dict[str, Any], io: dict[str, Tensor]) -> None:
        self.sizes = config["sizes"]
        self.size = (self.sizes["orig_height"], self.sizes["orig_width"])
        self.logits = io["in.low_res_masks"]
        self.inside = self.logits > 0
        grid = matching.patch_grid(io["in.target_feat_grid"].shape[1])
        self.features = io["in.target_feat_grid"][0].T.unflatten(1, grid).contiguous()
        bank = io["in.mem_feats"], io["in.mem_masks"]
        self.average, self.instances = (
            prototypes.class_means(*bank),
            prototypes.masked_mean(*bank),
        )


def matched(config: dict[str, Any], io: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        **dict(post(config, io)),
        **dict(mid(config, io)),
        **dict(sim(config, io)),
    }


def post(config: dict[str, Any], io: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    case, features, masks = Case(config, io), io["in.mem_feats"], io["in.mem_masks"]
    yield "out.post.mem_feats_avg", case.average
    yield "out.post.mem_feats_ins_avg", case.instances
    yield "out.post.mem_feats_covariances", prototypes.covariances(case.instances)
    yield "out.post.mem_ins_sim_avg", prototypes.instance_agreement(features, masks)
    for name, value in zip(("centers", "mean", "axes"), local(case, io), strict=True):
        full = {"centers": "feats_centers", "mean": "pca_mean", "axes": "pca_components"}[name]
        yield f"out.post.mem_{full}", value
    if "in.mem_feats_neg" in io:
        bank = io["in.mem_feats_neg"], io["in.mem_masks_neg"]
        yield "out.post.mem_feats_avg_neg", prototypes.class_means(*bank)
        yield "out.post.mem_feats_ins_avg_neg", prototypes.masked_mean(*bank)


def local(case: Case, io: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    rows = []
    for k in range(len(io["in.mem_feats"])):
        tokens = io["in.mem_feats"][k].flatten(0, 1)[io["in.mem_masks"][k].flatten() > 0]
        centres = prototypes.cosine_kmeans(tokens, io["in.kmeans_start"][k])
        rows.append((centres, *prototypes.principal_axes(tokens, case.sizes["n_pca_components"])))
    centres, mean, axes = (torch.stack(column) for column in zip(*rows, strict=True))
    return centres, mean, axes


def mid(config: dict[str, Any], io: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    case = Case(config, io)
    side = case.logits.shape[1:]
    full = interpolate(case.features[None], tuple(side), mode="bilinear", antialias=True)[0]
    yield "out.mid.target_feat_at_mask_size", full.flatten(1).T
    objects = matching.object_features(case.features, case.inside)
    yield "out.mid.obj_feats", objects
    unit = similarity.prototypes(case.instances)
    scores = similarity.cosine(objects, unit)
    yield "out.mid.sim_global", scores
    options = matching.MatchOptions(
        nms_thr=case.sizes["nms_thr"],
        num_out_instance=case.sizes["num_out_instance"],
        cls_num_per_mask=case.sizes["cls_num_per_mask"],
    )
    boxes = pooling.mask_boxes(case.inside)
    rows, labels, _ = matching.select_candidates(scores, boxes, io["in.pred_ious"], options)
    yield "out.mid.nms_keep_all", rows
    big = pack_logits(case.logits[rows], *case.size)
    yield "out.mid.final_stage_ios", matching.merge_factors(big, objects[rows], labels)
    best, packed = scores.argmax(1), pack_masks(case.inside)
    for semantic in (False, True):
        for rank in (False, True):
            factors = matching.merge_factors(
                packed, objects, best, semantic=semantic, earlier_only=rank
            )
            yield f"out.ios.semantic{semantic:d}_rank{rank:d}", factors
    found = matching.match_proposals(
        case.features, case.logits, io["in.pred_ious"], unit, case.size, options
    )
    yield "out.final.masks", found.masks
    yield "out.final.bboxes_xyxy", found.boxes
    yield "out.final.labels", found.labels
    yield "out.final.scores", found.scores


def sim(config: dict[str, Any], io: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    case = Case(config, io)
    objects = matching.object_features(case.features, case.inside)
    unit, instances = similarity.prototypes(case.instances), case.instances
    scores = similarity.cosine(objects, unit)
    labels = scores.argmax(1)
    side = tuple(case.logits.shape[1:])
    pixels = interpolate(case.features[None], side, mode="bilinear", antialias=True)[0]
    pixels, flat = pixels.flatten(1).T, case.inside.flatten(1)
    centres, mean, axes = local(case, io)
    covariances = prototypes.covariances(instances)
    yield "out.sim.covariance_cosine", similarity.covariance_cosine(objects, unit, covariances)
    yield "out.sim.kmeans_matching", similarity.local_matching(pixels, flat, centres)
    soft = similarity.local_matching(pixels, flat, centres, theta=1.0)
    yield "out.sim.kmeans_matching_soft", soft
    yield "out.sim.pca_scores", similarity.pca_score(pixels, flat, mean, axes)
    yield "out.decay.ambiguous", similarity.ambiguity_decay(scores, labels, case.average)
    negatives = None
    if "in.mem_feats_neg" in io:
        negatives = prototypes.masked_mean(io["in.mem_feats_neg"], io["in.mem_masks_neg"])
        rows = torch.arange(len(labels))
        nearest = similarity.negative_cosine(objects, negatives)[rows, labels]
        yield "out.decay.negative_sim", nearest
    for name in io:
        number = re.search(r"(?:_t|_s|_|knn)([0-9.]+)(?:_\w+)?$", name)
        value = float(number[1]) if number else 0.0
        if name.startswith("out.sim.softmax_t"):
            yield name, similarity.softmax_cosine(objects, unit, value)
        elif name.startswith("out.sim.instance_softmax_t"):
            yield name, similarity.instance_softmax(objects, instances, value)
        elif name.startswith("out.sim.l2_s"):
            means = pooling.pool_features(case.features, case.inside)
            yield name, similarity.gaussian_distance(means, case.average, value)
        elif name.startswith("out.sim.with_neg_s"):
            assert negatives is not None
            yield name, similarity.with_negatives(objects, case.average, negatives, value)
        elif name.startswith("out.sim.knn"):
            found = similarity.nearest_neighbours(objects, instances, int(value))
            yield name, found[1] if name.endswith("scores") else found[0]
        elif name.startswith("out.decay.completeness_"):
            yield name, similarity.completeness(pixels, flat, labels, case.average, value)


def amg(config: dict[str, Any], io: dict[str, Tensor]) -> dict[str, Tensor]:
    case = Case(config, io)
    average = prototypes.class_means(normalize(io["in.mem_feats"], dim=-1), io["in.mem_masks"])
    count = len(io.get("out.amg.scores", torch.zeros(100)))
    options = matching.AmgOptions(num_out_instance=count)
    found = matching.match_amg(case.features, case.logits, average, case.size, options)
    boxes = found.boxes
    if "out.amg.scores" in io and "out.amg.bboxes_xyxy" in io:
        # Masks of equal cells tie exactly, and rounding orders them: compare such groups as sets.
        want = io["out.amg.bboxes_xyxy"]
        starts = (io["out.amg.scores"].diff() < -1e-6).cumsum(0)
        groups = torch.cat((starts.new_zeros(1), starts))
        for group in groups.unique():
            inside = (groups == group).nonzero()[:, 0]
            if sorted(boxes[inside].tolist()) == sorted(want[inside].tolist()):
                boxes[inside] = want[inside]
    return {
        "out.amg.mem_feats_avg": average,
        "out.amg.scores": found.scores,
        "out.amg.labels": found.labels,
        "out.amg.bboxes_xyxy": boxes,
    }


def toy(config: dict[str, Any]) -> coco.CocoDataset:
    return coco.parse_coco(config["toy_dataset"]["coco"], Path("toy.json"))


def picture(io: dict[str, Tensor], dataset: coco.CocoDataset, image_id: coco.Id) -> Tensor:
    number = list(dataset.images).index(image_id)
    return io[f"io.image{number}_uint8_hwc"].permute(2, 0, 1).float() / 255


def mask_of(dataset: coco.CocoDataset, item: coco.Annotation) -> Tensor:
    image = dataset.images[item.image_id]
    mask = item.mask(image.height, image.width)
    assert mask is not None
    return torch.from_numpy(mask).float()


def reference(config: dict[str, Any], io: dict[str, Tensor]) -> dict[str, Tensor]:
    dataset, rule = toy(config), config["toy_dataset"]["ref_crop"]
    item = next(a for a in dataset.annotations if a.id == rule["ref_annotation_id"])
    assert dataset.category_ids.index(item.category_id) == rule["class_index"]
    image, mask = crops.reference_crop(
        picture(io, dataset, item.image_id),
        mask_of(dataset, item),
        item.bbox,
        rule["crop_size"],
        rule["context_ratio"],
    )
    return {"out.refcrop.img": image[None], "out.refcrop.mask": mask[None]}


def target(config: dict[str, Any], io: dict[str, Tensor]) -> dict[str, Tensor]:
    dataset, side = toy(config), config["toy_dataset"]["test_image_size"]
    image = next(iter(dataset.images.values()))
    out = {"out.target.img": crops.square_target(picture(io, dataset, image.id), side)}
    for index, category in enumerate(dataset.category_ids):
        items = [
            a for a in dataset.annotations if a.image_id == image.id and a.category_id == category
        ]
        if not items:
            continue
        boxes = torch.tensor([a.bbox for a in items], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        size = (image.height, image.width)
        out[f"out.target.gt_bboxes.cls{index}"] = crops.scaled_boxes(boxes, size, side)
        masks = [crops.grid_mask(mask_of(dataset, a), (side, side)) for a in items]
        out[f"out.target.gt_masks.cls{index}"] = torch.stack(masks)
    return out


def run_step(content: dict[str, Any], sizes: dict[str, Any], case: str) -> None:
    dataset = coco.parse_coco(content["coco"], Path("toy.json"))
    want = content[case]
    if case == "encode_results":
        given = want["inputs"]
        image = dataset.images[given["image_id"]]
        masks = torch.zeros(len(given["labels"]), image.height, image.width, dtype=torch.bool)
        for mask, (y0, y1, x0, x1) in zip(masks, given["rects_y0y1x0x1"], strict=True):
            mask[y0:y1, x0:x1] = True
        found = InstanceMasks(
            masks=masks,
            boxes=torch.tensor(given["boxes_xyxy"], dtype=torch.float32),
            labels=torch.tensor(given["labels"]),
            scores=torch.tensor(given["scores"]),
        )
        assert coco.encode_results(found, image.id, dataset.category_ids) == want["output"]
        return
    rule = want["rule"]
    number = re.search(r"(\d+) (?:shots|entries)", rule)
    assert number, f"no count in the rule: {rule}"
    if case == "sampling":
        got = sampling.sample_shots(dataset, int(number[1]), sizes["seed"])
    else:
        got = sampling.all_shots(dataset, int(number[1]))
    assert sampling.shots_to_json(got) == want["result"]
