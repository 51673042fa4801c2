"""Golden family vggt: aggregator, camera, depth, points, tracker."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.parity.compare import compare, read_config, read_io, with_prefix
from tests.parity.dino import load

DENSE = ("depth", "depth_conf", "world_points", "world_points_conf")


def cases(folder: Path) -> list[str]:
    return sorted(n.removeprefix("images_") for n in read_io(folder) if n.startswith("images_"))


@torch.no_grad()
def run_case(folder: Path, case: str) -> None:
    config, io = read_config(folder), read_io(folder)
    outputs = stages(load(folder, config), io, case)
    compare(config, io, outputs, rf"{case}\..*")


def stages(model: Any, io: dict[str, Tensor], case: str) -> Iterator[tuple[str, Tensor]]:
    images, query = io[f"images_{case}"], io.get(f"query_{case}")
    layers, start = model.aggregator(images)
    yield f"{case}.patch_start_idx", torch.tensor(start)
    for i, layer in enumerate(layers):
        yield f"{case}.aggregated.{i}", layer
    for i, encoding in enumerate(model.camera_head(layers)):
        yield f"{case}.pose_enc_iter.{i}", encoding
    if query is not None:
        features = model.track_head.feature_extractor(layers, images, start)
        yield f"{case}.track_features", features[:, :1, :4]
        for i, track in enumerate(model.track_head(layers, images, start, query)[0]):
            yield f"{case}.track_iter.{i}", track
    predictions = model(images, query)
    yield f"{case}.pose_enc", predictions["pose_enc"]
    yield from with_prefix(f"{case}.", {name: predictions[name] for name in DENSE})
    chunked = model(images, frames_chunk_size=1)
    yield f"{case}.depth_chunked_by_1", chunked["depth"]
    if query is not None:
        yield from with_prefix(f"{case}.", {n: predictions[n] for n in ("track", "vis", "conf")})
