"""Golden family sam2_tiny: trunk, neck, prompts, decoder with both image embeddings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.models.hiera import sine_positions
from sightline.models.sam2 import SAM2, ImageFeatures
from tests.parity.compare import compare, read_config, read_io
from tests.parity.dino import load


def cases(folder: Path) -> list[str]:
    names = {name.split(".")[1] for name in read_io(folder) if name.startswith("out.")}
    prompts = names & {"points", "box", "box_as_points", "mask_prompt"}
    return ["image", *sorted(prompts)]


@torch.no_grad()
def run_case(folder: Path, case: str) -> None:
    config, io = read_config(folder), read_io(folder)
    model = load(folder, config)
    assert isinstance(model, SAM2)
    if case == "image":
        prompts = "points|box|box_as_points|mask_prompt"
        return compare(config, io, image_stages(model, io), rf"out\.(?!(?:{prompts})\.).*")
    features = model.encode(io["in.image"])
    first = ImageFeatures(
        features.embedding[:1], (features.high_res[0][:1], features.high_res[1][:1])
    )
    outputs = prompt_stages(model, first, io, case)
    return compare(config, io, outputs, rf"out\.{case}\..*")


def image_stages(model: Any, io: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    trunk = model.image_encoder.trunk(io["in.image"])
    for i, stage in enumerate(trunk):
        yield f"out.trunk{i}", stage
    for i, level in enumerate(model.image_encoder.neck(trunk)):
        yield f"out.fpn{i}", level
        yield f"out.fpn_pos{i}", sine_positions(level.shape[2], level.shape[3], level.shape[1])
    features = model.encode(io["in.image"])
    yield "out.high_res0", features.high_res[0]
    yield "out.high_res1", features.high_res[1]
    yield "out.embed_without_no_mem", features.embedding
    yield "out.embed_with_no_mem", features.embedding + model.no_mem_embed.view(1, -1, 1, 1)
    yield "out.dense_pe", model.sam_prompt_encoder.dense_positions(features.embedding.shape[-1])


def prompt_stages(
    model: Any, features: ImageFeatures, io: dict[str, Tensor], case: str
) -> Iterator[tuple[str, Tensor]]:
    encoder = model.sam_prompt_encoder
    if case == "box":
        yield "out.box.sparse", encoder(boxes=io["in.boxes"])[0]
        return
    prompts: dict[str, Tensor] = {}
    if case == "points":
        points = io["in.points"]
        prompts = {"points": points, "labels": torch.ones(points.shape[:2], dtype=torch.int32)}
    elif case == "box_as_points":
        corners = io["in.boxes"].view(-1, 2, 2)
        labels = torch.tensor([2, 3], dtype=torch.int32).expand(len(corners), -1)
        prompts = {"points": corners, "labels": labels}
    else:
        prompts = {
            "points": io["in.multi_points"],
            "labels": io["in.multi_labels"],
            "masks": io["in.mask_prompt"],
        }
    sparse, dense = encoder(**prompts)
    yield f"out.{case}.sparse", sparse
    yield f"out.{case}.dense", dense
    masks = model(features, **prompts)
    yield f"out.{case}.all_masks", masks.logits
    yield f"out.{case}.all_ious", masks.ious
    single = model.sam_mask_decoder.single_mask(masks)
    yield f"out.{case}.single_mask_dynamic", single.logits
    yield f"out.{case}.single_iou_dynamic", single.ious
    for variant, added in (("with_no_mem", True), ("without_no_mem", False)):
        for chunk in (4, None):
            masks = model(features, **prompts, add_no_mem_embed=added, chunk=chunk)
            yield f"out.{case}.{variant}.all_masks", masks.logits
            yield f"out.{case}.{variant}.all_ious", masks.ious
            yield f"out.{case}.{variant}.object_logits", masks.object_logits
