"""Transformer blocks: self-attention for encoders, self- and cross-attention for decoders."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor, nn

from sightline.nn.attention import Attention, CrossAttention, Positions
from sightline.nn.drop import DropPath, LayerScale, add_residual_of_subset, add_scaled
from sightline.nn.mlp import Mlp
from sightline.nn.options import Device, DType, Number
from sightline.nn.rope import RotaryTable


class Block(nn.Module):
    """``x += ls1(attn(norm1(x))); x += ls2(mlp(norm2(x)))``.

    With ``init_values=None`` there is no layer scale (and no key for it). While training, residuals
    are dropped with probability ``drop_path``: above ``subset_above`` only a random part of the
    batch runs a residual, at or below it each sample's residual is zeroed.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: Number = 4.0,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        ffn_bias: bool = True,
        drop: Number = 0.0,
        attn_drop: Number = 0.0,
        init_values: Number | None = None,
        drop_path: Number = 0.0,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
        attn_class: Callable[..., nn.Module] = Attention,
        ffn_layer: Callable[..., nn.Module] = Mlp,
        qk_norm: bool = False,
        fused_attn: bool = True,
        rope: nn.Module | None = None,
        *,
        fused_above: int = 0,
        mask_k_bias: bool = False,
        subset_above: Number = 0.1,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the block; ``norm_layer`` and the layers take ``device`` and ``dtype``."""
        super().__init__()
        self.norm1 = norm_layer(dim, device=device, dtype=dtype)
        self.attn = attn_class(
            dim,
            num_heads=num_heads,
            qkv_bias=qkv_bias,
            proj_bias=proj_bias,
            attn_drop=attn_drop,
            proj_drop=drop,
            norm_layer=norm_layer,
            qk_norm=qk_norm,
            fused_attn=fused_attn,
            rope=rope,
            fused_above=fused_above,
            mask_k_bias=mask_k_bias,
            device=device,
            dtype=dtype,
        )
        self.ls1 = _layer_scale(dim, init_values, device, dtype)
        self.norm2 = norm_layer(dim, device=device, dtype=dtype)
        self.mlp = ffn_layer(
            in_features=dim,
            hidden_features=int(dim * mlp_ratio),
            act_layer=act_layer,
            drop=drop,
            bias=ffn_bias,
            device=device,
            dtype=dtype,
        )
        self.ls2 = _layer_scale(dim, init_values, device, dtype)
        self.drop_path = DropPath(drop_path)
        self.subset_above = subset_above

    def forward(self, x: Float[Tensor, "b n d"], pos: Positions = None) -> Float[Tensor, "b n d"]:
        """Apply both residuals; ``pos`` goes to the attention."""
        ratio = self.drop_path.drop_prob
        if self.training and ratio > self.subset_above:
            x = add_residual_of_subset(x, lambda s, i: self._attend(s, _pick(pos, i)), ratio)
            return add_residual_of_subset(x, lambda s, _: self._feed(s), ratio)
        if self.training and ratio:
            x = x + self.drop_path(self._attend(x, pos))
            return x + self.drop_path(self._feed(x))
        x = add_scaled(x, self.ls1, self.attn(self.norm1(x), pos))
        return add_scaled(x, self.ls2, self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, pos: Positions) -> Tensor:
        return self.ls1(self.attn(self.norm1(x), pos))

    def _feed(self, x: Tensor) -> Tensor:
        return self.ls2(self.mlp(self.norm2(x)))


class DecoderBlock(nn.Module):
    """CroCo's decoder block: self-attention, cross-attention to the other view, feed-forward."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: Number = 4.0,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
        *,
        norm_mem: bool = True,
        fused_above: int = 0,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the block; ``norm_mem`` normalises the other view before it is looked at."""
        super().__init__()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm1 = norm_layer(dim, **kind)
        self.attn = Attention(dim, num_heads, fused_above=fused_above, **kind)
        self.cross_attn = CrossAttention(dim, num_heads, fused_above=fused_above, **kind)
        self.norm2 = norm_layer(dim, **kind)
        self.norm3 = norm_layer(dim, **kind)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), device=device, dtype=dtype)
        self.norm_y = norm_layer(dim, **kind) if norm_mem else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        y: Float[Tensor, "b m d"],
        x_pos: RotaryTable | None = None,
        y_pos: RotaryTable | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Update ``x`` from itself and from ``y``, which stays as it is."""
        x = x + self.attn(self.norm1(x), x_pos)
        other = self.norm_y(y)
        x = x + self.cross_attn(self.norm2(x), other, other, x_pos, y_pos)
        return x + self.mlp(self.norm3(x))


def _layer_scale(
    dim: int,
    init_values: Number | None,
    device: Device,
    dtype: DType,
) -> nn.Module:
    if not init_values:
        return nn.Identity()
    return LayerScale(dim, init_values, device=device, dtype=dtype)


def _pick(pos: Positions, chosen: Int64[Tensor, " s"]) -> RotaryTable | Tensor | None:
    """Return the positions of the chosen samples; a table without batch axis serves all."""
    if isinstance(pos, RotaryTable):
        if pos.cos.ndim == 2:
            return pos
        return RotaryTable(pos.cos[chosen], pos.sin[chosen], pos.groups)
    return None if pos is None else pos[chosen]
