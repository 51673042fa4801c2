"""Faithful networks with official parameter names: tensors in, tensors out.

One file a family. `build` makes a network from the name of a family and a description of its size.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sightline.errors import UnknownNameError

if TYPE_CHECKING:
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
