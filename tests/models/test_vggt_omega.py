from typing import Any

import torch

from sightline.models.vggt_omega import VGGTOmega


def omega(**options: Any) -> VGGTOmega:
    head = {"depth": 1, "num_heads": 2}
    parts: dict[str, Any] = {
        "aggregator": {
            "depth": 4,
            "num_heads": 2,
            "num_register_tokens": 2,
            "register_attention_block_indices": [1, 2],
            "cached_layer_indices": [0, 3],
            "encoder": {"depth": 1, "num_heads": 2, "n_storage_tokens": 1},
        },
        "camera": head,
        "text": head,
        "dense": {
            "features": 8,
            "out_channels": (4, 4, 8, 8),
            "intermediate_layer_idx": (0, 0, 3, 3),
        },
    }
    return VGGTOmega(16, 16, **{**parts, **options}).eval()


def test_published_sizes() -> None:
    for text, count in ((False, 1_143_814_185), (True, 1_349_473_321)):
        model = VGGTOmega(enable_alignment=text, device="meta")
        assert sum(p.numel() for p in model.parameters()) == count


def test_outputs() -> None:
    model = omega(enable_alignment=True)
    out = model(torch.rand(3, 3, 32, 48))
    assert {name: tuple(t.shape) for name, t in out.items()} == {
        "pose_enc": (1, 3, 9),
        "depth": (1, 3, 32, 48, 1),
        "depth_conf": (1, 3, 32, 48),
        "text_alignment_token": (1, 32),
        "text_alignment_embedding": (1, 32),
        "images": (1, 3, 3, 32, 48),
    }
    assert torch.allclose(out["text_alignment_embedding"].norm(), torch.tensor(1.0))
    assert (out["pose_enc"][..., 7:] >= 0.01).all()
    assert (out["depth_conf"] > 1).all()


def test_patches_skip_register_blocks() -> None:
    layers, start = omega().aggregator(torch.rand(1, 2, 3, 32, 32), keep=[0, 1, 2, 3])
    for index, layer in enumerate(layers):
        assert layer is not None
        inside, across = layer[:, :, start:].chunk(2, -1)
        assert torch.equal(inside, across) == (index in (1, 2))


def test_published_layers_are_kept_by_default() -> None:
    layers, start = omega().aggregator(torch.rand(1, 2, 3, 32, 32))
    assert start == 3
    assert [x is None for x in layers] == [False, True, True, False]


def test_training_reaches_every_weight() -> None:
    model = omega(enable_alignment=True).train()
    out = model(torch.rand(1, 2, 3, 32, 32))
    torch.stack([t.sum() for t in out.values()]).sum().backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert without == {"aggregator.patch_embed.mask_token"}
