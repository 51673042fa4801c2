"""DINOv3 vision transformers (Simeoni et al. 2025) and every published size of them.

Names, outputs and the rotary embedding follow ``facebookresearch/dinov3``. There is no learned
position table, so any image size works; sides that are no multiple of the patch lose their last
pixels. Images come normalised with ImageNet's mean and deviation (`SAT_MEAN`, `SAT_STD` for the
satellite weights).
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.errors import CheckpointError, UnknownNameError
from sightline.models.aggregator import Aggregator
from sightline.models.dinov2 import Masks, ViTFeatures, block_indices
from sightline.models.dinov3_convnext import MODELS as CONVNEXTS
from sightline.models.dinov3_convnext import (
    ConvNeXt,
    build_convnext,
    dinov3_convnext_base,
    dinov3_convnext_large,
    dinov3_convnext_small,
    dinov3_convnext_tiny,
)
from sightline.models.integrated import DINOv3IntegratedModel
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
from sightline.nn.mlp import Mlp, SwiGLUSplit
from sightline.nn.norm import RMSNorm
from sightline.nn.options import Device, DType, Number, Pair
from sightline.nn.patch_embed import PatchEmbed
from sightline.nn.rope import ROPE_DTYPES, RopePositionEmbedding

__all__ = [
    "MODELS",
    "Aggregator",
    "ConvNeXt",
    "DINOv3IntegratedModel",
    "DinoVisionTransformer",
    "build_dinov3",
    "dinov3_base",
    "dinov3_convnext_base",
    "dinov3_convnext_large",
    "dinov3_convnext_small",
    "dinov3_convnext_tiny",
    "dinov3_giant",
    "dinov3_large",
    "dinov3_small",
    "dinov3_vit7b16",
    "dinov3_vitb16",
    "dinov3_vitg16",
    "dinov3_vith16plus",
    "dinov3_vitl14",
    "dinov3_vitl14_reg",
    "dinov3_vitl16",
    "dinov3_vitl16_reg",
    "dinov3_vitl16plus",
    "dinov3_vits16",
    "dinov3_vits16plus",
    "from_config",
]

SAT_MEAN = (0.430, 0.411, 0.296)
SAT_STD = (0.213, 0.156, 0.143)

FFN_LAYERS: dict[str, Callable[..., nn.Module]] = {
    "mlp": Mlp,
    "swiglu": SwiGLUSplit,
    "swiglu32": partial(SwiGLUSplit, align_to=32),
    "swiglu64": partial(SwiGLUSplit, align_to=64),
    "swiglu128": partial(SwiGLUSplit, align_to=128),
}
NORM_LAYERS: dict[str, tuple[Callable[..., nn.Module], float]] = {
    "layernorm": (nn.LayerNorm, 1e-6),
    "layernormbf16": (nn.LayerNorm, 1e-5),
    "rmsnorm": (RMSNorm, 1e-5),
}
"""Names in the original code -> layer and its epsilon."""


class DinoVisionTransformer(nn.Module):
    """A ViT with rotary positions, storage tokens (registers) and a key bias that never acts.

    Options carry the names of the original code. ``untie_cls_and_patch_norms`` gives the class and
    storage tokens a norm of their own; ``untie_global_and_local_cls_norm`` another one for them
    that acts only while training, on the second batch of a list (local crops).
    """

    def __init__(
        self,
        *,
        img_size: Pair = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        pos_embed_rope_base: Number | None = 100.0,
        pos_embed_rope_min_period: Number | None = None,
        pos_embed_rope_max_period: Number | None = None,
        pos_embed_rope_normalize_coords: Literal["min", "max", "separate"] = "separate",
        pos_embed_rope_shift_coords: Number | None = None,
        pos_embed_rope_jitter_coords: Number | None = None,
        pos_embed_rope_rescale_coords: Number | None = None,
        pos_embed_rope_dtype: Literal["fp32", "fp16", "bf16"] = "fp32",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        ffn_ratio: Number = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: Number = 0.0,
        layerscale_init: Number | None = None,
        norm_layer: Literal["layernorm", "layernormbf16", "rmsnorm"] = "layernorm",
        norm_eps: Number | None = None,
        ffn_layer: Literal["mlp", "swiglu", "swiglu32", "swiglu64", "swiglu128"] = "mlp",
        ffn_bias: bool = True,
        proj_bias: bool = True,
        n_storage_tokens: int = 0,
        mask_k_bias: bool = False,
        untie_cls_and_patch_norms: bool = False,
        untie_global_and_local_cls_norm: bool = False,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the network; ``img_size`` is only a nominal size."""
        super().__init__()
        if depth < 1:
            raise ValueError(f"expected a depth of one block or more, got {depth}")
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        layer, eps = NORM_LAYERS[norm_layer]
        norm = partial(layer, eps=eps if norm_eps is None else norm_eps)
        self.embed_dim = self.num_features = embed_dim
        self.n_blocks = depth
        self.num_heads = num_heads
        self.patch_size = patch_size
        self.n_storage_tokens = n_storage_tokens
        self.patch_embed = PatchEmbed(
            img_size, patch_size, in_chans, embed_dim, strict=False, **kind
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim, **kind))
        self.storage_tokens = (
            nn.Parameter(torch.zeros(1, n_storage_tokens, embed_dim, **kind))
            if n_storage_tokens
            else None
        )
        self.mask_token = nn.Parameter(torch.zeros(1, embed_dim, **kind))
        self.rope_embed = RopePositionEmbedding(
            embed_dim,
            num_heads=num_heads,
            base=pos_embed_rope_base,
            min_period=pos_embed_rope_min_period,
            max_period=pos_embed_rope_max_period,
            normalize_coords=pos_embed_rope_normalize_coords,
            shift_coords=pos_embed_rope_shift_coords,
            jitter_coords=pos_embed_rope_jitter_coords,
            rescale_coords=pos_embed_rope_rescale_coords,
            device=device,
            dtype=ROPE_DTYPES[pos_embed_rope_dtype],
        )
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                ffn_ratio,
                qkv_bias=qkv_bias,
                proj_bias=proj_bias,
                ffn_bias=ffn_bias,
                init_values=layerscale_init,
                drop_path=drop_path_rate,
                norm_layer=norm,
                ffn_layer=FFN_LAYERS[ffn_layer],
                mask_k_bias=mask_k_bias,
                subset_above=0.0,
                **kind,
            )
            for _ in range(depth)
        )
        self.norm = norm(embed_dim, **kind)
        self.cls_norm = norm(embed_dim, **kind) if untie_cls_and_patch_norms else None
        self.local_cls_norm = norm(embed_dim, **kind) if untie_global_and_local_cls_norm else None
        self.head = nn.Identity()
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the starting weights of the original training code."""
        self.apply(init_vit_weights)
        nn.init.normal_(self.cls_token, std=0.02)
        if self.storage_tokens is not None:
            nn.init.normal_(self.storage_tokens, std=0.02)

    def prepare_tokens_with_masks(
        self, x: Float[Tensor, "b c h w"], masks: Masks = None
    ) -> tuple[Float[Tensor, "b m d"], tuple[int, int]]:
        """Return the tokens that enter the first block, and the patch grid (rows, columns)."""
        grid = self.patch_embed.grid(*x.shape[-2:])
        patches = self.patch_embed(x)
        if masks is not None:
            patches = torch.where(masks.unsqueeze(-1), self.mask_token.to(patches.dtype), patches)
        batch = len(patches)
        parts = [self.cls_token.to(patches.dtype).expand(batch, -1, -1)]
        if self.storage_tokens is not None:
            parts.append(self.storage_tokens.to(patches.dtype).expand(batch, -1, -1))
        return torch.cat((*parts, patches), dim=1), grid

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
            return self._features(x, masks, local=False)
        each = [None] * len(x) if masks is None else list(masks)
        pairs = zip(x, each, strict=True)
        return [self._features(image, mask, local=i == 1) for i, (image, mask) in enumerate(pairs)]

    def _features(self, x: Tensor, masks: Masks, *, local: bool) -> ViTFeatures:
        tokens, (rows, cols) = self.prepare_tokens_with_masks(x, masks)
        first = 1 + self.n_storage_tokens
        for block in self.blocks:
            tokens = block(tokens, self.rope_embed(H=rows, W=cols, prefix=first))
        head, patches = self._normed(tokens, local=local)
        return {
            "x_norm_clstoken": head[:, 0],
            "x_norm_regtokens": head[:, 1:],
            "x_storage_tokens": head[:, 1:],
            "x_norm_patchtokens": patches,
            "x_prenorm": tokens,
            "masks": masks,
        }

    def _normed(self, tokens: Tensor, *, local: bool = False) -> tuple[Tensor, Tensor]:
        """Return the normalised class and storage tokens, and the normalised patches."""
        first = 1 + self.n_storage_tokens
        head_norm = self.cls_norm
        if local and self.training and self.local_cls_norm is not None:
            head_norm = self.local_cls_norm
        if head_norm is None:
            normed = self.norm(tokens)
            return normed[:, :first], normed[:, first:]
        return head_norm(tokens[:, :first]), self.norm(tokens[:, first:])

    def get_intermediate_layers(
        self,
        x: Float[Tensor, "b c h w"],
        *,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        return_extra_tokens: bool = False,
        norm: bool = True,
    ) -> tuple[Tensor, ...] | tuple[tuple[Tensor, ...], ...]:
        """Return the patch tokens of some blocks, in the order of the network.

        Args:
            x: Normalised images.
            n: How many of the last blocks, or the indices of blocks counted from 0.
            reshape: Give maps ``[B, D, h, w]`` instead of tokens ``[B, N, D]``.
            return_class_token: Add the class token to each entry: (patches, class).
            return_extra_tokens: Add the storage tokens: (patches, storage), or
                (patches, class, storage).
            norm: Apply the final norm to every layer.
        """
        entries = []
        wanted = block_indices(n, len(self.blocks))
        first = 1 + self.n_storage_tokens
        tokens, grid = self.prepare_tokens_with_masks(x)
        for index, block in enumerate(self.blocks[: wanted[-1] + 1]):
            tokens = block(tokens, self.rope_embed(H=grid[0], W=grid[1], prefix=first))
            if index not in wanted:
                continue
            head, patches = tokens[:, :first], tokens[:, first:]
            if norm:
                head, patches = self._normed(tokens)
            if reshape:
                patches = patches.transpose(1, 2).unflatten(2, grid).contiguous()
            chosen = [patches]
            chosen += [head[:, 0]] if return_class_token else []
            chosen += [head[:, 1:]] if return_extra_tokens else []
            entries.append(tuple(chosen) if len(chosen) > 1 else patches)
        return tuple(entries)

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


def from_config(config: dict[str, Any]) -> DinoVisionTransformer:
    """Build a network from a description that uses the constructor's names."""
    return DinoVisionTransformer(**pick_options(config, DinoVisionTransformer))


def dinov3_vits16(pretrained: Pretrained = True, **options: Any) -> DinoVisionTransformer:
    """Build ViT-S/16, 21.6 M parameters; see `build_dinov3`."""
    return _build("dinov3_vits16", pretrained, options)


def dinov3_vits16plus(pretrained: Pretrained = True, **options: Any) -> DinoVisionTransformer:
    """Build ViT-S+/16, 28.7 M parameters; see `build_dinov3`."""
    return _build("dinov3_vits16plus", pretrained, options)


def dinov3_vitb16(pretrained: Pretrained = True, **options: Any) -> DinoVisionTransformer:
    """Build ViT-B/16, 85.7 M parameters; see `build_dinov3`."""
    return _build("dinov3_vitb16", pretrained, options)


def dinov3_vitl16(pretrained: Pretrained = True, **options: Any) -> DinoVisionTransformer:
    """Build ViT-L/16, 303 M parameters; ``weights="sat493m"`` for satellite images."""
    return _build("dinov3_vitl16", pretrained, options)


def dinov3_vitl16plus(pretrained: Pretrained = True, **options: Any) -> DinoVisionTransformer:
    """Build ViT-L+/16, 404 M parameters; see `build_dinov3`."""
    return _build("dinov3_vitl16plus", pretrained, options)


def dinov3_vith16plus(pretrained: Pretrained = True, **options: Any) -> DinoVisionTransformer:
    """Build ViT-H+/16, 841 M parameters; see `build_dinov3`."""
    return _build("dinov3_vith16plus", pretrained, options)


def dinov3_vit7b16(pretrained: Pretrained = True, **options: Any) -> DinoVisionTransformer:
    """Build ViT-7B/16, 6716 M parameters; ``weights="sat493m"`` for satellite images."""
    return _build("dinov3_vit7b16", pretrained, options)


def dinov3_vitg16(pretrained: Pretrained = False, **options: Any) -> DinoVisionTransformer:
    """Build a ViT-g/16 (1536, 40 blocks), for which no weights were published."""
    return _build("dinov3_vitg16", pretrained, options)


def dinov3_vitl14(pretrained: Pretrained = False, **options: Any) -> DinoVisionTransformer:
    """Build a ViT-L with patch 14, for which no weights were published."""
    return _build("dinov3_vitl14", pretrained, options)


def dinov3_small(pretrained: Pretrained = True, **options: Any) -> DinoVisionTransformer:
    """Build `dinov3_vits16` under its older name."""
    return _build("dinov3_small", pretrained, options)


def dinov3_base(pretrained: Pretrained = True, **options: Any) -> DinoVisionTransformer:
    """Build `dinov3_vitb16` under its older name."""
    return _build("dinov3_base", pretrained, options)


def dinov3_large(pretrained: Pretrained = True, **options: Any) -> DinoVisionTransformer:
    """Build `dinov3_vitl16` under its older name."""
    return _build("dinov3_large", pretrained, options)


def dinov3_giant(pretrained: Pretrained = False, **options: Any) -> DinoVisionTransformer:
    """Build `dinov3_vitg16` under its older name; no weights were published."""
    return _build("dinov3_giant", pretrained, options)


def dinov3_vitl14_reg(pretrained: Pretrained = False, **options: Any) -> DinoVisionTransformer:
    """Build `dinov3_vitl14`; storage tokens are always there, so the suffix means nothing."""
    return _build("dinov3_vitl14_reg", pretrained, options)


def dinov3_vitl16_reg(pretrained: Pretrained = True, **options: Any) -> DinoVisionTransformer:
    """Build `dinov3_vitl16`; storage tokens are always there, so the suffix means nothing."""
    return _build("dinov3_vitl16_reg", pretrained, options)


_COMMON: dict[str, Any] = {
    "patch_size": 16,
    "pos_embed_rope_base": 100.0,
    "pos_embed_rope_rescale_coords": 2.0,
    "layerscale_init": 1e-5,
    "norm_layer": "layernormbf16",
    "n_storage_tokens": 4,
    "mask_k_bias": True,
}
_SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 6}
_LARGE = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
_PLUS = {"ffn_layer": "swiglu", "ffn_ratio": 6.0}
_SEVEN_B = {
    "embed_dim": 4096,
    "depth": 40,
    "num_heads": 32,
    "ffn_layer": "swiglu64",
    "ffn_ratio": 3.0,
    "qkv_bias": False,
    "untie_global_and_local_cls_norm": True,
}


def _files(stem: str, **hashes: str) -> dict[str, str]:
    return {data: f"{stem}_pretrain_{data}-{hash_}.pth" for data, hash_ in hashes.items()}


MODELS: dict[str, Published] = {
    "dinov3_vits16": Published(_COMMON | _SMALL, _files("dinov3_vits16", lvd1689m="08c60483")),
    "dinov3_vits16plus": Published(
        _COMMON | _SMALL | _PLUS, _files("dinov3_vits16plus", lvd1689m="4057cbaa")
    ),
    "dinov3_vitb16": Published(
        _COMMON | {"embed_dim": 768, "depth": 12, "num_heads": 12},
        _files("dinov3_vitb16", lvd1689m="73cec8be"),
    ),
    "dinov3_vitl16": Published(
        _COMMON | _LARGE, _files("dinov3_vitl16", lvd1689m="8aa4cbdd", sat493m="eadcf0ff")
    ),
    "dinov3_vitl16plus": Published(
        _COMMON | _LARGE | _PLUS, _files("dinov3_vitl16plus", lvd1689m="46503df0")
    ),
    "dinov3_vith16plus": Published(
        _COMMON | {"embed_dim": 1280, "depth": 32, "num_heads": 20} | _PLUS,
        _files("dinov3_vith16plus", lvd1689m="7c1da9a5"),
    ),
    "dinov3_vit7b16": Published(
        _COMMON | _SEVEN_B, _files("dinov3_vit7b16", lvd1689m="a955f4ea", sat493m="a6675841")
    ),
    "dinov3_vitg16": Published(_COMMON | {"embed_dim": 1536, "depth": 40, "num_heads": 24}, {}),
    "dinov3_vitl14": Published(_COMMON | _LARGE | {"patch_size": 14}, {}),
}
"""Every DINOv3 ViT by name; those without files can only be built untrained."""

ALIASES = {
    "dinov3_small": "dinov3_vits16",
    "dinov3_base": "dinov3_vitb16",
    "dinov3_large": "dinov3_vitl16",
    "dinov3_giant": "dinov3_vitg16",
    "dinov3_small_plus": "dinov3_vits16plus",
    "dinov3_huge_plus": "dinov3_vith16plus",
    "dinov3_7b": "dinov3_vit7b16",
    "dinov3_vitl16_reg": "dinov3_vitl16",
    "dinov3_vitl14_reg": "dinov3_vitl14",
}
"""Older names; those in ``_reg`` are no model names and give a warning."""

_NEIGHBOURS = {
    "dinov3_vitg16": "the nearest sizes are dinov3_vith16plus (841 M) and dinov3_vit7b16 (6716 M)",
    "dinov3_vitl14": "DINOv3 has patch 16 only: dinov3_vitl16; with patch 14 there is DINOv2: "
    "dinov2_vitl14 and dinov2_vitl14_reg",
}


def build_dinov3(
    name: str, pretrained: Pretrained = True, **options: Any
) -> DinoVisionTransformer | ConvNeXt:
    """Build a published network, ViT or ConvNeXt, by name.

    Args:
        name: A name from `MODELS`, `ALIASES`, or of a ConvNeXt.
        pretrained: False for an untrained network; True for the authors' file, from the cache or
            downloaded; or a file, a folder, a URL or ``REPO_ID/FILENAME``.
        options: Constructor options that replace the published ones; ``num_register_tokens`` is
            taken for ``n_storage_tokens``. ``weights`` chooses between the authors' files
            ("lvd1689m", "sat493m"), or is a path like ``pretrained``.

    Raises:
        UnknownNameError: There is no such network.
        CheckpointError: The weights do not exist, are missing or do not fit.
    """
    if name in CONVNEXTS:
        return build_convnext(name, pretrained, **options)
    return _build(name, pretrained, options)


def _build(name: str, pretrained: Pretrained, options: dict[str, Any]) -> DinoVisionTransformer:
    if name in ALIASES and name.endswith("_reg"):
        warnings.warn(
            f"{name} is no DINOv3 name (registers are always there); building {ALIASES[name]}",
            stacklevel=3,
        )
    true_name = ALIASES.get(name, name)
    if true_name not in MODELS:
        raise UnknownNameError("DINOv3 model", name, [*MODELS, *ALIASES, *CONVNEXTS])
    entry = MODELS[true_name]
    options = rename_option(options, "num_register_tokens", "n_storage_tokens")
    weights = options.pop("weights", None)
    if weights is not None and pretrained is True and weights.lower() not in _DATA:
        pretrained, weights = weights, None
    if pretrained is True and not entry.files:
        published = [known for known, other in MODELS.items() if other.files]
        msg = (
            f'no weights were ever published for "{name}"; {_NEIGHBOURS[true_name]}. Published: '
            f"{', '.join(published)}. To train it, build it with pretrained=False"
        )
        raise CheckpointError(msg)
    path = weights_path(true_name, entry, pretrained, weights)
    settings = entry.options | options
    if weights is not None and weights.lower() == "sat493m":
        settings["untie_global_and_local_cls_norm"] = True
    return build_and_load(DinoVisionTransformer, settings, path, _adapt, name=true_name)


_DATA = {"lvd1689m", "sat493m"}


def _adapt(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Follow the file: the norm for local crops acts in training only, and other libraries drop it."""
    untied = any(name.endswith("local_cls_norm.weight") for name in names)
    return options | {"untie_global_and_local_cls_norm": untied}
