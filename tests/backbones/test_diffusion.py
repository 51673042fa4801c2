"""Tiny pipelines in the layout of diffusers; they are made and read without any network."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sightline.backbones import create_backbone
from sightline.backbones.grid import pixel_positions
from sightline.errors import CheckpointError, FileFormatError, InputError
from tests.backbones import tiny

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(scope="module")
def diffusers() -> Any:
    pytest.importorskip("transformers", reason="needs the extra hf: transformers")
    return pytest.importorskip("diffusers", reason="needs the extra hf: diffusers")


def save_latent(diffusers: Any, folder: Path, *, channels: int = 4, context: int = 8) -> None:
    """An autoencoder of stride 8 and a U-Net of four levels."""
    vae = diffusers.AutoencoderKL(
        block_out_channels=[8] * 4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        norm_num_groups=4,
    )
    unet = diffusers.UNet2DConditionModel(
        in_channels=channels,
        block_out_channels=(8, 8, 16, 16),
        down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        layers_per_block=1,
        cross_attention_dim=context,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    tiny.lively(vae).save_pretrained(folder / "vae")  # type: ignore[operator]
    tiny.lively(unet).save_pretrained(folder / "unet")  # type: ignore[operator]
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(BETAS))


@pytest.fixture(scope="module")
def prompted(diffusers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers: Any = pytest.importorskip("transformers")

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sd")
    save_latent(diffusers, folder)
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(words))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = transformers.CLIPTextConfig(
        vocab_size=3,
        num_attention_heads=2,
        max_position_embeddings=6,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **sizes,
    )
    tiny.lively(transformers.CLIPTextModel(config)).save_pretrained(  # type: ignore[operator]
        folder / "text_encoder"
    )
    return folder


def test_stable_diffusion(diffusers: Any, prompted: Path) -> None:
    backbone: Any = create_backbone("dift", prompted, device="cpu")
    assert (backbone.patch_size, backbone.embed_dim, backbone.depth, backbone.step) == (
        16,
        16,
        2,
        64,
    )
    images = torch.rand(3, 3, 64, 120)
    coarse, fine = backbone.extract(images, layers=[0, -1])
    assert coarse.patches.shape == (3, 16, 2, 4)
    assert fine.patches.shape == (3, 16, 4, 8)
    assert pixel_positions(fine, (64, 120), backbone)[0, 0].tolist() == [7.5, 8.0]
    # The whole network, by diffusers' own scheduler, gives the same at the same block.
    vae = diffusers.AutoencoderKL.from_pretrained(prompted / "vae")
    unet = diffusers.UNet2DConditionModel.from_pretrained(prompted / "unet")
    scheduler = diffusers.DDIMScheduler(**BETAS)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        latents = vae.encode(x * 2 - 1).latent_dist.mode() * vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        noisy = scheduler.add_noise(latents, noise, torch.tensor([1]))
        kept: list[torch.Tensor] = []
        unet.up_blocks[1].register_forward_hook(lambda _m, _i, output: kept.append(output))
        unet(noisy, 1, encoder_hidden_states=backbone.network.prompt)
    (features,) = backbone.extract(x, layers=[1])
    torch.testing.assert_close(features.patches, kept[0], atol=1e-4, rtol=1e-4)
    # The noise is one drawing, so a view is the same alone and among others.
    (alone,) = backbone.extract(images[1:2], layers=[1])
    torch.testing.assert_close(alone.patches[0], fine.patches[1], atol=1e-4, rtol=1e-4)
    other: Any = create_backbone("dift", prompted, device="cpu", seed=1)
    assert not torch.equal(other.extract(x, layers=[1])[0].patches, features.patches)


def test_prompt_is_the_empty_one(prompted: Path) -> None:
    backbone: Any = create_backbone("stable_diffusion", prompted, device="cpu")
    assert backbone.network.prompt.shape == (1, 6, 8)


def test_zero123(diffusers: Any, tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")

    save_latent(diffusers, tmp_path, channels=8)
    config = transformers.CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        patch_size=8,
        image_size=16,
        projection_dim=8,
    )
    encoder = tiny.lively(transformers.CLIPVisionModelWithProjection(config))
    encoder.save_pretrained(tmp_path / "image_encoder")  # type: ignore[operator]
    with pytest.raises(CheckpointError, match="no usable cc_projection"):
        create_backbone("zero123", tmp_path, device="cpu")
    weight, bias = torch.randn(8, 12), torch.randn(8)
    (tmp_path / "cc_projection").mkdir()
    file = tmp_path / "cc_projection" / "diffusion_pytorch_model.safetensors"
    save_file({"projection.weight": weight, "projection.bias": bias}, file)
    backbone: Any = create_backbone("zero123", tmp_path, device="cpu")
    (features,) = backbone.extract(torch.rand(1, 3, 30, 40), layers=[-1])
    assert features.patches.shape == (1, 16, 32, 32)
    images, latents = torch.rand(1, 3, 64, 64) * 2 - 1, torch.rand(1, 4, 8, 8)
    with torch.no_grad():
        sample, context = backbone.network.condition(images, latents, 2 * latents)
    assert torch.equal(sample, torch.cat((2 * latents, latents), 1))
    # Without the picture's part, what is left of the projection is the cosine of no turn.
    encoded = context[0, 0] - weight[:, 10] - bias
    torch.testing.assert_close(
        encoded, encoded_of(encoder, images) @ weight[:, :8].T, atol=1e-4, rtol=1e-4
    )
    with pytest.raises(InputError, match="Zero123 takes pictures of 512x512 pixels only"):
        create_backbone("zero123", tmp_path, device="cpu", fit="stretch")


def encoded_of(encoder: Any, images: torch.Tensor) -> torch.Tensor:
    small = torch.nn.functional.interpolate(images, (16, 16), mode="bicubic", antialias=True)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    with torch.no_grad():
        return encoder(((small.clamp(-1, 1) + 1) / 2 - mean) / std).image_embeds[0]


def test_what_is_not_there(diffusers: Any, prompted: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no usable text_encoder"):
        create_backbone("stable_diffusion", tmp_path, device="cpu")
    save_latent(diffusers, tmp_path / "cosine")
    for part in ("tokenizer", "text_encoder"):
        shutil.copytree(prompted / part, tmp_path / "cosine" / part)
    file = tmp_path / "cosine" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**BETAS, "beta_schedule": "squaredcos_cap_v2"}))
    with pytest.raises(FileFormatError, match="linear or scaled_linear schedule"):
        create_backbone("stable_diffusion", file.parents[1], device="cpu")
    drawn: Any = create_backbone("random:stable_diffusion", prompted, device="cpu")
    again: Any = create_backbone("random:stable_diffusion", prompted, device="cpu")
    images = torch.rand(1, 3, 64, 64)
    one, two = (b.extract(images, layers=[1])[0].patches for b in (drawn, again))
    assert torch.equal(one, two)
