from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from sightline.backbones import create_backbone
from sightline.backbones.remapped import from_dino, from_radio, sizes_of
from sightline.errors import CheckpointError
from sightline.models.dinov2 import DinoVisionTransformer
from tests.backbones import tiny

WIDTH, PATCH = 384, 16


def blocks(depth: int = 1) -> dict[str, Tensor]:
    """The tensors of plain ViT blocks as timm, DINO and iBOT call them."""
    shapes = {
        "norm1.weight": (WIDTH,),
        "norm1.bias": (WIDTH,),
        "attn.qkv.weight": (3 * WIDTH, WIDTH),
        "attn.qkv.bias": (3 * WIDTH,),
        "attn.proj.weight": (WIDTH, WIDTH),
        "attn.proj.bias": (WIDTH,),
        "norm2.weight": (WIDTH,),
        "norm2.bias": (WIDTH,),
        "mlp.fc1.weight": (2 * WIDTH, WIDTH),
        "mlp.fc1.bias": (2 * WIDTH,),
        "mlp.fc2.weight": (WIDTH, 2 * WIDTH),
        "mlp.fc2.bias": (WIDTH,),
    }
    state = {
        f"blocks.{i}.{n}": torch.randn(s) * 0.1 for i in range(depth) for n, s in shapes.items()
    }
    return state | {"norm.weight": torch.rand(WIDTH), "norm.bias": torch.rand(WIDTH)}


def dino(side: int = 2) -> dict[str, Tensor]:
    return blocks() | {
        "cls_token": torch.randn(1, 1, WIDTH),
        "pos_embed": torch.randn(1, 1 + side * side, WIDTH),
        "patch_embed.proj.weight": torch.randn(WIDTH, 3, PATCH, PATCH) * 0.1,
        "patch_embed.proj.bias": torch.randn(WIDTH),
    }


def radio(side: int = 4, special: int = 3) -> dict[str, Tensor]:
    generator = "patch_generator"
    return blocks() | {
        f"{generator}.pos_embed": torch.randn(1, side * side, WIDTH),
        f"{generator}.cls_token.token": torch.randn(special, WIDTH),
        f"{generator}.embedder.weight": torch.randn(WIDTH, 3 * PATCH * PATCH) * 0.1,
    }


def run_blocks(tokens: Tensor, state: dict[str, Tensor], heads: int = 6) -> Tensor:
    """A plain pre-norm ViT written out, as the independent reference."""

    def norm(x: Tensor, name: str) -> Tensor:
        shift = state[f"{name}.bias"]
        return functional.layer_norm(x, (WIDTH,), state[f"{name}.weight"], shift, 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    qkv = linear(norm(tokens, "blocks.0.norm1"), "blocks.0.attn.qkv")
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
    mixed = (q @ k.mT * (WIDTH // heads) ** -0.5).softmax(-1) @ v
    tokens = tokens + linear(mixed.transpose(1, 2).flatten(2), "blocks.0.attn.proj")
    hidden = functional.gelu(linear(norm(tokens, "blocks.0.norm2"), "blocks.0.mlp.fc1"))
    tokens = tokens + linear(hidden, "blocks.0.mlp.fc2")
    return norm(tokens, "norm")


def normalised(images: Tensor, backbone: Any) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))
    return (images - mean) / std


@pytest.mark.parametrize("name", ["dino_vits16", "ibot_vits16"])
def test_dino_and_ibot_files(tmp_path: Path, name: str) -> None:
    state = dino()
    file = tmp_path / "weights.pth"
    extra = {"masked_embed": torch.randn(1, WIDTH)} if name.startswith("ibot") else {}
    student = {f"module.backbone.{n}": torch.zeros_like(t) for n, t in state.items()}
    teacher = {f"backbone.{n}": t for n, t in (state | extra).items()}
    heads = {"head.mlp.0.weight": torch.rand(2, 2)}
    torch.save({"student": student, "teacher": teacher | heads, "epoch": 3}, file)
    backbone: Any = create_backbone(name, file, device="cpu")
    images = torch.rand(2, 3, 32, 32)
    (features,) = backbone.extract(images, layers=[-1])
    x = functional.conv2d(
        normalised(images, backbone),
        state["patch_embed.proj.weight"],
        state["patch_embed.proj.bias"],
        stride=PATCH,
    )
    tokens = torch.cat((state["cls_token"].expand(2, -1, -1), x.flatten(2).mT), 1)
    want = run_blocks(tokens + state["pos_embed"], state)
    torch.testing.assert_close(features.patches.flatten(2).mT, want[:, 1:], atol=1e-4, rtol=1e-4)
    assert features.cls is not None
    torch.testing.assert_close(features.cls, want[:, 0], atol=1e-4, rtol=1e-4)
    assert features.registers is None


@pytest.mark.parametrize("size", [(64, 64), (32, 48), (80, 16)])
def test_radio_files(tmp_path: Path, size: tuple[int, int]) -> None:
    state = radio()
    file = tmp_path / "model.safetensors"
    norms = {
        "norm_mean": torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1),
        "norm_std": torch.full((3, 1, 1), 0.5),
    }
    outer = {f"radio_model.input_conditioner.{n}": t for n, t in norms.items()}
    save_file({f"radio_model.model.{n}": t for n, t in state.items()} | outer, file)
    backbone: Any = create_backbone("radio", file, device="cpu")
    assert backbone.mean == pytest.approx((0.1, 0.2, 0.3))
    assert backbone.std == (0.5, 0.5, 0.5)
    images = torch.rand(1, 3, *size)
    (features,) = backbone.extract(images, layers=[-1])
    x = functional.unfold(normalised(images, backbone), PATCH, stride=PATCH).mT
    tokens = x @ state["patch_generator.embedder.weight"].mT
    rows, cols = size[0] // PATCH, size[1] // PATCH
    table = state["patch_generator.pos_embed"].mT.unflatten(2, (4, 4))
    if (rows, cols) != (4, 4):
        longer = max(rows, cols)
        table = functional.interpolate(
            table, (longer, longer), mode="bilinear", align_corners=True
        )[..., :rows, :cols]
    tokens = tokens + table.flatten(2).mT
    special = state["patch_generator.cls_token.token"].unsqueeze(0)
    want = run_blocks(torch.cat((special, tokens), 1), state)
    torch.testing.assert_close(features.patches.flatten(2).mT, want[:, 3:], atol=1e-4, rtol=1e-4)
    assert features.cls is not None
    torch.testing.assert_close(features.cls, want[:, 0], atol=1e-4, rtol=1e-4)
    assert features.registers is not None
    torch.testing.assert_close(features.registers, want[:, 1:3], atol=1e-4, rtol=1e-4)


def test_radio_without_a_final_norm(tmp_path: Path) -> None:
    state = {n: t for n, t in radio().items() if not n.startswith("norm.")}
    file = tmp_path / "old.pth"
    torch.save({"state_dict": {f"base_model.{n}": t for n, t in state.items()}}, file)
    backbone: Any = create_backbone("radio", file, device="cpu")
    assert isinstance(backbone.network.norm, nn.Identity)
    assert backbone.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))


def test_sizes_are_read_from_the_tensors() -> None:
    assert sizes_of(from_dino(dino(side=3))) == {
        "embed_dim": WIDTH,
        "depth": 1,
        "patch_size": PATCH,
        "img_size": 3 * PATCH,
        "num_register_tokens": 0,
        "init_values": None,
        "mlp_ratio": 2.0,
    }
    assert sizes_of(from_radio(radio(special=5)))["num_register_tokens"] == 4


def test_foreign_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"a.weight": torch.rand(2)}, file)
    for name in ("radio", "dino_vitb16"):
        with pytest.raises(CheckpointError, match=f"tensors of a ViT for {name}, got no"):
            create_backbone(name, file, device="cpu")
    state = radio()
    state["patch_generator.embedder.weight"] = torch.rand(WIDTH, 7)
    with pytest.raises(CheckpointError, match="a patch projection of 7 numbers"):
        from_radio(state)
    for wrong, text in (
        ({"cls_token": None}, "got no cls_token"),
        ({"blocks.0.mlp.fc1.weight": None}, "got no patch projection"),
        ({"pos_embed": torch.rand(2, 2)}, "got no patch projection"),
        ({"blocks.7.norm1.weight": torch.rand(2)}, "blocks with gaps"),
        ({"pos_embed": torch.rand(1, 5, 100)}, "a width of 100"),
    ):
        changed = {n: t for n, t in (dino() | wrong).items() if t is not None}
        save_file(changed, file)
        with pytest.raises(CheckpointError, match=text):
            create_backbone("dino_vits16", file, device="cpu")
    missing = {n: t for n, t in dino().items() if n != "blocks.0.mlp.fc2.bias"}
    save_file(missing, file)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.mlp\.fc2\.bias"):
        create_backbone("dino_vits16", file, device="cpu")


def test_our_own_state_passes_unchanged() -> None:
    network = tiny.lively(DinoVisionTransformer(28, 14, 3, 384, 1, 6))
    state = network.state_dict()
    renamed = from_dino(state)
    assert renamed.keys() == state.keys()
    assert all(torch.equal(renamed[n], state[n]) for n in state)
