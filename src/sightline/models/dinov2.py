"""DINOv2 vision transformers (Oquab et al. 2023), with and without registers (Darcet et al. 2023).

Names, outputs and the treatment of position tables follow ``facebookresearch/dinov2``. The class is
also the image encoder of VGGT. Images come normalised with ImageNet's mean and deviation.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypedDict

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from sightline.errors import UnknownNameError
from sightline.models.published import (
    Pretrained,
    Published,
    build_and_load,
    pick_options,
    rename_option,
    weights_path,
)
from sightline.nn.block import Block
from sightline.nn.init import init_vit_weights
from sightline.nn.mlp import Mlp, SwiGLUFFNFused
from sightline.nn.options import Device, DType, Number, Pair
from sightline.nn.patch_embed import PatchEmbed
from sightline.nn.tables import TableCache

Masks = Bool[Tensor, "b n"] | None
FFN_LAYERS: dict[str, Callable[..., nn.Module]] = {
    "mlp": Mlp,
    "swiglu": SwiGLUFFNFused,
    "swiglufused": SwiGLUFFNFused,
}


class ViTFeatures(TypedDict):
    """What ``forward_features`` of DINOv2 and DINOv3 returns, under the names of both.

    ``x_norm_regtokens`` (DINOv2) and ``x_storage_tokens`` (DINOv3) are the same tensor, normalised
    in spite of the second name. ``x_prenorm`` holds all tokens before the final norm, in the order
    class, registers, patches.
    """

    x_norm_clstoken: Float[Tensor, "b d"]
    x_norm_regtokens: Float[Tensor, "b r d"]
    x_storage_tokens: Float[Tensor, "b r d"]
    x_norm_patchtokens: Float[Tensor, "b n d"]
    x_prenorm: Float[Tensor, "b m d"]
    masks: Masks


class DinoVisionTransformer(nn.Module):
    """A ViT with a learned position table that is interpolated to the size of the image.

    Models without registers scale their table the way the first release did (`interpolate_offset`
    0.1, no antialiasing), models with registers resize it exactly and antialiased; other libraries
    do the second for both and so differ from the originals away from the native size.
    """

    def __init__(
        self,
        img_size: Pair = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: Number = 4.0,
        qkv_bias: bool = True,
        ffn_bias: bool = True,
        proj_bias: bool = True,
        drop_path_rate: Number = 0.0,
        drop_path_uniform: bool = False,
        init_values: Number | None = None,
        ffn_layer: Literal["mlp", "swiglu", "swiglufused"] = "mlp",
        num_register_tokens: int = 0,
        interpolate_antialias: bool = False,
        interpolate_offset: Number = 0.1,
        norm_eps: Number = 1e-6,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the network; ``img_size`` fixes the stored position table, not the input."""
        super().__init__()
        if depth < 1:
            raise ValueError(f"expected a depth of one block or more, got {depth}")
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embed_dim = self.num_features = embed_dim
        self.n_blocks = depth
        self.num_heads = num_heads
        self.patch_size = patch_size
        self.num_register_tokens = num_register_tokens
        self.interpolate_antialias = interpolate_antialias
        self.interpolate_offset = interpolate_offset
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim, **kind)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim, **kind))
        rows = 1 + self.patch_embed.num_patches
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, embed_dim, **kind))
        self.register_tokens = (
            nn.Parameter(torch.zeros(1, num_register_tokens, embed_dim, **kind))
            if num_register_tokens
            else None
        )
        self.mask_token = nn.Parameter(torch.zeros(1, embed_dim, **kind))
        last = max(depth - 1, 1)
        rates = [
            drop_path_rate if drop_path_uniform else drop_path_rate * i / last for i in range(depth)
        ]
        norm_layer = partial(nn.LayerNorm, eps=norm_eps)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio,
                qkv_bias=qkv_bias,
                proj_bias=proj_bias,
                ffn_bias=ffn_bias,
                init_values=init_values,
                drop_path=rate,
                norm_layer=norm_layer,
                ffn_layer=FFN_LAYERS[ffn_layer],
                **kind,
            )
            for rate in rates
        )
        self.norm = norm_layer(embed_dim, **kind)
        self.head = nn.Identity()
        self._tables = TableCache[Tensor]()
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the starting weights of the original training code."""
        self.apply(init_vit_weights)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        if self.register_tokens is not None:
            nn.init.normal_(self.register_tokens, std=1e-6)

    def position_table(self, height: int, width: int) -> Float[Tensor, "1 rows d"]:
        """Return the position table for images of ``height`` x ``width`` pixels, class row first.

        The stored table is used as it is only for square images of the native size. Tables are kept
        per size in inference mode, where the weights stay as they are.
        """
        stored = self.pos_embed
        rows, cols = self.patch_embed.grid(height, width)
        if rows * cols == stored.shape[1] - 1 and height == width:
            return stored
        return self._tables.get(
            (rows, cols), lambda: self._interpolate(rows, cols), weights=[stored]
        )

    def _interpolate(self, rows: int, cols: int) -> Float[Tensor, "1 rows d"]:
        wide = self.pos_embed.float()
        side = math.isqrt(wide.shape[1] - 1)
        table = wide[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        resize = partial(
            functional.interpolate, mode="bicubic", antialias=self.interpolate_antialias
        )
        if self.interpolate_offset:
            # The scale, not the size, sets the sampling grid: this is what the weights know.
            offset = self.interpolate_offset
            table = resize(table, scale_factor=((rows + offset) / side, (cols + offset) / side))
        else:
            table = resize(table, size=(rows, cols))
        if table.shape[-2:] != (rows, cols):
            msg = f"expected a {rows}x{cols} position table, got {tuple(table.shape[-2:])}"
            raise RuntimeError(msg)
        table = torch.cat((wide[:, :1], table.flatten(2).transpose(1, 2)), dim=1)
        return table.to(self.pos_embed.dtype)

    def prepare_tokens_with_masks(
        self, x: Float[Tensor, "b c h w"], masks: Masks = None
    ) -> Float[Tensor, "b m d"]:
        """Return the tokens that enter the first block: class, registers, patches."""
        table = self.position_table(*x.shape[-2:])
        patches = self.patch_embed(x)
        if masks is not None:
            patches = torch.where(masks.unsqueeze(-1), self.mask_token.to(patches.dtype), patches)
        table = table.to(patches.dtype)
        batch = len(patches)
        parts = [(self.cls_token.to(patches.dtype) + table[:, :1]).expand(batch, -1, -1)]
        if self.register_tokens is not None:
            parts.append(self.register_tokens.to(patches.dtype).expand(batch, -1, -1))
        return torch.cat((*parts, patches + table[:, 1:]), dim=1)

    def forward_features(
        self,
        x: Float[Tensor, "b c h w"] | Sequence[Tensor],
        masks: Masks | Sequence[Masks] = None,
    ) -> ViTFeatures | list[ViTFeatures]:
        """Return all tokens after the last block, see `ViTFeatures`.

        Args:
            x: Normalised images, or a list of batches of different sizes, which gives a list.
            masks: True where a patch is hidden by the mask token; a list for a list of batches.
        """
        if isinstance(x, Tensor):
            assert masks is None or isinstance(masks, Tensor)
            return self._features(x, masks)
        each = [None] * len(x) if masks is None else list(masks)
        return [self._features(image, mask) for image, mask in zip(x, each, strict=True)]

    def _features(self, x: Tensor, masks: Masks) -> ViTFeatures:
        tokens = self.prepare_tokens_with_masks(x, masks)
        for block in self.blocks:
            tokens = block(tokens)
        normed = self.norm(tokens)
        first = 1 + self.num_register_tokens
        return {
            "x_norm_clstoken": normed[:, 0],
            "x_norm_regtokens": normed[:, 1:first],
            "x_storage_tokens": normed[:, 1:first],
            "x_norm_patchtokens": normed[:, first:],
            "x_prenorm": tokens,
            "masks": masks,
        }

    def get_intermediate_layers(
        self,
        x: Float[Tensor, "b c h w"],
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Tensor, ...] | tuple[tuple[Tensor, Tensor], ...]:
        """Return the patch tokens of some blocks, in the order of the network.

        Args:
            x: Normalised images.
            n: How many of the last blocks, or the indices of blocks counted from 0.
            reshape: Give maps ``[B, D, h, w]`` instead of tokens ``[B, N, D]``.
            return_class_token: Give pairs of patches and class token.
            norm: Apply the final norm to every layer.
        """
        outputs = []
        wanted = block_indices(n, len(self.blocks))
        tokens = self.prepare_tokens_with_masks(x)
        for index, block in enumerate(self.blocks[: wanted[-1] + 1]):
            tokens = block(tokens)
            if index in wanted:
                outputs.append(self.norm(tokens) if norm else tokens)
        patches = [out[:, 1 + self.num_register_tokens :] for out in outputs]
        if reshape:
            grid = self.patch_embed.grid(*x.shape[-2:])
            patches = [p.transpose(1, 2).unflatten(2, grid).contiguous() for p in patches]
        if return_class_token:
            return tuple(zip(patches, (out[:, 0] for out in outputs), strict=True))
        return tuple(patches)

    def forward(
        self,
        x: Float[Tensor, "b c h w"] | Sequence[Tensor],
        masks: Masks | Sequence[Masks] = None,
        is_training: bool = False,
    ) -> Any:
        """Return the normalised class token, or what `forward_features` does if ``is_training``."""
        features = self.forward_features(x, masks)
        if is_training:
            return features
        if isinstance(features, list):
            return [self.head(f["x_norm_clstoken"]) for f in features]
        return self.head(features["x_norm_clstoken"])


def block_indices(n: int | Sequence[int], depth: int) -> list[int]:
    """Return sorted block indices for ``n`` (the last ``n`` blocks, or indices from 0).

    Raises:
        ValueError: A block is asked for that the network does not have.
    """
    indices = list(range(depth - n, depth)) if isinstance(n, int) else sorted(set(n))
    if not indices or indices[0] < 0 or indices[-1] >= depth:
        msg = f"expected blocks between 0 and {depth - 1}, or how many of the last, got {n}"
        raise ValueError(msg)
    return indices


def from_config(config: dict[str, Any]) -> DinoVisionTransformer:
    """Build a network from a description that uses the constructor's names."""
    return DinoVisionTransformer(**pick_options(config, DinoVisionTransformer))


def dinov2_vits14(pretrained: Pretrained = True, **options: Any) -> DinoVisionTransformer:
    """Build ViT-S/14, 22.1 M parameters; see `build_dinov2`."""
    return build_dinov2("dinov2_vits14", pretrained, **options)


def dinov2_vitb14(pretrained: Pretrained = True, **options: Any) -> DinoVisionTransformer:
    """Build ViT-B/14, 86.6 M parameters; see `build_dinov2`."""
    return build_dinov2("dinov2_vitb14", pretrained, **options)


def dinov2_vitl14(pretrained: Pretrained = True, **options: Any) -> DinoVisionTransformer:
    """Build ViT-L/14, 304 M parameters; see `build_dinov2`."""
    return build_dinov2("dinov2_vitl14", pretrained, **options)


def dinov2_vitg14(pretrained: Pretrained = True, **options: Any) -> DinoVisionTransformer:
    """Build ViT-g/14, 1136 M parameters; see `build_dinov2`."""
    return build_dinov2("dinov2_vitg14", pretrained, **options)


def dinov2_vits14_reg(pretrained: Pretrained = True, **options: Any) -> DinoVisionTransformer:
    """Build ViT-S/14 with 4 registers; see `build_dinov2`."""
    return build_dinov2("dinov2_vits14_reg", pretrained, **options)


def dinov2_vitb14_reg(pretrained: Pretrained = True, **options: Any) -> DinoVisionTransformer:
    """Build ViT-B/14 with 4 registers; see `build_dinov2`."""
    return build_dinov2("dinov2_vitb14_reg", pretrained, **options)


def dinov2_vitl14_reg(pretrained: Pretrained = True, **options: Any) -> DinoVisionTransformer:
    """Build ViT-L/14 with 4 registers; see `build_dinov2`."""
    return build_dinov2("dinov2_vitl14_reg", pretrained, **options)


def dinov2_vitg14_reg(pretrained: Pretrained = True, **options: Any) -> DinoVisionTransformer:
    """Build ViT-g/14 with 4 registers; see `build_dinov2`."""
    return build_dinov2("dinov2_vitg14_reg", pretrained, **options)


_SIZES: dict[str, dict[str, Any]] = {
    "vits14": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vitb14": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vitl14": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "vitg14": {"embed_dim": 1536, "depth": 40, "num_heads": 24, "ffn_layer": "swiglufused"},
}
_COMMON = {"img_size": 518, "patch_size": 14, "init_values": 1.0}
_REGISTERS = {
    "num_register_tokens": 4,
    "interpolate_antialias": True,
    "interpolate_offset": 0.0,
}
MODELS: dict[str, Published] = {
    **{
        f"dinov2_{size}": Published(_COMMON | options, {"lvd142m": f"dinov2_{size}_pretrain.pth"})
        for size, options in _SIZES.items()
    },
    **{
        f"dinov2_{size}_reg": Published(
            _COMMON | options | _REGISTERS, {"lvd142m": f"dinov2_{size}_reg4_pretrain.pth"}
        )
        for size, options in _SIZES.items()
    },
}
"""Every published DINOv2."""


def build_dinov2(name: str, pretrained: Pretrained = True, **options: Any) -> DinoVisionTransformer:
    """Build a published network by name.

    Args:
        name: One of `MODELS`.
        pretrained: False for an untrained network; True for the authors' file, from the cache or
            downloaded; or a file, a folder, a URL or ``REPO_ID/FILENAME``.
        options: Constructor options that replace the published ones; ``n_storage_tokens`` is taken
            for ``num_register_tokens``.

    Raises:
        UnknownNameError: There is no such network.
        CheckpointError: The weights are missing or do not fit.
    """
    if name not in MODELS:
        raise UnknownNameError("DINOv2 model", name, MODELS)
    entry = MODELS[name]
    options = entry.options | rename_option(options, "n_storage_tokens", "num_register_tokens")
    path = weights_path(name, entry, pretrained)
    return build_and_load(DinoVisionTransformer, options, path, name=name)
