"""Save networks under their official names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sightline.checkpoints.read import METADATA
from sightline.io.atomic import atomic_path


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
    with atomic_path(Path(path)) as tmp:
        if tmp.suffix == ".safetensors":
            # A tensor that has two names is written out under both, as in the official files.
            tmp.touch()
            mode = tmp.stat().st_mode & 0o777
            note = None if config is None else {METADATA: json.dumps(dict(config), sort_keys=True)}
            save_file({name: tensor.clone() for name, tensor in state.items()}, tmp, note)
            tmp.chmod(mode)  # the library gives its files to their owner alone
        else:
            torch.save(state, tmp)


def save_state_dict(state: Mapping[str, Tensor], path: Path, about: Mapping[str, Any]) -> None:
    """Save weights as a torch file with what should be known of them.

    The weights stand under ``model``, where readers of training files look for them, and plain
    values under ``sightline``; nothing in the file needs code to be read.

    Raises:
        OutputError: The file cannot be written.
    """
    weights = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
    with atomic_path(path) as tmp:
        torch.save({"model": weights, "sightline": dict(about)}, tmp)
