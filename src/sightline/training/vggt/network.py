"""The network that is trained: VGGT or VGGT-Omega of any size, on an encoder of choice."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from sightline.checkpoints import load_strict, read_weights
from sightline.errors import CheckpointError, InputError, UnknownNameError
from sightline.models import dinov2, dinov3, load
from sightline.models.aggregator import build_encoder
from sightline.models.recognize import network_class, recognize
from sightline.models.sizes import camera_heads, heads_of, read_layers
from sightline.models.vggt import VGGT
from sightline.models.vggt_omega import VGGTOmega
from sightline.training.vggt.settings import VggtSettings


def build_network(settings: VggtSettings) -> VGGT | VGGTOmega:
    """Return the network with the weights to start from; what is frozen wants no gradient.

    What shapes of weights do not tell (the heads of the camera's blocks, the layers that dense
    heads read) is chosen as `sightline.models.recognize` assumes it, so that the result is found
    to be what it is without a description.

    Raises:
        InputError: If sizes contradict each other.
        UnknownNameError: If there is no such encoder.
        CheckpointError: If weights do not fit.
    """
    if settings.checkpoint is not None:
        network = _loaded(settings)
    elif settings.model == "omega":
        network = _omega(settings)
    else:
        network = _vggt(settings)
    if settings.encoder_checkpoint is not None:
        file = Path(settings.encoder_checkpoint)
        load_strict(network.aggregator.patch_embed, read_weights(file), str(file))
    network.aggregator.gradient_checkpointing = settings.gradient_checkpointing
    freeze(network, settings.frozen)
    return network


def freeze(network: nn.Module, patterns: tuple[str, ...]) -> None:
    """Stop the training of parameters whose names match any pattern.

    Raises:
        InputError: If a pattern matches nothing, which is a slip, or all is frozen.
    """
    names = [name for name, _ in network.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
            msg = f'--freeze "{pattern}" matches no parameter; the parts are {parts}'
            raise InputError(msg)
    for name, parameter in network.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError(f"--freeze {','.join(patterns)} leaves nothing to train; leave one out")


def _loaded(settings: VggtSettings) -> VGGT | VGGTOmega:
    network: nn.Module = load(str(settings.checkpoint))
    wanted_class = VGGT if settings.model == "vggt" else VGGTOmega
    if not isinstance(network, wanted_class):
        msg = (
            f"expected weights of {wanted_class.__name__} in {settings.checkpoint}, got "
            f"those of {type(network).__name__}; change --model or --checkpoint"
        )
        raise CheckpointError(msg)
    wanted = {
        "camera": settings.camera_weight,
        "depth": settings.depth_weight,
        "point": settings.point_weight,
        "track": settings.track_weight,
    }
    for name, weight in wanted.items():
        head = "dense_head" if name == "depth" and settings.model == "omega" else f"{name}_head"
        if weight and getattr(network, head, None) is None:
            msg = f"{settings.checkpoint} has no {name} head; set --{name}-weight 0"
            raise InputError(msg)
        if not weight and getattr(network, head, None) is not None:
            # A head that is not trained stays as it is, in the result too.
            getattr(network, head).requires_grad_(False)
    return network


def _dense(settings: VggtSettings) -> dict[str, Any]:
    width = settings.features
    return {
        "features": width,
        "out_channels": (width, 2 * width, 4 * width, 4 * width),
        "intermediate_layer_idx": read_layers(settings.depth),
    }


def _encoder_options(settings: VggtSettings, published: dict[str, Any]) -> dict[str, Any]:
    heads = settings.encoder_heads
    if settings.encoder_dim and not heads:
        heads = heads_of(settings.encoder_dim)
    given = {
        "embed_dim": settings.encoder_dim,
        "depth": settings.encoder_depth,
        "num_heads": heads,
        "patch_size": settings.patch_size,
    }
    return {**published, **{name: value for name, value in given.items() if value}}


def _vggt(settings: VggtSettings) -> VGGT:
    encoder = _make_encoder(settings)
    # A ConvNeXt has no patches; its last stage has a token for 32 x 32 pixels.
    own = getattr(encoder, "patch_size", None) or 32
    patch = settings.patch_size or (own[0] if isinstance(own, tuple) else own)
    common = _dense(settings)
    return VGGT(
        side_for(settings.width, patch),
        patch,
        settings.embed_dim,
        enable_camera=settings.camera_weight > 0,
        enable_depth=settings.depth_weight > 0,
        enable_point=settings.point_weight > 0,
        enable_track=settings.track_weight > 0,
        aggregator={
            "patch_embed": encoder,
            "depth": settings.depth,
            "num_heads": settings.heads,
            "num_register_tokens": settings.registers,
            "init_values": settings.layer_scale,
        },
        camera={
            "trunk_depth": settings.camera_depth,
            "num_heads": camera_heads(2 * settings.embed_dim, 16),
            "init_values": settings.layer_scale,
        },
        dpt=common,
        track=_track(settings),
    )


def _track(settings: VggtSettings) -> dict[str, Any]:
    if settings.embed_dim >= 1024:
        return {}
    # The published tracker scaled down: its width counts four for every point and frame.
    return {"features": 32, "hidden_size": 96, "depth": 3, "corr_levels": 4, "max_scale": 518}


def _make_encoder(settings: VggtSettings) -> nn.Module:
    name, side = settings.encoder, settings.width
    if name == "conv":
        patch = settings.patch_size or 14
        return build_encoder("conv", side_for(side, patch), patch, settings.embed_dim)
    third = name in dinov3.MODELS or name in dinov3.ALIASES
    if not third and name not in dinov2.MODELS and name not in dinov3.CONVNEXTS:
        known = ["conv", *dinov2.MODELS, *dinov3.MODELS, *dinov3.CONVNEXTS]
        raise UnknownNameError("encoder", name, known)
    options = _encoder_options(settings, {})
    scratch = settings.encoder_checkpoint is None
    if name in dinov3.CONVNEXTS:
        if options:
            msg = f"{name} has its published size only; leave out the encoder's sizes and the patch"
            raise InputError(msg)
        return build_encoder(name, side, 32, settings.embed_dim)
    if third:
        if scratch:
            options["layerscale_init"] = settings.layer_scale
        # Positions jitter in self-distillation only.
        options["pos_embed_rope_rescale_coords"] = None
        return build_encoder(name, side, 16, settings.embed_dim, **options)
    if scratch:
        options["init_values"] = settings.layer_scale
    options |= {"interpolate_antialias": True, "interpolate_offset": 0.0}
    patch = options.get("patch_size", 14)
    return build_encoder(name, side_for(side, patch), patch, settings.embed_dim, **options)


def _omega(settings: VggtSettings) -> VGGTOmega:
    if settings.encoder not in dinov3.MODELS:
        raise UnknownNameError("DINOv3 ViT", settings.encoder, dinov3.MODELS)
    entry = dinov3.MODELS[settings.encoder]
    options = _encoder_options(settings, dict(entry.options))
    width = options.pop("embed_dim", settings.embed_dim)
    patch = options.pop("patch_size", 16)
    if width != settings.embed_dim:
        msg = (
            f"VGGT-Omega's aggregator is as wide as its encoder, got {settings.embed_dim} and "
            f"{width}; use --embed-dim {width}, or set --encoder-dim"
        )
        raise InputError(msg)
    dense = _dense(settings)
    options |= {"pos_embed_rope_normalize_coords": "max", "pos_embed_rope_rescale_coords": None}
    if settings.encoder_checkpoint is None:
        options["layerscale_init"] = settings.layer_scale
    return VGGTOmega(
        patch,
        settings.embed_dim,
        enable_camera=settings.camera_weight > 0,
        enable_depth=settings.depth_weight > 0,
        aggregator={
            "depth": settings.depth,
            "num_heads": settings.heads,
            "num_register_tokens": settings.registers,
            "init_values": settings.layer_scale,
            "cached_layer_indices": dense["intermediate_layer_idx"],
            "register_attention_block_indices": (2, 6, 9, 14, 20) if settings.depth == 24 else (),
            "encoder": options,
        },
        camera={
            "depth": settings.camera_depth,
            "num_heads": camera_heads(2 * settings.embed_dim, 64),
        },
        dense=dense,
    )


def check_recognized(network: VGGT | VGGTOmega) -> None:
    """Make sure that the network can be told from its weights alone, as `models.load` does.

    Raises:
        InputError: If a size of it cannot.
    """
    found = recognize(network.state_dict())
    if found is None or not found.report.strict:
        raise InputError("a network of these sizes would not be recognised from its weights")
    other = network_class(found.family)(**found.options, device="meta").named_modules()
    theirs = dict(other)
    for name, module in network.named_modules():
        for key in ("num_heads", "intermediate_layer_idx", "patch_size"):
            ours, told = getattr(module, key, None), getattr(theirs.get(name), key, None)
            if ours != told:
                msg = (
                    f"{key} {ours} of {name} could not be told from the weights, which say {told}; "
                    "choose heads of 64 channels, or widths that give this number"
                )
                raise InputError(msg)


def side_for(width: int, patch: int) -> int:
    """Return the nominal side of an image: the width in whole patches."""
    return max(width // patch, 1) * patch


def patch_of(network: VGGT | VGGTOmega) -> int:
    """Return the pixels a patch of a network."""
    return int(network.aggregator.patch_size)
