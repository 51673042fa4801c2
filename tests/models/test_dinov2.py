from typing import Any

import pytest
import torch
from torch.nn import functional

from sightline.errors import CheckpointError, ShapeError, UnknownNameError
from sightline.models import build
from sightline.models.dinov2 import (
    MODELS,
    DinoVisionTransformer,
    block_indices,
    build_dinov2,
    dinov2_vits14,
)

TINY: dict[str, Any] = {
    "img_size": 28,
    "patch_size": 14,
    "embed_dim": 16,
    "depth": 3,
    "num_heads": 2,
    "init_values": 1.0,
}


def tiny(**options: Any) -> DinoVisionTransformer:
    return DinoVisionTransformer(**(TINY | options)).eval()


def test_published_sizes() -> None:
    millions = {
        "dinov2_vits14": 22.06,
        "dinov2_vitb14": 86.58,
        "dinov2_vitl14": 304.37,
        "dinov2_vitg14": 1136.48,
    }
    for name, count in millions.items():
        model = build_dinov2(name, pretrained=False, device="meta")
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(count, abs=0.006)
    assert set(MODELS) == {*millions, *(f"{name}_reg" for name in millions)}


def test_names_are_explained() -> None:
    with pytest.raises(UnknownNameError, match="closest: dinov2_vits14"):
        build_dinov2("dinov2_vits16", pretrained=False)
    with pytest.raises(
        UnknownNameError, match='no model family "dinov2_regs"; closest: dinov2_reg'
    ):
        build("dinov2_regs", {})
    with pytest.raises(CheckpointError, match="dinov2_vits14 is not on this machine and SIGHTLINE"):
        dinov2_vits14(device="meta")
    with pytest.raises(CheckpointError, match=r"https://example.org/w.pth is not on this machine"):
        dinov2_vits14("https://example.org/w.pth", device="meta")


def test_build_passes_over_notes() -> None:
    model = build("dinov2", TINY | {"note": "x", "cases": {}, "dtype": torch.float64})
    assert model.get_parameter("pos_embed").dtype == torch.float64


def test_storage_token_alias() -> None:
    model = dinov2_vits14(pretrained=False, device="meta", n_storage_tokens=2)
    assert model.num_register_tokens == 2
    with pytest.raises(TypeError, match="give one of them"):
        dinov2_vits14(pretrained=False, n_storage_tokens=2, num_register_tokens=2)


def test_native_table_is_used_as_it_is() -> None:
    model = tiny(img_size=56)
    assert model.position_table(56, 56) is model.pos_embed
    table = model.position_table(28, 112)
    assert table.shape == model.pos_embed.shape
    assert not torch.equal(table, model.pos_embed)
    assert torch.equal(table[:, 0], model.pos_embed[:, 0])


def test_scale_factor_and_size_differ() -> None:
    old, new = tiny(img_size=70), tiny(img_size=70, interpolate_offset=0.0)
    new.load_state_dict(old.state_dict())
    assert not torch.allclose(old.position_table(42, 42), new.position_table(42, 42), atol=1e-3)
    stored = new.pos_embed[:, 1:].view(1, 5, 5, 16).permute(0, 3, 1, 2)
    want = functional.interpolate(stored, (3, 3), mode="bicubic").flatten(2).transpose(1, 2)
    assert torch.allclose(new.position_table(42, 42)[:, 1:], want, atol=1e-6)


def test_tables_are_kept_in_inference_mode_only() -> None:
    model = tiny()
    with torch.inference_mode():
        kept = model.position_table(42, 28)
        assert model.position_table(42, 28) is kept
    assert model.position_table(42, 28).requires_grad
    with torch.no_grad():
        model.pos_embed.mul_(2.0)
    with torch.inference_mode():
        assert torch.allclose(model.position_table(42, 28), 2 * kept, atol=1e-6)


def test_training_reaches_every_weight() -> None:
    model = tiny(num_register_tokens=2, drop_path_rate=0.5).train()
    masks = torch.rand(4, 6) > 0.5
    out: Any = model(torch.randn(4, 3, 28, 42), masks, is_training=True)
    out["x_norm_patchtokens"].square().sum().add(out["x_norm_clstoken"].sum()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without


def test_lists_equal_single_batches() -> None:
    model = tiny(num_register_tokens=1)
    images = [torch.randn(2, 3, 28, 28), torch.randn(1, 3, 28, 56)]
    masks = [torch.rand(2, 4) > 0.5, None]
    listed: Any = model.forward_features(images, masks)
    for image, mask, features in zip(images, masks, listed, strict=True):
        single: Any = model.forward_features(image, mask)
        assert torch.equal(single["x_prenorm"], features["x_prenorm"])
        assert single["x_norm_regtokens"] is not None
        assert torch.equal(single["x_norm_regtokens"], single["x_storage_tokens"])
    both = model(images)
    assert torch.equal(both[1], listed[1]["x_norm_clstoken"])


def test_intermediate_layers() -> None:
    model = tiny(num_register_tokens=1)
    image = torch.randn(1, 3, 28, 42)
    last: Any = model.get_intermediate_layers(image, 1, reshape=True, return_class_token=True)
    features: Any = model.forward_features(image)
    patches, token = last[0]
    assert torch.equal(patches.flatten(2).transpose(1, 2), features["x_norm_patchtokens"])
    assert torch.equal(token, features["x_norm_clstoken"])
    assert block_indices(2, 12) == [10, 11]
    assert block_indices([9, 3, 3], 12) == [3, 9]
    for wrong in (0, 4, [3], [-1]):
        with pytest.raises(ValueError, match="expected blocks between 0 and 2"):
            model.get_intermediate_layers(image, wrong)


def test_odd_sizes_are_refused() -> None:
    with pytest.raises(ShapeError, match="resize to 224x294"):
        tiny()(torch.randn(1, 3, 224, 300))


def test_half_precision() -> None:
    model = tiny().bfloat16()
    assert model(torch.randn(1, 3, 28, 42).bfloat16()).dtype == torch.bfloat16
