"""VGGT-Omega (2026): VGGT on DINOv3, with a lighter aggregator and heads.

Names and numbers follow ``facebookresearch/vggt-omega``; its weights are for non-commercial
research only. Images are RGB in [0, 1] with sides that are multiples of 16.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sightline.models.aggregator import IMAGENET_MEAN, IMAGENET_STD, Layers, check_patches, entry
from sightline.models.dinov3 import DinoVisionTransformer
from sightline.models.published import pick_options
from sightline.nn.block import Block
from sightline.nn.dpt import TokenFusion, by_frames, frames_at_once
from sightline.nn.options import Device, DType, Number
from sightline.nn.rope import RopePositionEmbedding, RotaryTable

REGISTER_BLOCKS = (2, 6, 9, 14, 20)
CACHED_LAYERS = (4, 11, 17, 23)
ENCODER: dict[str, Any] = {
    "depth": 24,
    "num_heads": 16,
    "n_storage_tokens": 4,
    "layerscale_init": 1e-5,
    "norm_layer": "layernormbf16",
    "mask_k_bias": True,
    "pos_embed_rope_normalize_coords": "max",
}


class OmegaAggregator(nn.Module):
    """Frames to tokens that know of each other.

    It differs from VGGT's in that positions turn patches within a frame only, and that some blocks
    across frames are left to the camera and register tokens while the patches skip them.
    """

    def __init__(
        self,
        patch_size: int = 16,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: Number = 4.0,
        num_register_tokens: int = 16,
        register_attention_block_indices: Collection[int] = REGISTER_BLOCKS,
        cached_layer_indices: Collection[int] = CACHED_LAYERS,
        init_values: Number = 1e-5,
        norm_eps: Number = 1e-5,
        mask_k_bias: bool = True,
        *,
        encoder: Mapping[str, Any] | None = None,
        rope: Mapping[str, Any] | None = None,
        gradient_checkpointing: bool = True,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create encoder and blocks.

        ``encoder`` replaces options of the DINOv3 ViT, ``rope`` those of the rotary positions.
        """
        super().__init__()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embed_dim, self.depth, self.patch_size = embed_dim, depth, patch_size
        self.patch_token_start = 1 + num_register_tokens
        self.register_blocks = frozenset(register_attention_block_indices)
        self.keep = frozenset(cached_layer_indices)
        self.gradient_checkpointing = gradient_checkpointing
        sizes = {"patch_size": patch_size, "embed_dim": embed_dim}
        self.patch_embed = DinoVisionTransformer(**{**ENCODER, **sizes, **(encoder or {}), **kind})
        check_patches(self.patch_embed, patch_size, patch_size)
        self.patch_embed.mask_token.requires_grad_(False)
        self.rope_embed = RopePositionEmbedding(
            embed_dim,
            num_heads=num_heads,
            **{"normalize_coords": "max", **(rope or {})},
            device=device,
        )
        self.camera_token = nn.Parameter(torch.randn(1, 2, 1, embed_dim, **kind))
        self.register_token = nn.Parameter(
            torch.randn(1, 2, num_register_tokens, embed_dim, **kind)
        )
        nn.init.normal_(self.camera_token, std=1e-6)
        nn.init.normal_(self.register_token, std=1e-6)
        blocks = partial(
            Block,
            embed_dim,
            num_heads,
            mlp_ratio,
            init_values=init_values,
            norm_layer=partial(nn.LayerNorm, eps=norm_eps),
            qk_norm=True,
            mask_k_bias=mask_k_bias,
            **kind,
        )
        self.frame_blocks = nn.ModuleList(blocks() for _ in range(depth))
        self.inter_frame_blocks = nn.ModuleList(blocks() for _ in range(depth))

    def forward(
        self, images: Float[Tensor, "b s 3 h w"], keep: Collection[int] | None = None
    ) -> tuple[Layers, int]:
        """Return one entry ``[B, S, P, 2C]`` for each layer that is kept, else None.

        Args:
            images: Frames in [0, 1]; the first one is special.
            keep: Layers to keep instead of the published ones.
        """
        batch, frames, _, height, width = images.shape
        mean, std = (
            torch.tensor(values, device=images.device, dtype=images.dtype).view(3, 1, 1)
            for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
        normed = ((images - mean) / std).flatten(0, 1)
        features: Any = self.patch_embed.forward_features(normed)
        patches = features["x_norm_patchtokens"]
        special = torch.cat((self.camera_token, self.register_token), 2).to(patches.dtype)
        first, others = special[:, :1], special[:, 1:].expand(-1, frames - 1, -1, -1)
        special = torch.cat((first, others), 1).expand(batch, -1, -1, -1).flatten(0, 1)
        x = torch.cat((special, patches), 1)
        start = self.patch_token_start
        table = self.rope_embed(
            H=height // self.patch_size, W=width // self.patch_size, prefix=start
        )
        wanted = self.keep if keep is None else frozenset(keep)
        layers: Layers = []
        for index in range(self.depth):
            x = self._run(
                self.frame_blocks[index], x.reshape(batch * frames, -1, self.embed_dim), table
            )
            inside = x.view(batch, frames, -1, self.embed_dim)
            block = self.inter_frame_blocks[index]
            if index in self.register_blocks:
                tokens = inside[:, :, :start].flatten(1, 2)
                tokens = self._run(block, tokens, None).unflatten(1, (frames, start))
                x = torch.cat((tokens, inside[:, :, start:]), 2)
            else:
                x = self._run(block, inside.flatten(1, 2), None).view_as(inside)
            layers.append(torch.cat((inside, x), -1) if index in wanted else None)
        return layers, start

    def _run(self, block: nn.Module, x: Tensor, table: RotaryTable | None) -> Tensor:
        wanted = self.training and self.gradient_checkpointing and torch.is_grad_enabled()
        if wanted and not x.is_meta:  # nothing is kept there, and torch 2.4 could not
            return checkpoint(block, x, table, use_reentrant=False)
        return block(x, table)


def head_blocks(
    dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: Number,
    norm_eps: Number,
    mask_k_bias: bool,
    **kind: Any,
) -> list[Block]:
    """Return the blocks of the camera and text heads."""
    return [
        Block(
            dim,
            num_heads,
            mlp_ratio,
            init_values=1e-5,
            norm_layer=partial(nn.LayerNorm, eps=norm_eps),
            mask_k_bias=mask_k_bias,
            **kind,
        )
        for _ in range(depth)
    ]


class OmegaCameraHead(nn.Module):
    """Nine numbers for the camera of every frame in one pass; see `pose_encoding`."""

    def __init__(
        self,
        dim_in: int = 2048,
        depth: int = 4,
        num_heads: int = 16,
        mlp_ratio: Number = 4.0,
        norm_eps: Number = 1e-5,
        mask_k_bias: bool = True,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the trunk; ``dim_in`` is the width of the aggregator's entries."""
        super().__init__()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.token_norm = nn.LayerNorm(dim_in, eps=norm_eps, **kind)
        self.trunk = nn.ModuleList(
            head_blocks(dim_in, depth, num_heads, mlp_ratio, norm_eps, mask_k_bias, **kind)
        )
        self.trunk_norm = nn.LayerNorm(dim_in, eps=norm_eps, **kind)
        self.camera_branch = nn.Sequential(
            nn.Linear(dim_in, dim_in // 2, **kind), nn.GELU(), nn.Linear(dim_in // 2, 9, **kind)
        )

    def forward(self, layers: Layers, patch_token_start: int) -> Float[Tensor, "b s 9"]:
        """Return the encodings, from camera and register tokens of all frames."""
        tokens = entry(layers, -1)[:, :, :patch_token_start]
        x = self.token_norm(tokens).flatten(1, 2)
        for block in self.trunk:
            x = block(x)
        x = x.view_as(tokens)[:, :, 0]
        encoding = self.camera_branch(self.trunk_norm(x))
        return torch.cat((encoding[..., :7], encoding[..., 7:].relu() + 0.01), -1)


class OmegaDenseHead(TokenFusion):
    """Depth and its confidence for every pixel."""

    def __init__(
        self,
        dim_in: int = 2048,
        patch_size: int = 16,
        features: int = 256,
        out_channels: Sequence[int] = (256, 512, 1024, 1024),
        intermediate_layer_idx: Sequence[int] = CACHED_LAYERS,
        norm_eps: Number = 1e-5,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the head for patches that 4 divides."""
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            dim_in,
            patch_size,
            features,
            out_channels,
            norm_eps=norm_eps,
            enlarge_last=False,
            **kind,
        )
        self.intermediate_layer_idx = tuple(intermediate_layer_idx)
        self.shuffle = patch_size // 4
        self.proj = nn.Conv2d(features, self.shuffle**2, 1, **kind)
        self.proj_conf = nn.Conv2d(features, self.shuffle**2, 1, **kind)

    def forward(
        self,
        layers: Layers,
        images: Float[Tensor, "b s 3 h w"],
        patch_token_start: int,
        frames_chunk_size: int | None = 8,
    ) -> tuple[Float[Tensor, "b s h w 1"], Float[Tensor, "b s h w"]]:
        """Return depth and confidence; for the arguments see VGGT's `DPTHead`."""
        height, width = images.shape[-2:]
        chosen = [entry(layers, index) for index in self.intermediate_layer_idx]
        depth, confidence = by_frames(
            lambda tokens: self._finish(tokens, height, width),
            [tokens[:, :, patch_token_start:] for tokens in chosen],
            frames_chunk_size,
        )
        return depth.unsqueeze(-1), confidence

    def _finish(self, tokens: list[Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
        x = self.add_positions(self.fuse(tokens, height, width), width / height)
        depth = functional.pixel_shuffle(self.proj(x), self.shuffle)
        confidence = functional.pixel_shuffle(self.proj_conf(x), self.shuffle)
        return depth.exp().squeeze(1), 1 + confidence.exp().squeeze(1)


class TextAlignmentHead(nn.Module):
    """A token that reads the scene, and its embedding beside text."""

    def __init__(
        self,
        dim_in: int = 2048,
        depth: int = 4,
        num_heads: int = 16,
        mlp_ratio: Number = 4.0,
        norm_eps: Number = 1e-5,
        mask_k_bias: bool = True,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the head."""
        super().__init__()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.language_token = nn.Parameter(torch.zeros(1, 1, dim_in, **kind))
        nn.init.normal_(self.language_token, std=0.02)
        self.token_norm = nn.LayerNorm(dim_in, eps=norm_eps, **kind)
        self.readout_blocks = nn.ModuleList(
            head_blocks(dim_in, depth, num_heads, mlp_ratio, norm_eps, mask_k_bias, **kind)
        )
        self.language_token_norm = nn.LayerNorm(dim_in, eps=norm_eps, **kind)
        half = dim_in // 2
        self.embedding_projector = nn.Sequential(
            nn.Linear(dim_in, half, **kind),
            nn.GELU(),
            nn.LayerNorm(half, eps=norm_eps, **kind),
            nn.Linear(half, dim_in, **kind),
        )

    def forward(
        self, layers: Layers, patch_token_start: int
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Return the token and its unit embedding, from camera and register tokens."""
        tokens = entry(layers, -1)[:, :, :patch_token_start].flatten(1, 2)
        lead = self.language_token.to(tokens.dtype).expand(len(tokens), -1, -1)
        x = torch.cat((lead, self.token_norm(tokens)), 1)
        for block in self.readout_blocks:
            x = block(x)
        token = self.language_token_norm(x[:, 0])
        return token, functional.normalize(self.embedding_projector(token), dim=-1)


class VGGTOmega(nn.Module):
    """The whole network, or the parts of it that are wanted.

    ``aggregator``, ``camera``, ``dense`` and ``text`` are options of the parts that replace the
    published ones.
    """

    def __init__(
        self,
        patch_size: int = 16,
        embed_dim: int = 1024,
        enable_camera: bool = True,
        enable_depth: bool = True,
        enable_alignment: bool = False,
        *,
        aggregator: Mapping[str, Any] | None = None,
        camera: Mapping[str, Any] | None = None,
        dense: Mapping[str, Any] | None = None,
        text: Mapping[str, Any] | None = None,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the network; ``enable_alignment`` is for the 256-pixel model with the text head."""
        super().__init__()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        width = 2 * embed_dim
        self.aggregator = OmegaAggregator(patch_size, embed_dim, **dict(aggregator or {}), **kind)
        self.camera_head = (
            OmegaCameraHead(width, **dict(camera or {}), **kind) if enable_camera else None
        )
        self.dense_head = (
            OmegaDenseHead(width, patch_size, **dict(dense or {}), **kind) if enable_depth else None
        )
        self.text_alignment_head = (
            TextAlignmentHead(width, **dict(text or {}), **kind) if enable_alignment else None
        )

    def forward(
        self,
        images: Float[Tensor, "s 3 h w"] | Float[Tensor, "b s 3 h w"],
        *,
        frames_chunk_size: int | Literal["auto"] | None = "auto",
    ) -> dict[str, Tensor]:
        """Predict everything that is enabled; heads run in float32.

        Args:
            images: Frames in [0, 1]; without a batch axis one is added.
            frames_chunk_size: Frames that the dense head works on at a time; None for all, and by
                default as many as suit the device. Results are the same.

        Returns:
            ``pose_enc [B, S, 9]``, ``depth [B, S, H, W, 1]``, ``depth_conf [B, S, H, W]``; with the
            text head ``text_alignment_token`` and ``text_alignment_embedding`` ``[B, 2C]``; outside
            training ``images``.
        """
        frames = images if images.ndim == 5 else images.unsqueeze(0)
        layers, start = self.aggregator(frames)
        predictions: dict[str, Tensor] = {}
        step = frames_chunk_size
        if step == "auto":
            height, width = frames.shape[-2:]
            step = frames_at_once(height, width, frames.device)
        with torch.autocast(frames.device.type, enabled=False):
            if self.camera_head is not None:
                predictions["pose_enc"] = self.camera_head(layers, start)
            if self.dense_head is not None:
                depth, confidence = self.dense_head(layers, frames, start, step)
                predictions |= {"depth": depth, "depth_conf": confidence}
            if self.text_alignment_head is not None:
                token, embedding = self.text_alignment_head(layers, start)
                predictions["text_alignment_token"] = token
                predictions["text_alignment_embedding"] = embedding
        if not self.training:
            predictions["images"] = frames
        return predictions


def from_config(config: dict[str, Any]) -> VGGTOmega:
    """Build a network from a description with VGGT-Omega's sizes and those of its parts."""
    rope = config.get("rope", {})
    encoder = {
        "depth": config["encoder_depth"],
        "num_heads": config["encoder_heads"],
        "n_storage_tokens": config["encoder_storage"],
        "ffn_ratio": config.get("encoder_mlp_ratio", 4.0),
        "norm_eps": config.get("norm_eps", 1e-5),
        "mask_k_bias": config.get("mask_k_bias", True),
        "pos_embed_rope_base": rope.get("base", 100.0),
        "pos_embed_rope_normalize_coords": rope.get("normalize_coords", "max"),
        "pos_embed_rope_dtype": rope.get("dtype", "fp32"),
    }
    aggregator: dict[str, Any] = {
        **pick_options(config, OmegaAggregator),
        "encoder": encoder,
        "rope": {name: rope[name] for name in ("base", "normalize_coords") if name in rope},
    }
    sizes = {name: aggregator.pop(name) for name in ("patch_size", "embed_dim")}
    kind = {name: aggregator.pop(name) for name in ("device", "dtype") if name in aggregator}
    head = {
        "depth": config["head_blocks"],
        "num_heads": config["head_heads"],
        "mlp_ratio": config.get("head_mlp_ratio", 4.0),
        "norm_eps": config.get("norm_eps", 1e-5),
        "mask_k_bias": config.get("mask_k_bias", True),
    }
    dense = {
        "features": config["dense_features"],
        "out_channels": config["dense_out_channels"],
        "intermediate_layer_idx": config["dense_layers"],
        "norm_eps": config.get("norm_eps", 1e-5),
    }
    return VGGTOmega(
        **sizes,
        **kind,
        enable_alignment=config.get("enable_alignment", True),
        aggregator=aggregator,
        camera=head,
        dense=dense,
        text=head,
    )


PUBLISHED: dict[str, dict[str, Any]] = {
    "vggt_omega_1b_512": {},
    "vggt_omega_1b_256_text": {"enable_alignment": True},
}
"""The published checkpoints and their constructor options."""
