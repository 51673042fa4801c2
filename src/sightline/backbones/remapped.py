"""DINO, iBOT and RADIO on our ViT: their files are renamed, sizes are read from the tensors.

DINO (Caron et al. 2021) and iBOT (Zhou et al. 2022) are DINOv2's network without layer scales and
registers. RADIO (Ranzinger et al. 2024) has several class tokens, of which the first one and the
rest (as registers) are kept apart here, a patch projection without bias, and a position table for
2048 pixels of its own kind.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sightline.backbones.base import NetworkBackbone, Triple
from sightline.backbones.networks import read_dinov2, vit
from sightline.backbones.request import Request, drawn_from
from sightline.checkpoints import load_strict, read_weights
from sightline.errors import CheckpointError
from sightline.models.dinov2 import DinoVisionTransformer

CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)

HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1536: 24}
"""Width of a ViT -> its heads, which no file tells."""

SIZES: dict[str, dict[str, int]] = {
    "dino_vits16": {"embed_dim": 384, "patch_size": 16},
    "dino_vits8": {"embed_dim": 384, "patch_size": 8},
    "dino_vitb16": {"embed_dim": 768, "patch_size": 16},
    "dino_vitb8": {"embed_dim": 768, "patch_size": 8},
    "ibot_vits16": {"embed_dim": 384, "patch_size": 16},
    "ibot_vitb16": {"embed_dim": 768, "patch_size": 16},
    "ibot_vitl16": {"embed_dim": 1024, "patch_size": 16, "depth": 24},
    "radio": {"embed_dim": 1280, "patch_size": 16, "depth": 32, "num_register_tokens": 7},
}
"""What networks of random weights are built with; twelve blocks where nothing is said."""

_META = "https://dl.fbaipublicfiles.com/dino"
_IBOT = "https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive/2022/ibot"
_WHERE = {
    **{
        name: f"{_META}/dino_{file}_pretrain/dino_{file}_pretrain.pth"
        for name, file in (
            ("dino_vits16", "deitsmall16"),
            ("dino_vits8", "deitsmall8"),
            ("dino_vitb16", "vitbase16"),
            ("dino_vitb8", "vitbase8"),
        )
    },
    **{f"ibot_vit{size}16": f"{_IBOT}/vit{size}_16/checkpoint_teacher.pth" for size in "sbl"},
    "radio": "nvidia/RADIO/radio_v2.pth.tar",
}
"""Where the authors keep their files, for the error text."""


class RadioViT(DinoVisionTransformer):
    """A ViT whose position table is a window of a square that is resized to the longer side."""

    def position_table(self, height: int, width: int) -> Float[Tensor, "1 rows d"]:
        """Return the position table of a picture; the class row is zero in the files."""
        rows, cols = self.patch_embed.grid(height, width)
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        if (rows, cols) == (side, side):
            return self.pos_embed

        def make() -> Tensor:
            table = self.pos_embed[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
            longer = (max(rows, cols), max(rows, cols))
            table = functional.interpolate(table, longer, mode="bilinear", align_corners=True)
            window = table[..., :rows, :cols].flatten(2).mT
            return torch.cat((self.pos_embed[:, :1], window.to(self.pos_embed.dtype)), 1)

        return self._tables.get((rows, cols), make, weights=[self.pos_embed])


def dino(request: Request) -> NetworkBackbone:
    """Make a backbone of DINO or iBOT; positions are scaled as in DINO's own code."""
    if request.random:
        with drawn_from(request.seed):
            network = _dino_network(SIZES[request.source], dtype=request.dtype)
    else:
        state = from_dino(_state(request), request.name)
        network = _dino_network(sizes_of(state), dtype=request.dtype, device="meta")
        load_strict(network, state, request.name)
    return vit(network.to(request.device), read_dinov2, **request.options)


def radio(request: Request) -> NetworkBackbone:
    """Make a backbone of RADIO (a ViT); its normalisation comes from the file."""
    mean, std = CLIP_MEAN, CLIP_STD
    if request.random:
        with drawn_from(request.seed):
            network = _radio_network(SIZES[request.source], dtype=request.dtype)
    else:
        given = _state(request)
        state = from_radio(given, request.name)
        mean, std = (
            _triple(given, name, usual) for name, usual in (("norm_mean", mean), ("norm_std", std))
        )
        network = _radio_network(sizes_of(state), dtype=request.dtype, device="meta")
        if "norm.weight" not in state:  # older releases end without a norm
            network.add_module("norm", nn.Identity())
        load_strict(network, state, request.name)
    return vit(network.to(request.device), read_dinov2, mean=mean, std=std, **request.options)


def from_dino(state: Mapping[str, Tensor], name: str = "dino") -> dict[str, Tensor]:
    """Return DINO's or iBOT's tensors under DINOv2's names.

    The prefixes of training scripts and the projection heads go; iBOT's ``masked_embed`` is the
    mask token, which DINO does not have (it never acts here).

    Raises:
        CheckpointError: There is no ViT in it.
    """
    prefix = _prefix(state, "pos_embed", name)
    inside = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    kept = {n: t for n, t in inside.items() if not n.startswith(("head.", "fc_norm."))}
    if "cls_token" not in kept:
        raise _foreign(name, "no cls_token")
    mask = kept.pop("masked_embed", None)
    kept.setdefault("mask_token", torch.zeros_like(kept["cls_token"][0]) if mask is None else mask)
    return kept


def from_radio(state: Mapping[str, Tensor], name: str = "radio") -> dict[str, Tensor]:
    """Return RADIO's tensors under DINOv2's names.

    Raises:
        CheckpointError: There is no such ViT in it.
    """
    prefix = _prefix(state, "patch_generator.pos_embed", name)
    inside = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    kept = {
        n.replace(".grandma", ".gamma"): t
        for n, t in inside.items()
        if n.startswith(("blocks.", "norm."))
    }
    try:
        table, special, weight = (
            inside[f"patch_generator.{part}"]
            for part in ("pos_embed", "cls_token.token", "embedder.weight")
        )
    except KeyError as error:
        raise _foreign(name, f"no {error.args[0]}") from error
    side = math.isqrt(weight.shape[1] // 3)
    if 3 * side * side != weight.shape[1] or len(special) < 1:
        raise _foreign(name, f"a patch projection of {weight.shape[1]} numbers")
    kept["patch_embed.proj.weight"] = weight.unflatten(1, (3, side, side))
    bias = inside.get("patch_generator.embedder.bias")
    kept["patch_embed.proj.bias"] = weight.new_zeros(len(weight)) if bias is None else bias
    kept["pos_embed"] = torch.cat((torch.zeros_like(table[:, :1]), table), 1)
    kept["cls_token"] = special[None, :1]
    if len(special) > 1:
        kept["register_tokens"] = special[None, 1:]
    kept["mask_token"] = torch.zeros_like(special[:1])
    return kept


def sizes_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the constructor options that fit a state under DINOv2's names.

    Raises:
        CheckpointError: The shapes are not those of a ViT of a known width.
    """
    names = ("pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
    table, weight, hidden = (state.get(name) for name in names)
    numbers = {int(m[1]) for n in state if (m := re.match(r"blocks\.(\d{1,4})\.", n))}
    if table is None or weight is None or hidden is None or (table.ndim, weight.ndim) != (3, 4):
        raise _foreign("the backbone", "no patch projection, position table or blocks")
    if numbers != set(range(len(numbers))):
        raise _foreign("the backbone", "blocks with gaps between them")
    width, patch = table.shape[2], weight.shape[3]
    if width not in HEADS:
        raise _foreign("the backbone", f"a width of {width}")
    registers = state.get("register_tokens")
    return {
        "embed_dim": width,
        "depth": len(numbers),
        "patch_size": patch,
        "img_size": math.isqrt(table.shape[1] - 1) * patch,
        "num_register_tokens": 0 if registers is None else registers.shape[1],
        "init_values": 1.0 if "blocks.0.ls1.gamma" in state else None,
        "mlp_ratio": hidden.shape[0] / width,
    }


def _dino_network(sizes: Mapping[str, Any], **kind: Any) -> DinoVisionTransformer:
    options = {"img_size": 224, **sizes, "num_heads": HEADS[sizes["embed_dim"]]}
    return DinoVisionTransformer(**options, **kind)


def _radio_network(sizes: Mapping[str, Any], **kind: Any) -> RadioViT:
    options = {"img_size": 2048, **sizes, "num_heads": HEADS[sizes["embed_dim"]]}
    return RadioViT(**options, **kind)


def _state(request: Request) -> dict[str, Tensor]:
    return read_weights(request.weights(request.source, _WHERE[request.source]))


def _prefix(state: Mapping[str, Tensor], key: str, name: str) -> str:
    """Return what stands before a name in the file; the teacher's where there are two networks."""
    found = [n.removesuffix(key) for n in state if n == key or n.endswith(f".{key}")]
    if not found:
        raise _foreign(name, f"no {key}")
    return min(found, key=lambda prefix: ("teacher" not in prefix, len(prefix)))


def _triple(state: Mapping[str, Tensor], name: str, usual: Triple) -> Triple:
    for key, value in state.items():
        if key.endswith(f"input_conditioner.{name}") and value.numel() == 3:
            first, second, third = value.double().flatten().tolist()
            return first, second, third
    return usual


def _foreign(name: str, got: str) -> CheckpointError:
    return CheckpointError(
        f"expected the tensors of a ViT for {name}, got {got}; give the authors' file of that model"
    )
