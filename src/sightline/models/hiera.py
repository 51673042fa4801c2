"""Hiera (Ryali et al. 2023) and its feature pyramid: the image encoder of SAM 2.

Names follow ``facebookresearch/sam2``.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sightline.nn.attention import attend
from sightline.nn.options import Device, DType, Number
from sightline.nn.tables import TableCache


class HieraMlp(nn.Module):
    """Linear, GELU, linear (keys ``layers.0``, ``layers.1``)."""

    def __init__(self, dim: int, hidden: int, **kind: Any) -> None:
        """Create the layers."""
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(dim, hidden, **kind), nn.Linear(hidden, dim, **kind)]
        )

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Apply the layers to the last axis."""
        return self.layers[1](functional.gelu(self.layers[0](x)))


class HieraAttention(nn.Module):
    """Self-attention over a map, whose queries may be pooled."""

    def __init__(self, dim: int, dim_out: int, num_heads: int, pool: int, **kind: Any) -> None:
        """Create the projections; ``pool`` is the stride of the queries."""
        super().__init__()
        self.num_heads, self.pool = num_heads, pool
        self.qkv = nn.Linear(dim, 3 * dim_out, **kind)
        self.proj = nn.Linear(dim_out, dim_out, **kind)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b _ _ e"]:
        """Let every place look at all others of its map."""
        query, key, value = self.qkv(x).chunk(3, -1)
        query = max_pool(query, self.pool)
        q, k, v = (
            t.flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for t in (query, key, value)
        )
        return self.proj(attend(q, k, v).unflatten(1, query.shape[1:3]))


class HieraBlock(nn.Module):
    """Attention within windows or over the whole map, and a feed-forward layer."""

    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_heads: int,
        mlp_ratio: Number = 4.0,
        pool: int = 1,
        window: int = 0,
        **kind: Any,
    ) -> None:
        """Create the block; ``window`` 0 is the whole map, ``pool`` above 1 shrinks it."""
        super().__init__()
        self.window, self.pool = window, pool
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **kind)
        self.attn = HieraAttention(dim, dim_out, num_heads, pool, **kind)
        self.norm2 = nn.LayerNorm(dim_out, eps=1e-6, **kind)
        self.mlp = HieraMlp(dim_out, int(dim_out * mlp_ratio), **kind)
        self.proj = nn.Linear(dim, dim_out, **kind) if dim != dim_out else None

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b _ _ e"]:
        """Return the map, smaller where queries are pooled."""
        normed = self.norm1(x)
        short = x if self.proj is None else max_pool(self.proj(normed), self.pool)
        if self.window:
            windows, padded = cut_windows(normed, self.window)
            found = self.attn(windows)
            grown = (padded[0] // self.pool, padded[1] // self.pool)
            found = join_windows(found, len(x), grown)[:, : short.shape[1], : short.shape[2]]
        else:
            found = self.attn(normed)
        x = short + found
        return x + self.mlp(self.norm2(x))


class Hiera(nn.Module):
    """The trunk: four stages at strides 4, 8, 16 and 32."""

    def __init__(
        self,
        embed_dim: int = 96,
        num_heads: int = 1,
        stages: Sequence[int] = (1, 2, 7, 2),
        global_att_blocks: Sequence[int] = (5, 7, 9),
        window_spec: Sequence[int] = (8, 4, 14, 7),
        window_pos_embed_bkg_spatial_size: Sequence[int] = (7, 7),
        q_pool: int = 3,
        q_stride: Sequence[int] = (2, 2),
        mlp_ratio: Number = 4.0,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the trunk; the defaults are those of SAM 2 tiny."""
        super().__init__()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        stride = q_stride[0]
        self.patch_embed: Any = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, embed_dim, 7, stride=4, padding=3, **kind)
        rows, cols = window_pos_embed_bkg_spatial_size
        self.pos_embed = nn.Parameter(torch.zeros(1, embed_dim, rows, cols, **kind))
        side = window_spec[0]
        self.pos_embed_window = nn.Parameter(torch.zeros(1, embed_dim, side, side, **kind))
        ends = [sum(stages[: i + 1]) - 1 for i in range(len(stages))]
        pooled = {end + 1 for end in ends[:-1][:q_pool]}
        self.stage_ends = frozenset(ends)
        self.channels = [embed_dim * 2**i for i in range(len(stages))]
        blocks = []
        dim, stage = embed_dim, 0
        for index in range(sum(stages)):
            # The first block of a stage still cuts the windows of the stage before.
            window = 0 if index in global_att_blocks else window_spec[stage]
            dim_out = dim
            if index - 1 in self.stage_ends:
                dim_out, num_heads, stage = 2 * dim, 2 * num_heads, stage + 1
            pool = stride if index in pooled else 1
            blocks.append(HieraBlock(dim, dim_out, num_heads, mlp_ratio, pool, window, **kind))
            dim = dim_out
        self.blocks = nn.ModuleList(blocks)
        self._tables = TableCache[Tensor]()
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.pos_embed_window, std=0.02)

    def position_table(self, rows: int, cols: int) -> Float[Tensor, "1 h w c"]:
        """Return the coarse table, resized, plus the table of a window, repeated."""
        stored, window = self.pos_embed, self.pos_embed_window

        def make() -> Tensor:
            wide = functional.interpolate(stored, (rows, cols), mode="bicubic")
            tiled = window.tile(1, 1, rows // window.shape[2], cols // window.shape[3])
            return (wide + tiled).permute(0, 2, 3, 1)

        return self._tables.get((rows, cols), make, weights=[stored, window])

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Return the maps of the stages, finest first, channels first."""
        x = self.patch_embed.proj(x).permute(0, 2, 3, 1)
        x = x + self.position_table(x.shape[1], x.shape[2])
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.stage_ends:
                maps.append(x.permute(0, 3, 1, 2))
        return maps


class Neck(nn.Module):
    """The feature pyramid: all maps to one width, coarse ones added to finer ones."""

    def __init__(
        self,
        d_model: int = 256,
        backbone_channel_list: Sequence[int] = (768, 384, 192, 96),
        fpn_top_down_levels: Sequence[int] = (2, 3),
        scalp: int = 1,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the pyramid.

        Args:
            d_model: Width of every map.
            backbone_channel_list: Channels of the trunk, coarsest first.
            fpn_top_down_levels: Levels, counted from the finest, that get the coarser one added.
            scalp: How many of the coarsest maps are dropped in the end.
            device: Where to create it.
            dtype: Its number type.
        """
        super().__init__()
        self.d_model, self.scalp = d_model, scalp
        self.top_down = frozenset(fpn_top_down_levels)
        self.convs = nn.ModuleList()
        for channels in backbone_channel_list:
            home: Any = nn.Module()
            home.conv = nn.Conv2d(channels, d_model, 1, device=device, dtype=dtype)
            self.convs.append(home)

    def forward(self, maps: list[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b c _ _"]]:
        """Return the maps at strides 4, 8 and 16."""
        out: list[Tensor] = []
        coarser: Tensor | None = None
        for level in range(len(maps) - 1, -1, -1):
            x = self.convs[len(maps) - 1 - level].get_submodule("conv")(maps[level])
            if coarser is not None and level in self.top_down:
                x = x + functional.interpolate(coarser, scale_factor=2.0, mode="nearest")
            coarser = x
            out.insert(0, x)
        return out[: len(out) - self.scalp]


def sine_positions(
    height: int, width: int, channels: int, device: Device = None
) -> Float[Tensor, "1 c h w"]:
    """Return SAM 2's fixed position map: rows in the first half of the channels, then columns.

    Positions run from just above 0 to 2 pi; sines and cosines of ``position * 10000^(-2k/half)``
    alternate.
    """
    half = channels // 2
    rate = 10000.0 ** -(torch.arange(0, half, 2, device=device, dtype=torch.float32) / half)
    waves = []
    for size in (height, width):
        place = torch.arange(1, size + 1, device=device, dtype=torch.float32)
        angle = (place / (size + 1e-6) * 2 * math.pi).unsqueeze(1) * rate
        waves.append(torch.stack((angle.sin(), angle.cos()), -1).flatten(1))
    rows = waves[0].view(height, 1, half).expand(-1, width, -1)
    cols = waves[1].view(1, width, half).expand(height, -1, -1)
    return torch.cat((rows, cols), -1).permute(2, 0, 1).unsqueeze(0)


def max_pool(x: Float[Tensor, "b h w c"], stride: int) -> Float[Tensor, "b _ _ c"]:
    """Return the largest value of every ``stride`` x ``stride`` places."""
    if stride == 1:
        return x
    return functional.max_pool2d(x.permute(0, 3, 1, 2), stride).permute(0, 2, 3, 1)


def cut_windows(
    x: Float[Tensor, "b h w c"], side: int
) -> tuple[Float[Tensor, "n side side c"], tuple[int, int]]:
    """Cut a map, padded with zeros to a multiple of ``side``, and return the padded size too."""
    height, width = x.shape[1:3]
    x = functional.pad(x, (0, 0, 0, -width % side, 0, -height % side))
    rows, cols = x.shape[1] // side, x.shape[2] // side
    tiles = x.unflatten(2, (cols, side)).unflatten(1, (rows, side)).transpose(2, 3)
    return tiles.flatten(0, 2), (x.shape[1], x.shape[2])


def join_windows(
    windows: Float[Tensor, "n side side2 c"], batch: int, size: tuple[int, int]
) -> Float[Tensor, "b h w c"]:
    """Put windows together to maps of ``size``."""
    side = windows.shape[1]
    rows, cols = size[0] // side, size[1] // side
    tiles = windows.unflatten(0, (batch, rows, cols)).transpose(2, 3)
    return tiles.flatten(3, 4).flatten(1, 2)
