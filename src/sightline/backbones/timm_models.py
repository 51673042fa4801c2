"""Models of timm as backbones: ``timm:NAME``, where timm (and so torchvision) is installed.

Anything with ``forward_intermediates`` and one stride for all blocks. Weights are given as a file;
timm's own are never fetched here.
"""

import importlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sightline.backbones.base import NetworkBackbone, Tokens, Triple, fixed_size
from sightline.backbones.request import Request, drawn_from
from sightline.checkpoints import load_strict, read_weights
from sightline.errors import CheckpointError, InputError
from sightline.hub import resolve


def timm_model(request: Request) -> NetworkBackbone:
    """Make a backbone of a model of timm.

    Pictures are stretched to whole patches where the model takes any size, and to its square
    otherwise. Normalisation is what timm says.

    Raises:
        InputError: timm is missing, has no such model, or the model gives no features.
        CheckpointError: The weights are missing or do not fit.
    """
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise InputError(
            f"timm:{request.source} needs the timm package, which brings torchvision: pip install "
            "timm, or take hf:REPO for a model of transformers"
        ) from error
    if not request.random and request.checkpoint is None:
        raise CheckpointError(
            f"timm:{request.source} needs weights, and timm's own are never fetched: give a file "
            f"with --checkpoint, or take random:timm:{request.source} for random weights"
        )
    network = _create(timm, request)
    if not request.random:
        path = resolve(request.checkpoint or "")
        load_strict(network, read_weights(path), str(path))
    network = network.to(request.device, request.dtype)
    return adapt(network, **request.options)


def _create(timm: Any, request: Request) -> Any:
    for options in ({"dynamic_img_size": True}, {}):
        try:
            with drawn_from(request.seed):
                return timm.create_model(request.source, pretrained=False, num_classes=0, **options)
        except TypeError:  # not a ViT
            if not options:
                raise
        except RuntimeError as error:
            raise InputError(
                f'timm has no model "{request.source}"; see timm.list_models()'
            ) from error
    raise AssertionError


def adapt(network: Any, **options: Any) -> NetworkBackbone:
    """Make a backbone of a loaded model of timm.

    Raises:
        InputError: It gives no features on one grid.
    """
    info = getattr(network, "feature_info", None)
    if not hasattr(network, "forward_intermediates") or not info:
        raise InputError(
            f"expected a model with forward_intermediates, got {type(network).__name__}; choose a "
            "ViT of timm"
        )
    rows = [info[index] for index in range(len(info))]
    stride, side = int(rows[-1]["reduction"]), network.pretrained_cfg["input_size"][-1]
    flexible = getattr(network, "dynamic_img_size", False) or not network.pretrained_cfg.get(
        "fixed_input_size", False
    )
    if not flexible:
        options = fixed_size(type(network).__name__, options, "square", side)
    mean, std = (_triple(network.pretrained_cfg[name]) for name in ("mean", "std"))
    return NetworkBackbone(
        network,
        read_intermediates,
        patch_size=stride,
        embed_dim=int(rows[-1]["num_chs"]),
        depth=len(rows),
        mean=mean,
        std=std,
        **options,
    )


def read_intermediates(
    network: Any, images: Tensor, layers: Sequence[int], norm: bool
) -> dict[int, Tokens]:
    """Read blocks or stages as maps, with the prefix tokens where the model has them."""
    special = getattr(network, "num_prefix_tokens", 0)
    options = {"return_prefix_tokens": True} if special else {}
    entries = network.forward_intermediates(
        images,
        indices=list(layers),
        norm=norm,
        output_fmt="NCHW",
        intermediates_only=True,
        **options,
    )
    results = {}
    for layer, entry in zip(layers, entries, strict=True):
        maps, prefix = entry if special else (entry, None)
        results[layer] = Tokens(
            maps,
            None if prefix is None else prefix[:, 0],
            None if prefix is None or prefix.shape[1] < 2 else prefix[:, 1:],
            normed=norm,
        )
    return results


def _triple(values: Sequence[float]) -> Triple:
    first, second, third = (float(value) for value in values)
    return first, second, third
