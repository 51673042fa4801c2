from typing import Any

import pytest
import torch
from torch import nn

from sightline.errors import InputError, ShapeError, UnknownNameError
from sightline.models.aggregator import Aggregator, build_encoder
from sightline.models.dinov2 import DinoVisionTransformer
from sightline.models.vggt import VGGT, activate_confidence, activate_value

BLOCKS: dict[str, Any] = {"depth": 4, "num_heads": 2, "num_register_tokens": 2}


def encoder(width: int = 16) -> DinoVisionTransformer:
    return DinoVisionTransformer(
        img_size=28, patch_size=14, embed_dim=width, depth=1, num_heads=2, num_register_tokens=1
    )


def aggregator(**options: Any) -> Aggregator:
    given: dict[str, Any] = {"patch_embed": encoder(), **BLOCKS, **options}
    return Aggregator(28, 14, 16, **given).eval()


def vggt(**options: Any) -> VGGT:
    parts: dict[str, Any] = {
        "aggregator": {"patch_embed": encoder(), **BLOCKS},
        "camera": {"trunk_depth": 1, "num_heads": 2},
        "dpt": {
            "features": 8,
            "out_channels": (4, 4, 8, 8),
            "intermediate_layer_idx": (0, 1, 1, 3),
        },
        "track": {
            "features": 8,
            "corr_levels": 2,
            "corr_radius": 1,
            "hidden_size": 16,
            "depth": 1,
            "num_heads": 2,
            "num_virtual_tracks": 3,
        },
    }
    return VGGT(28, 14, 16, **{**parts, **options}).eval()


def test_published_size() -> None:
    model = VGGT(device="meta")
    assert sum(p.numel() for p in model.parameters()) == 1_256_537_516


def test_entries() -> None:
    model = aggregator()
    images = torch.rand(2, 3, 3, 28, 42)
    layers, start = model(images)
    assert start == 3
    assert [tuple(x.shape) for x in layers if x is not None] == [(2, 3, 9, 32)] * 4
    kept, _ = model(images, keep=[1, 3])
    assert [x is None for x in kept] == [True, False, True, False]
    assert torch.equal(kept[3], layers[3])
    model.keep = frozenset({2})
    assert [x is None for x in model(images)[0]] == [True, True, False, True]


def test_the_first_frame_is_special_and_the_order_of_others_is_not() -> None:
    model = aggregator()
    nn.init.normal_(model.camera_token)
    images = torch.rand(1, 4, 3, 28, 28)
    order = [0, 3, 1, 2]
    whole = model(images)[0][-1]
    shuffled = model(images[:, order])[0][-1]
    assert torch.allclose(shuffled, whole[:, order], atol=1e-5)
    moved = model(images[:, [1, 0, 2, 3]])[0][-1]
    assert not torch.allclose(moved, whole[:, [1, 0, 2, 3]], atol=1e-4)


def test_blocks_may_come_in_groups() -> None:
    model = aggregator(aa_block_size=2)
    images = torch.rand(1, 2, 3, 28, 28)
    layers, _ = model(images)
    state = model.state_dict()
    twin = aggregator(aa_block_size=1)
    twin.load_state_dict(state)
    assert len(layers) == 4
    assert torch.equal(layers[0][..., :16], twin(images)[0][0][..., :16])
    assert not torch.allclose(layers[1], twin(images)[0][1])
    reverse = aggregator(aa_order=["global", "frame"])
    assert len(reverse(images)[0]) == 4


def test_recomputed_gradients_are_the_same() -> None:
    model: Any = aggregator().train()
    images = torch.rand(1, 2, 3, 28, 28)
    found = []
    for recompute in (True, False):
        model.gradient_checkpointing = recompute
        model.zero_grad()
        model(images)[0][-1].square().sum().backward()
        found.append(model.frame_blocks[0].attn.qkv.weight.grad.clone())
    assert torch.allclose(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "patch", "options"),
    [
        ("conv", 14, {}),
        ("dinov2_vits14_reg", 14, {"depth": 1}),
        ("dinov2_vits14", 14, {"depth": 1}),
        ("dinov3_vits16", 16, {"depth": 1}),
        ("dinov3_small", 16, {"depth": 1}),
        ("dinov3_convnext_tiny", 32, {"depths": (1, 1, 1, 1)}),
    ],
)
def test_any_encoder(name: str, patch: int, options: dict) -> None:
    model = Aggregator(
        2 * patch, patch, 16, patch_embed=name, encoder=options, **{**BLOCKS, "depth": 1}
    )
    layers, start = model(torch.rand(1, 2, 3, 2 * patch, 3 * patch))
    assert layers[0].shape == (1, 2, start + 6, 32)
    assert isinstance(model.patch_proj, nn.Identity if name == "conv" else nn.Linear)


def test_published_widths_need_no_projection() -> None:
    model = Aggregator(512, 16, patch_embed="dinov3_vitl16", num_register_tokens=4, device="meta")
    assert isinstance(model.patch_proj, nn.Identity)
    layers, start = model(torch.empty(2, 8, 3, 224, 224, device="meta"), keep=[23])
    assert start == 5
    assert layers[23].shape == (2, 8, 201, 2048)


def test_a_plain_module_is_an_encoder() -> None:
    class Own(nn.Module):
        embed_dim = 6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (
                x.unfold(2, 14, 14).unfold(3, 14, 14).mean((-2, -1)).flatten(2).mT.repeat(1, 1, 2)
            )

    layers, _ = aggregator(patch_embed=Own())(torch.rand(1, 1, 3, 28, 28))
    assert layers[0].shape == (1, 1, 7, 32)


def test_contradictions_name_the_nearest_setting() -> None:
    with pytest.raises(InputError, match="got 518 and 16; the nearest is img_size=512"):
        Aggregator(518, 16, patch_embed="conv", device="meta")
    with pytest.raises(InputError, match="use patch_size=16 and img_size=512"):
        Aggregator(518, 14, patch_embed="dinov3_vitl16", device="meta")
    with pytest.raises(InputError, match='"frame" and "global" once each'):
        aggregator(aa_order=["frame"])
    with pytest.raises(
        InputError, match="multiple of aa_block_size, got .* depth 4, aa_block_size 3"
    ):
        aggregator(aa_block_size=3)
    with pytest.raises(UnknownNameError, match='no encoder "dinov4"'):
        build_encoder("dinov4", 224, 16, 8)
    with pytest.raises(
        ShapeError, match="expected 2x2 patches of 14 pixels from the encoder, got 1"
    ):
        aggregator(patch_embed=nn.Sequential(nn.Conv2d(3, 16, 28), nn.Flatten(2), Swap()))(
            torch.rand(1, 1, 3, 28, 28)
        )


class Swap(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mT


def test_storage_tokens_are_an_alias_of_its_own_registers() -> None:
    with pytest.warns(UserWarning, match="use num_register_tokens"):
        model = aggregator(n_storage_tokens=3, num_register_tokens=None)
    assert model.patch_start_idx == 4
    assert model.patch_embed.num_register_tokens == 1
    with (
        pytest.warns(UserWarning, match="use num_register_tokens"),
        pytest.raises(InputError, match="n_storage_tokens=3 and num_register_tokens=2 contradict"),
    ):
        aggregator(n_storage_tokens=3)


def test_only_read_entries_are_kept() -> None:
    model: Any = vggt()
    assert model.layers_read() == {0, 1, 3}
    assert vggt(enable_camera=False).layers_read() == {0, 1, 3}
    seen: list[Any] = []
    model.aggregator.register_forward_hook(lambda _, args, out: seen.append(out[0]))
    model(torch.rand(2, 3, 28, 28))
    assert [x is None for x in seen[0]] == [False, False, True, False]
    images = torch.rand(1, 1, 3, 28, 28)
    with pytest.raises(ValueError, match="entry 1 of the aggregator, which was not kept"):
        model.depth_head(model.aggregator(images, keep=[0])[0], images, 3)


def test_outputs() -> None:
    model = vggt()
    images = torch.rand(3, 3, 28, 42)
    out = model(images, torch.rand(5, 2) * 20)
    shapes = {name: tuple(t.shape) for name, t in out.items() if isinstance(t, torch.Tensor)}
    assert shapes == {
        "pose_enc": (1, 3, 9),
        "depth": (1, 3, 28, 42, 1),
        "depth_conf": (1, 3, 28, 42),
        "world_points": (1, 3, 28, 42, 3),
        "world_points_conf": (1, 3, 28, 42),
        "track": (1, 3, 5, 2),
        "vis": (1, 3, 5),
        "conf": (1, 3, 5),
        "images": (1, 3, 3, 28, 42),
    }
    assert len(out["pose_enc_list"]) == 4
    assert (out["pose_enc"][..., 7:] >= 0).all()
    assert (out["depth"] > 0).all()
    assert "track" not in model(images)
    assert "images" not in model.train()(images)


def test_parts_can_be_left_out() -> None:
    model = vggt(enable_point=False, enable_track=False, enable_camera=False)
    assert {name.split(".")[0] for name in model.state_dict()} == {"aggregator", "depth_head"}
    assert set(model(torch.rand(1, 3, 28, 28))) == {"depth", "depth_conf", "images"}


def test_chunks_change_nothing() -> None:
    model = vggt()
    images = torch.rand(2, 5, 3, 28, 28)
    whole = model(images, frames_chunk_size=None)
    for step in (1, 2, 8):
        assert torch.allclose(model(images, frames_chunk_size=step)["depth"], whole["depth"])


def test_training_reaches_every_weight() -> None:
    model = vggt().train()
    out = model(torch.rand(1, 2, 3, 28, 28), torch.rand(1, 2, 2) * 20)
    parts = [out[n].sum() for n in ("depth", "depth_conf", "world_points", "world_points_conf")]
    parts += [out[n].sum() for n in ("pose_enc", "track", "vis", "conf")]
    torch.stack(parts).sum().backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert without == {"aggregator.patch_embed.mask_token"}


def test_heads_stay_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        out = vggt()(torch.rand(2, 3, 28, 28))
    assert out["depth"].dtype == out["pose_enc"].dtype == torch.float32


def test_activations() -> None:
    x = torch.tensor([1.0, -2.0, 0.5])
    assert torch.allclose(activate_value(x, "inv_log"), x.sign() * (x.abs().exp() - 1))
    z = torch.tensor(0.5).expm1()
    assert torch.allclose(activate_value(x, "xy_inv_log"), torch.stack((z, -2 * z, z)))
    assert activate_value(x, "norm").norm() == pytest.approx(1.0)
    assert activate_value(x, "norm_exp").norm() == pytest.approx(x.norm().expm1().item(), 1e-5)
    assert torch.equal(activate_value(x, "linear"), x)
    assert torch.equal(activate_value(x, "relu"), x.clamp(min=0))
    assert torch.equal(activate_value(x, "exp"), x.exp())
    assert torch.equal(activate_value(x, "sigmoid"), x.sigmoid())
    assert torch.equal(activate_confidence(x, "expp1"), x.exp() + 1)
    assert torch.equal(activate_confidence(x, "expp0"), x.exp())
    assert torch.equal(activate_confidence(x, "sigmoid"), x.sigmoid())


def test_merging_is_exact_at_zero_and_close_beyond() -> None:
    torch.manual_seed(0)
    model: Any = aggregator(keep=[3])
    for block in model.global_blocks:
        nn.init.ones_(block.ls1.gamma)
    ramp = torch.linspace(0, 1, 84).expand(1, 4, 3, 56, 84)
    images = (ramp + 0.05 * torch.rand(1, 4, 3, 56, 84)).clamp(0, 1)
    with torch.no_grad():
        want = model(images)[0][3]
        model.merge_ratio = 1e-9  # runs through the merging, and merges nothing
        assert torch.allclose(model(images)[0][3], want, atol=1e-5)
        errors = []
        for ratio in (0.25, 1.0):
            model.merge_ratio = ratio
            errors.append(((model(images)[0][3] - want).norm() / want.norm()).item())
    assert 1e-5 < errors[0] < errors[1] < 0.1
    assert aggregator().merge_ratio == 0
    with pytest.raises(InputError, match="merge_ratio from 0 to 1, got 2"):
        aggregator(merge_ratio=2)
