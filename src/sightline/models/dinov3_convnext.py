"""DINOv3's ConvNeXts: a pooled class token and stride-32 patches behind the ViTs' interface.

The network is ConvNeXt (Liu et al. 2022); names and outputs follow ``facebookresearch/dinov3``.
Images come normalised with ImageNet's mean and deviation.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sightline.errors import UnknownNameError
from sightline.models.dinov2 import Masks, ViTFeatures, block_indices
from sightline.models.published import (
    Pretrained,
    Published,
    build_and_load,
    pick_options,
    weights_path,
)
from sightline.nn.drop import DropPath
from sightline.nn.norm import LayerNorm2d
from sightline.nn.options import Device, DType, Number


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, norm, two linear layers and a learned factor on the residual."""

    def __init__(
        self,
        dim: int,
        drop_path: Number = 0.0,
        layer_scale_init_value: Number = 1e-6,
        eps: Number = 1e-6,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the block for ``dim`` channels; without a starting value there is no factor."""
        super().__init__()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim, **kind)
        self.norm = nn.LayerNorm(dim, eps=eps, **kind)
        self.pwconv1 = nn.Linear(dim, 4 * dim, **kind)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim, **kind)
        self.gamma = (
            nn.Parameter(torch.full((dim,), float(layer_scale_init_value), **kind))
            if layer_scale_init_value > 0
            else None
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Add the residual to a map."""
        added = self.dwconv(x).permute(0, 2, 3, 1)
        added = self.pwconv2(self.act(self.pwconv1(self.norm(added))))
        if self.gamma is not None:
            added = added * self.gamma
        return x + self.drop_path(added.permute(0, 3, 1, 2))


class ConvNeXt(nn.Module):
    """Four stages at strides 4, 8, 16 and 32.

    The class token is the mean of the last map; it and the patches share ``norm``. With
    ``patch_size`` the maps of `get_intermediate_layers` are resized to the grid of a ViT with that
    patch, before the norm. The state also lists ``norm`` as ``norms.3``, as the original does.
    """

    def __init__(
        self,
        in_chans: int = 3,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        drop_path_rate: Number = 0.0,
        layer_scale_init_value: Number = 1e-6,
        patch_size: int | None = None,
        norm_eps: Number = 1e-6,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the network from blocks and channels of each stage."""
        super().__init__()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embed_dim = dims[-1]
        self.embed_dims = list(dims)
        self.n_blocks = len(dims)
        self.n_storage_tokens = 0
        self.patch_size = patch_size
        self.input_pad_size = 4
        self.downsample_layers = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(in_chans, dims[0], 4, stride=4, **kind),
                    LayerNorm2d(dims[0], norm_eps, **kind),
                )
            ]
        )
        for before, after in itertools.pairwise(dims):
            self.downsample_layers.append(
                nn.Sequential(
                    LayerNorm2d(before, norm_eps, **kind),
                    nn.Conv2d(before, after, 2, stride=2, **kind),
                )
            )
        last = max(sum(depths) - 1, 1)
        rates = [drop_path_rate * index / last for index in range(sum(depths))]
        self.stages = nn.ModuleList(
            nn.Sequential(
                *[
                    ConvNeXtBlock(dim, rates.pop(0), layer_scale_init_value, norm_eps, **kind)
                    for _ in range(depth)
                ]
            )
            for depth, dim in zip(depths, dims, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=norm_eps, **kind)
        self.norms = nn.ModuleList([nn.Identity() for _ in dims[1:]] + [self.norm])
        self.head = nn.Identity()
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the starting weights of the original training code."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward_features(
        self,
        x: Float[Tensor, "b c h w"] | Sequence[Tensor],
        masks: Masks | Sequence[Masks] = None,
    ) -> ViTFeatures | list[ViTFeatures]:
        """Return the pooled token and the patches of the last stage, see `ViTFeatures`.

        ``x_prenorm`` has no pooled token, there are no registers, and masks are only passed on, as
        in the original. A list of batches gives a list.
        """
        if isinstance(x, Tensor):
            assert masks is None or isinstance(masks, Tensor)
            return self._features(x, masks)
        each = [None] * len(x) if masks is None else list(masks)
        return [self._features(image, mask) for image, mask in zip(x, each, strict=True)]

    def _features(self, x: Tensor, masks: Masks) -> ViTFeatures:
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(down(x))
        pooled = x.mean((-2, -1)).unsqueeze(1)
        tokens = x.flatten(2).transpose(1, 2)
        normed = self.norm(torch.cat((pooled, tokens), dim=1))
        return {
            "x_norm_clstoken": normed[:, 0],
            "x_norm_regtokens": normed[:, 1:1],
            "x_storage_tokens": normed[:, 1:1],
            "x_norm_patchtokens": normed[:, 1:],
            "x_prenorm": tokens,
            "masks": masks,
        }

    def get_intermediate_layers(
        self,
        x: Float[Tensor, "b c h w"],
        *,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Tensor, ...] | tuple[tuple[Tensor, Tensor], ...]:
        """Return the maps of some stages.

        Args:
            x: Normalised images.
            n: How many of the last stages, or the indices of stages counted from 0.
            reshape: Give maps ``[B, D, h, w]`` instead of tokens ``[B, N, D]``.
            return_class_token: Give pairs of patches and the mean of the map before resizing.
            norm: Apply the final norm to the last stage; the others have none.
        """
        wanted = block_indices(n, len(self.stages))
        height, width = x.shape[-2:]
        entries = []
        for index in range(wanted[-1] + 1):
            x = self.stages[index](self.downsample_layers[index](x))
            if index in wanted:
                pooled = x.mean((-2, -1)).unsqueeze(1)
                maps = x if self.patch_size is None else self._resized(x, height, width)
                tokens = torch.cat((pooled, maps.flatten(2).transpose(1, 2)), dim=1)
                tokens = self.norms[index](tokens) if norm else tokens
                patches = tokens[:, 1:]
                if reshape:
                    patches = patches.transpose(1, 2).unflatten(2, maps.shape[-2:]).contiguous()
                entries.append((patches, tokens[:, 0]) if return_class_token else patches)
        return tuple(entries)

    def _resized(self, x: Tensor, height: int, width: int) -> Tensor:
        assert self.patch_size is not None
        grid = (height // self.patch_size, width // self.patch_size)
        return functional.interpolate(x, size=grid, mode="bilinear", antialias=True)

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


def from_config(config: dict[str, Any]) -> ConvNeXt:
    """Build a network from a description that uses the constructor's names."""
    return ConvNeXt(**pick_options(config, ConvNeXt))


def dinov3_convnext_tiny(pretrained: Pretrained = True, **options: Any) -> ConvNeXt:
    """Build ConvNeXt-T, 27.8 M parameters; see `build_convnext`."""
    return build_convnext("dinov3_convnext_tiny", pretrained, **options)


def dinov3_convnext_small(pretrained: Pretrained = True, **options: Any) -> ConvNeXt:
    """Build ConvNeXt-S, 49.5 M parameters; see `build_convnext`."""
    return build_convnext("dinov3_convnext_small", pretrained, **options)


def dinov3_convnext_base(pretrained: Pretrained = True, **options: Any) -> ConvNeXt:
    """Build ConvNeXt-B, 87.6 M parameters; see `build_convnext`."""
    return build_convnext("dinov3_convnext_base", pretrained, **options)


def dinov3_convnext_large(pretrained: Pretrained = True, **options: Any) -> ConvNeXt:
    """Build ConvNeXt-L, 196 M parameters; see `build_convnext`."""
    return build_convnext("dinov3_convnext_large", pretrained, **options)


_SIZES: dict[str, tuple[tuple[int, ...], int, str]] = {
    "tiny": ((3, 3, 9, 3), 96, "21b726bb"),
    "small": ((3, 3, 27, 3), 96, "296db49d"),
    "base": ((3, 3, 27, 3), 128, "801f2ba9"),
    "large": ((3, 3, 27, 3), 192, "61fa432d"),
}
MODELS: dict[str, Published] = {
    f"dinov3_convnext_{size}": Published(
        {"depths": depths, "dims": tuple(width * 2**stage for stage in range(4))},
        {"lvd1689m": f"dinov3_convnext_{size}_pretrain_lvd1689m-{hash_}.pth"},
    )
    for size, (depths, width, hash_) in _SIZES.items()
}
"""Every DINOv3 ConvNeXt by name."""


def build_convnext(name: str, pretrained: Pretrained = True, **options: Any) -> ConvNeXt:
    """Build a published network by name.

    Args:
        name: One of `MODELS`.
        pretrained: False for an untrained network; True for the authors' file, from the cache or
            downloaded; or a file, a folder, a URL or ``REPO_ID/FILENAME``.
        options: Constructor options that replace the published ones.

    Raises:
        UnknownNameError: There is no such network.
        CheckpointError: The weights are missing or do not fit.
    """
    if name not in MODELS:
        raise UnknownNameError("DINOv3 ConvNeXt", name, MODELS)
    path = weights_path(name, MODELS[name], pretrained, options.pop("weights", None))
    return build_and_load(ConvNeXt, MODELS[name].options | options, path, name=name)
