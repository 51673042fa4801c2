"""Golden families dust3r_*, mast3r and splatt3r: encoder, decoders, heads, in both layouts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.models.croco import Encoded
from sightline.models.dust3r import PairNetwork
from tests.parity.compare import Config, compare, read_config, read_io, with_prefix
from tests.parity.dino import load


def cases(folder: Path) -> list[str]:
    return sorted(n.removesuffix(".img1") for n in read_io(folder) if n.endswith(".img1"))


@torch.no_grad()
def run_case(folder: Path, case: str) -> None:
    config, io = read_config(folder), read_io(folder)
    outputs = stages(load(folder, config), config, io, case)
    compare(config, io, outputs, rf"{case}\.(?!img\d|true_shape).*")


def views_of(io: dict[str, Tensor], case: str) -> list[dict[str, Any]]:
    """Return both views; items of a symmetrised batch get the names that tell so."""
    images = [io[f"{case}.img{view}"] for view in (1, 2)]
    shapes = [io[f"{case}.true_shape{view}"] for view in (1, 2)]
    names = [[str(i) for i in range(len(images[0]))], [f"b{i}" for i in range(len(images[0]))]]
    swapped = images[0].shape == images[1].shape and len(images[0]) % 2 == 0
    if swapped and torch.equal(images[0][::2], images[1][1::2]):
        names[1][1::2], names[0][1::2] = names[0][::2], names[1][::2]
    views = zip(images, shapes, names, strict=True)
    return [{"img": i, "true_shape": s, "instance": n} for i, s, n in views]


def stages(
    model: Any, config: Config, io: dict[str, Tensor], case: str
) -> Iterator[tuple[str, Tensor]]:
    whole, model = model, getattr(model, "encoder", model)
    assert isinstance(model, PairNetwork)
    model.landscape_only = "storage" in str(config["cases"][case])
    views = views_of(io, case)
    encoded: list[Encoded] = []
    for number, view in enumerate(views, 1):
        encoded.append(model.encode_views(view["img"], view["true_shape"]))
        yield f"{case}.enc{number}", encoded[-1].tokens
        positions = encoded[-1].positions
        yield f"{case}.pos{number}", positions.expand(len(view["img"]), -1, -1)
    for number, tokens in enumerate(model.decode_pair(*encoded), 1):
        yield f"{case}.dec{number}_block1", tokens[1]
        yield f"{case}.dec{number}_last", tokens[-1]
    for number, result in enumerate(whole(*views), 1):
        if "covariances" in result:
            result["covariances_every3"] = result["covariances"][:, ::3, ::3]
        yield from with_prefix(f"{case}.view{number}.", result)
