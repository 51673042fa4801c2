"""What the builder functions of published networks have in common."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from sightline.checkpoints import State, compare, load_strict, read_weights
from sightline.errors import CheckpointError
from sightline.hub import CATALOGUE, resolve

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
    """Return the file to load, fetched if need be, or None for an untrained network.

    Args:
        name: The network's name.
        entry: The published network.
        pretrained: False, True (the authors' file, from the cache or downloaded), or a file, a
            folder, a URL or ``REPO_ID/FILENAME``.
        weights: Which of the authors' files, by name.

    Raises:
        CheckpointError: Weights are asked for that do not exist or cannot be fetched.
    """
    if pretrained is False:
        return None
    if pretrained is not True:
        return resolve(pretrained)
    key = (weights or next(iter(entry.files), "")).lower()
    usual = key == next(iter(entry.files), "")
    published = name if usual else f"{name}_{key}"
    if published not in CATALOGUE or (key and key not in entry.files):
        msg = (
            f'"{name}" has no weights "{key}"; published are: {", ".join(entry.files)}'
            if entry.files
            else f'no weights were ever published for "{name}"; build it with pretrained=False'
        )
        raise CheckpointError(msg)
    return resolve(published)


def build_and_load(
    build: Callable[..., Network],
    options: Mapping[str, Any],
    path: Path | None,
    adapt: Callable[[dict[str, Any], Iterable[str]], dict[str, Any]] | None = None,
    prepare: Callable[[State], State] | None = None,
    name: str = "",
) -> Network:
    """Build a network untrained, or directly from a file without drawing weights first.

    Args:
        build: The constructor.
        options: Its options.
        path: The weights, or None.
        adapt: Changes the options according to the names in the file.
        prepare: Completes what older files leave out.
        name: What was asked for, for the error text.

    Raises:
        CheckpointError: The weights do not fit; the text says what they are instead.
    """
    if path is None:
        return build(**options)
    from sightline.models.layouts import to_official  # which needs the tables of the networks

    given = read_weights(path)
    state = to_official(given).weights
    if prepare is not None:
        state = prepare(state)
    if adapt is not None:
        options = adapt(dict(options), state.keys())
    device = options.get("device") or "cpu"
    model = build(**{**options, "device": "meta"})
    report = compare(model, state)
    if not report.strict:
        from sightline.models.recognize import explain

        raise CheckpointError(report.sentence(str(path), explain(given, name)))
    load_strict(model, state, str(path))
    return model if torch.device(device).type == "meta" else model.to(device)
