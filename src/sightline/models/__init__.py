"""Faithful networks with official parameter names: tensors in, tensors out.

One file a family. `build` makes a network from the name of a family and a description of its size;
`load` makes a published one by name, or one from a file, with its weights.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sightline.errors import UnknownNameError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

BUILDERS = {
    "croco": "croco:from_config",
    "croco_v1_cosine": "croco:from_config",
    "dinov2": "dinov2:from_config",
    "dinov2_reg": "dinov2:from_config",
    "dinov2_swiglu_reg": "dinov2:from_config",
    "dinov3_integrated": "integrated:from_config",
    "dinov3_mlp": "dinov3:from_config",
    "dinov3_swiglu": "dinov3:from_config",
    "dinov3_untied": "dinov3:from_config",
    "dinov3_ropemax": "dinov3:from_config",
    "dinov3_convnext": "dinov3_convnext:from_config",
    "dust3r_linear": "dust3r:from_config",
    "dust3r_dpt": "dust3r:from_config",
    "mast3r": "mast3r:from_config",
    "sam2_tiny": "sam2:from_config",
    "splatt3r": "splatt3r:from_config",
    "vggt": "vggt:from_config",
    "vggt_omega": "vggt_omega:from_config",
}
"""Family -> module and function that take the description."""


def build(family: str, config: dict[str, Any]) -> "nn.Module":
    """Return an untrained network of a family; the description drives every size.

    Args:
        family: One of `BUILDERS`.
        config: The description, such as the ``config.json`` beside reference values. Entries that
            are no constructor options (notes, inputs, tolerances) are passed over. ``device`` and
            ``dtype`` may be added.

    Raises:
        UnknownNameError: There is no such family.
    """
    if family not in BUILDERS:
        raise UnknownNameError("model family", family, BUILDERS)
    module, function = BUILDERS[family].split(":")
    return getattr(import_module(f"sightline.models.{module}"), function)(config)


def load(
    name: "str | Path",
    checkpoint: "str | Path | bool | None" = None,
    *,
    device: "torch.device | str | None" = None,
    dtype: "torch.dtype | None" = None,
    **options: Any,
) -> "nn.Module":
    """Return a network with its weights: the one door for every family.

    ``load("dinov3_vitl16")`` takes the published weights from the cache, or downloads them;
    ``load("dinov3_vitl16", "my.pth")`` takes a file; ``load("my.pth")`` finds out what it is.

    Args:
        name: A published network (`sightline models list`), or a checkpoint: a file, a folder, a
            URL or ``REPO_ID/FILENAME``, whose family and size are then recognised.
        checkpoint: Weights for a named network: None or True for the published ones, False for
            none (an untrained network), or a file, a folder, a URL or ``REPO_ID/FILENAME``.
        device: Where the network is created, by default the CPU.
        dtype: Its number type, by default the constructor's.
        options: Constructor options that replace the published ones.

    Raises:
        UnknownNameError: There is no such network, file or repository.
        CheckpointError: The weights do not exist, cannot be fetched, or do not fit.
        FileFormatError: The file is damaged, or needs code to be read.
    """
    from sightline.models.networks import load_network

    return load_network(name, checkpoint, device=device, dtype=dtype, **options)
