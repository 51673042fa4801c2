"""Attention, blocks, feed-forward layers, norms and patches."""

import inspect
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from sightline.errors import ShapeError
from sightline.nn.attention import Attention, CrossAttention, LinearKMaskedBias
from sightline.nn.block import Block, DecoderBlock
from sightline.nn.drop import DropPath, LayerScale, add_residual_of_subset
from sightline.nn.mlp import Mlp, SwiGLUFFN, SwiGLUFFNFused, SwiGLUSplit, round_up
from sightline.nn.norm import LayerNorm2d, RMSNorm
from sightline.nn.patch_embed import PatchEmbed
from sightline.nn.rope import RotaryPositionEmbedding2D, grid_positions, grid_rotary


def test_both_attention_kernels_agree() -> None:
    layer = Attention(16, 4, qk_norm=True)
    x = torch.randn(2, 7, 16)
    fused = layer(x)
    layer.fused_attn = False
    assert torch.allclose(layer(x), fused, atol=1e-6)


def test_integer_positions_equal_a_table() -> None:
    layer = Attention(16, 2, rope=RotaryPositionEmbedding2D(100.0))
    x, grid = torch.randn(2, 6, 16), grid_positions(2, 3)
    out = layer(x, pos=grid.expand(2, -1, -1))
    assert torch.allclose(out, layer(x, grid_rotary(grid, 8)), atol=1e-6)
    assert not torch.allclose(out, layer(x), atol=1e-3)


def test_attention_refuses_uneven_heads() -> None:
    with pytest.raises(ValueError, match="multiple of the 3 heads, got 16"):
        Attention(16, 3)


def test_masked_key_bias_never_acts() -> None:
    layer = LinearKMaskedBias(4, 12)
    nn.init.ones_(layer.bias)
    out = layer(torch.zeros(1, 4))
    assert out[0].tolist() == [1.0] * 4 + [0.0] * 4 + [1.0] * 4
    assert "bias_mask" in layer.state_dict()
    assert "bias_mask" not in LinearKMaskedBias(4, 12, bias=False).state_dict()


def test_cross_attention_is_plain_attention() -> None:
    layer = CrossAttention(8, 2)
    query, other = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    q, k, v = (
        p(t).view(1, -1, 2, 4).transpose(1, 2)
        for p, t in ((layer.projq, query), (layer.projk, other), (layer.projv, other))
    )
    want = torch.softmax(q @ k.transpose(-2, -1) / 2.0, -1) @ v
    want = layer.proj(want.transpose(1, 2).flatten(2))
    assert torch.allclose(layer(query, other, other), want, atol=1e-6)


VGGT_SIGNATURES = {
    Attention: "dim num_heads qkv_bias proj_bias attn_drop proj_drop norm_layer qk_norm fused_attn rope",
    Block: (
        "dim num_heads mlp_ratio qkv_bias proj_bias ffn_bias drop attn_drop init_values drop_path "
        "act_layer norm_layer attn_class ffn_layer qk_norm fused_attn rope"
    ),
    Mlp: "in_features hidden_features out_features act_layer drop bias",
    SwiGLUFFN: "in_features hidden_features out_features act_layer drop bias",
    PatchEmbed: "img_size patch_size in_chans embed_dim norm_layer flatten_embedding",
    LayerScale: "dim init_values inplace",
    DropPath: "drop_prob",
    RotaryPositionEmbedding2D: "frequency scaling_factor",
}


@pytest.mark.parametrize("layer", VGGT_SIGNATURES, ids=lambda c: c.__name__)
def test_positional_arguments_are_vggts(layer: Any) -> None:
    parameters = inspect.signature(layer).parameters.values()
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert names == VGGT_SIGNATURES[layer].split()


def test_block_is_two_residuals() -> None:
    block = Block(8, 2, init_values=0.5).eval()
    x = torch.randn(2, 3, 8)
    first = x + 0.5 * block.attn(block.norm1(x))
    want = first + 0.5 * block.mlp(block.norm2(first))
    assert torch.allclose(block(x), want, atol=1e-6)
    assert not [name for name in Block(8, 2).state_dict() if name.startswith("ls")]


@pytest.mark.parametrize("subset_above", [0.0, 1.0])
def test_dropped_paths_keep_the_mean(subset_above: float) -> None:
    block = Block(8, 2, drop_path=0.5, subset_above=subset_above)
    x = torch.randn(64, 3, 8)
    whole = block.eval()(x) - x
    dropped = block.train()(x) - x
    assert torch.equal(block.eval()(x) - x, whole)
    changed = (dropped.abs().amax((1, 2)) > 0).float().mean()
    assert 0.4 < float(changed) < 0.95
    assert not torch.allclose(dropped, whole)


def test_subset_residual() -> None:
    x = torch.zeros(8, 1, 2)
    out = add_residual_of_subset(x, lambda part, _: torch.ones_like(part), 0.75)
    assert sorted(out[:, 0, 0].tolist()) == [0.0] * 6 + [4.0] * 2
    single = add_residual_of_subset(x[:1], lambda part, _: torch.ones_like(part), 0.9)
    assert single.flatten().tolist() == [1.0, 1.0]


def test_subset_picks_the_positions_of_its_samples() -> None:
    block = Block(16, 2, drop_path=0.5, rope=RotaryPositionEmbedding2D()).train()
    positions = torch.randint(0, 5, (6, 4, 2))
    assert block(torch.randn(6, 4, 16), positions).shape == (6, 4, 16)
    assert block(torch.randn(6, 4, 16), grid_rotary(positions, 8)).shape == (6, 4, 16)


def test_decoder_block() -> None:
    block = DecoderBlock(8, 2)
    x, y = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    first = x + block.attn(block.norm1(x))
    other = block.norm_y(y)
    second = first + block.cross_attn(block.norm2(first), other, other)
    assert torch.allclose(block(x, y), second + block.mlp(block.norm3(second)), atol=1e-6)
    assert not [n for n in DecoderBlock(8, 2, norm_mem=False).state_dict() if "norm_y" in n]


def test_gated_layers() -> None:
    x = torch.randn(2, 6)
    split = SwiGLUSplit(6, 24, align_to=64)
    assert split.w1.out_features == 64
    assert SwiGLUFFNFused(1536, 4 * 1536, device="meta").w3.in_features == 4096
    assert SwiGLUSplit(384, 6 * 384, device="meta").w1.out_features == 1536
    joint = SwiGLUFFN(6, 64)
    joint.w12.weight.data = torch.cat((split.w1.weight, split.w2.weight)).detach()
    joint.w12.bias.data = torch.cat((split.w1.bias, split.w2.bias)).detach()
    joint.w3.load_state_dict(split.w3.state_dict())
    assert torch.allclose(joint(x), split(x), atol=1e-6)
    assert [round_up(n, 8) for n in (1, 8, 9)] == [8, 8, 16]


def test_norms() -> None:
    x = torch.randn(2, 6, 3, 4)
    layer = LayerNorm2d(6)
    nn.init.normal_(layer.weight)
    want = functional.layer_norm(x.permute(0, 2, 3, 1), (6,), layer.weight, layer.bias, 1e-6)
    assert torch.allclose(layer(x), want.permute(0, 3, 1, 2), atol=1e-6)
    tokens = torch.randn(2, 6)
    want = tokens / (tokens.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(RMSNorm(6)(tokens), want, atol=1e-6)
    assert RMSNorm(6)(tokens.bfloat16()).dtype == torch.float32


def test_patches() -> None:
    strict = PatchEmbed(28, 14, 3, 5)
    assert strict(torch.randn(2, 3, 28, 42)).shape == (2, 6, 5)
    assert strict.num_patches == 4
    with pytest.raises(
        ShapeError, match="multiples of the patch 14x14, got 30x28; resize to 28x28"
    ):
        strict(torch.randn(1, 3, 30, 28))
    loose = PatchEmbed(32, 16, 3, 5, flatten_embedding=False, strict=False)
    image = torch.randn(1, 3, 37, 50)
    assert loose(image).shape == (1, 2, 3, 5)
    assert torch.equal(loose(image), loose(image[:, :, :32, :48]))
    with pytest.raises(ShapeError, match="resize to 16x16"):
        loose(torch.randn(1, 3, 9, 20))
