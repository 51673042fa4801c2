"""What every trainer lets its user choose; torch-free, so that ``--help`` is quick."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from sightline.errors import InputError, SightlineError, UnknownNameError
from sightline.options import option


class Trainer(NamedTuple):
    """Where a trainer is."""

    package: str
    """Has ``settings.py`` (torch-free), and the task."""
    settings: str
    task: str
    what: str


TRAINERS: dict[str, Trainer] = {
    "dino": Trainer(
        "sightline.training.dino",
        "DinoSettings",
        "DinoTask",
        "a vision transformer on pictures without labels (DINO, iBOT, KoLeo, Gram)",
    ),
    "splatt3r": Trainer(
        "sightline.training.splatt3r",
        "Splatt3rSettings",
        "Splatt3rTask",
        "Splatt3R with any backbone fused in, on pairs of views",
    ),
    "vggt": Trainer(
        "sightline.training.vggt",
        "VggtSettings",
        "VggtTask",
        "VGGT or VGGT-Omega on views with cameras and depth",
    ),
}
"""Name -> trainer, for ``sightline train NAME``."""

LOGGERS = ("csv", "tensorboard", "wandb")


def path_option(default: Any, text: str) -> Any:  # noqa: ANN401
    """Declare an option that holds a path; in a YAML file it is relative to that file."""
    return field(default=default, metadata={"help": text, "path": True})


def path_names(record: type) -> list[str]:
    """Return the names of a record's path options."""
    return [item.name for item in dataclasses.fields(record) if item.metadata.get("path")]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """Options of the training loop; each trainer adds its own in a subclass.

    Raises:
        InputError: If two options contradict each other or one is out of range.
    """

    steps: int | None = option(None, "optimiser steps; or give --epochs")
    epochs: int | None = option(None, "passes over the training data")
    batch_size: int = option(8, "items a process works on at once")
    accumulate: int = option(1, "batches whose gradients make one step")
    lr: float = option(1e-4, "peak learning rate")
    min_lr: float = option(1e-6, "learning rate at the end of the cosine")
    warmup: float = option(0.1, "steps of linear warm-up; below 1: share of all steps")
    weight_decay: float = option(0.04, "of AdamW; never on biases, norms and scales")
    beta1: float = option(0.9, "of AdamW")
    beta2: float = option(0.999, "of AdamW")
    clip: float = option(0.0, "largest norm of the gradients of a group; 0 does not clip")
    ema: float = option(0.0, "decay of the moving average of the weights; 0 keeps none")
    seed: int = option(0, "seed of everything random")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to train")
    devices: int = option(1, "processes a machine; 0 takes all its GPUs")
    nodes: int = option(1, "machines")
    strategy: Literal["auto", "ddp", "fsdp"] = option(
        "auto", "many processes: whole copies (ddp) or shares of the weights (fsdp)"
    )
    precision: Literal["32", "bf16", "16"] = option("32", "mixed precision of the forward pass")
    num_workers: int = option(0, "processes that prepare data; 0 prepares in the training process")
    log_every: int = option(10, "steps that one row of the log is the mean of")
    val_every: int = option(0, "steps between validations; 0 validates at the start and the end")
    checkpoint_every: int = option(200, "steps between checkpoints to resume from")
    loggers: str = option("csv,tensorboard", f"comma-separated: {','.join(LOGGERS)}")

    def __post_init__(self) -> None:
        """Refuse what cannot work, before any data is read."""
        if (self.steps is None) == (self.epochs is None):
            got = "none" if self.steps is None else "both"
            raise InputError(f"expected --steps or --epochs, got {got}; give one of them")
        for name, low in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise InputError(f"--{_flag(name)} must be {low} or more, got {value}; raise it")
        for name in ("beta1", "beta2", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"--{_flag(name)} must be 0 or more and below 1, got {getattr(self, name)}"
                )
        if not self.min_lr <= self.lr < 100:
            raise InputError(
                f"--lr must be from --min-lr ({self.min_lr}) to 100, got {self.lr}; change one"
            )
        self.logger_names()

    def logger_names(self) -> tuple[str, ...]:
        """Return the chosen logs; the CSV files are always written.

        Raises:
            UnknownNameError: If there is no such log.
        """
        names = [part.strip() for part in self.loggers.split(",") if part.strip()]
        for name in names:
            if name not in LOGGERS:
                raise UnknownNameError("logger", name, LOGGERS)
        return tuple(dict.fromkeys(("csv", *names)))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON and YAML."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}


FREE = frozenset(
    ("device", "devices", "nodes", "strategy", "num_workers", "checkpoint_every", "loggers")
)
"""Options that a resumed run may change: they decide how the steps are made, not what they are."""

_LEAST: dict[str, float] = {
    "steps": 1,
    "epochs": 1,
    "batch_size": 1,
    "accumulate": 1,
    "min_lr": 0,
    "warmup": 0,
    "weight_decay": 0,
    "clip": 0,
    "seed": 0,
    "devices": 0,
    "nodes": 1,
    "num_workers": 0,
    "log_every": 1,
    "val_every": 0,
    "checkpoint_every": 1,
}


def _flag(name: str) -> str:
    return name.replace("_", "-")


@contextlib.contextmanager
def building(flag: str, given: Mapping[str, Any] | None) -> Iterator[None]:
    """Say which option is at fault where a network cannot be built of what was given for it.

    Raises:
        InputError: In place of whatever the constructor raised.
    """
    try:
        yield
    except SightlineError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        if not given:  # then it is not the user's fault
            raise
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{flag}: no network can be built of it ({why}); correct it") from error
