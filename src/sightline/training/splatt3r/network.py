"""The network of a training: built or read, fused, and frozen where it is not trained."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sightline import models
from sightline.backbones import create_backbone
from sightline.backbones.fusion import attach, backbone_of, fuse_splatt3r
from sightline.backbones.request import drawn_from
from sightline.checkpoints import read_checkpoint
from sightline.errors import CheckpointError, InputError
from sightline.hub import CATALOGUE, cached
from sightline.models.fusion import FusedSplatt3R
from sightline.models.recognize import recognize
from sightline.models.splatt3r import PUBLISHED, Splatt3R
from sightline.protocols import Backbone
from sightline.training.settings import building
from sightline.training.splatt3r.settings import Splatt3rSettings

TINY: dict[str, Any] = {
    "enc_embed_dim": 128,
    "enc_depth": 4,
    "enc_num_heads": 2,
    "dec_embed_dim": 128,
    "dec_depth": 4,
    "dec_num_heads": 2,
    "hidden_dim_factor": 0.25,
    "output_mode": "pts3d+gaussian+desc8",
    "dpt": {"feature_dim": 32, "last_dim": 32, "layer_dims": [24, 32, 48, 64]},
}
"""A Splatt3R of about three million weights, for trials and tests."""

HEADS = ("encoder.downstream_head1.", "encoder.downstream_head2.")


def build_network(settings: Splatt3rSettings) -> Splatt3R:
    """Return the network to train, on the CPU; weights that no file gives are drawn by the seed.

    Raises:
        InputError: Options do not fit.
        CheckpointError: A file does not hold what it should, or weights of a backbone are missing.
        UnknownNameError: There is no such backbone.
    """
    with drawn_from(settings.seed):
        network = _plain(settings)
        network.encoder.landscape_only = False
        if isinstance(network, FusedSplatt3R):
            if settings.fuses and settings.train != "all":
                msg = (
                    f"{settings.checkpoint} has a backbone fused in already; leave --backbone out, "
                    "or start from plain Splatt3R"
                )
                raise InputError(msg)
            return attach(network)
        if settings.fuses:
            mode: Any = settings.mode
            return fuse_splatt3r(
                network,
                make_backbone(settings),
                mode,
                settings.site,
                settings.alignment,
                settings.layer,
                name=settings.backbone or "",
                width=settings.width,
            )
        if "fusion" in settings.train:
            msg = (
                f"--train {settings.train} needs a backbone, and {settings.checkpoint} has none "
                "fused in; name one with --backbone"
            )
            raise InputError(msg)
    return network


def _plain(settings: Splatt3rSettings) -> Splatt3R:
    """Return the network before the backbone of the settings is fused in."""
    options: dict[str, Any] = dict(settings.network or {})
    if settings.checkpoint is None:
        large: dict[str, Any] = PUBLISHED["splatt3r_v1.0"] | {"lpips": False}
        with building("--network", settings.network):
            network = Splatt3R(**((TINY if settings.size == "tiny" else large) | options))
        _start_in_front(network)
        _start_fine(network, settings.resolution)
        return network
    path = weights_file(settings.checkpoint)
    found = recognize(read_checkpoint(path).weights)
    family = "" if found is None or not found.report.strict else found.family
    if family == "mast3r":
        with building("--network", settings.network):
            network = _from_mast3r(path, options)
        _start_fine(network, settings.resolution)
        return network
    if family not in {"splatt3r", "splatt3r_fused"}:
        raise CheckpointError(
            f"expected weights of Splatt3R or MASt3R in {path}, found "
            f"{family or 'no network known here'}; see: sightline models check {path}"
        )
    network: Any = models.load(path)
    return network


def weights_file(given: str) -> Path:
    """Return the file of weights to start from: a path, or the name of published weights.

    Raises:
        InputError: There is no such file.
        CheckpointError: The published weights were not downloaded.
    """
    path = Path(given)
    if path.is_file():
        return path
    if path.name not in CATALOGUE:
        raise InputError(f"--checkpoint: there is no file {given}; give one, or leave it out")
    found = cached(path.name)
    if found is None:
        raise CheckpointError(
            f"--checkpoint {path.name}: these weights are not on this machine; fetch them with: "
            f"sightline models download {path.name}"
        )
    return found


def _from_mast3r(path: Path, options: dict[str, Any]) -> Splatt3R:
    """Return a Splatt3R of MASt3R's weights; its Gaussian heads are drawn."""
    source: Any = models.load(path)
    found = recognize(source.state_dict())
    assert found is not None
    sizes: dict[str, Any] = {k: v for k, v in found.options.items() if k != "desc_conf_mode"}
    mode = sizes.get("output_mode", "pts3d+desc24").replace("+desc", "+gaussian+desc")
    network = Splatt3R(**(sizes | {"output_mode": mode} | options))
    network.encoder.load_state_dict(network.encoder.state_dict() | source.state_dict())
    return network


@torch.no_grad()
def _start_in_front(network: Splatt3R) -> None:
    """Let drawn heads put points two metres in front of the first camera, where it sees them.

    Drawn weights alone put them all into the camera, from where no picture has a gradient.
    """
    for head in (network.encoder.downstream_head1, network.encoder.downstream_head2):
        bias = head.get_parameter("dpt.head.4.bias")
        bias[:3] = torch.tensor([0.0, 0.0, math.log1p(2.0)])


@torch.no_grad()
def _start_fine(network: Splatt3R, resolution: int) -> None:
    """Let drawn Gaussians be as large in pixels as Splatt3R's are at 512 pixels."""
    for head in (network.encoder.downstream_head1, network.encoder.downstream_head2):
        bias = head.get_parameter("gaussian_dpt.dpt.head.4.bias")
        bias[3:6] += math.log(512 / resolution)


def make_backbone(settings: Splatt3rSettings) -> Backbone:
    """Return the second backbone, on the CPU.

    Raises:
        CheckpointError: Weights are missing.
        InputError: A file holds no DINOv2, DINOv3 or ConvNeXt.
        UnknownNameError: There is no such backbone.
    """
    if not settings.backbone:
        path = Path(settings.backbone_checkpoint or "")
        return backbone_of(models.load(path), path.stem)
    return create_backbone(
        settings.backbone,
        settings.backbone_checkpoint,
        device="cpu",
        seed=settings.backbone_seed,
    )


def freeze(network: Splatt3R, settings: Splatt3rSettings) -> list[str]:
    """Let only what is trained ask for gradients.

    Parts that no loss reaches are frozen too: the weights that never change an output, and the
    heads of points and descriptors where there is no loss on them.

    Returns:
        Names of the trained parameters.
    """
    chosen = []
    for name, parameter in network.named_parameters():
        trained = _is_trained(name, settings)
        parameter.requires_grad_(trained)
        if trained:
            chosen.append(name)
    return chosen


def _is_trained(name: str, settings: Splatt3rSettings) -> bool:
    if name.startswith("fusion.backbone.") or _is_dead(name):
        return False
    if name.startswith("fusion."):
        return settings.train != "gaussian_head"
    if ".gaussian_dpt." in name:
        return settings.train != "fusion"
    if settings.train != "all":
        return False
    if ".head_local_features." in name:
        return settings.points > 0 and settings.matching > 0
    if name.startswith(HEADS):
        return settings.points > 0 or settings.point_gradients
    return True


def _is_dead(name: str) -> bool:
    """Return whether a weight never changes an output."""
    return name == "encoder.mask_token" or ".refinenet4.resConfUnit1." in name


def set_modes(network: Splatt3R) -> None:
    """Put what is trained into training mode, and what is frozen into evaluation mode."""
    network.train()
    for module in frozen_parts(network):
        module.eval()


def frozen_parts(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the largest modules without a trained parameter."""
    for child in network.children():
        if any(p.requires_grad for p in child.parameters()):
            yield from frozen_parts(child)
        else:
            yield child
