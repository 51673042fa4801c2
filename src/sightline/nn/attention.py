"""Self- and cross-attention over one fused kernel."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sightline.nn.options import Device, DType, Number
from sightline.nn.rope import RotaryTable

Positions = RotaryTable | Int[Tensor, "b n 2"] | None


def attend(
    query: Float[Tensor, "b heads n d"],
    key: Float[Tensor, "b heads m d"],
    value: Float[Tensor, "b heads m e"],
    drop: Number = 0.0,
    fused: bool = True,
) -> Float[Tensor, "b n _"]:
    """Return ``softmax(q k^T / sqrt(d)) v`` with the heads joined.

    ``fused=False`` writes the attention matrix out.
    """
    if fused:
        out = functional.scaled_dot_product_attention(query, key, value, dropout_p=drop)
    else:
        weights = ((query @ key.transpose(-2, -1)) * query.shape[-1] ** -0.5).softmax(-1)
        out = functional.dropout(weights, drop) @ value
    return out.transpose(1, 2).flatten(2)


class LinearKMaskedBias(nn.Linear):
    """The joint projection to queries, keys and values, whose key bias never acts.

    The buffer ``bias_mask`` is 1 for queries and values and 0 for keys, as in DINOv3's files.
    """

    bias_mask: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the projection; ``out_features`` is three times the width."""
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        if bias:
            mask = torch.ones(out_features, device=device, dtype=dtype)
            mask[out_features // 3 : 2 * out_features // 3] = 0.0
            self.register_buffer("bias_mask", mask)

    def forward(self, input: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch e"]:
        """Apply the projection with the masked bias."""
        bias = self.bias
        return functional.linear(
            input, self.weight, None if bias is None else bias * self.bias_mask.to(bias.dtype)
        )


class Attention(nn.Module):
    """Multi-head self-attention (keys ``qkv``, ``proj`` and, with ``qk_norm``, ``q_norm``, ``k_norm``).

    Positions are either a `RotaryTable`, or integer positions when the layer was given its own
    ``rope``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        attn_drop: Number = 0.0,
        proj_drop: Number = 0.0,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
        qk_norm: bool = False,
        fused_attn: bool = True,
        rope: nn.Module | None = None,
        *,
        fused_above: int = 0,
        mask_k_bias: bool = False,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the projections.

        ``norm_layer(head_dim, ...)`` normalises queries and keys; the attention matrix is written
        out for up to ``fused_above`` tokens, and always without ``fused_attn``.
        """
        super().__init__()
        if dim % num_heads:
            msg = f"expected a width that is a multiple of the {num_heads} heads, got {dim}"
            raise ValueError(msg)
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.fused_attn = fused_attn
        self.fused_above = fused_above
        self.attn_drop = attn_drop
        linear = LinearKMaskedBias if mask_k_bias else nn.Linear
        self.qkv = linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.q_norm = self.k_norm = None
        if qk_norm:
            self.q_norm = norm_layer(self.head_dim, device=device, dtype=dtype)
            self.k_norm = norm_layer(self.head_dim, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)
        self.rope = rope

    def forward(self, x: Float[Tensor, "b n d"], pos: Positions = None) -> Float[Tensor, "b n d"]:
        """Let every token look at all others."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        if isinstance(pos, RotaryTable):
            query, key = pos.rotate(query), pos.rotate(key)
        elif self.rope is not None and pos is not None:
            query, key = self.rope(query, pos), self.rope(key, pos)
        query, key = query.to(value.dtype), key.to(value.dtype)
        drop = self.attn_drop if self.training else 0.0
        fused = self.fused_attn and x.shape[1] > self.fused_above
        out = attend(query, key, value, drop, fused)
        return self.proj_drop(self.proj(out))


class CrossAttention(nn.Module):
    """Attention from one token sequence to another (keys ``projq``, ``projk``, ``projv``, ``proj``)."""

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        *,
        fused_above: int = 0,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the four projections of width ``dim``; for ``fused_above`` see `Attention`."""
        super().__init__()
        self.num_heads = num_heads
        self.fused_above = fused_above
        self.projq = nn.Linear(dim, dim, bias=qkv_bias, device=device, dtype=dtype)
        self.projk = nn.Linear(dim, dim, bias=qkv_bias, device=device, dtype=dtype)
        self.projv = nn.Linear(dim, dim, bias=qkv_bias, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)

    def forward(
        self,
        query: Float[Tensor, "b n d"],
        key: Float[Tensor, "b m d"],
        value: Float[Tensor, "b m d"],
        query_pos: RotaryTable | None = None,
        key_pos: RotaryTable | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Let every query token look at the other sequence."""
        split = (self.num_heads, -1)
        q = self.projq(query).unflatten(-1, split).transpose(1, 2)
        k = self.projk(key).unflatten(-1, split).transpose(1, 2)
        v = self.projv(value).unflatten(-1, split).transpose(1, 2)
        q = q if query_pos is None else query_pos.rotate(q)
        k = k if key_pos is None else key_pos.rotate(k)
        return self.proj(attend(q, k, v, fused=key.shape[1] > self.fused_above))
