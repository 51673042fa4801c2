"""Weights that a file holds and that we keep without using them."""

from collections.abc import Mapping

import torch
from torch import nn

from sightline.nn.options import Device, DType

Shapes = Mapping[str, tuple[int, ...]]


def hold(module: nn.Module, shapes: Shapes, device: Device = None, dtype: DType = None) -> None:
    """Give ``module`` buffers under dotted names, so that they load strictly and are saved again.

    They are checked for name and shape like any weight, are never read, and are zero until a file
    fills them. Their names are listed in the attribute ``held_names``.
    """
    for name, shape in shapes.items():
        *parents, leaf = name.split(".")
        home = module
        for parent in parents:
            if parent not in dict(home.named_children()):
                home.add_module(parent, nn.Module())
            home = home.get_submodule(parent)
        home.register_buffer(leaf, torch.zeros(shape, device=device, dtype=dtype))
    module.held_names = frozenset(shapes)  # type: ignore[assignment]
