"""CroCo (Weinzaepfel et al. 2022) and CroCo v2 (2023): completion of one view from another.

`CroCoBackbone` is the encoder and decoder that DUSt3R, MASt3R and Splatt3R build on; names follow
``naver/croco``. CroCo takes images with ImageNet's mean and deviation; the 3R networks take
``(x - 0.5) / 0.5``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sightline.models.published import pick_options
from sightline.nn.block import Block, DecoderBlock
from sightline.nn.options import Device, DType, Number, Pair
from sightline.nn.patch_embed import PatchEmbed
from sightline.nn.rope import RotaryTable, grid_positions, grid_rotary, sincos_grid
from sightline.nn.tables import TableCache

FUSED_ABOVE = 128
"""Up to this many tokens attention is computed as in the original, whose outputs then come out bit
by bit; beyond, the fused kernel is two to four times faster and differs by rounding."""


class Encoded(NamedTuple):
    """Tokens of one view, and where they sit.

    Attributes:
        tokens: ``[B, N, C]`` after the encoder's norm; only visible ones where a mask was given.
        positions: ``[N, 2]`` or ``[B, N, 2]``, integer (row, column) of every token.
        extra: ``[B, N, D]`` tokens of another model that a later stage adds; none by default.
    """

    tokens: Tensor
    positions: Tensor
    extra: Tensor | None = None

    def map(self, pick: Callable[[Tensor], Tensor]) -> "Encoded":
        """Return the same with ``pick`` applied along the batch; common positions stay."""
        positions = self.positions if self.positions.ndim == 2 else pick(self.positions)
        extra = None if self.extra is None else pick(self.extra)
        return Encoded(pick(self.tokens), positions, extra)


class CroCoBackbone(nn.Module):
    """The shared encoder, and one decoder that looks from a first view at a second.

    ``pos_embed`` is ``"cosine"`` (a fixed table, added to the tokens and kept in the state) or
    ``"RoPE<base>"``.
    """

    def __init__(
        self,
        img_size: Pair = 224,
        patch_size: int = 16,
        enc_embed_dim: int = 768,
        enc_depth: int = 12,
        enc_num_heads: int = 12,
        dec_embed_dim: int = 512,
        dec_depth: int = 8,
        dec_num_heads: int = 16,
        mlp_ratio: Number = 4,
        norm_im2_in_dec: bool = True,
        pos_embed: str = "cosine",
        norm_eps: Number = 1e-6,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create encoder and decoder; ``img_size`` matters for cosine positions only."""
        super().__init__()
        if min(enc_depth, dec_depth) < 1:
            raise ValueError(
                f"expected one block or more, got depths of {enc_depth} and {dec_depth}"
            )
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        norm = partial(nn.LayerNorm, eps=norm_eps)
        self.enc_embed_dim, self.enc_depth = enc_embed_dim, enc_depth
        self.dec_embed_dim, self.dec_depth = dec_embed_dim, dec_depth
        self.enc_head_dim = enc_embed_dim // enc_num_heads
        self.dec_head_dim = dec_embed_dim // dec_num_heads
        self.patch_size = patch_size
        self.rope_base = _rope_base(pos_embed)
        self.patch_embed = PatchEmbed(img_size, patch_size, 3, enc_embed_dim, **kind)
        if self.rope_base is None:
            grid = self.patch_embed.patches_resolution
            for name, dim in (("enc", enc_embed_dim), ("dec", dec_embed_dim)):
                table = torch.from_numpy(sincos_grid(*grid, dim)).to(**kind)
                self.register_buffer(f"{name}_pos_embed", table)
        self.enc_blocks = nn.ModuleList(
            Block(
                enc_embed_dim,
                enc_num_heads,
                mlp_ratio,
                norm_layer=norm,
                fused_above=FUSED_ABOVE,
                **kind,
            )
            for _ in range(enc_depth)
        )
        self.enc_norm = norm(enc_embed_dim, **kind)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dec_embed_dim, **kind))
        self.decoder_embed = nn.Linear(enc_embed_dim, dec_embed_dim, **kind)
        self.dec_blocks = nn.ModuleList(
            DecoderBlock(
                dec_embed_dim,
                dec_num_heads,
                mlp_ratio,
                norm_layer=norm,
                norm_mem=norm_im2_in_dec,
                fused_above=FUSED_ABOVE,
                **kind,
            )
            for _ in range(dec_depth)
        )
        self.dec_norm = norm(dec_embed_dim, **kind)
        self._rotary_tables = TableCache[RotaryTable]()
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the starting weights of the original training code."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))
        nn.init.normal_(self.mask_token, std=0.02)

    def rotary(
        self, positions: Int[Tensor, "*batch n 2"], head_dim: int, grid: tuple[int, int] | None
    ) -> RotaryTable | None:
        """Return the rotary table of positions; a whole ``grid`` of patches is kept by its size."""
        if self.rope_base is None:
            return None
        if grid is None:
            return grid_rotary(positions, head_dim, self.rope_base)
        base = self.rope_base
        key = (grid, head_dim, positions.device)
        return self._rotary_tables.get(key, lambda: grid_rotary(positions, head_dim, base))

    def encode(
        self,
        image: Float[Tensor, "b 3 h w"],
        mask: Bool[Tensor, "b n"] | None = None,
        blocks: list[Tensor] | None = None,
    ) -> Encoded:
        """Encode views.

        Args:
            image: Normalised images.
            mask: True where a patch is hidden; every image hides the same number.
            blocks: Gets the output of every encoder block, the last one after the norm.

        Returns:
            The visible tokens and their positions.
        """
        grid = self.patch_embed.grid(*image.shape[-2:])
        tokens = self.patch_embed(image)
        positions = grid_positions(*grid, device=image.device)
        if self.rope_base is None:
            tokens = tokens + self._table("enc_pos_embed", grid).to(tokens.dtype)
        whole: tuple[int, int] | None = grid
        if mask is not None:
            whole = None
            batch = len(image)
            tokens = tokens[~mask].unflatten(0, (batch, -1))
            positions = positions.expand(batch, -1, -1)[~mask].unflatten(0, (batch, -1))
        return self.encode_tokens(tokens, positions, whole, blocks)

    def encode_tokens(
        self,
        tokens: Float[Tensor, "b n d"],
        positions: Int[Tensor, "*batch n 2"],
        grid: tuple[int, int] | None,
        blocks: list[Tensor] | None = None,
    ) -> Encoded:
        """Run the encoder on embedded patches; ``grid`` is given where they fill it row by row."""
        table = self.rotary(positions, self.enc_head_dim, grid)
        for block in self.enc_blocks:
            tokens = block(tokens, table)
            if blocks is not None:
                blocks.append(tokens)
        tokens = self.enc_norm(tokens)
        if blocks is not None:
            blocks[-1] = tokens
        return Encoded(tokens, positions)

    def _table(self, name: str, grid: tuple[int, int]) -> Float[Tensor, "n d"]:
        stored = self.get_buffer(name)
        native = self.patch_embed.patches_resolution
        if grid == native:
            return stored
        table = stored.float().unflatten(0, native).permute(2, 0, 1).unsqueeze(0)
        table = functional.interpolate(table, grid, mode="bicubic", align_corners=False)
        return table[0].flatten(1).T


class CroCoNet(CroCoBackbone):
    """CroCo itself: hidden patches of the first view are predicted with help of the second."""

    def __init__(
        self,
        img_size: Pair = 224,
        patch_size: int = 16,
        mask_ratio: Number = 0.9,
        enc_embed_dim: int = 768,
        enc_depth: int = 12,
        enc_num_heads: int = 12,
        dec_embed_dim: int = 512,
        dec_depth: int = 8,
        dec_num_heads: int = 16,
        mlp_ratio: Number = 4,
        norm_im2_in_dec: bool = True,
        pos_embed: str = "cosine",
        norm_eps: Number = 1e-6,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the network; the defaults are those of CroCo v1's checkpoint."""
        super().__init__(
            img_size,
            patch_size,
            enc_embed_dim,
            enc_depth,
            enc_num_heads,
            dec_embed_dim,
            dec_depth,
            dec_num_heads,
            mlp_ratio,
            norm_im2_in_dec,
            pos_embed,
            norm_eps,
            device=device,
            dtype=dtype,
        )
        self.mask_ratio = mask_ratio
        self.prediction_head = nn.Linear(
            dec_embed_dim, patch_size**2 * 3, device=device, dtype=dtype
        )
        nn.init.xavier_uniform_(self.prediction_head.weight)
        nn.init.zeros_(self.prediction_head.bias)

    def random_mask(self, batch: int, patches: int, device: Device = None) -> Bool[Tensor, "b n"]:
        """Hide ``int(mask_ratio * patches)`` random patches of every image."""
        order = torch.rand(batch, patches, device=device).argsort(dim=1)
        return order < int(self.mask_ratio * patches)

    def decode(
        self,
        first: Encoded,
        second: Encoded,
        grids: Sequence[tuple[int, int]],
        mask: Bool[Tensor, "b n"] | None = None,
        blocks: list[Tensor] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Look from the first view at the second.

        Args:
            first: The first view, only its visible tokens where it was masked.
            second: The whole second view.
            grids: Patch grids of both views.
            mask: The mask of the first view; hidden places are filled with the mask token.
            blocks: Gets the output of every decoder block, the last one after the norm.
        """
        x, y = self.decoder_embed(first.tokens), self.decoder_embed(second.tokens)
        if mask is not None:
            full = self.mask_token.to(x.dtype).expand(*mask.shape, -1)
            x = full.masked_scatter(mask.logical_not().unsqueeze(-1), x)
        if self.rope_base is None:
            x = x + self._table("dec_pos_embed", grids[0]).to(x.dtype)
            y = y + self._table("dec_pos_embed", grids[1]).to(y.dtype)
        tables = [
            self.rotary(grid_positions(*grid, device=x.device), self.dec_head_dim, grid)
            for grid in grids
        ]
        for block in self.dec_blocks:
            x = block(x, y, *tables)
            if blocks is not None:
                blocks.append(x)
        x = self.dec_norm(x)
        if blocks is not None:
            blocks[-1] = x
        return x

    def forward(
        self,
        img1: Float[Tensor, "b 3 h w"],
        img2: Float[Tensor, "b 3 h w"],
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> tuple[Float[Tensor, "b n c"], Bool[Tensor, "b n"], Float[Tensor, "b n c"]]:
        """Predict the hidden patches of the first image.

        Args:
            img1: Images with hidden patches.
            img2: The same scenes from elsewhere.
            mask: True where a patch of ``img1`` is hidden; random by default.

        Returns:
            The prediction for every patch, the mask, and the true patches.
        """
        grid = self.patch_embed.grid(*img1.shape[-2:])
        if mask is None:
            mask = self.random_mask(len(img1), grid[0] * grid[1], img1.device)
        decoded = self.decode(self.encode(img1, mask), self.encode(img2), (grid, grid), mask)
        return self.prediction_head(decoded), mask, patchify(img1, self.patch_size)

    def forward_features(
        self, img1: Float[Tensor, "b 3 h w"], img2: Float[Tensor, "b 3 h2 w2"]
    ) -> list[Float[Tensor, "b n _"]]:
        """Return every encoder block of the first image and then every decoder block.

        Nothing is hidden; the last block of each part is after its norm.
        """
        grids = [self.patch_embed.grid(*image.shape[-2:]) for image in (img1, img2)]
        encoder: list[Tensor] = []
        decoder: list[Tensor] = []
        first = self.encode(img1, blocks=encoder)
        self.decode(first, self.encode(img2), grids, blocks=decoder)
        return encoder + decoder


def patchify(image: Float[Tensor, "b c h w"], patch: int) -> Float[Tensor, "b n _"]:
    """Cut images into patches, row by row; a patch is ordered (row, column, channel)."""
    batch, channels, height, width = image.shape
    grid = image.view(batch, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def unpatchify(
    patches: Float[Tensor, "b n _"], grid: tuple[int, int], patch: int
) -> Float[Tensor, "b c h w"]:
    """Put patches of `patchify` together again."""
    tiles = patches.unflatten(2, (patch, patch, -1)).unflatten(1, grid)
    return tiles.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def completion_loss(
    prediction: Float[Tensor, "b n c"],
    target: Float[Tensor, "b n c"],
    mask: Bool[Tensor, "b n"] | None = None,
    norm_pix: bool = True,
) -> Float[Tensor, ""]:
    """Return the mean squared error of patches.

    Args:
        prediction: Predicted patches.
        target: True patches.
        mask: Only patches that are True count.
        norm_pix: Compare with patches of zero mean and unit variance (unbiased, plus 1e-6).
    """
    if norm_pix:
        variance = target.var(dim=-1, keepdim=True)
        target = (target - target.mean(dim=-1, keepdim=True)) / (variance + 1e-6).sqrt()
    error = (prediction - target).square().mean(dim=-1)
    return error.mean() if mask is None else (error * mask).sum() / mask.sum()


def from_config(config: dict[str, Any]) -> CroCoNet:
    """Build a network from a description whose ``model_kwargs`` use the constructor's names."""
    options = config | config.get("model_kwargs", {})
    options = {"norm_eps": config.get("norm_layer_eps", 1e-6)} | options
    return CroCoNet(**pick_options(options, CroCoNet))


PUBLISHED: dict[str, dict[str, Any]] = {
    "CroCo": {},
    "CroCo_V2_ViTBase_SmallDecoder": {"pos_embed": "RoPE100"},
    "CroCo_V2_ViTBase_BaseDecoder": {
        "pos_embed": "RoPE100",
        "dec_embed_dim": 768,
        "dec_depth": 12,
        "dec_num_heads": 12,
    },
    "CroCo_V2_ViTLarge_BaseDecoder": {
        "pos_embed": "RoPE100",
        "enc_embed_dim": 1024,
        "enc_depth": 24,
        "enc_num_heads": 16,
        "dec_embed_dim": 768,
        "dec_depth": 12,
        "dec_num_heads": 12,
    },
}
"""The published checkpoints and their constructor options."""


def _rope_base(pos_embed: str) -> float | None:
    """Return the base of ``RoPE<base>``, or None for cosine.

    Raises:
        ValueError: It is neither.
    """
    if pos_embed == "cosine":
        return None
    base = pos_embed.removeprefix("RoPE")
    if base == pos_embed or not base.replace(".", "", 1).isdigit():
        msg = f'expected pos_embed "cosine" or "RoPE100" (any base), got "{pos_embed}"'
        raise ValueError(msg)
    return float(base)
