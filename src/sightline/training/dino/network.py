"""A vision transformer with the heads of self-distillation, and its teacher."""

import copy
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sightline.errors import InputError
from sightline.models import load
from sightline.models.dinov2 import DinoVisionTransformer as DinoV2
from sightline.models.dinov2 import ViTFeatures
from sightline.models.dinov3 import DinoVisionTransformer as DinoV3
from sightline.nn.drop import DropPath
from sightline.nn.patch_embed import widen_projection
from sightline.training.average import move_towards
from sightline.training.dino.settings import DinoSettings
from sightline.training.distillation import ProjectionHead
from sightline.training.settings import building

_TINY: dict[str, Any] = {"embed_dim": 192, "num_heads": 3}
# The published LayerScale of 1e-5 needs many thousand steps before a picture reaches the class token.
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov2_tiny": ("dinov2_vits14_reg", _TINY),
    "dinov3_tiny": ("dinov3_vits16", _TINY | {"layerscale_init": 1.0}),
}
"""Sizes that nobody published, for small data -> the network they follow, and what differs."""

Encoder = DinoV2 | DinoV3


def build_encoder(settings: DinoSettings) -> Encoder:
    """Return the network that is trained: a published size or ours, with weights or without.

    A number of channels other than 3 widens the patch projection, of an official checkpoint too
    (`widen_projection`).

    Raises:
        InputError: If it is no such transformer.
        CheckpointError: If the weights do not fit.
    """
    options = dict(settings.model_options or {})
    name, own = TINY.get(settings.model, (settings.model, {}))
    options = own | options
    if settings.drop_path:
        options["drop_path_rate"] = settings.drop_path
    with building("--model-options", settings.model_options):
        if name.startswith("dinov2") and settings.checkpoint is None:
            patch = options.get("patch_size", 14)
            options.setdefault("img_size", settings.global_size // patch * patch)
        model = load(name, settings.checkpoint or False, **options)
    if not isinstance(model, (DinoV2, DinoV3)):
        raise InputError(
            f"{settings.model} is a {type(model).__name__}; self-distillation trains the vision "
            "transformers of DINOv2 and DINOv3"
        )
    if settings.channels != model.patch_embed.in_chans:
        widen(model, settings.channels)
    return model


@torch.no_grad()
def widen(model: Encoder, channels: int) -> None:
    """Give a network for colour pictures another number of channels."""
    old = model.patch_embed.proj
    assert isinstance(old.bias, nn.Parameter)
    patch = model.patch_embed.patch_size
    new = nn.Conv2d(channels, old.out_channels, patch, patch)
    new.weight.copy_(widen_projection(old.weight, channels))
    assert new.bias is not None
    new.bias.copy_(old.bias)
    model.patch_embed.proj = new
    model.patch_embed.in_chans = channels


class Distilled(nn.Module):
    """An encoder with a head for pictures and one for patches."""

    def __init__(self, backbone: Encoder, settings: DinoSettings) -> None:
        """Put heads on an encoder."""
        super().__init__()
        self.backbone = backbone
        normed = settings.head_norm
        shape = {
            "prototypes": settings.prototypes,
            "hidden_dim": settings.head_hidden,
            "bottleneck_dim": settings.head_bottleneck,
            "weight_norm": isinstance(backbone, DinoV2) if normed is None else normed,
        }
        self.dino_head = ProjectionHead(backbone.embed_dim, **shape)
        self.ibot_head = ProjectionHead(backbone.embed_dim, **shape)

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        masks: Bool[Tensor, "b p"] | None = None,
        local: Float[Tensor, "l c s s"] | None = None,
    ) -> list[ViTFeatures]:
        """Return the features of the global crops, and of the local ones where there are some."""
        if local is None:
            return [self.backbone(images, masks, is_training=True)]
        return self.backbone([images, local], [masks, None], is_training=True)


def make_teacher(student: Distilled) -> Distilled:
    """Return a copy that gradients do not reach."""
    teacher = copy.deepcopy(student).requires_grad_(False)
    for module in teacher.modules():  # the teacher sees every picture with all its blocks
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    return teacher


def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher by ``1 - momentum`` of the way to the student."""
    move_towards(teacher.parameters(), student.parameters(), 1 - momentum)
