"""MASt3R (Leroy et al. 2024): DUSt3R with metric points and a descriptor for every pixel.

Names follow ``naver/mast3r``.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sightline.models.dust3r import PairNetwork, pick_pair_options
from sightline.models.dust3r_heads import (
    HeadOptions,
    Mode,
    Result,
    Start,
    activate,
    activate_confidence,
    dpt_adapter,
    hooks,
)
from sightline.nn.mlp import Mlp
from sightline.nn.options import Number


class CatMlpDptHead(nn.Module):
    """Points through a DPT; descriptors through an MLP on encoder and decoder tokens."""

    def __init__(
        self,
        options: HeadOptions,
        output_mode: str = "pts3d+desc24",
        two_confs: bool = True,
        desc_mode: str = "norm",
        desc_conf_mode: Mode | None = None,
        hidden_dim_factor: Number = 4.0,
        **kind: Any,
    ) -> None:
        """Create both parts; ``desc_conf_mode`` is ``conf_mode`` when it is not given."""
        super().__init__()
        if desc_mode != "norm":
            msg = f'expected desc_mode "norm", got "{desc_mode}"'
            raise ValueError(msg)
        self.options = options
        self.two_confs = two_confs
        self.desc_conf_mode = desc_conf_mode or options.conf_mode
        self.local_feat_dim = descriptor_width(output_mode)
        self.dpt = dpt_adapter(options, 4, **kind)
        width = options.enc_embed_dim + options.dec_embed_dim
        channels = self.local_feat_dim + int(two_confs)
        self.head_local_features = Mlp(
            width, int(hidden_dim_factor * width), channels * options.patch_size**2, **kind
        )

    def start(self, tokens: Float[Tensor, "b n d"], height: int, width: int) -> Start:
        """Return what both parts compute from the encoder's tokens of an image."""
        if hooks(self.options)[0] != 0:
            return ()
        first = self.head_local_features.fc1
        weight = first.weight[:, : tokens.shape[-1]]
        return (
            *self.dpt.start(tokens, height, width),
            functional.linear(tokens, weight, first.bias),
        )

    def forward(
        self,
        tokens: Sequence[Float[Tensor, "b n _"]],
        height: int,
        width: int,
        start: Start = (),
    ) -> Result:
        """Return ``pts3d``, ``conf``, ``desc [B, H, W, D]`` (unit) and ``desc_conf [B, H, W]``."""
        patch = self.options.patch_size
        grid = (height // patch, width // patch)
        chosen = [tokens[hook] for hook in hooks(self.options)]
        out = activate(self.dpt(chosen, height, width, start[:1]), self.options)
        mlp = self.head_local_features
        if start:  # the encoder's columns of the first matrix have been applied
            weight = mlp.fc1.weight[:, tokens[0].shape[-1] :]
            local = mlp.fc2(mlp.act(functional.linear(tokens[-1], weight) + start[1]))
        else:
            local = mlp(torch.cat((tokens[0], tokens[-1]), dim=-1))
        local = functional.pixel_shuffle(local.transpose(1, 2).unflatten(2, grid), patch)
        local = local.permute(0, 2, 3, 1)
        desc = local[..., : self.local_feat_dim]
        out["desc"] = desc / desc.norm(dim=-1, keepdim=True)
        out["desc_conf"] = out["conf"].clone()
        if self.two_confs:
            raw = local[..., self.local_feat_dim]
            out["desc_conf"] = activate_confidence(raw, self.desc_conf_mode)
        return out


class AsymmetricMASt3R(PairNetwork):
    """MASt3R; results also have ``desc`` and ``desc_conf``."""

    def __init__(
        self,
        output_mode: str = "pts3d+desc24",
        head_type: str = "catmlp+dpt",
        two_confs: bool = True,
        desc_mode: str = "norm",
        desc_conf_mode: Mode | None = None,
        hidden_dim_factor: Number = 4.0,
        **options: Any,
    ) -> None:
        """Create the network; ``options`` are those of `PairNetwork`."""
        if head_type != "catmlp+dpt":
            msg = f"expected head_type catmlp+dpt, got {head_type}"
            raise ValueError(msg)
        head = partial(
            CatMlpDptHead,
            output_mode=output_mode,
            two_confs=two_confs,
            desc_mode=desc_mode,
            desc_conf_mode=desc_conf_mode,
            hidden_dim_factor=hidden_dim_factor,
        )
        super().__init__(head, **options)


def descriptor_width(output_mode: str) -> int:
    """Return the number of descriptor channels in an ``output_mode`` like ``pts3d+desc24``."""
    match = re.fullmatch(r"pts3d(?:\+gaussian)?\+desc(\d+)", output_mode)
    if match is None:
        msg = f"expected an output_mode like pts3d+desc24, got {output_mode}"
        raise ValueError(msg)
    return int(match[1])


def from_config(config: dict[str, Any]) -> AsymmetricMASt3R:
    """Build a network from a description that uses the constructor's names."""
    return AsymmetricMASt3R(**pick_pair_options(config, AsymmetricMASt3R))


PUBLISHED: dict[str, dict[str, Any]] = {
    "MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric": {
        "img_size": (512, 512),
        "desc_conf_mode": ("exp", 0, float("inf")),
    },
}
"""The published checkpoint and its constructor options."""
