"""Golden families croco and croco_v1_cosine: encoder, decoder, prediction, losses."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sightline.models.croco import CroCoNet, completion_loss, patchify, unpatchify
from sightline.nn.rope import grid_positions
from tests.parity.compare import compare, read_config, read_io
from tests.parity.dino import load


def cases(folder: Path) -> list[str]:
    return [""]


@torch.no_grad()
def run_case(folder: Path, case: str) -> None:
    config, io = read_config(folder), read_io(folder)
    model = load(folder, config)
    assert isinstance(model, CroCoNet)
    compare(config, io, stages(model, io), r"(?!img\d|mask).*")


def stages(model: CroCoNet, io: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    img1, img2, mask = io["img1"], io["img2"], io["mask"]
    grids = [model.patch_embed.grid(*image.shape[-2:]) for image in (img1, img2)]
    yield "pos1", grid_positions(*grids[0]).expand(len(img1), -1, -1)
    blocks: list[Tensor] = []
    second = model.encode(img2, blocks=blocks)
    for i, block in enumerate(blocks):
        yield f"enc2_block{i}", block
    yield "enc2", second.tokens
    first = model.encode(img1, mask)
    yield "enc1_visible", first.tokens
    yield "dec", model.decode(first, second, grids, mask)
    for i, block in enumerate(model.forward_features(img1, img2)[len(blocks) :]):
        yield f"unmasked_dec_block{i}", block
    target = patchify(img1, model.patch_size)
    assert torch.equal(unpatchify(target, grids[0], model.patch_size), img1)
    yield "target", target
    prediction, _, same = model(img1, img2, mask)
    assert torch.equal(same, target)
    yield "out", prediction
    yield "loss_all_raw", completion_loss(prediction, target, norm_pix=False)
    yield "loss_masked_normpix", completion_loss(prediction, target, mask)
