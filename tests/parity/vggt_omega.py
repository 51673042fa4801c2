"""Golden family vggt_omega: aggregator, camera, depth, text alignment."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.parity.compare import compare, read_config, read_io, with_prefix
from tests.parity.dino import load
from tests.parity.vggt import cases

__all__ = ["cases", "run_case"]


@torch.no_grad()
def run_case(folder: Path, case: str) -> None:
    config, io = read_config(folder), read_io(folder)
    outputs = stages(load(folder, config), io, case)
    compare(config, io, outputs, rf"{case}\..*")


def stages(model: Any, io: dict[str, Tensor], case: str) -> Iterator[tuple[str, Tensor]]:
    images = io[f"images_{case}"]
    layers, start = model.aggregator(images)
    yield f"{case}.patch_token_start", torch.tensor(start)
    kept = {f"aggregated.{i}": layer for i, layer in enumerate(layers)}
    yield from with_prefix(f"{case}.", kept)
    yield from with_prefix(f"{case}.", model(images, frames_chunk_size=1))
    yield from with_prefix(f"{case}.", model(images))
