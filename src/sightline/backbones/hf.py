"""ViT-like models of transformers as backbones: ``hf:REPO_OR_FOLDER`` (extra ``hf``).

CLIP, SigLIP, SigLIP 2, MAE, DINO, DeiT, DINOv2, DINOv3, SAM, DPT (MiDaS), I-JEPA and any other
model whose blocks are a list and whose tokens fill the patch grid. Models come from a folder or
from the Hugging Face cache; nothing is downloaded, and no code of a repository is ever run.

Blocks are read by hooks, before the final norm; with ``norm`` every layer passes it. CLIP's
projection is applied only where ``project`` asks for it. SAM is read before its neck, and has no
norm. Models that interpolate their positions get pictures stretched to whole patches; SAM gets its
square with the picture at the top left, unless ``fit`` asks for another rule, under which its
positions are resized; others get their square.
"""

import importlib
import inspect
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.backbones.base import (
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ONE,
    ZERO,
    NetworkBackbone,
    Tokens,
    Triple,
    captured,
    fixed_size,
    split_tokens,
)
from sightline.backbones.remapped import CLIP_MEAN, CLIP_STD
from sightline.backbones.request import Request, drawn_from
from sightline.errors import CheckpointError, FileFormatError, InputError, MissingExtraError
from sightline.models.croco import patchify

_ANY_SIZE = {"dinov2", "dinov2_with_registers", "dinov3_vit", "dpt", "siglip2_vision_model"}
"""Types that take any size without being told to."""

_USUAL: dict[str, tuple[Triple, Triple]] = {
    "clip_vision_model": (CLIP_MEAN, CLIP_STD),
    **dict.fromkeys(
        ("siglip_vision_model", "siglip2_vision_model", "vit", "dpt", "beit"), (HALF, HALF)
    ),
}
"""Normalisation of models that come without a description of it; else ImageNet's."""

_NORMS = ("layernorm", "norm", "post_layernorm", "layer_norm", "final_layer_norm")
_UNUSED = ("pooler", "head", "mask_token", "logit", "text_model", "decoder", "classifier")
"""Parts that features do not pass, and so may be missing in a file."""

_MAX_JSON = 1 << 20


def transformers_model(request: Request) -> NetworkBackbone:
    """Make a backbone of a model of transformers; its grid is that of its patches.

    Raises:
        MissingExtraError: transformers is not installed.
        CheckpointError: The model is not there, or lacks weights.
        InputError: It is not like a ViT.
    """
    transformers = extra("transformers", f"hf:{request.source}")
    source = str(request.checkpoint or request.source)
    config = _config(transformers, source, request)
    project = request.options.get("project", False)
    network = _network(transformers, source, config, request, project=project)
    return adapt(network, *normalisation(source, config.model_type), **request.options)


def extra(module: str, what: str) -> Any:
    """Import a package of the extra ``hf``.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(what, module, "hf") from error


def adapt(
    network: Any,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
    *,
    project: bool = False,
    **options: Any,
) -> NetworkBackbone:
    """Make a backbone of a loaded vision model of transformers.

    Raises:
        InputError: It is not like a ViT.
    """
    config = network.config
    patch = patch_of(config)
    depth = getattr(config, "num_hidden_layers", None)
    names = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if patch < 1 or not depth or not names:
        raise InputError(
            f"expected a model like a ViT, with a patch size and a list of blocks, got "
            f"{type(network).__name__} ({config.model_type}); give another model"
        )
    blocks = network.get_submodule(names[0])
    projection = network.visual_projection if project else None
    final = _final_norm(network)
    read: Any = partial(read_blocks, blocks=blocks, final=final, projection=projection)
    inputs = inspect.signature(network.forward).parameters
    if config.model_type == "sam_vision_model" and "fit" in options:
        read = partial(read_sam, blocks=blocks)
    elif config.model_type == "sam_vision_model":
        options = fixed_size("SAM", options, "letterbox", config.image_size)
    elif "interpolate_pos_encoding" not in inputs and config.model_type not in _ANY_SIZE:
        options = fixed_size(config.model_type, options, "square", config.image_size)
    if config.model_type == "vit_mae":
        config.mask_ratio = 0.0
    return NetworkBackbone(
        network,
        read,
        patch_size=patch,
        embed_dim=config.projection_dim if project else config.hidden_size,
        depth=len(blocks),
        mean=mean,
        std=std,
        **options,
    )


def patch_of(config: Any) -> int:
    """Return the side of a model's square patches, or 0 where there are none."""
    patch = getattr(config, "patch_size", 0)
    sides = {patch} if isinstance(patch, int) else set(patch)
    return sides.pop() if len(sides) == 1 else 0


def read_blocks(
    network: Any,
    images: Tensor,
    layers: Sequence[int],
    norm: bool,
    blocks: nn.ModuleList,
    final: nn.Module | None,
    projection: nn.Module | None = None,
) -> dict[int, Tokens]:
    """Read blocks of a model, whose outputs are sequences ``[B, T, D]`` or maps ``[B, h, w, D]``.

    With a projection, tokens pass the final norm and it.
    """
    patch = patch_of(network.config)
    grid = (images.shape[-2] // patch, images.shape[-1] // patch)
    with captured(blocks, layers) as found:
        network(**_inputs(network, images, patch, grid))
    normed = (norm or projection is not None) and final is not None
    results = {}
    for layer, tokens in found.items():
        tokens = final(tokens) if normed and final is not None else tokens
        tokens = tokens if projection is None else projection(tokens)
        if tokens.ndim == 4:
            results[layer] = Tokens(tokens.permute(0, 3, 1, 2), normed=normed)
        else:
            results[layer] = split_tokens(tokens, grid, normed=normed)
    return results


def read_sam(
    network: Any, images: Tensor, layers: Sequence[int], norm: bool, blocks: nn.ModuleList
) -> dict[int, Tokens]:
    """Read blocks of SAM on pictures of any size, its table of positions resized (bicubic)."""
    encoder = next(
        module
        for module in network.modules()
        if hasattr(module, "pos_embed") and hasattr(module, "patch_embed")
    )
    hidden = encoder.patch_embed.projection(images).permute(0, 2, 3, 1)
    table = encoder.pos_embed.permute(0, 3, 1, 2)
    if table.shape[-2:] != hidden.shape[1:3]:
        size = (hidden.shape[1], hidden.shape[2])
        table = nn.functional.interpolate(table, size, mode="bicubic", align_corners=False)
    hidden = hidden + table.permute(0, 2, 3, 1)
    results = {}
    for layer in range(max(layers) + 1):
        hidden = blocks[layer](hidden)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        if layer in layers:
            results[layer] = Tokens(hidden.permute(0, 3, 1, 2))
    return results


def normalisation(source: str, model_type: str) -> tuple[Triple, Triple]:
    """Return mean and deviation that a model wants, from its folder or repository in the cache.

    Raises:
        FileFormatError: They are not three numbers each.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = find_file(source, name)
        if path is None:
            continue
        content = read_description(path)
        inner = content.get("image_processor")
        content = inner if isinstance(inner, dict) else content
        if content.get("do_normalize", True) is False:
            return ZERO, ONE
        if "image_mean" in content and "image_std" in content:
            return _triple(path, content["image_mean"]), _triple(path, content["image_std"])
    return _USUAL.get(model_type, (IMAGENET_MEAN, IMAGENET_STD))


def read_description(path: Path) -> dict[str, Any]:
    """Return a small JSON file of a model.

    Raises:
        FileFormatError: It is too large, or not a table.
    """
    if path.stat().st_size > _MAX_JSON:
        raise FileFormatError(f"{path} is larger than a description should be; download it again")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not readable JSON; download it again") from error
    if not isinstance(content, dict):
        raise FileFormatError(f"{path} is not a JSON table; download it again")
    return content


def _config(transformers: Any, source: str, request: Request) -> Any:
    """Return the description of the vision part."""
    if Path(source).is_file():
        raise InputError(
            f"expected a folder with config.json for hf:{request.source}, got the file {source}; "
            "give the folder"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(
            source, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever the library makes of a stranger's description
        raise _not_there(source, error) from error
    return getattr(config, "vision_config", config)


def _network(
    transformers: Any, source: str, config: Any, request: Request, *, project: bool
) -> Any:
    try:
        build = transformers.MODEL_MAPPING[type(config)]
    except KeyError as error:
        raise InputError(
            f"expected a vision model in {source}, got a {config.model_type}; give another one"
        ) from error
    build = build[0] if isinstance(build, tuple) else build
    if project:
        build = getattr(transformers, f"{build.__name__}WithProjection", None)
        if build is None:
            raise InputError(f"{source} has no projection of its tokens; leave project out")
    try:
        if request.random:
            with drawn_from(request.seed):
                return build(config).to(request.device, request.dtype)
        network, report = build.from_pretrained(
            source,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # as above; also weights that do not fit it
        raise _not_there(source, error) from error
    missing = sorted(
        name for name in report["missing_keys"] if not any(part in name for part in _UNUSED)
    )
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} tensors of {build.__name__}, such as {missing[0]}; it "
            "is probably damaged or another model: download it again"
        )
    return network.to(request.device, request.dtype)


def _not_there(source: str, error: Exception) -> CheckpointError:
    if Path(source).exists():
        reason = " ".join(str(error).split())[:200]
        return CheckpointError(f"{source} is not a folder that transformers can read: {reason}")
    return CheckpointError(
        f"{source} is neither a folder nor in the Hugging Face cache, and nothing is downloaded "
        f'unasked: fetch it with "hf download {source}", or give its folder with --checkpoint'
    )


def _final_norm(network: nn.Module) -> nn.Module | None:
    """Return the norm after the last block: the one nearest to the top that is called so."""
    found = [
        name
        for name, _ in network.named_modules()
        if name.split(".")[-1] in _NORMS
        and not any(part.isdigit() or part in _UNUSED for part in name.split("."))
    ]
    return network.get_submodule(min(found, key=lambda n: n.count("."))) if found else None


def _inputs(network: Any, images: Tensor, patch: int, grid: tuple[int, int]) -> dict[str, Any]:
    """Return the arguments of a call, which differ in how positions and masks are given."""
    accepted = inspect.signature(network.forward).parameters
    inputs: dict[str, Any] = {"pixel_values": images}
    if "spatial_shapes" in accepted:  # SigLIP 2 takes patches
        patches = patchify(images, patch)
        inputs["pixel_values"] = patches
        inputs["spatial_shapes"] = torch.tensor([grid] * len(images), device=images.device)
        inputs["pixel_attention_mask"] = torch.ones(
            patches.shape[:2], dtype=torch.long, device=images.device
        )
    if "interpolate_pos_encoding" in accepted:
        inputs["interpolate_pos_encoding"] = True
    if "noise" in accepted:  # MAE would shuffle the patches by it
        order = torch.arange(grid[0] * grid[1], device=images.device, dtype=torch.float32)
        inputs["noise"] = order.expand(len(images), -1)
    return inputs


def find_file(source: str, name: str) -> Path | None:
    """Return a file of a folder, or of a repository in the cache; None where it is not there."""
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(source, name)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def _triple(path: Path, values: Any) -> Triple:
    rows = values if isinstance(values, list) else []
    numbers = [float(value) for value in rows if isinstance(value, (int, float))]
    if len(numbers) != 3:
        raise FileFormatError(f"{path} does not give three numbers to normalise by; mend it")
    return numbers[0], numbers[1], numbers[2]
