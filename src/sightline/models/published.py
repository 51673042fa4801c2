"""What the builder functions of published networks have in common."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from sightline.checkpoints import load_strict, read_weights
from sightline.errors import CheckpointError

Network = TypeVar("Network", bound=nn.Module)
Pretrained = bool | str | Path


class Published(NamedTuple):
    """A published network: its size, and the files that its authors give out.

    Attributes:
        options: Constructor options.
        files: File name of each set of weights, the usual one first; none if never published.
    """

    options: dict[str, Any]
    files: dict[str, str]


def pick_options(config: Mapping[str, Any], *builders: Callable[..., Any]) -> dict[str, Any]:
    """Return the entries of a description that one of the builders takes as keyword."""
    accepted = {name for build in builders for name in inspect.signature(build).parameters}
    return {name: value for name, value in config.items() if name in accepted}


def rename_option(options: Mapping[str, Any], alias: str, name: str) -> dict[str, Any]:
    """Return options with ``alias`` under the constructor's ``name``.

    Raises:
        TypeError: Both are given.
    """
    options = dict(options)
    if alias in options:
        if name in options:
            msg = f"{alias} and {name} mean the same; give one of them"
            raise TypeError(msg)
        options[name] = options.pop(alias)
    return options


def weights_path(
    name: str, entry: Published, pretrained: Pretrained, weights: str | None = None
) -> Path | None:
    """Return the file to load, or None for an untrained network.

    Args:
        name: The network's name, for the error text.
        entry: The published network.
        pretrained: False, True (the authors' file), or a path.
        weights: Which of the authors' files, by name.

    Raises:
        CheckpointError: Weights are asked for that do not exist or cannot be fetched.
    """
    if pretrained is False:
        return None
    if isinstance(pretrained, Path) or (isinstance(pretrained, str) and "://" not in pretrained):
        return Path(pretrained)
    key = weights or next(iter(entry.files), "")
    file = entry.files.get(key.lower())
    wanted = pretrained if isinstance(pretrained, str) else file
    if wanted is None:
        msg = (
            f'"{name}" has no weights "{key}"; published are: {", ".join(entry.files)}'
            if entry.files
            else f'no weights were ever published for "{name}"; build it with pretrained=False'
        )
        raise CheckpointError(msg)
    msg = (
        f"expected a local weights file for {name}; download {wanted} from its authors and give "
        "its path: pretrained=PATH (or pretrained=False for an untrained network)"
    )
    raise CheckpointError(msg)


def build_and_load(
    build: Callable[..., Network],
    options: Mapping[str, Any],
    path: Path | None,
    adapt: Callable[[dict[str, Any], Iterable[str]], dict[str, Any]] | None = None,
) -> Network:
    """Build a network untrained, or directly from a file without drawing weights first.

    Args:
        build: The constructor.
        options: Its options.
        path: The weights, or None.
        adapt: Changes the options according to the names in the file.
    """
    if path is None:
        return build(**options)
    state = read_weights(path)
    if adapt is not None:
        options = adapt(dict(options), state.keys())
    device = options.get("device") or "cpu"
    model = build(**{**options, "device": "meta"})
    load_strict(model, state, str(path))
    return model if torch.device(device).type == "meta" else model.to(device)
