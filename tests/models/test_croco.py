from typing import Any

import pytest
import torch

from sightline.models.croco import (
    PUBLISHED,
    CroCoNet,
    completion_loss,
    patchify,
    unpatchify,
)

TINY: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "enc_embed_dim": 16,
    "enc_depth": 2,
    "enc_num_heads": 2,
    "dec_embed_dim": 8,
    "dec_depth": 2,
    "dec_num_heads": 1,
}


def tiny(**options: Any) -> CroCoNet:
    sizes: dict[str, Any] = {"pos_embed": "RoPE100", **TINY, **options}
    return CroCoNet(**sizes).eval()


def test_published_sizes() -> None:
    millions = {"Large_Base": 417.9, "Base_Base": 200.3, "Base_Small": 120.1}
    for name, options in PUBLISHED.items():
        count = sum(p.numel() for p in CroCoNet(**options, device="meta").parameters()) / 1e6
        short = name.replace("CroCo_V2_ViT", "").replace("Decoder", "")
        assert count == pytest.approx(millions.get(short, 120.1), abs=0.06)


@pytest.mark.parametrize("name", ["rope", "RoPE", "RoPEx", "sin"])
def test_positions_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f'pos_embed "cosine" or "RoPE100" .*got "{name}"'):
        tiny(pos_embed=name)


def test_random_masks_hide_a_fixed_number() -> None:
    model = tiny(mask_ratio=0.7)
    mask = model.random_mask(5, 16)
    assert mask.sum(1).tolist() == [11] * 5
    assert not torch.equal(mask[0], mask[1])
    out, same, target = model(torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32))
    assert same.sum(1).tolist() == [11] * 2
    assert out.shape == target.shape == (2, 16, 192)


def test_an_empty_mask_hides_nothing() -> None:
    model = tiny()
    image = torch.randn(2, 3, 32, 48)
    mask = torch.zeros(2, 24, dtype=torch.bool)
    assert torch.allclose(model.encode(image, mask).tokens, model.encode(image).tokens, atol=1e-6)


def test_cosine_tables_follow_the_size() -> None:
    model = tiny(pos_embed="cosine")
    assert {"enc_pos_embed", "dec_pos_embed"} <= model.state_dict().keys()
    blocks = model.forward_features(torch.randn(1, 3, 32, 32), torch.randn(1, 3, 48, 40))
    assert [tuple(b.shape) for b in blocks] == [(1, 16, 16)] * 2 + [(1, 16, 8)] * 2
    table = model._table("enc_pos_embed", (8, 8))
    assert table.shape == (64, 16)
    assert table.abs().max() < 1.2


def test_training_reaches_every_weight() -> None:
    model = tiny().train()
    out, mask, target = model(torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32))
    completion_loss(out, target, mask).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


def test_loss() -> None:
    target = torch.randn(2, 4, 12)
    mask = torch.tensor([[True, False, False, True]] * 2)
    normed = (target - target.mean(-1, keepdim=True)) / target.std(-1, keepdim=True)
    assert completion_loss(normed, target, mask) < 1e-6
    wrong = target.clone()
    wrong[:, 1:3] += 5.0
    assert completion_loss(wrong, target, mask, norm_pix=False) == 0.0
    assert completion_loss(wrong, target, norm_pix=False) == pytest.approx(12.5, rel=1e-5)


def test_patches_go_back() -> None:
    image = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    patches = patchify(image, 2)
    assert patches[0, 1, :3].tolist() == image[0, :, 0, 2].tolist()
    assert patches[0, 1, 3:6].tolist() == image[0, :, 0, 3].tolist()
    assert torch.equal(unpatchify(patches, (2, 3), 2), image)
