"""Golden families of DINOv2 and DINOv3 ViTs: every size, mask, list and layer choice."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sightline.checkpoints import load_strict, read_weights
from sightline.models import build
from tests.parity.compare import Config, compare, read_config, read_io, with_prefix

ENTRIES = (
    "x_norm_clstoken",
    "x_norm_regtokens",
    "x_storage_tokens",
    "x_norm_patchtokens",
)


def load(folder: Path, config: Config) -> nn.Module:
    model = build(folder.name, config)
    load_strict(model, read_weights(folder / "model.safetensors"))
    return model.eval()


def cases(folder: Path) -> list[str]:
    with safe_open(folder / "io.safetensors", "pt") as file:
        names = list(file.keys())
    sizes = [n.removeprefix("image_") for n in names if n.startswith("image_")]
    layers = {m[0] for n in names if (m := re.match(r"[^.]+\.inter_", n))}
    outputs = {n.split(".")[0] for n in names if not n.startswith("image_") and n != "mask"}
    special = [n for n in ("masked", "forward_default", "list", "train_list") if n in outputs]
    return sizes + sorted(n.rstrip("_") for n in layers) + special


@torch.no_grad()
def run_case(folder: Path, case: str) -> None:
    config, io = read_config(folder), read_io(folder)
    model: Any = load(folder, config)
    roles = config.get("roles", {})
    if case == "forward_default":
        out = model(io[f"image_{roles['forward_default']}"])
        return compare(config, io, [(case, out)], case)
    if case == "masked":
        out = model.forward_features(io[f"image_{roles['masked']}"], io["mask"])
        return compare(config, io, with_prefix("masked.", out), r"masked\..*")
    if case in {"list", "train_list"}:
        return compare(config, io, list_outputs(model, io, roles["list"], case), rf"{case}\..*")
    if case.endswith(".inter"):
        name = case.removesuffix(".inter")
        outputs = layer_outputs(model, io, name, config["intermediate_layer_list"])
        return compare(config, io, outputs, rf"{name}\.inter_.*")
    outputs = size_outputs(model, io[f"image_{case}"], case)
    return compare(config, io, outputs, rf"{case}\.(?!inter_).*")


def size_outputs(model: Any, image: Tensor, case: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the stages in the network's order: positions, tokens before the norm, after it."""
    height, width = image.shape[-2:]
    if hasattr(model, "position_table"):
        yield f"{case}.pos_embed", model.position_table(height, width)
    elif hasattr(model, "rope_embed"):
        table = model.rope_embed(H=height // model.patch_size, W=width // model.patch_size)
        half = table.sin.shape[-1] // 2
        signs = torch.tensor([-1.0, 1.0]).repeat_interleave(half)
        yield f"{case}.rope_sin", table.sin * signs
        yield f"{case}.rope_cos", table.cos
    features = model.forward_features(image)
    yield f"{case}.x_prenorm", features["x_prenorm"]
    yield from with_prefix(f"{case}.", {name: features.get(name) for name in ENTRIES})


def layer_outputs(
    model: Any, io: dict[str, Tensor], case: str, layers: list[int]
) -> Iterator[tuple[str, Tensor]]:
    image = io[f"image_{case}"]
    raw = model.get_intermediate_layers(image, n=2, norm=False)
    for i, patches in enumerate(raw):
        yield f"{case}.inter_last2_raw.{i}", patches
    options: dict[str, Any] = {"n": layers, "reshape": True, "return_class_token": True}
    if any(name.endswith(".extra") for name in io):
        options["return_extra_tokens"] = True
    for i, parts in enumerate(model.get_intermediate_layers(image, **options, norm=True)):
        for part, value in zip(("map", "cls", "extra"), parts, strict=False):
            yield f"{case}.inter_norm.{i}.{part}", value


def list_outputs(
    model: Any, io: dict[str, Tensor], roles: list[str], case: str
) -> Iterator[tuple[str, Tensor]]:
    if case == "train_list":
        model.train()
        rope = model.rope_embed
        rope.shift_coords = rope.jitter_coords = rope.rescale_coords = None
    images = [io[f"image_{name}"] for name in roles]
    masks = [io.get("mask"), *[None] * (len(images) - 1)]
    for i, features in enumerate(model.forward_features(images, masks)):
        yield from with_prefix(f"{case}.{i}.", {name: features[name] for name in ENTRIES})
