"""Networks of a few thousand weights, one a family, as the tests of backbones use them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sightline.backbones import networks
from sightline.backbones.base import HALF, NetworkBackbone
from sightline.models.aggregator import Aggregator
from sightline.models.croco import CroCoNet
from sightline.models.dinov2 import DinoVisionTransformer as DinoV2
from sightline.models.dinov3 import DinoVisionTransformer as DinoV3
from sightline.models.dinov3_convnext import ConvNeXt
from sightline.models.dust3r import AsymmetricCroCo3DStereo
from sightline.models.sam2 import SAM2
from sightline.models.vggt_omega import OmegaAggregator

PAIR: dict[str, Any] = {
    "enc_embed_dim": 16,
    "enc_depth": 2,
    "enc_num_heads": 2,
    "dec_embed_dim": 16,
    "dec_depth": 2,
    "dec_num_heads": 2,
}
HIERA: dict[str, Any] = {
    "embed_dim": 8,
    "stages": (1, 1, 1, 1),
    "global_att_blocks": (2,),
    "num_heads": 1,
}


def lively(network: nn.Module) -> nn.Module:
    """Draw every weight, also those that start at one value or nearly zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
    return network.eval()


def dinov2(**options: Any) -> Any:
    return lively(DinoV2(28, 14, 3, 16, 3, 2, num_register_tokens=2, init_values=1.0, **options))


def dinov3(**options: Any) -> Any:
    sizes: dict[str, Any] = {"embed_dim": 32, "depth": 3, "num_heads": 2, "n_storage_tokens": 4}
    return lively(DinoV3(**(sizes | options), mask_k_bias=True, layerscale_init=1.0))


def convnext() -> Any:
    return lively(ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), patch_size=16))


def croco() -> Any:
    return lively(CroCoNet(32, **PAIR))


def pair(**options: Any) -> Any:
    return lively(AsymmetricCroCo3DStereo(**{**PAIR, **options}))


def aggregator() -> Any:
    return lively(Aggregator(28, 14, 16, 2, 2, patch_embed="conv"))


def omega() -> Any:
    encoder: dict[str, Any] = {"depth": 1, "num_heads": 2}
    return lively(OmegaAggregator(16, 32, 2, 2, num_register_tokens=3, encoder=encoder))


def sam2() -> Any:
    return lively(SAM2(64, hiera=HIERA, neck={"d_model": 16}, decoder={"transformer_dim": 16}))


BACKBONES: dict[str, Callable[..., NetworkBackbone]] = {
    "dinov2": lambda **o: networks.vit(dinov2(), networks.read_dinov2, **o),
    "dinov3": lambda **o: networks.vit(dinov3(), networks.read_dinov3, **o),
    "convnext": lambda **o: networks.adapt_convnext(convnext(), **o),
    "croco": lambda **o: networks.adapt_encoder(croco(), **o),
    "pair_encoder": lambda **o: networks.adapt_encoder(pair(), mean=HALF, std=HALF, **o),
    "pair_decoder": lambda **o: networks.adapt_decoder(pair(), **o),
    "vggt": lambda **o: networks.adapt_aggregator(aggregator(), **o),
    "vggt_frame": lambda **o: networks.adapt_aggregator(aggregator(), "frame", **o),
    "vggt_global": lambda **o: networks.adapt_aggregator(aggregator(), "global", **o),
    "vggt_omega": lambda **o: networks.adapt_aggregator(omega(), **o),
    "sam2": lambda **o: networks.adapt_sam2(sam2(), **o),
}
