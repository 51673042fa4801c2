"""VGGT's alternating attention (Wang et al. 2025) behind any image encoder.

Patch tokens of every frame, led by one camera token and some register tokens, pass in turn through
blocks that look within a frame and blocks that look across all frames. Names and numbers follow
``facebookresearch/vggt``; with another encoder than VGGT's the aggregator has to be trained, since
published weights know only the tokens that they were trained on.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sightline.errors import InputError, ShapeError, UnknownNameError
from sightline.models import dinov2
from sightline.nn.block import Block
from sightline.nn.merge import merging_destinations, run_merged
from sightline.nn.options import Device, DType, Number
from sightline.nn.patch_embed import PatchEmbed
from sightline.nn.rope import RotaryTable, grid_positions, grid_rotary
from sightline.nn.tables import TableCache

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Layers = list[Tensor | None]


class Aggregator(nn.Module):
    """Frames to tokens that know of each other.

    Call it with images ``[B, S, 3, H, W]`` in [0, 1]. It returns one entry for each pair of a frame
    and a global block, ``[B, S, P, 2C]`` (their outputs side by side), and ``patch_start_idx``, the
    number of tokens before the patches: ``P = patch_start_idx + (H / patch) * (W / patch)``.

    Attributes:
        patch_embed: The encoder. Its class and register tokens are dropped.
        patch_proj: A linear layer where the encoder's width is not ``embed_dim``.
        keep: Which entries to return, the others are None; everything by default. Entries that
            nobody reads are the largest part of VGGT's memory.
        merge_ratio: Share of the tokens that may be merged in the attention across frames, outside
            training; see `nn.merge`. Results are then **inexact**; 0, the default, is exact.
    """

    def __init__(
        self,
        img_size: int = 518,
        patch_size: int = 14,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: Number = 4.0,
        num_register_tokens: int | None = None,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        ffn_bias: bool = True,
        patch_embed: str | nn.Module = "dinov2_vitl14_reg",
        aa_order: Sequence[str] = ("frame", "global"),
        aa_block_size: int = 1,
        qk_norm: bool = True,
        rope_freq: Number = 100,
        init_values: Number = 0.01,
        norm_eps: Number = 1e-5,
        *,
        n_storage_tokens: int | None = None,
        keep: Collection[int] | None = None,
        gradient_checkpointing: bool = True,
        merge_ratio: Number = 0.0,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        encoder: Mapping[str, Any] | None = None,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create encoder and blocks.

        Args:
            img_size: Nominal image side, a multiple of the patch; other sizes work too.
            patch_size: The encoder's patch.
            embed_dim: Width ``C``.
            depth: Blocks of each kind.
            num_heads: Heads of each block.
            mlp_ratio: Hidden width of the feed-forward layers over ``C``.
            num_register_tokens: Register tokens of a frame, 4 by default. They are the
                aggregator's own and independent of the encoder's.
            qkv_bias: Bias of the projection to queries, keys and values.
            proj_bias: Bias of the projection after attention.
            ffn_bias: Bias of the feed-forward layers.
            patch_embed: A name such as ``"dinov3_vitl16"`` or ``"dinov2_vitl14_reg"``, ``"conv"``,
                or a module that gives patch tokens ``[B, N, D]`` or a DINO feature dictionary.
            aa_order: Which kind comes first.
            aa_block_size: Blocks of one kind before the other kind follows.
            qk_norm: Normalise queries and keys.
            rope_freq: Base of the rotary positions; 0 for none.
            init_values: Start of the layer scales.
            norm_eps: Epsilon of the norms of the blocks.
            n_storage_tokens: Warned alias of ``num_register_tokens``.
            keep: See the class.
            gradient_checkpointing: Compute blocks again in the backward pass while training.
            merge_ratio: See the class; from 0 to 1, worth its cost for long sequences only.
            image_mean: Subtracted from the images.
            image_std: Divides the images.
            encoder: Options of a named encoder.
            device: Where to create it.
            dtype: Its number type.

        Raises:
            InputError: Options contradict each other; the text names the nearest valid setting.
        """
        super().__init__()
        if n_storage_tokens is not None:
            warnings.warn(
                "n_storage_tokens of an Aggregator means num_register_tokens and does not change "
                "the encoder; use num_register_tokens",
                stacklevel=2,
            )
            if num_register_tokens not in (None, n_storage_tokens):
                msg = (
                    f"n_storage_tokens={n_storage_tokens} and num_register_tokens="
                    f"{num_register_tokens} contradict each other; give num_register_tokens only"
                )
                raise InputError(msg)
            num_register_tokens = n_storage_tokens
        registers = 4 if num_register_tokens is None else num_register_tokens
        if sorted(aa_order) != ["frame", "global"] or depth % aa_block_size:
            msg = (
                'expected aa_order with "frame" and "global" once each and depth a multiple of '
                f"aa_block_size, got {list(aa_order)}, depth {depth}, aa_block_size {aa_block_size}"
            )
            raise InputError(msg)
        if not 0 <= merge_ratio <= 1:
            raise InputError(f"expected merge_ratio from 0 to 1, got {merge_ratio}; 0 is exact")
        self.merge_ratio = float(merge_ratio)
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embed_dim, self.depth = embed_dim, depth
        self.head_dim = embed_dim // num_heads
        self.patch_size = patch_size
        self.num_register_tokens = registers
        self.patch_start_idx = 1 + registers
        self.aa_order, self.aa_block_size = tuple(aa_order), aa_block_size
        self.rope_freq = float(rope_freq)
        self.keep = None if keep is None else frozenset(keep)
        self.gradient_checkpointing = gradient_checkpointing
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        if isinstance(patch_embed, str):
            patch_embed = build_encoder(
                patch_embed, img_size, patch_size, embed_dim, **(encoder or {}), **kind
            )
        check_patches(patch_embed, img_size, patch_size)
        self.patch_embed = patch_embed
        width = getattr(patch_embed, "embed_dim", embed_dim)
        self.patch_proj = (
            nn.Identity() if width == embed_dim else nn.Linear(width, embed_dim, **kind)
        )
        mask_token = getattr(patch_embed, "mask_token", None)
        if mask_token is not None:
            mask_token.requires_grad_(False)
        self.camera_token = nn.Parameter(torch.randn(1, 2, 1, embed_dim, **kind))
        self.register_token = nn.Parameter(torch.randn(1, 2, registers, embed_dim, **kind))
        nn.init.normal_(self.camera_token, std=1e-6)
        nn.init.normal_(self.register_token, std=1e-6)
        blocks = partial(
            Block,
            embed_dim,
            num_heads,
            mlp_ratio,
            qkv_bias=qkv_bias,
            proj_bias=proj_bias,
            ffn_bias=ffn_bias,
            init_values=init_values,
            norm_layer=partial(nn.LayerNorm, eps=norm_eps),
            qk_norm=qk_norm,
            **kind,
        )
        self.frame_blocks = nn.ModuleList(blocks() for _ in range(depth))
        self.global_blocks = nn.ModuleList(blocks() for _ in range(depth))
        self._tables = TableCache[RotaryTable]()

    def encode(self, images: Float[Tensor, "b s 3 h w"]) -> Float[Tensor, "bs n d"]:
        """Return the patch tokens of every frame, ``[B * S, N, C]``."""
        kind: dict[str, Any] = {"device": images.device, "dtype": images.dtype}
        mean = torch.tensor(self.image_mean, **kind).view(3, 1, 1)
        std = torch.tensor(self.image_std, **kind).view(3, 1, 1)
        frames = ((images - mean) / std).flatten(0, 1)
        run: Any = getattr(self.patch_embed, "forward_features", self.patch_embed)
        tokens = run(frames)
        if isinstance(tokens, Mapping):
            tokens = tokens["x_norm_patchtokens"]
        return self.patch_proj(tokens)

    def rotary(self, rows: int, cols: int, frames: int, device: Device) -> RotaryTable | None:
        """Return the rotary table of ``frames`` frames in a row; special tokens do not turn."""
        if not self.rope_freq:
            return None

        def make() -> RotaryTable:
            patches = grid_positions(rows, cols, device) + 1
            special = patches.new_zeros(self.patch_start_idx, 2)
            positions = torch.cat((special, patches)).repeat(frames, 1)
            return grid_rotary(positions, self.head_dim, self.rope_freq)

        return self._tables.get((rows, cols, frames, device), make)

    def forward(
        self, images: Float[Tensor, "b s 3 h w"], keep: Collection[int] | None = None
    ) -> tuple[Layers, int]:
        """Return the entries and ``patch_start_idx``; see the class.

        Args:
            images: Frames in [0, 1]; the first one is special.
            keep: Replaces the attribute of that name.
        """
        batch, frames, _, height, width = images.shape
        patches = self.encode(images)
        rows, cols = height // self.patch_size, width // self.patch_size
        if patches.shape[1] != rows * cols:
            msg = (
                f"expected {rows}x{cols} patches of {self.patch_size} pixels from the encoder, got "
                f"{patches.shape[1]}; set patch_size to the encoder's stride"
            )
            raise ShapeError(msg)
        special = torch.cat((self.camera_token, self.register_token), 2).to(patches.dtype)
        first, others = special[:, :1], special[:, 1:].expand(-1, frames - 1, -1, -1)
        special = torch.cat((first, others), 1).expand(batch, -1, -1, -1).flatten(0, 1)
        x = torch.cat((special, patches), 1)
        tables = {
            "frame": self.rotary(rows, cols, 1, x.device),
            "global": self.rotary(rows, cols, frames, x.device),
        }
        stays = None
        if self.merge_ratio and not self.training:
            stays = merging_destinations(rows, cols, frames, self.patch_start_idx, x.device)
        blocks = {"frame": self.frame_blocks, "global": self.global_blocks}
        grouped = {"frame": (batch * frames, -1), "global": (batch, -1)}
        wanted = self.keep if keep is None else frozenset(keep)
        layers: Layers = []
        for start in range(0, self.depth, self.aa_block_size):
            indices = range(start, start + self.aa_block_size)
            outputs: dict[tuple[str, int], Tensor] = {}
            for name in self.aa_order:
                x = x.reshape(*grouped[name], self.embed_dim)
                for index in indices:
                    block: Any = blocks[name][index]
                    if stays is not None and name == "global":
                        x = run_merged(block, x, tables[name], stays, self.merge_ratio)
                    else:
                        x = self._run(block, x, tables[name])
                    if wanted is None or index in wanted:
                        outputs[name, index] = x.reshape(batch, frames, -1, self.embed_dim)
            for index in indices:
                pair = [outputs.get((name, index)) for name in ("frame", "global")]
                chosen = [part for part in pair if part is not None]
                layers.append(torch.cat(chosen, -1) if chosen else None)
        return layers, self.patch_start_idx

    def _run(self, block: nn.Module, x: Tensor, table: RotaryTable | None) -> Tensor:
        wanted = self.training and self.gradient_checkpointing and torch.is_grad_enabled()
        if wanted and not x.is_meta:  # nothing is kept there, and torch 2.4 could not
            return checkpoint(block, x, table, use_reentrant=False)
        return block(x, table)


def build_encoder(
    name: str,
    img_size: int,
    patch_size: int,
    embed_dim: int,
    /,
    *,
    device: Device = None,
    dtype: DType = None,
    **options: Any,
) -> nn.Module:
    """Build an untrained encoder by name.

    Args:
        name: Any DINOv2 or DINOv3 name, VGGT's name ``dinov2_vitg2_reg``, or ``"conv"``, which is a
            single convolution.
        img_size: Side of the stored position table of a DINOv2.
        patch_size: Patch of a convolution.
        embed_dim: Width of a convolution.
        device: Where to create it.
        dtype: Its number type.
        options: Constructor options that replace the published ones, and ``pretrained``.

    Raises:
        UnknownNameError: There is no such encoder.
    """
    kind: dict[str, Any] = {"device": device, "dtype": dtype}
    if name == "conv":
        return PatchEmbed(img_size, patch_size, 3, embed_dim, **kind)
    from sightline.models import dinov3  # which offers this module's Aggregator in turn

    known = {"conv", "dinov2_vitg2_reg", *dinov2.MODELS, *dinov3.MODELS, *dinov3.CONVNEXTS}
    true_name = {"dinov2_vitg2_reg": "dinov2_vitg14_reg"}.get(name, name)
    options = {"img_size": img_size, "pretrained": False, **kind, **options}
    if true_name in dinov2.MODELS:
        # The stored position table is for the aggregator's side, which need not be 518.
        return dinov2.build_dinov2(true_name, **options)
    if true_name in dinov3.MODELS or true_name in dinov3.ALIASES or true_name in dinov3.CONVNEXTS:
        options.pop("img_size")  # positions are computed for any size
        return dinov3.build_dinov3(true_name, **options)
    raise UnknownNameError("encoder", name, known)


def check_patches(encoder: nn.Module, img_size: int, patch_size: int) -> None:
    """Check that encoder, image side and patch belong together.

    Raises:
        InputError: They do not; the text names the nearest valid setting.
    """
    own = getattr(encoder, "patch_size", None)
    own = own[0] if isinstance(own, tuple) else own
    if own is not None and own != patch_size:
        side = max(round(img_size / own), 1) * own
        msg = (
            f"expected patch_size {own}, which is what the encoder {type(encoder).__name__} has, "
            f"got {patch_size}; use patch_size={own} and img_size={side}"
        )
        raise InputError(msg)
    if img_size % patch_size:
        side = max(round(img_size / patch_size), 1) * patch_size
        msg = (
            f"expected img_size to be a multiple of patch_size, got {img_size} and {patch_size}; "
            f"the nearest is img_size={side}"
        )
        raise InputError(msg)


def entry(layers: Layers, index: int) -> Tensor:
    """Return an entry of an aggregator.

    Raises:
        ValueError: It was not kept.
    """
    tokens = layers[index]
    if tokens is None:
        msg = f"expected entry {index} of the aggregator, which was not kept; add it to keep"
        raise ValueError(msg)
    return tokens
