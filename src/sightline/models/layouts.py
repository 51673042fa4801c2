"""Weights of DINOv2 and DINOv3 as transformers and timm store them, under the official names.

Both libraries split or join matrices and leave out what never acts (the key part of DINOv3's bias,
its mask, the periods of its positions, the mask token); those are put back with the value that the
networks are built with, and named. Other weights pass unchanged.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from sightline.models.dinov3 import MODELS as DINOV3
from sightline.nn.rope import RopePositionEmbedding

State = dict[str, Tensor]
Rules = list[tuple[str, str]]


class Official(NamedTuple):
    """Weights under official names.

    Attributes:
        weights: The tensors.
        layout: ``official``, ``transformers`` or ``timm``.
        filled: What the file leaves out and was put back.
    """

    weights: State
    layout: str = "official"
    filled: tuple[str, ...] = ()


def to_official(weights: Mapping[str, Tensor]) -> Official:
    """Return weights under official names, whatever library wrote them.

    Works on the meta device too, where only names and shapes matter.
    """
    for mark, read in _LAYOUTS.items():
        prefix = next((n.removesuffix(mark) for n in weights if n.endswith(mark)), None)
        if prefix is not None and not prefix.startswith(("aggregator.", "vggt")):
            inside = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
            found = read(inside)
            if found is not None:
                return found
    return Official(dict(weights))


_BLOCK = r"^(?:encoder\.|model\.)?layers?\.(\d+)\."
_TRANSFORMERS: Rules = [
    (r"^embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^layernorm\.", "norm."),
    (_BLOCK + r"attention\.(?:attention\.)?(?:query|q_proj)\.", r"blocks.\1.attn.q."),
    (_BLOCK + r"attention\.(?:attention\.)?(?:key|k_proj)\.", r"blocks.\1.attn.k."),
    (_BLOCK + r"attention\.(?:attention\.)?(?:value|v_proj)\.", r"blocks.\1.attn.v."),
    (_BLOCK + r"attention\.(?:output\.dense|o_proj|out_proj)\.", r"blocks.\1.attn.proj."),
    (_BLOCK + r"layer_scale(\d)\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (_BLOCK, r"blocks.\1."),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
]
_CONVNEXT_TRANSFORMERS: Rules = [
    (r"^stages\.(\d+)\.downsample_layers\.", r"downsample_layers.\1."),
    (r"^stages\.(\d+)\.layers\.", r"stages.\1."),
    (r"\.depthwise_conv\.", ".dwconv."),
    (r"\.pointwise_conv(\d)\.", r".pwconv\1."),
    (r"\.layer_norm\.", ".norm."),
    (r"^layer_norm\.", "norm."),
]
_CONVNEXT_TIMM: Rules = [
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
    (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
    (r"\.conv_dw\.", ".dwconv."),
    (r"\.mlp\.fc(\d)\.", r".pwconv\1."),
    (r"^head\.norm\.", "norm."),
]
_TIMM_V3: Rules = [
    (r"^reg_token$", "storage_tokens"),
    (r"\.gamma_(\d)$", r".ls\1.gamma"),
    (r"\.attn\.([qkv])_bias$", r".attn.\1.bias"),
    (r"\.mlp\.fc1_g\.", ".mlp.w1."),
    (r"\.mlp\.fc1_x\.", ".mlp.w2."),
]


def _renamed(weights: State, rules: Rules) -> State:
    found = {}
    for name, tensor in weights.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        found[name] = tensor
    return found


def _transformers_vit(weights: State) -> Official:
    found = _renamed(weights, _TRANSFORMERS)
    third = "pos_embed" not in found
    if "register_tokens" in found and third:
        found["storage_tokens"] = found.pop("register_tokens")
    if "mask_token" in found:
        found["mask_token"] = found["mask_token"].flatten(0, -2)
    gated = any(".mlp.gate_proj." in name for name in found)
    rules = [
        (r"\.mlp\.gate_proj\.", ".mlp.w1."),
        (r"\.mlp\.up_proj\.", ".mlp.w2." if gated else ".mlp.fc1."),
        (r"\.mlp\.down_proj\.", ".mlp.w3." if gated else ".mlp.fc2."),
    ]
    found = _renamed(found, rules)
    _join_attention(found)
    filled = _fill_third(found) if third else []
    return Official(found, "transformers", (*filled, *_fill_mask_token(found)))


def _timm_v3(weights: State) -> Official | None:
    if "pos_embed" in weights:
        return None
    found = _renamed(weights, _TIMM_V3)
    if any(".mlp.w1." in name for name in found):
        found = _renamed(found, [(r"\.mlp\.fc2\.", ".mlp.w3.")])
    for name in [n for n in found if n.endswith(".attn.qkv.weight")]:
        home = name.removesuffix("qkv.weight")
        if f"{home}q.bias" in found:
            q, v = found.pop(f"{home}q.bias"), found.pop(f"{home}v.bias")
            k = found.pop(f"{home}k.bias", None)
            found[f"{home}qkv.bias"] = torch.cat((q, torch.zeros_like(q) if k is None else k, v))
    filled = _fill_third(found)
    return Official(found, "timm", (*filled, *_fill_mask_token(found)))


def _timm_v2(weights: State) -> Official | None:
    if "mask_token" in weights or "pos_embed" not in weights or "cls_token" not in weights:
        return None
    found = _renamed(weights, [(r"^reg_token$", "register_tokens")])
    table = found["pos_embed"]
    if "register_tokens" in found and round(table.shape[1] ** 0.5) ** 2 == table.shape[1]:
        # The class token has its position added already.
        found["pos_embed"] = torch.cat((torch.zeros_like(table[:, :1]), table), 1)
    wide = found.get("blocks.0.mlp.fc1.weight"), found.get("blocks.0.mlp.fc2.weight")
    if wide[0] is not None and wide[1] is not None and wide[0].shape[0] == 2 * wide[1].shape[1]:
        found = _renamed(found, [(r"\.mlp\.fc1\.", ".mlp.w12."), (r"\.mlp\.fc2\.", ".mlp.w3.")])
    return Official(found, "timm", tuple(_fill_mask_token(found)))


def _convnext(rules: Rules, layout: str) -> Callable[[State], Official | None]:
    def read(weights: State) -> Official | None:
        found = _renamed(weights, rules)
        for name in [n for n in found if n.startswith("norm.")]:
            found[f"norms.3.{name.removeprefix('norm.')}"] = found[name]
        return Official(found, layout)

    return read


_LAYOUTS: dict[str, Callable[[State], Official | None]] = {
    "embeddings.cls_token": _transformers_vit,
    "stages.0.downsample_layers.0.weight": _convnext(_CONVNEXT_TRANSFORMERS, "transformers"),
    "stages.0.blocks.0.conv_dw.weight": _convnext(_CONVNEXT_TIMM, "timm"),
    "blocks.0.gamma_1": _timm_v3,
    "blocks.0.ls1.gamma": _timm_v2,
}
"""A name that only one library uses -> what reads its files."""


def _join_attention(found: State) -> None:
    """Join queries, keys and values; a bias that keys lack is zero."""
    for name in [n for n in found if n.endswith(".attn.q.weight")]:
        home = name.removesuffix("q.weight")
        parts = [found.pop(f"{home}{part}.weight", None) for part in "qkv"]
        found[f"{home}qkv.weight"] = torch.cat([p for p in parts if p is not None])
        biases = [found.pop(f"{home}{part}.bias", None) for part in "qkv"]
        known = next((b for b in biases if b is not None), None)
        if known is not None:
            full = [torch.zeros_like(known) if b is None else b for b in biases]
            found[f"{home}qkv.bias"] = torch.cat(full)


def _fill_third(found: State) -> list[str]:
    """Put back what the libraries leave out of a DINOv3."""
    cls = found.get("cls_token")
    if cls is None:
        return []
    width, depth = cls.shape[-1], sum(n.endswith(".attn.qkv.weight") for n in found)
    sizes = [
        entry.options
        for entry in DINOV3.values()
        if (entry.options["embed_dim"], entry.options["depth"]) == (width, depth)
    ]
    options = sizes[0] if sizes else {}
    filled = []
    heads = options.get("num_heads") or max(width // 64, 1)
    if "rope_embed.periods" not in found and width % (4 * heads) == 0:
        rope = RopePositionEmbedding(width, num_heads=heads, dtype=torch.float32)
        found["rope_embed.periods"] = rope.periods.to(cls.device)
        filled.append("rope_embed.periods")
    for name in [n for n in found if n.endswith(".attn.qkv.weight")]:
        home = name.removesuffix("weight")
        weight = found[name]
        # timm drops the biases of the distilled sizes, which are zero.
        if f"{home}bias" not in found and sizes and options.get("qkv_bias", True):
            found[f"{home}bias"] = weight.new_zeros(3 * width)
            filled.append(f"{home}bias")
        if f"{home}bias" in found:
            mask = torch.ones(3, width, dtype=weight.dtype, device=weight.device)
            mask[1] = 0
            found[f"{home}bias_mask"] = mask.flatten()
            filled.append(f"{home}bias_mask")
    return filled


def _fill_mask_token(found: State) -> list[str]:
    """Put back a mask token, which nothing but masked training reads."""
    if "mask_token" in found or "cls_token" not in found:
        return []
    found["mask_token"] = torch.zeros_like(found["cls_token"]).flatten(0, -2)
    return ["mask_token"]
