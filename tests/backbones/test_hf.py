"""Models of transformers made from tiny configurations; the rest of the suite needs none of it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.backbones import create_backbone, networks
from sightline.backbones.grid import pixel_positions
from sightline.backbones.hf import normalisation
from sightline.errors import CheckpointError, FileFormatError, InputError, MissingExtraError
from sightline.models.dinov2 import DinoVisionTransformer
from tests.backbones import tiny

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 8,
    "image_size": 32,
}
ANY_SIZE = {
    "ViT": {},
    "DeiT": {},
    "Dinov2": {},
    "Dinov2WithRegisters": {"num_register_tokens": 2},
    "DINOv3ViT": {"num_register_tokens": 2},
    "ViTMAE": {},
    "DPT": {"backbone_out_indices": [0, 0, 1, 1]},
    "CLIPVision": {},
    "SiglipVision": {},
    "IJepa": {},
}
SPECIAL = {"SiglipVision": 0, "IJepa": 0, "DeiT": 2, "Dinov2WithRegisters": 3, "DINOv3ViT": 3}


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="needs the extra hf: transformers")


def save(transformers: Any, folder: Path, kind: str, **options: Any) -> Any:
    config = getattr(transformers, f"{kind}Config")(**options)
    model: Any = tiny.lively(getattr(transformers, f"{kind}Model")(config))
    model.save_pretrained(folder)
    return model


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        MissingExtraError, match=r'transformers package: pip install "sightline\[hf'
    ):
        create_backbone("hf:some/model", device="cpu")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtraError, match="stable_diffusion needs the diffusers package"):
        create_backbone("stable_diffusion", device="cpu")


@pytest.mark.parametrize("kind", ANY_SIZE)
def test_vits_of_any_size(transformers: Any, tmp_path: Path, kind: str) -> None:
    model = save(transformers, tmp_path, kind, **SMALL, **ANY_SIZE[kind])
    backbone = create_backbone(f"hf:{tmp_path}", device="cpu")
    assert (backbone.patch_size, backbone.embed_dim) == (8, 32)
    images = torch.rand(2, 3, 24, 48)
    first, last = backbone.extract(images, layers=[0, -1])
    assert last.patches.shape == (2, 32, 3, 6)
    assert last.normed
    special = SPECIAL.get(kind, 1)
    assert (last.cls is None) == (special == 0)
    assert (0 if last.registers is None else last.registers.shape[1]) == max(special - 1, 0)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))
    inputs: dict[str, Any] = {"pixel_values": (images - mean) / std}
    if "interpolate_pos_encoding" in model.forward.__code__.co_varnames or kind not in (
        "Dinov2",
        "Dinov2WithRegisters",
        "DINOv3ViT",
        "DPT",
    ):
        inputs["interpolate_pos_encoding"] = True
    if kind == "ViTMAE":
        model.config.mask_ratio = 0.0
        inputs["noise"] = torch.arange(18.0).expand(2, -1)
    with torch.no_grad():
        want = model(**inputs).last_hidden_state
        if kind == "CLIPVision":
            want = getattr(model, "vision_model", model).post_layernorm(want)
    torch.testing.assert_close(last.patches.flatten(2).mT, want[:, special:], atol=1e-4, rtol=1e-4)
    if last.cls is not None:
        torch.testing.assert_close(last.cls, want[:, 0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(first.patches, last.patches, atol=1e-6)


def test_whole_models_give_their_vision_part(transformers: Any, tmp_path: Path) -> None:
    text = {k: v for k, v in SMALL.items() if k not in ("patch_size", "image_size")} | {
        "vocab_size": 50,
        "max_position_embeddings": 8,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    for kind in ("CLIP", "Siglip"):
        folder = tmp_path / kind
        model = save(transformers, folder, kind, vision_config=SMALL, text_config=text)
        backbone = create_backbone(f"hf:{folder}", device="cpu", norm=False)
        (features,) = backbone.extract(torch.rand(1, 3, 32, 32), layers=[0])
        assert features.patches.shape == (1, 32, 4, 4)
        assert not features.normed
        weights: Any = backbone
        own = {n.split("vision_model.")[-1]: t for n, t in model.vision_model.state_dict().items()}
        read = weights.network.state_dict()
        read = {n.split("vision_model.")[-1]: t for n, t in read.items()}
        assert all(torch.equal(read[name], own[name]) for name in own)


def test_siglip2_takes_patches(transformers: Any, tmp_path: Path) -> None:
    options = {k: v for k, v in SMALL.items() if k != "image_size"} | {"num_patches": 16}
    model = save(transformers, tmp_path, "Siglip2Vision", **options)
    backbone = create_backbone(f"hf:{tmp_path}", device="cpu")
    images = torch.rand(2, 3, 24, 40)
    (features,) = backbone.extract(images, layers=[-1])
    assert features.patches.shape == (2, 32, 3, 5)
    pixels = (images * 2 - 1).permute(0, 2, 3, 1)
    patches = pixels.reshape(2, 3, 8, 5, 8, 3).permute(0, 1, 3, 2, 4, 5).reshape(2, 15, -1)
    with torch.no_grad():
        want = model(
            patches, torch.ones(2, 15, dtype=torch.long), torch.tensor([[3, 5]] * 2)
        ).last_hidden_state
    torch.testing.assert_close(features.patches.flatten(2).mT, want, atol=1e-4, rtol=1e-4)


def test_sam_is_read_before_its_neck(transformers: Any, tmp_path: Path) -> None:
    options = {"output_channels": 16, "global_attn_indexes": [1], "mlp_dim": 64}
    save(transformers, tmp_path, "SamVision", **SMALL, **options)
    backbone = create_backbone(f"hf:{tmp_path}", device="cpu")
    (features,) = backbone.extract(torch.rand(1, 3, 20, 40), layers=[-1])
    assert features.patches.shape == (1, 32, 4, 4)
    assert not features.normed
    # The long side of 40 is scaled to 32, and the lower half of the square is padding.
    positions = pixel_positions(features, (20, 40), backbone)
    assert positions[0, 0].tolist() == [5.0, 5.0]
    assert positions[2, 0, 1] > 20


def test_sam_takes_any_size_with_resized_positions(transformers: Any, tmp_path: Path) -> None:
    options = {"output_channels": 16, "global_attn_indexes": [1], "mlp_dim": 64}
    save(transformers, tmp_path, "SamVision", **SMALL, **options)
    fixed, free = (
        create_backbone(f"hf:{tmp_path}", device="cpu", **more) for more in ({}, {"fit": "pad"})
    )
    square = torch.rand(1, 3, 32, 32)
    for layer in (0, -1):  # at the size of the table nothing changes
        (want,), (found,) = (b.extract(square, layers=[layer]) for b in (fixed, free))
        torch.testing.assert_close(found.patches, want.patches, rtol=1e-5, atol=1e-5)
    (wide,) = free.extract(torch.rand(2, 3, 24, 40), layers=[-1])
    assert wide.patches.shape == (2, 32, 3, 5)


def test_clip_sends_every_token_through_its_projection(transformers: Any, tmp_path: Path) -> None:
    config = transformers.CLIPVisionConfig(**SMALL, projection_dim=12)
    torch.manual_seed(0)
    model = transformers.CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(tmp_path)
    backbone = create_backbone(f"hf:{tmp_path}", device="cpu", project=True)
    assert backbone.embed_dim == 12
    images = torch.rand(1, 3, 32, 32)
    (features,) = backbone.extract(images, layers=[-1])
    plain = create_backbone(f"hf:{tmp_path}", device="cpu").extract(images, layers=[-1])[0]
    tokens = plain.patches.flatten(2).mT  # after the final norm
    want = tokens @ model.visual_projection.weight.T
    torch.testing.assert_close(features.patches.flatten(2).mT, want, rtol=1e-4, atol=1e-4)
    # The class token's is what the model itself calls the picture's embedding.
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))
    with torch.no_grad():
        embedding = model(pixel_values=(images - mean) / std).image_embeds
    torch.testing.assert_close(features.cls, embedding, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="has no projection"):
        create_backbone("random:dinov2_vits14", device="cpu", project=True)


def to_transformers(state: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """Rename our DINOv2's tensors as a Dinov2Model has them, in any release of transformers."""
    renamed: dict[str, Tensor] = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.mask_token": state["mask_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    newer = any("attention.q_proj" in name for name in names)
    inner = "attention" if newer else "attention.attention"
    parts = ("q_proj", "k_proj", "v_proj") if newer else ("query", "key", "value")
    output = "attention.o_proj" if newer else "attention.output.dense"
    for index in range(1 + max(int(n.split(".")[1]) for n in state if n.startswith("blocks."))):
        ours, theirs = f"blocks.{index}.", f"encoder.layer.{index}."
        for kind in ("weight", "bias"):
            thirds = state[f"{ours}attn.qkv.{kind}"].chunk(3)
            renamed |= {
                f"{theirs}{inner}.{p}.{kind}": t for p, t in zip(parts, thirds, strict=True)
            }
            renamed[f"{theirs}{output}.{kind}"] = state[f"{ours}attn.proj.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                renamed[f"{theirs}{name}.{kind}"] = state[f"{ours}{name}.{kind}"]
        for number in (1, 2):
            renamed[f"{theirs}layer_scale{number}.lambda1"] = state[f"{ours}ls{number}.gamma"]
    return renamed


def test_dinov2_of_transformers_equals_ours_at_its_native_size(
    transformers: Any, tmp_path: Path
) -> None:
    ours = tiny.lively(DinoVisionTransformer(56, 14, 3, 32, 2, 2, init_values=1.0))
    sizes = {k: v for k, v in SMALL.items() if k != "intermediate_size"}
    config = transformers.Dinov2Config(**{**sizes, "image_size": 56, "patch_size": 14})
    theirs = transformers.Dinov2Model(config)
    theirs.load_state_dict(to_transformers(ours.state_dict(), set(theirs.state_dict())))
    theirs.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 56, 56)
    backbone = create_backbone(f"hf:{tmp_path}", device="cpu")
    pairs = zip(
        backbone.extract(images, layers=[0, 1]),
        networks.vit(ours, networks.read_dinov2).extract(images, layers=[0, 1]),
        strict=True,
    )
    for one, two in pairs:
        torch.testing.assert_close(one.patches, two.patches, atol=2e-5, rtol=1e-4)
        assert one.cls is not None
        assert two.cls is not None
        torch.testing.assert_close(one.cls, two.cls, atol=2e-5, rtol=1e-4)


def test_random_weights_need_only_the_description(transformers: Any, tmp_path: Path) -> None:
    transformers.ViTConfig(**SMALL).save_pretrained(tmp_path)
    images = torch.rand(1, 3, 32, 32)
    one, two, three = (
        create_backbone(f"random:hf:{tmp_path}", device="cpu", seed=s).extract(images, layers=[1])[
            0
        ]
        for s in (0, 0, 1)
    )
    assert torch.equal(one.patches, two.patches)
    assert not torch.allclose(one.patches, three.patches)
    with pytest.raises(CheckpointError, match="not a folder that transformers can read"):
        create_backbone(f"hf:{tmp_path}", device="cpu")


def test_what_is_not_there_is_not_downloaded(transformers: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match='"hf download nobody/nothing", or give its folder'):
        create_backbone("hf:nobody/nothing", device="cpu")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="expected a folder with config.json"):
        create_backbone("hf:x", tmp_path / "model.safetensors", device="cpu")


def test_missing_weights_are_an_error(transformers: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save(transformers, tmp_path, "ViT", **SMALL)
    file = tmp_path / "model.safetensors"
    state = {n: t for n, t in load_file(file).items() if ".1." not in n}
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks .* tensors of ViTModel"):
        create_backbone(f"hf:{tmp_path}", device="cpu")


def test_models_unlike_vits_are_refused(transformers: Any, tmp_path: Path) -> None:
    transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]).save_pretrained(
        tmp_path
    )
    with pytest.raises(InputError, match="expected a model like a ViT"):
        create_backbone(f"random:hf:{tmp_path}", device="cpu")


def test_descriptions_of_strangers_give_one_sentence(transformers: Any, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('this ran')")
    whole = {"model_type": "vit", **SMALL}
    for content in (
        "[]",
        "{",
        json.dumps({**whole, "hidden_size": "a"}),
        json.dumps({**whole, "patch_size": 0}),
        json.dumps({**whole, "patch_size": -8}),
        json.dumps({**whole, "hidden_size": 10**9}),
        json.dumps({**whole, "num_hidden_layers": 0}),
        json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}),
    ):
        (tmp_path / "config.json").write_text(content)
        for prefix in ("", "random:"):
            with pytest.raises(InputError):
                create_backbone(f"{prefix}hf:{tmp_path}", device="cpu")


def test_normalisation_is_read_from_the_folder(tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    assert normalisation(str(tmp_path), "dpt") == ((0.5,) * 3, (0.5,) * 3)
    file.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}))
    assert normalisation(str(tmp_path), "dpt") == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    file.write_text(json.dumps({"do_normalize": False}))
    assert normalisation(str(tmp_path), "dpt") == ((0.0,) * 3, (1.0,) * 3)
    for wrong in ('{"image_mean": [1], "image_std": [1]}', '{"image_mean": 1, "image_std": "a"}'):
        file.write_text(wrong)
        with pytest.raises(FileFormatError, match="does not give three numbers"):
            normalisation(str(tmp_path), "dpt")
    file.write_text(json.dumps({"image_processor": {"image_mean": [1] * 3, "image_std": [2] * 3}}))
    assert normalisation(str(tmp_path), "dpt") == ((1.0,) * 3, (2.0,) * 3)
    file.write_text("[]")
    with pytest.raises(FileFormatError, match="not a JSON table"):
        normalisation(str(tmp_path), "dpt")
    file.write_text("{")
    with pytest.raises(FileFormatError, match="not readable JSON"):
        normalisation(str(tmp_path), "dpt")
