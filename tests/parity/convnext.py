"""Golden family dinov3_convnext: tokens, and stage maps at native strides and on a ViT's grid."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.parity.compare import compare, read_config, read_io, with_prefix
from tests.parity.dino import load


def cases(folder: Path) -> list[str]:
    return sorted(n.removeprefix("image_") for n in read_io(folder) if n.startswith("image_"))


@torch.no_grad()
def run_case(folder: Path, case: str) -> None:
    config, io = read_config(folder), read_io(folder)
    outputs = case_outputs(load(folder, config), io, case, config["intermediate_layer_list"])
    compare(config, io, outputs, rf"{case}\..*")


def case_outputs(
    model: Any, io: dict[str, Tensor], case: str, layers: list[int]
) -> Iterator[tuple[str, Tensor]]:
    image = io[f"image_{case}"]
    grids = sorted({m[1] for n in io if (m := re.match(rf"{case}\.inter_ps(\w+)\.", n))})
    options = {"n": layers, "reshape": True, "return_class_token": True, "norm": True}
    for grid in grids:
        model.patch_size = None if grid == "None" else int(grid)
        for i, (maps, pooled) in enumerate(model.get_intermediate_layers(image, **options)):
            yield f"{case}.inter_ps{grid}.{i}.map", maps
            yield f"{case}.inter_ps{grid}.{i}.cls", pooled
    features = model.forward_features(image)
    names = ("x_prenorm", "x_norm_clstoken", "x_norm_patchtokens")
    yield from with_prefix(f"{case}.", {name: features[name] for name in names})
