"""Save networks under their official names."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from sightline.io.atomic import atomic_path


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Save a model under its official names, as safetensors, or as a torch file by the suffix.

    Raises:
        OutputError: The file cannot be written.
    """
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(Path(path)) as tmp:
        if tmp.suffix == ".safetensors":
            # A tensor that has two names is written out under both, as in the official files.
            tmp.touch()
            mode = tmp.stat().st_mode & 0o777
            save_file({name: tensor.clone() for name, tensor in state.items()}, tmp)
            tmp.chmod(mode)  # the library gives its files to their owner alone
        else:
            torch.save(state, tmp)
