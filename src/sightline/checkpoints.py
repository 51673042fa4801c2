"""Read weights without trusting the file, load them strictly, and save official keys back.

Nothing from a file is ever run: safetensors hold no code, and torch files are unpickled with
torch's allow-list of plain containers and tensors.
"""

import pickle
import re
import warnings
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sightline.errors import CheckpointError, FileFormatError, InputError
from sightline.io.atomic import atomic_path

State = dict[str, Tensor]

CHUNK = re.compile(r"(blocks\.)\d+\.(?=\d+\.)")
"""Block names of training checkpoints carry a chunk number that published files do not."""

WRAPPERS = ("model", "state_dict", "teacher")
"""Where training scripts put the weights inside a file, in the order tried."""

PREFIXES = (
    "",
    "module.",
    "backbone.",
    "module.backbone.",
    "model.",
    "encoder.",
    "teacher.backbone.",
)
"""What training scripts put before the official names, in the order tried."""


def read_weights(path: str | Path) -> State:
    """Return the named tensors of a ``.safetensors`` file or a torch file, on the CPU.

    Raises:
        InputError: There is no such file.
        FileFormatError: The file is damaged, holds no weights, or needs code to be read.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"expected a weights file, but {path} does not exist"
        raise InputError(msg)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            msg = f"{path} is not a whole safetensors file ({error}); download it again"
            raise FileFormatError(msg) from error
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([Namespace]):
            warnings.simplefilter("ignore")  # about pickle protocols, which the reader handles
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        msg = (
            f"{path} holds more than plain tensors, and reading that could run code; convert it to "
            "safetensors where you trust it"
        )
        raise FileFormatError(msg) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        msg = f"{path} is not a whole torch file ({type(error).__name__}); download it again"
        raise FileFormatError(msg) from error
    state = _unwrap(content)
    if not state:
        msg = f"expected named tensors in {path}, found none"
        raise FileFormatError(msg)
    return state


def load_strict(model: nn.Module, state: Mapping[str, Tensor], source: str = "the file") -> None:
    """Put weights into a model of the official names; every tensor has to find its place.

    Prefixes of training scripts and chunk numbers in block names are dropped, and tensors that the
    original lists under two names may be given under one. A model on the meta device becomes real.

    Raises:
        CheckpointError: A tensor is missing, unexpected, of another shape, or not finite.
    """
    wanted = model.state_dict()
    given = _with_aliases(model, _renamed(state, wanted))
    missing = sorted(wanted.keys() - given.keys())
    unexpected = sorted(given.keys() - wanted.keys())
    shapes = sorted(
        f"{name} {tuple(given[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted.keys() & given.keys()
        if given[name].shape != wanted[name].shape
    )
    if missing or unexpected or shapes:
        parts = [("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes)]
        found = "; ".join(f"{len(rows)} {what}: {_some(rows)}" for what, rows in parts if rows)
        msg = (
            f"expected the {len(wanted)} tensors of {type(model).__name__} in {source}, got "
            f"{len(given)} ({found}); it is probably another model or another size of it"
        )
        raise CheckpointError(msg)
    broken = [n for n, t in given.items() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        msg = f"expected finite weights in {source}, but {_some(broken)} hold NaN or infinity"
        raise CheckpointError(msg)
    # On the meta device there is nothing to copy into: the file's tensors become the weights.
    given = {name: tensor.to(wanted[name].dtype) for name, tensor in given.items()}
    model.load_state_dict(given, assign=any(t.is_meta for t in wanted.values()))


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Save a model under its official names, as safetensors, or as a torch file by the suffix.

    Raises:
        OutputError: The file cannot be written.
    """
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(Path(path)) as tmp:
        if tmp.suffix == ".safetensors":
            # A tensor that has two names is written out under both, as in the official files.
            save_file({name: tensor.clone() for name, tensor in state.items()}, tmp)
        else:
            torch.save(state, tmp)


def aliases(model: nn.Module) -> list[list[str]]:
    """Return the groups of state names that stand for one tensor."""
    groups: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _unwrap(content: object) -> State:
    """Return the deepest named tensors of a file, below the keys that scripts wrap them in."""
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            return _unwrap(content[key])
    if not isinstance(content, Mapping):
        return {}
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _renamed(state: Mapping[str, Tensor], wanted: Iterable[str]) -> State:
    """Drop the prefix and the chunk numbers that keep names from matching."""
    names = set(wanted)
    best: State = {}
    score = -1
    for prefix in PREFIXES:
        inside = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        found = {n if n in names else CHUNK.sub(r"\1", n): t for n, t in inside.items()}
        hits = len(found.keys() & names)
        if hits > score:
            best, score = found, hits
    return best


def _with_aliases(model: nn.Module, given: State) -> State:
    """Give every name of a group the tensor that the file has under one of them."""
    full = dict(given)
    for group in aliases(model):
        present = [name for name in group if name in given]
        if present:
            full.update({name: given[present[0]] for name in group if name not in given})
    return full


def _some(rows: list[str], count: int = 3) -> str:
    more = f" and {len(rows) - count} more" if len(rows) > count else ""
    return ", ".join(rows[:count]) + more
