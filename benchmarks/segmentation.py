"""Few-shot matching and merging: masks pooled to the feature grid against features at mask size.

``python benchmarks/segmentation.py`` times both on the same random input (1024 proposals, 80
classes, 37 x 37 features of 1024 channels, mask logits of 256 x 256, pictures of 480 x 640), checks
that they agree, and writes ``results/segmentation.json``. Each run is a process of its own, so that
its peak memory is its own; memory is what comes on top of the input.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from sightline.run import peak_memory_mb
from sightline.segmentation.matching import MatchOptions, match_proposals
from sightline.segmentation.overlaps import suppress_boxes
from sightline.segmentation.pooling import mask_boxes
from sightline.types import InstanceMasks


def make_input(arguments: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return features, logits of blobs all over the picture, predicted IoUs and prototypes."""
    generator = torch.Generator().manual_seed(0)
    grid, side, count = arguments.grid, arguments.mask_side, arguments.proposals
    features = torch.randn(arguments.channels, grid, grid, generator=generator)
    place = torch.rand(count, 2, generator=generator) * side
    radius = side * (0.02 + 0.2 * torch.rand(count, 1, 1, generator=generator) ** 2)
    at = torch.arange(side) + 0.5
    dy = at.view(1, -1, 1) - place[:, 1].view(-1, 1, 1)
    dx = at.view(1, 1, -1) - place[:, 0].view(-1, 1, 1)
    logits = (radius - (dy**2 + dx**2).sqrt()) / 4
    quality = torch.rand(count, generator=generator)
    unit = normalize(torch.randn(arguments.classes, arguments.channels, generator=generator), dim=1)
    return features, logits, quality, unit


def reference(
    features: Tensor, logits: Tensor, quality: Tensor, unit: Tensor, size: tuple[int, int]
) -> InstanceMasks:
    """Run the published formulation: features at mask size, every overlap at full size."""
    options = MatchOptions()
    side = logits.shape[-1]
    pixels = interpolate(features[None], (side, side), mode="bilinear", antialias=True)[0]
    pixels = pixels.flatten(1).T
    inside = (logits > 0).flatten(1).float()
    objects = normalize(inside @ pixels / inside.sum(1, keepdim=True), dim=-1)
    scores, labels = (objects @ unit.T).clamp(min=0).max(1)
    keep = suppress_boxes(mask_boxes(logits > 0), quality, labels, options.nms_thr)
    keep = keep[: 8 * options.num_out_instance]
    keep = keep[scores[keep] > 0]
    objects, scores, labels = objects[keep], scores[keep], labels[keep]
    full = interpolate(logits[keep, None], size, mode="bilinear", antialias=True)[:, 0] > 0
    flat = full.flatten(1).float()
    ratio = flat @ flat.T / flat.sum(1, keepdim=True).clamp(min=1)
    ratio = ratio * (labels[:, None] == labels[None]) * (objects @ objects.T).clamp(min=0)
    scores = scores * (1 - ratio.tril(-1).amax(1)).clamp(min=0).sqrt()
    order = scores.argsort(descending=True, stable=True)[: options.num_out_instance]
    masks = full[order]
    return InstanceMasks(
        masks=masks, boxes=mask_boxes(masks), labels=labels[order], scores=scores[order]
    )


def work(arguments: argparse.Namespace) -> None:
    """Time one formulation in this process and print what came out."""
    features, logits, quality, unit = make_input(arguments)
    size = (arguments.height, arguments.width)
    run = reference if arguments.run == "reference" else match_proposals
    found = run(features, logits[:8], quality[:8], unit, size)  # compiles
    before = peak_memory_mb()
    start = time.perf_counter()
    found = run(features, logits, quality, unit, size)
    result = {
        "seconds": time.perf_counter() - start,
        "extra_mb": peak_memory_mb() - before,
        "labels": found.labels.tolist(),
        "scores": found.scores.tolist(),
        "areas": found.masks.flatten(1).sum(1).tolist(),
    }
    print(json.dumps(result))


def main() -> None:
    """Run both, compare and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (
        *(("proposals", 1024), ("classes", 80), ("channels", 1024), ("grid", 37)),
        *(("mask-side", 256), ("height", 480), ("width", 640), ("repeats", 3)),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--run", choices=("reference", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, default=common.RESULTS / "segmentation.json")
    arguments = parser.parse_args()
    if arguments.run:
        work(arguments)
        return
    rows: dict[str, list[dict[str, Any]]] = {"ours": [], "reference": []}
    for _ in range(arguments.repeats):
        for name, results in rows.items():  # in turn, so that a busy machine slows both
            command = [sys.executable, __file__, *sys.argv[1:], "--run", name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results.append(json.loads(done.stdout))
    a, b = rows["ours"][0], rows["reference"][0]
    same = a["labels"] == b["labels"] and a["areas"] == b["areas"]
    difference = float(np.abs(np.subtract(a["scores"], b["scores"])).max())
    table = {
        name: {
            key: {
                "median": float(np.median([row[key] for row in results])),
                "all": [row[key] for row in results],
            }
            for key in ("seconds", "extra_mb")
        }
        for name, results in rows.items()
    }
    ratios = {
        key: table["reference"][key]["median"] / table["ours"][key]["median"]
        for key in ("seconds", "extra_mb")
    }
    content = {
        "setting": {k: v for k, v in vars(arguments).items() if k not in ("run", "json")},
        "threads": torch.get_num_threads(),
        "same_labels_and_masks": same,
        "largest_score_difference": difference,
        "time_ratio": ratios["seconds"],
        "memory_ratio": ratios["extra_mb"],
        **table,
    }
    common.write(arguments.json, content)
    print(json.dumps({k: v for k, v in content.items() if not isinstance(v, dict)}, indent=1))


if __name__ == "__main__":
    main()
