"""Our own networks as backbones: one reader and one factory a family.

Pictures are stretched to the nearest multiples of the patch (of 32 pixels for ConvNeXts, to a
square of 1024 for SAM 2), unless another rule is asked for. Every layer passes the network's final
norm unless ``norm`` is off; aggregators and SAM 2 have none.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sightline.backbones.base import (
    HALF,
    NetworkBackbone,
    Tokens,
    captured,
    fixed_size,
    split_tokens,
)
from sightline.backbones.request import Request
from sightline.models.croco import Encoded
from sightline.models.dinov3 import SAT_MEAN, SAT_STD


def grid_of(images: Tensor, patch: int) -> tuple[int, int]:
    """Return rows and columns of whole patches."""
    return images.shape[-2] // patch, images.shape[-1] // patch


def read_dinov2(
    network: Any, images: Tensor, layers: Sequence[int], norm: bool
) -> dict[int, Tokens]:
    """Read a DINOv2, or a ViT of its class."""
    with captured(network.blocks, layers) as found:
        network.get_intermediate_layers(images, n=layers, norm=False)  # which stops in time
    grid = grid_of(images, network.patch_size)
    special = 1 + network.num_register_tokens
    return {
        layer: split_tokens(
            network.norm(tokens) if norm else tokens, grid, special=special, normed=norm
        )
        for layer, tokens in found.items()
    }


def read_dinov3(
    network: Any, images: Tensor, layers: Sequence[int], norm: bool
) -> dict[int, Tokens]:
    """Read a DINOv3 ViT."""
    entries = network.get_intermediate_layers(
        images, n=layers, reshape=True, return_class_token=True, return_extra_tokens=True, norm=norm
    )
    return {
        layer: Tokens(patches, cls, extra if extra.shape[1] else None, normed=norm)
        for layer, (patches, cls, extra) in zip(layers, entries, strict=True)
    }


def read_convnext(
    network: Any, images: Tensor, layers: Sequence[int], norm: bool
) -> dict[int, Tokens]:
    """Read stages of a DINOv3 ConvNeXt; only the last one has a norm."""
    entries = network.get_intermediate_layers(
        images, n=layers, reshape=True, return_class_token=True, norm=norm
    )
    last = network.n_blocks - 1
    return {
        layer: Tokens(patches, cls, normed=norm and layer == last)
        for layer, (patches, cls) in zip(layers, entries, strict=True)
    }


def read_croco(
    network: Any, images: Tensor, layers: Sequence[int], norm: bool
) -> dict[int, Tokens]:
    """Read the encoder of CroCo, DUSt3R, MASt3R or Splatt3R."""
    with captured(network.enc_blocks, layers) as found:
        network.encode(images)
    return _plain(found, network.enc_norm if norm else None, images, network.patch_size)


def read_decoder(
    network: Any, images: Tensor, layers: Sequence[int], norm: bool
) -> dict[int, Tokens]:
    """Read the decoder of a pair network, where every view looks at the next one.

    View i is the first of the pair (i, i + 1); the last view looks at the first one, and a single
    view at itself.
    """
    count = len(images)
    step = max(1, (1 << 19 if images.device.type == "cpu" else 1 << 22) // images[0, 0].numel())
    starts = range(0, count, step)
    encoded = [network.encode(images[start : start + step]) for start in starts]
    tokens, positions = torch.cat([part.tokens for part in encoded]), encoded[0].positions
    partners = tokens.roll(-1, 0)
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for start in starts:
        rows = slice(start, start + step)
        with captured(network.dec_blocks, layers) as found:
            network.decode_pair(
                Encoded(tokens[rows], positions), Encoded(partners[rows], positions)
            )
        for layer, values in found.items():
            parts[layer].append(values)
    joined = {layer: torch.cat(values) for layer, values in parts.items()}
    return _plain(joined, network.dec_norm if norm else None, images, network.patch_size)


def read_aggregator(
    network: Any,
    images: Tensor,
    layers: Sequence[int],
    norm: bool,
    part: slice = slice(None),
) -> dict[int, Tokens]:
    """Read the aggregator of VGGT or VGGT-Omega over all views as one sequence.

    The camera token stands for the class token. There is no final norm.

    Args:
        network: The aggregator.
        images: Pictures in [0, 1]; the first one is the reference.
        layers: Pairs of blocks, counted from 0.
        norm: Without effect.
        part: Which channels: all, or those of the frame or the global block.
    """
    entries, start = network(images.unsqueeze(0), keep=layers)
    grid = grid_of(images, network.patch_size)
    return {
        layer: split_tokens(entries[layer][0][..., part], grid, special=start) for layer in layers
    }


def read_sam2(network: Any, images: Tensor, layers: Sequence[int], norm: bool) -> dict[int, Tokens]:
    """Read SAM 2's feature pyramid: layers 0, 1, 2 are the maps at strides 4, 8, 16."""
    encoder = network.image_encoder
    maps = encoder.neck(encoder.trunk(images))
    return {layer: Tokens(maps[layer]) for layer in layers}


def _plain(
    found: dict[int, Tensor], norm: nn.Module | None, images: Tensor, patch: int
) -> dict[int, Tokens]:
    grid = grid_of(images, patch)
    return {
        layer: split_tokens(
            tokens if norm is None else norm(tokens), grid, special=0, normed=norm is not None
        )
        for layer, tokens in found.items()
    }


def vit(network: Any, read: Callable[..., Any], **options: Any) -> NetworkBackbone:
    """Make a backbone of a ViT that has DINO's attributes; ``options`` as for `NetworkBackbone`."""
    sizes = {"patch_size": network.patch_size, "embed_dim": network.embed_dim}
    return NetworkBackbone(network, read, depth=network.n_blocks, **sizes, **options)


def dinov2(request: Request) -> NetworkBackbone:
    """Make a backbone of a DINOv2; patch 14, class token, and registers where it has them."""
    return vit(request.network(), read_dinov2, **request.options)


def dinov3(request: Request) -> NetworkBackbone:
    """Make a backbone of a DINOv3 ViT; patch 16, class token and four registers."""
    return vit(request.network(), read_dinov3, **request.options)


def dinov3_satellite(request: Request) -> NetworkBackbone:
    """Make a backbone of a DINOv3 ViT with satellite weights, which has its own normalisation."""
    published = f"{request.source}_sat493m"
    network = request.network(published, untie_global_and_local_cls_norm=True)
    return vit(network, read_dinov3, mean=SAT_MEAN, std=SAT_STD, **request.options)


def convnext(request: Request) -> NetworkBackbone:
    """Make a backbone of a DINOv3 ConvNeXt: four stages, resized to a grid of stride 16."""
    network: Any = request.network(patch_size=16)
    return adapt_convnext(network, **request.options)


def adapt_convnext(network: Any, **options: Any) -> NetworkBackbone:
    """Make a backbone of a ConvNeXt whose ``patch_size`` is set."""
    return NetworkBackbone(
        network,
        read_convnext,
        patch_size=network.patch_size,
        embed_dim=network.embed_dim,
        depth=network.n_blocks,
        **{"step": 32, **options},
    )


def croco(request: Request) -> NetworkBackbone:
    """Make a backbone of CroCo's encoder; ImageNet's normalisation, no class token."""
    return adapt_encoder(request.network(), **request.options)


def pair_encoder(request: Request) -> NetworkBackbone:
    """Make a backbone of the encoder of DUSt3R, MASt3R or Splatt3R; no class token."""
    network = _pair_network(request)
    network.dec_blocks = network.dec_blocks2 = nn.ModuleList()
    return adapt_encoder(network, mean=HALF, std=HALF, **request.options)


def pair_decoder(request: Request) -> NetworkBackbone:
    """Make a backbone of the first decoder of a pair network; see `read_decoder`."""
    return adapt_decoder(_pair_network(request), **request.options)


def adapt_encoder(network: Any, **options: Any) -> NetworkBackbone:
    """Make a backbone of any CroCo-like encoder."""
    return NetworkBackbone(
        network,
        read_croco,
        patch_size=network.patch_size,
        embed_dim=network.enc_embed_dim,
        depth=network.enc_depth,
        **options,
    )


def adapt_decoder(network: Any, **options: Any) -> NetworkBackbone:
    """Make a backbone of any pair network's decoder."""
    return NetworkBackbone(
        network,
        read_decoder,
        patch_size=network.patch_size,
        embed_dim=network.dec_embed_dim,
        depth=network.dec_depth,
        sequence=True,
        **{"mean": HALF, "std": HALF, **options},
    )


def _pair_network(request: Request) -> Any:
    network: Any = request.network()
    network = getattr(network, "encoder", network)  # Splatt3R holds its pair network inside
    network.downstream_head1 = network.downstream_head2 = nn.Identity()
    return network


def vggt_encoder(request: Request) -> NetworkBackbone:
    """Make a backbone of VGGT's image encoder, a DINOv2 with registers of its own."""
    return vit(_aggregator(request).patch_embed, read_dinov2, **request.options)


def omega_encoder(request: Request) -> NetworkBackbone:
    """Make a backbone of VGGT-Omega's image encoder, a DINOv3."""
    return vit(_aggregator(request).patch_embed, read_dinov3, **request.options)


def aggregator(request: Request) -> NetworkBackbone:
    """Make a backbone of the aggregator of VGGT or VGGT-Omega; channels are frame, then global."""
    return adapt_aggregator(_aggregator(request), **request.options)


def aggregator_frame(request: Request) -> NetworkBackbone:
    """Make a backbone of the aggregator's frame blocks."""
    return adapt_aggregator(_aggregator(request), "frame", **request.options)


def aggregator_global(request: Request) -> NetworkBackbone:
    """Make a backbone of the aggregator's global blocks."""
    return adapt_aggregator(_aggregator(request), "global", **request.options)


def adapt_aggregator(network: Any, half: str | None = None, **options: Any) -> NetworkBackbone:
    """Make a backbone of any aggregator, or of one half of its channels."""
    width = network.embed_dim
    parts = {None: slice(None), "frame": slice(0, width), "global": slice(width, None)}
    return NetworkBackbone(
        network,
        partial(read_aggregator, part=parts[half]),
        patch_size=network.patch_size,
        embed_dim=2 * width if half is None else width,
        depth=network.depth,
        sequence=True,
        normalises=True,
        **options,
    )


def _aggregator(request: Request) -> Any:
    heads = ("camera", "depth", "point", "track") if request.source == "vggt_1b" else ()
    # A network of random weights needs no heads; a file has to be read as a whole.
    options: dict[str, Any] = {f"enable_{head}": False for head in heads if request.random}
    network: Any = request.network(**options)
    return network.aggregator


def sam2(request: Request) -> NetworkBackbone:
    """Make a backbone of SAM 2's image encoder: three maps of 256 channels, no class token."""
    return adapt_sam2(request.network(), **request.options)


def adapt_sam2(network: Any, **options: Any) -> NetworkBackbone:
    """Make a backbone of any SAM 2; pictures are stretched to its square."""
    return NetworkBackbone(
        network,
        read_sam2,
        patch_size=16,
        embed_dim=network.image_encoder.neck.d_model,
        depth=3,
        **fixed_size("SAM 2", options, "square", network.image_size),
    )
