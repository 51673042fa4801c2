"""Published networks by name, and the one door through which weights come in: `load`."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from sightline.errors import UnknownNameError
from sightline.models.published import Pretrained, Published, build_and_load, weights_path
from sightline.nn.options import Device, DType


class Family(NamedTuple):
    """Where a family of networks is built.

    Attributes:
        module: Module below ``sightline.models``.
        table: Its table of published networks: name -> options, or `Published`.
        build: The class, or the function that builds one of the table by name.
    """

    module: str
    table: str
    build: str


FAMILIES: dict[str, Family] = {
    "dinov2": Family("dinov2", "MODELS", "build_dinov2"),
    "dinov3": Family("dinov3", "MODELS", "build_dinov3"),
    "dinov3_convnext": Family("dinov3_convnext", "MODELS", "build_convnext"),
    "croco": Family("croco", "PUBLISHED", "CroCoNet"),
    "dust3r": Family("dust3r", "PUBLISHED", "AsymmetricCroCo3DStereo"),
    "mast3r": Family("mast3r", "PUBLISHED", "AsymmetricMASt3R"),
    "splatt3r": Family("splatt3r", "PUBLISHED", "Splatt3R"),
    "vggt": Family("vggt", "PUBLISHED", "VGGT"),
    "vggt_omega": Family("vggt_omega", "PUBLISHED", "VGGTOmega"),
    "sam2": Family("sam2", "PUBLISHED", "SAM2"),
}
"""Family -> where it is built. A network's name stands in the table of exactly one family."""


def names() -> dict[str, str]:
    """Return every network that can be built by name -> its family."""
    found = {name: family for family in FAMILIES for name in table_of(family)}
    aliases: Mapping[str, str] = _module("dinov3").ALIASES
    return found | dict.fromkeys(aliases, "dinov3")


def table_of(family: str) -> dict[str, Any]:
    """Return a family's published networks."""
    return getattr(_module(family), FAMILIES[family].table)


def builder_of(family: str) -> Callable[..., nn.Module]:
    """Return the class, or the function that builds by name."""
    return getattr(_module(family), FAMILIES[family].build)


def load_network(
    name: str | Path,
    checkpoint: Pretrained | None = None,
    *,
    device: Device = None,
    dtype: DType = None,
    **options: Any,
) -> nn.Module:
    """See `sightline.models.load`."""
    known = names()
    family = known.get(str(name))
    if family is None:
        raise UnknownNameError("network", str(name), known)
    options |= {"device": device, "dtype": dtype}
    pretrained = True if checkpoint is None else checkpoint
    entry = table_of(family).get(str(name))
    if entry is None or isinstance(entry, Published):
        return builder_of(family)(str(name), pretrained, **options)
    path = weights_path(str(name), Published(entry, {}), pretrained)
    return build_and_load(builder_of(family), entry | options, path)


def _module(family: str) -> Any:
    return import_module(f"sightline.models.{FAMILIES[family].module}")
