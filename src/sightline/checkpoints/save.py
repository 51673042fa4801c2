"""Save networks under their official names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sightline.checkpoints.read import METADATA
from sightline.io.tensors import write_safetensors, write_torch


def save_weights(
    model: nn.Module | Mapping[str, Tensor],
    path: str | Path,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Save a model under its official names, as safetensors, or as a torch file by the suffix.

    Args:
        model: The network, or its state.
        path: Where to.
        config: Options of the network that its tensors do not tell (``Checkpoint.config``); they
            go into the header of safetensors, and are left out of torch files.

    Raises:
        OutputError: The file cannot be written.
    """
    named = model.state_dict() if isinstance(model, nn.Module) else model
    state = {name: tensor.detach().contiguous() for name, tensor in named.items()}
    if Path(path).suffix == ".safetensors":
        note = None if config is None else {METADATA: json.dumps(dict(config), sort_keys=True)}
        # A tensor that has two names is written out under both, as in the official files.
        write_safetensors(Path(path), {name: t.clone() for name, t in state.items()}, note)
    else:
        write_torch(Path(path), state)


def save_state_dict(state: Mapping[str, Tensor], path: Path, about: Mapping[str, Any]) -> None:
    """Save weights as a torch file with what should be known of them.

    The weights stand under ``model``, where readers of training files look for them, and plain
    values under ``sightline``; nothing in the file needs code to be read.

    Raises:
        OutputError: The file cannot be written.
    """
    weights = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
    write_torch(path, {"model": weights, "sightline": dict(about)})
