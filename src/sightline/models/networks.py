"""Published networks by name, and the one door through which weights come in: `load`."""

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from sightline.checkpoints import State, read_checkpoint
from sightline.errors import CheckpointError, UnknownNameError
from sightline.hub import CATALOGUE, resolve
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
    "splatt3r_fused": Family("fusion", "PUBLISHED", "FusedSplatt3R"),
    "vggt": Family("vggt", "PUBLISHED", "VGGT"),
    "vggt_omega": Family("vggt_omega", "PUBLISHED", "VGGTOmega"),
    "sam2": Family("sam2", "PUBLISHED", "SAM2"),
}
"""Family -> where it is built. A network's name stands in the table of exactly one family."""


def names() -> dict[str, str]:
    """Return every network that can be built by name -> its family."""
    found = {name: family for family in FAMILIES for name in table_of(family)}
    aliases: Mapping[str, str] = _module("dinov3").ALIASES
    weights = {entry.name: entry.family for entry in CATALOGUE.values()}
    return weights | found | dict.fromkeys(aliases, "dinov3")


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
        return _load_file(name, checkpoint, known, options, device, dtype)
    options |= {"device": device, "dtype": dtype}
    pretrained = True if checkpoint is None else checkpoint
    published = CATALOGUE.get(str(name))
    network = str(name) if published is None else published.network
    entry = table_of(family).get(network)
    if entry is None or isinstance(entry, Published):
        if published is not None and published.name != network:
            options["weights"] = published.name.removeprefix(f"{network}_")
        return builder_of(family)(network, pretrained, **options)
    path = resolve(str(name)) if pretrained is True else weights_path(str(name), _NONE, pretrained)
    adapt, prepare = _ADAPT.get(family), _PREPARE.get(family)
    return build_and_load(builder_of(family), entry | options, path, adapt, prepare, str(name))


def _load_file(
    source: str | Path,
    checkpoint: Pretrained | None,
    known: Mapping[str, str],
    options: dict[str, Any],
    device: Device,
    dtype: DType,
) -> nn.Module:
    """Load a checkpoint after finding out what it is."""
    from sightline.models.recognize import explain, network_class, recognize

    if checkpoint not in {None, True}:
        raise UnknownNameError("network", str(source), known, "sightline models list")
    try:
        path = resolve(source)
    except UnknownNameError as error:
        raise UnknownNameError("network", str(source), known, "sightline models list") from error
    file = read_checkpoint(path)
    found = recognize(file.weights)
    if found is None or not found.report.strict:
        msg = f"expected weights of a known network in {path}, but {explain(file.weights)}"
        raise CheckpointError(msg)
    told = dict(file.config) if file.constructor is None else file.constructor.options
    sizes = found.options | {key: told[key] for key in found.assumed if key in told}
    if isinstance(told.get("fusion"), dict):
        sizes["fusion"] = _with_note(sizes.get("fusion", {}), told["fusion"])
    sizes |= options | {"device": device, "dtype": dtype}
    return build_and_load(network_class(found.family), sizes, path, name=found.title)


_NONE = Published({}, {})
_FUSION: dict[str, type] = {"name": str, "layer": int, "alignment": str, "num_heads": int}
_BACKBONE: dict[str, type] = {
    "num_heads": int,
    "interpolate_antialias": bool,
    "interpolate_offset": float,
}


def _with_note(options: Mapping[str, Any], note: Mapping[str, Any]) -> dict[str, Any]:
    """Add what a file says of a fusion to what its tensors tell; anything else is passed over."""

    def chosen(given: object, kinds: Mapping[str, type]) -> dict[str, Any]:
        known = given if isinstance(given, dict) else {}
        return {key: known[key] for key, kind in kinds.items() if isinstance(known.get(key), kind)}

    found = dict(options) | chosen(note, _FUSION)
    if "backbone" in found:
        backbone = chosen(note.get("backbone"), _BACKBONE)
        found["backbone"] = found["backbone"] | {
            k: backbone[k] for k in backbone if k in found["backbone"]
        }
    return found


def _adapt_splatt3r(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Expect the weights of the perceptual loss only where the file has them."""
    return options | {"lpips": any("lpips_criterion." in name for name in names)}


def _adapt_sam2(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Expect the tensors of video only where the file has them."""
    return options if any("maskmem_tpos_enc" in n for n in names) else options | {"video": None}


def _prepare_pairs(state: State) -> State:
    """Early files have one decoder, which both views start from."""
    return import_module("sightline.models.dust3r").restore_second_decoder(state)


_ADAPT = {"splatt3r": _adapt_splatt3r, "sam2": _adapt_sam2}
_PREPARE = {"dust3r": _prepare_pairs, "mast3r": _prepare_pairs}


def _module(family: str) -> Any:
    return import_module(f"sightline.models.{FAMILIES[family].module}")
