import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.checkpoints import save_weights
from sightline.errors import CheckpointError, UnknownNameError
from sightline.models import dinov3
from sightline.models.dinov3 import DinoVisionTransformer, build_dinov3
from sightline.models.dinov3_convnext import ConvNeXt

TINY: dict[str, Any] = {
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "layerscale_init": 1e-5,
    "norm_layer": "layernormbf16",
    "n_storage_tokens": 3,
    "mask_k_bias": True,
}


def tiny(**options: Any) -> DinoVisionTransformer:
    return DinoVisionTransformer(**(TINY | options)).eval()


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("dinov3_vits16", 21.60),
        ("dinov3_vits16plus", 28.70),
        ("dinov3_vitb16", 85.67),
        ("dinov3_vitl16", 303.15),
        ("dinov3_vitl16plus", 403.92),
        ("dinov3_vith16plus", 840.63),
        ("dinov3_vit7b16", 6716.04),
        ("dinov3_convnext_tiny", 27.8),
        ("dinov3_convnext_large", 196.2),
    ],
)
def test_published_sizes(name: str, millions: float) -> None:
    model = getattr(dinov3, name)(pretrained=False, device="meta")
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.06)
    assert type(build_dinov3(name, False, device="meta")) is type(model)


def test_unpublished_names_can_be_built_but_not_downloaded() -> None:
    for name in ("dinov3_vitg16", "dinov3_giant", "dinov3_vitl14"):
        builder = getattr(dinov3, name)
        assert builder(device="meta").embed_dim in (1024, 1536)
        with pytest.raises(CheckpointError, match=f'ever published for "{name}"') as error:
            builder(pretrained=True)
        assert "dinov3_vith16plus" in str(error.value)
        assert "dinov3_vit7b16" in str(error.value)
    assert dinov3.dinov3_vitl14(device="meta").patch_size == 14


def test_older_names() -> None:
    for alias, name in dinov3.ALIASES.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = build_dinov3(alias, False, device="meta")
        same = build_dinov3(name, False, device="meta")
        assert list(model.state_dict()) == list(same.state_dict())
    with pytest.warns(UserWarning, match="building dinov3_vitl16"):
        dinov3.dinov3_vitl16_reg(pretrained=False, device="meta")
    model = dinov3.dinov3_small(pretrained=False, device="meta", num_register_tokens=7)
    assert model.n_storage_tokens == 7


def test_wrong_names_and_weights_are_explained() -> None:
    with pytest.raises(UnknownNameError, match="closest: .*dinov3_vitb16"):
        build_dinov3("dinov3_vitb14", pretrained=False)
    with pytest.raises(CheckpointError, match="dinov3_vits16 is not on this machine"):
        dinov3.dinov3_vits16(device="meta")
    with pytest.raises(CheckpointError, match="dinov3_vitl16_sat493m is not on this machine"):
        dinov3.dinov3_vitl16(weights="SAT493M", device="meta")
    with pytest.raises(CheckpointError, match='"dinov3_vits16" has no weights "sat493m"'):
        dinov3.dinov3_vits16(weights="SAT493M", device="meta")


def test_pretrained_path(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = tiny()
    sizes = {name: TINY[name] for name in ("embed_dim", "depth", "num_heads", "n_storage_tokens")}
    for name in ("w.safetensors", "w.pth"):
        save_weights(model, tmp_path / name)
        for options in ({"pretrained": str(tmp_path / name)}, {"weights": str(tmp_path / name)}):
            loaded = dinov3.dinov3_vits16(**sizes, **options).eval()
            image = torch.randn(1, 3, 32, 48)
            assert torch.equal(loaded(image), model(image))


def test_satellite_files_bring_their_norm(tmp_path: Path) -> None:
    model = tiny(untie_global_and_local_cls_norm=True)
    save_weights(model, tmp_path / "w.safetensors")
    sizes = {name: TINY[name] for name in ("embed_dim", "depth", "num_heads", "n_storage_tokens")}
    loaded = dinov3.dinov3_vitl16(tmp_path / "w.safetensors", **sizes)
    assert loaded.local_cls_norm is not None


def test_eval_repeats_and_training_augments() -> None:
    model = tiny(pos_embed_rope_rescale_coords=2.0, layerscale_init=1.0)
    image = torch.randn(1, 3, 48, 48)
    assert torch.equal(model(image), model(image))
    model.train()
    assert not torch.equal(model(image), model(image))


def test_local_crops_have_their_norm_only_in_training() -> None:
    model = tiny(untie_global_and_local_cls_norm=True)
    model.get_parameter("local_cls_norm.weight").data.fill_(3.0)
    images = [torch.randn(1, 3, 32, 32), torch.randn(1, 3, 32, 32)]
    quiet = model(images)
    loud = model.train()(images)
    assert torch.equal(quiet[0], loud[0])
    assert not torch.allclose(quiet[1], loud[1])


def test_training_reaches_every_weight() -> None:
    model = tiny(drop_path_rate=0.3, layerscale_init=1.0).train()
    out: Any = model(torch.randn(4, 3, 32, 48), torch.rand(4, 6) > 0.5, is_training=True)
    out["x_norm_patchtokens"].square().sum().add(out["x_norm_clstoken"].sum()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without


def test_intermediate_entries() -> None:
    model: Any = tiny()
    image = torch.randn(2, 3, 32, 48)
    plain = model.get_intermediate_layers(image, n=2)
    assert [tuple(p.shape) for p in plain] == [(2, 6, 16)] * 2
    flags = {"return_class_token": True, "return_extra_tokens": True}
    patches, token, extra = model.get_intermediate_layers(image, reshape=True, **flags)[0]
    assert patches.shape == (2, 16, 2, 3)
    assert token.shape == (2, 16)
    assert extra.shape == (2, 3, 16)


def test_convnext_interface() -> None:
    model: Any = ConvNeXt(depths=(1, 1, 1, 1), dims=(4, 4, 8, 8), drop_path_rate=0.2).eval()
    image = torch.randn(2, 3, 64, 96)
    features: Any = model.forward_features([image], None)
    assert features[0]["x_norm_patchtokens"].shape == (2, 6, 8)
    assert features[0]["x_storage_tokens"].shape == (2, 0, 8)
    assert torch.equal(model([image])[0], model(image))
    model.patch_size = 16
    tokens = model.get_intermediate_layers(image, n=4)
    assert [tuple(t.shape) for t in tokens] == [(2, 24, 4), (2, 24, 4), (2, 24, 8), (2, 24, 8)]
    state = model.state_dict()
    assert torch.equal(state["norm.weight"], state["norms.3.weight"])
    model.train()(image).sum().backward()
