"""transformers' and timm's names of DINOv2 and DINOv3 come back as the official tensors."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sightline import models
from sightline.checkpoints import save_weights
from sightline.models.layouts import to_official
from sightline.models.recognize import recognize

State = dict[str, Tensor]


def official(name: str) -> State:
    """Return random weights of a published network, with the key bias at zero."""
    generator = torch.Generator().manual_seed(0)
    model = models.load(name, False, device="meta")
    state = {}
    for key, tensor in model.state_dict().items():
        state[key] = torch.rand(tensor.shape, generator=generator)
    width = 384
    for key in [k for k in state if k.endswith("bias_mask")]:
        mask = torch.ones(3, width)
        mask[1] = 0
        state[key] = mask.flatten()
        state[key.replace("bias_mask", "bias")] *= state[key]
    if "rope_embed.periods" in state:
        state["rope_embed.periods"] = 100.0 ** (torch.arange(16) / 16)
    return state


def renamed(state: State, rules: list[tuple[str, str]]) -> State:
    found = {}
    for name, tensor in state.items():
        for old, new in rules:
            name = re.sub(old, new, name)
        found[name] = tensor
    return found


def split_attention(state: State, names: tuple[str, str, str], key_bias: bool) -> State:
    found = dict(state)
    for name in [n for n in state if ".qkv." in n and not n.endswith("mask")]:
        parts = found.pop(name).chunk(3)
        for part, tensor in zip(names, parts, strict=True):
            if not name.endswith("bias") or key_bias or part != names[1]:
                found[name.replace("qkv", part)] = tensor
    return {n: t for n, t in found.items() if not n.endswith("bias_mask")}


def transformers_v3(state: State) -> State:
    """Write DINOv3's names of transformers 4.56 and later."""
    found = split_attention(state, ("q_proj", "k_proj", "v_proj"), key_bias=False)
    found["mask_token"] = found["mask_token"].unsqueeze(0)
    del found["rope_embed.periods"]
    gated = "blocks.0.mlp.w1.weight" in found
    return renamed(
        found,
        [
            (r"^(cls|mask)_token$", r"embeddings.\1_token"),
            (r"^storage_tokens$", "embeddings.register_tokens"),
            (r"^patch_embed\.proj\.", "embeddings.patch_embeddings."),
            (r"\.attn\.proj\.", ".attention.o_proj."),
            (r"\.attn\.", ".attention."),
            (r"\.ls(\d)\.gamma", r".layer_scale\1.lambda1"),
            (r"\.mlp\.w1\.", ".mlp.gate_proj."),
            (r"\.mlp\.w2\.", ".mlp.up_proj."),
            (r"\.mlp\.w3\.", ".mlp.down_proj."),
            (r"\.mlp\.fc1\.", ".mlp.up_proj." if not gated else ""),
            (r"\.mlp\.fc2\.", ".mlp.down_proj." if not gated else ""),
            (r"^blocks\.", "layer."),
        ],
    )


def transformers_v3_new(state: State) -> State:
    """Write the names of transformers 5, which puts the blocks below ``model``."""
    return renamed(transformers_v3(state), [(r"^layer\.", "model.layer.")])


def transformers_v2(state: State) -> State:
    """Write DINOv2's names on the hub."""
    found = split_attention(state, ("query", "key", "value"), key_bias=True)
    return renamed(
        found,
        [
            (r"^(cls|mask)_token$", r"embeddings.\1_token"),
            (r"^register_tokens$", "embeddings.register_tokens"),
            (r"^pos_embed$", "embeddings.position_embeddings"),
            (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
            (r"\.attn\.proj\.", ".attention.output.dense."),
            (r"\.attn\.", ".attention.attention."),
            (r"\.ls(\d)\.gamma", r".layer_scale\1.lambda1"),
            (r"^blocks\.", "encoder.layer."),
            (r"^norm\.", "layernorm."),
        ],
    )


def timm_v3(state: State) -> State:
    """Write timm's names of DINOv3, with the biases of queries and values apart."""
    found = {n: t for n, t in state.items() if not n.endswith("bias_mask")}
    for name in [n for n in found if n.endswith("qkv.bias")]:
        q, _, v = found.pop(name).chunk(3)
        found[name.replace("qkv.bias", "q_bias")] = q
        found[name.replace("qkv.bias", "v_bias")] = v
    del found["mask_token"], found["rope_embed.periods"]
    gated = "blocks.0.mlp.w1.weight" in found
    return renamed(
        found,
        [
            (r"^storage_tokens$", "reg_token"),
            (r"\.ls(\d)\.gamma", r".gamma_\1"),
            (r"\.mlp\.w1\.", ".mlp.fc1_g."),
            (r"\.mlp\.w2\.", ".mlp.fc1_x."),
            (r"\.mlp\.w3\.", ".mlp.fc2." if gated else ""),
        ],
    )


def timm_v2(state: State) -> State:
    """Write timm's names of DINOv2; with registers the class token takes its position in."""
    found = {n: t for n, t in state.items() if n != "mask_token"}
    if "register_tokens" in found:
        found["reg_token"] = found.pop("register_tokens")
        found["cls_token"] = found["cls_token"] + found["pos_embed"][:, :1]
        found["pos_embed"] = found["pos_embed"][:, 1:]
    return found


def transformers_convnext(state: State) -> State:
    found = {n: t for n, t in state.items() if not n.startswith("norms.")}
    return renamed(
        found,
        [
            (r"^norm\.", "layer_norm."),
            (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.layers.\2."),
            (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample_layers."),
            (r"\.dwconv\.", ".depthwise_conv."),
            (r"(layers\.\d+)\.norm\.", r"\1.layer_norm."),
            (r"\.pwconv(\d)\.", r".pointwise_conv\1."),
        ],
    )


def timm_convnext(state: State) -> State:
    found = {n: t for n, t in state.items() if not n.startswith("norms.")}
    return renamed(
        found,
        [
            (r"^norm\.", "head.norm."),
            (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"^downsample_layers\.0\.", "stem."),
            (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
            (r"\.dwconv\.", ".conv_dw."),
            (r"\.pwconv(\d)\.", r".mlp.fc\1."),
        ],
    )


@pytest.mark.parametrize(
    ("name", "write", "layout"),
    [
        ("dinov3_vits16", transformers_v3, "transformers"),
        ("dinov3_vits16plus", transformers_v3_new, "transformers"),
        ("dinov3_vits16", timm_v3, "timm"),
        ("dinov3_vits16plus", timm_v3, "timm"),
        ("dinov2_vits14", transformers_v2, "transformers"),
        ("dinov2_vits14_reg", transformers_v2, "transformers"),
        ("dinov2_vits14", timm_v2, "timm"),
        ("dinov2_vits14_reg", timm_v2, "timm"),
        ("dinov3_convnext_tiny", transformers_convnext, "transformers"),
        ("dinov3_convnext_tiny", timm_convnext, "timm"),
    ],
)
def test_names_of_other_libraries(name: str, write: Callable[[State], State], layout: str) -> None:
    state = official(name)
    found = to_official(write(state))
    assert found.layout == layout
    if "norms.3.weight" in state:  # one tensor under two names
        state |= {f"norms.3.{part}": state[f"norm.{part}"] for part in ("weight", "bias")}
    assert found.weights.keys() == state.keys()
    for key, tensor in state.items():
        if key == "mask_token" and key in found.filled:
            assert not found.weights[key].any()
        elif write is timm_v2 and "reg" in name and key in {"cls_token", "pos_embed"}:
            continue  # only their sum is kept
        else:
            torch.testing.assert_close(found.weights[key], tensor, rtol=1e-6, atol=0)
    if write is timm_v2:
        total = found.weights["cls_token"] + found.weights["pos_embed"][:, :1]
        assert torch.equal(total, state["cls_token"] + state["pos_embed"][:, :1])
    known = recognize(write(state))
    assert known is not None
    assert known.names == (name,)
    assert known.layout == layout


def test_the_builder_takes_them(tmp_path) -> None:
    from safetensors.torch import save_file

    state = official("dinov3_vits16")
    save_file({k: v.clone() for k, v in transformers_v3(state).items()}, tmp_path / "m.safetensors")
    model = models.load("dinov3_vits16", tmp_path / "m.safetensors")
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, state[key], rtol=1e-6, atol=0)
    save_weights(model, tmp_path / "back.pth")
    assert recognize(models.load("dinov3_vits16", tmp_path / "back.pth").state_dict())


def test_official_weights_pass_unchanged() -> None:
    state = official("dinov2_vits14")
    found = to_official(state)
    assert (found.layout, found.filled) == ("official", ())
    assert all(found.weights[name] is tensor for name, tensor in state.items())
