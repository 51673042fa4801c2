"""The state of a training, whole in one file: networks, optimiser, average, position."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import FileFormatError
from sightline.io.tensors import write_torch

FORMAT = "sightline-training"


def save_state(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint to resume from: all of it, or nothing.

    Raises:
        OutputError: If the file cannot be written.
    """
    write_torch(path, {"format": FORMAT, **content})


def load_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint to resume from; nothing in it is run.

    Raises:
        FileFormatError: If the file is no such checkpoint, or a bit of it has changed.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch compares no sums
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} is damaged")
        # weights_only refuses everything but tensors and plain containers.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises half a dozen kinds
        raise FileFormatError(
            f"{path} cannot be read as a training checkpoint ({type(error).__name__}); start again "
            "with --overwrite"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FileFormatError(
            f"{path} is no training checkpoint of this version; start again with --overwrite"
        )
    return content


def load_module(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Put a checkpoint's weights into a task.

    Raises:
        FileFormatError: If names or shapes differ.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise FileFormatError(
            f"{path} does not fit this task ({' '.join(str(error).split())[:200]}); start again "
            "with --overwrite"
        ) from error


def gather_state(
    task: nn.Module, optimizer: torch.optim.Optimizer, *, sharded: bool
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the whole state of a task and of its optimiser.

    Args:
        task: Its weights may be shares (FSDP); then every process must call, and the first gets
            everything.
        optimizer: Of the task.
        sharded: Whether they are.
    """
    if not sharded:
        return task.state_dict(), optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_state_dict(task, optimizer, options=options)  # pyright: ignore[reportReturnType]


def spread_state(
    task: nn.Module,
    optimizer: torch.optim.Optimizer,
    content: Mapping[str, Any],
    path: Path,
    *,
    sharded: bool,
) -> None:
    """Put a checkpoint's state into a task and its optimiser; see `gather_state`.

    Raises:
        FileFormatError: If names or shapes differ.
    """
    if not sharded:
        load_module(task, content["task"], path)
        optimizer.load_state_dict(content["optimizer"])
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    set_state_dict(
        task,
        optimizer,
        model_state_dict=content["task"],
        optim_state_dict=content["optimizer"],
        options=StateDictOptions(full_state_dict=True),
    )
