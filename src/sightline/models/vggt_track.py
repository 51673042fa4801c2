"""VGGT's tracker: where points of the first frame are in all others.

It is the tracker of CoTracker (Karaev et al. 2023) in the form of VGGSfM. Names follow
``facebookresearch/vggt``. Coordinates are ``(x, y)``.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sightline.nn.mlp import Mlp
from sightline.nn.options import Device, DType, Number

Layers = list[Tensor | None]


class SelfBlock(nn.Module):
    """Self-attention and a feed-forward layer.

    The residual starts from the *normalised* input, as in the original, whose weights know it.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: Number = 4.0, **kind: Any) -> None:
        """Create the block."""
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, **kind)
        self.norm2 = nn.LayerNorm(dim, **kind)
        self.attn = nn.MultiheadAttention(dim, num_heads, batch_first=True, **kind)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **kind)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Let every token look at all others."""
        x = self.norm1(x)
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class CrossBlock(nn.Module):
    """The same with attention to other tokens."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: Number = 4.0, **kind: Any) -> None:
        """Create the block."""
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, **kind)
        self.norm_context = nn.LayerNorm(dim, **kind)
        self.norm2 = nn.LayerNorm(dim, **kind)
        self.cross_attn = nn.MultiheadAttention(dim, num_heads, batch_first=True, **kind)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **kind)

    def forward(
        self, x: Float[Tensor, "b n d"], context: Float[Tensor, "b m d"]
    ) -> Float[Tensor, "b n d"]:
        """Let every token look at ``context``."""
        x, context = self.norm1(x), self.norm_context(context)
        x = x + self.cross_attn(x, context, context, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class UpdateFormer(nn.Module):
    """The transformer over points and frames; points talk through a few virtual tracks."""

    def __init__(
        self,
        depth: int,
        input_dim: int,
        hidden_size: int,
        output_dim: int,
        num_heads: int = 8,
        mlp_ratio: Number = 4.0,
        num_virtual_tracks: int = 64,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create ``depth`` blocks over time, each followed by blocks over points."""
        super().__init__()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_virtual_tracks = num_virtual_tracks
        self.input_norm = nn.LayerNorm(input_dim, **kind)
        self.input_transform = nn.Linear(input_dim, hidden_size, **kind)
        self.output_norm = nn.LayerNorm(hidden_size, **kind)
        self.flow_head = nn.Linear(hidden_size, output_dim, **kind)
        # The misspelt name is the published one.
        self.virual_tracks = nn.Parameter(
            torch.randn(1, num_virtual_tracks, 1, hidden_size, **kind)
        )

        def blocks(make: Callable[..., nn.Module]) -> nn.ModuleList:
            return nn.ModuleList(
                make(hidden_size, num_heads, mlp_ratio, **kind) for _ in range(depth)
            )

        self.time_blocks = blocks(SelfBlock)
        self.space_virtual_blocks = blocks(SelfBlock)
        self.space_point2virtual_blocks = blocks(CrossBlock)
        self.space_virtual2point_blocks = blocks(CrossBlock)

    def forward(self, x: Float[Tensor, "b n s c"]) -> Float[Tensor, "b n s e"]:
        """Return the update of every point in every frame."""
        batch, _, frames, _ = x.shape
        start = self.input_transform(self.input_norm(x))
        virtual = self.virual_tracks.expand(batch, -1, frames, -1)
        tokens = torch.cat((start, virtual), dim=1)
        count = tokens.shape[1]
        real = count - self.num_virtual_tracks
        for time, read, think, write in zip(
            self.time_blocks,
            self.space_virtual2point_blocks,
            self.space_virtual_blocks,
            self.space_point2virtual_blocks,
            strict=True,
        ):
            tokens = time(tokens.flatten(0, 1)).unflatten(0, (batch, count))
            space = tokens.transpose(1, 2).flatten(0, 1)
            points, virtual = space[:, :real], space[:, real:]
            virtual = think(read(virtual, points))
            points = write(points, virtual)
            space = torch.cat((points, virtual), dim=1)
            tokens = space.unflatten(0, (batch, frames)).transpose(1, 2)
        return self.flow_head(self.output_norm(tokens[:, :real] + start))


class Tracker(nn.Module):
    """Refine tracks on feature maps (``tracker.*`` in the files)."""

    def __init__(
        self,
        latent_dim: int = 128,
        stride: int = 2,
        corr_levels: int = 7,
        corr_radius: int = 4,
        hidden_size: int = 384,
        depth: int = 6,
        max_scale: int = 518,
        num_heads: int = 8,
        mlp_ratio: Number = 4.0,
        num_virtual_tracks: int = 64,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the tracker for maps of ``latent_dim`` channels at ``1 / stride`` of the image."""
        super().__init__()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.latent_dim, self.stride, self.max_scale = latent_dim, stride, max_scale
        self.corr_levels, self.corr_radius = corr_levels, corr_radius
        self.transformer_dim = 3 * latent_dim + 4
        window = (2 * corr_radius + 1) ** 2
        self.corr_mlp = Mlp(corr_levels * window, hidden_size, latent_dim, **kind)
        self.query_ref_token = nn.Parameter(torch.randn(1, 2, self.transformer_dim, **kind))
        self.updateformer = UpdateFormer(
            depth,
            self.transformer_dim,
            hidden_size,
            latent_dim + 2,
            num_heads,
            mlp_ratio,
            num_virtual_tracks,
            **kind,
        )
        self.fmap_norm = nn.LayerNorm(latent_dim, **kind)
        self.ffeat_norm = nn.GroupNorm(1, latent_dim, **kind)
        self.ffeat_updater = nn.Sequential(nn.Linear(latent_dim, latent_dim, **kind), nn.GELU())
        self.vis_predictor = nn.Sequential(nn.Linear(latent_dim, 1, **kind))
        self.conf_predictor = nn.Sequential(nn.Linear(latent_dim, 1, **kind))

    def forward(
        self,
        query_points: Float[Tensor, "b n 2"],
        maps: Float[Tensor, "b s c h w"],
        iters: int = 4,
    ) -> tuple[list[Float[Tensor, "b s n 2"]], Float[Tensor, "b s n"], Float[Tensor, "b s n"]]:
        """Track points.

        Args:
            query_points: Pixels of the first frame.
            maps: Feature maps of all frames.
            iters: Refinements.

        Returns:
            Pixels after every refinement, and visibility and confidence in [0, 1] after the last.
        """
        batch, frames, _, height, width = maps.shape
        count = query_points.shape[1]
        maps = self.fmap_norm(maps.permute(0, 1, 3, 4, 2)).permute(0, 1, 4, 2, 3)
        pyramid = [maps.flatten(0, 1)]
        for _ in range(self.corr_levels - 1):
            pyramid.append(functional.avg_pool2d(pyramid[-1], 2, stride=2))
        query = query_points / self.stride
        coords = query.unsqueeze(1).expand(-1, frames, -1, -1)
        feature = sample_map(maps[:, 0], query.unsqueeze(2), "border").squeeze(3).transpose(1, 2)
        features = feature.unsqueeze(1).expand(-1, frames, -1, -1)
        place = point_positions(query, self.transformer_dim, height, width).unsqueeze(2)
        first, others = self.query_ref_token[:, :1], self.query_ref_token[:, 1:]
        role = torch.cat((first, others.expand(-1, frames - 1, -1)), dim=1)
        tracks = []
        for _ in range(iters):
            coords = coords.detach()
            correlation = self.corr_mlp(self._correlate(pyramid, features, coords))
            flow = (coords - coords[:, :1]).transpose(1, 2)
            scaled = flow / self.max_scale
            parts = (
                embed_flow(flow, self.latent_dim // 2),
                scaled,
                scaled,
                correlation.transpose(1, 2),
                features.transpose(1, 2),
            )
            delta = self.updateformer(torch.cat(parts, dim=-1) + place + role)
            delta = delta.transpose(1, 2)
            update = self.ffeat_norm(delta[..., 2:].reshape(-1, self.latent_dim))
            update = self.ffeat_updater(update).view(batch, frames, count, -1)
            features = features + update
            coords = torch.cat((query.unsqueeze(1), (coords + delta[..., :2])[:, 1:]), dim=1)
            tracks.append(coords * self.stride)
        visible = self.vis_predictor(features).squeeze(-1).sigmoid()
        confidence = self.conf_predictor(features).squeeze(-1).sigmoid()
        return tracks, visible, confidence

    def _correlate(self, pyramid: list[Tensor], features: Tensor, coords: Tensor) -> Tensor:
        """Return the likeness of features to the map around their points, ``[B, S, N, K]``.

        Maps are read at the window's places and then multiplied; the original multiplies the whole
        map first. Both are linear in the map, so the result is the same at a fraction of the work.
        """
        batch, frames, count, channels = features.shape
        reach = torch.arange(-self.corr_radius, self.corr_radius + 1, device=coords.device)
        # The row offset comes first and is added to x: published weights know this order.
        window = torch.cartesian_prod(reach, reach).to(coords.dtype)
        vectors = features.reshape(batch * frames, count, channels)
        levels = []
        for level, maps in enumerate(pyramid):
            where = coords.reshape(batch * frames, count, 1, 2) / 2**level + window
            read = sample_map(maps, where, "zeros")
            levels.append(torch.einsum("bnc,bcnk->bnk", vectors, read))
        found = torch.cat(levels, dim=-1) / math.sqrt(channels)
        return found.view(batch, frames, count, -1)


class TrackHead(nn.Module):
    """A feature head and the tracker on it."""

    def __init__(
        self,
        dim_in: int,
        patch_size: int = 14,
        features: int = 128,
        iters: int = 4,
        stride: int = 2,
        corr_levels: int = 7,
        corr_radius: int = 4,
        hidden_size: int = 384,
        depth: int = 6,
        max_scale: int = 518,
        num_heads: int = 8,
        mlp_ratio: Number = 4.0,
        num_virtual_tracks: int = 64,
        *,
        make_features: Callable[..., nn.Module],
        dpt: Mapping[str, Any] | None = None,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create both; ``make_features`` is VGGT's `DPTHead`, and ``dpt`` its options."""
        super().__init__()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        options: dict[str, Any] = {**(dpt or {}), "features": features}
        self.feature_extractor: Any = make_features(
            dim_in,
            patch_size=patch_size,
            feature_only=True,
            down_ratio=stride,
            pos_embed=False,
            **options,
            **kind,
        )
        self.tracker = Tracker(
            features,
            stride,
            corr_levels,
            corr_radius,
            hidden_size,
            depth,
            max_scale,
            num_heads,
            mlp_ratio,
            num_virtual_tracks,
            **kind,
        )
        self.iters = iters

    def forward(
        self,
        layers: Layers,
        images: Float[Tensor, "b s 3 h w"],
        patch_start_idx: int,
        query_points: Float[Tensor, "b n 2"],
        iters: int | None = None,
        frames_chunk_size: int | None = 8,
    ) -> tuple[list[Float[Tensor, "b s n 2"]], Float[Tensor, "b s n"], Float[Tensor, "b s n"]]:
        """Track points of the first frame; see `Tracker`."""
        maps = self.feature_extractor(layers, images, patch_start_idx, frames_chunk_size)
        return self.tracker(query_points, maps, iters or self.iters)


def sample_map(
    maps: Float[Tensor, "b c h w"], where: Float[Tensor, "b n k 2"], padding: str
) -> Float[Tensor, "b c n k"]:
    """Read maps at ``(x, y)``, bilinear, with pixel centres at integers."""
    height, width = maps.shape[-2:]
    extent = where.new_tensor([max(width - 1, 1), max(height - 1, 1)])
    grid = where * (2.0 / extent) - 1.0
    return functional.grid_sample(maps, grid, padding_mode=padding, align_corners=True)


def embed_flow(flow: Float[Tensor, "*batch 2"], channels: int) -> Float[Tensor, "*batch _"]:
    """Return sines and cosines in turn of x and then of y, ``channels`` each.

    Frequencies go up to 1000 per pixel, which is why float32 noise grows with every refinement.
    """
    steps = torch.arange(0, channels, 2, device=flow.device, dtype=torch.float32)
    angle = flow.unsqueeze(-1) * (steps * (1000.0 / channels))
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-3)


def point_positions(
    points: Float[Tensor, "b n 2"], dim: int, height: int, width: int
) -> Float[Tensor, "b n d"]:
    """Return the fixed 2-D position table of a map, read at points.

    The first half of the channels encodes x and the second y; each is sines and then cosines of
    ``position * 10000^(-2k / dim * 2)``. The table is made for integer positions in float64 and
    read in between linearly, clamped to the border.
    """
    quarter = dim // 4
    rate = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64, device=points.device) / quarter)
    parts = []
    for axis, size in ((0, width), (1, height)):
        angle = torch.arange(size, dtype=torch.float64, device=points.device).unsqueeze(1) * rate
        table = torch.cat((angle.sin(), angle.cos()), dim=1).to(points.dtype)
        position = points[..., axis].clamp(0, size - 1)
        low = position.floor().long().clamp(max=max(size - 2, 0))
        share = (position - low).unsqueeze(-1)
        high = (low + 1).clamp(max=size - 1)
        parts.append(table[low] * (1 - share) + table[high] * share)
    return torch.cat(parts, dim=-1)
