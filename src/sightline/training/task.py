"""What a trainer is: a `TrainTask` says what is learned from what; `engine.train` does the rest.

A task is a module that holds the networks, and makes its batches from a `Draw` alone. It need not
know of devices, processes, precision, accumulation, checkpoints or logs::

    class Mine(TrainTask):
        def check(self): ...                        # data and options, before anything starts
        epoch_size = 1000                           # items of one pass; 0 for an endless stream
        def batch(self, draw): ...                  # tensors in any nesting, a function of `draw`
        def forward(self, batch, step): return {"loss": loss, "part": part}
        def parameter_groups(self): return weight_groups(self.network)
        def after_step(self, step): ...             # such as moving a teacher
        def validate(self, step): return {"accuracy": 0.5}
        def pictures(self, step, folder): ...       # files that the report shows
        def export(self, state, path): ...          # a checkpoint that others can load

    train(Mine(settings), Path("out"))

Order of calls: ``check`` on every process, ``begin`` once the processes know each other, then for
each step ``batch`` and ``forward`` for every accumulated batch, the optimiser, ``after_step``.
``validate`` runs before the first step, every ``val_every`` steps and after the last, on every
process and without gradients, in evaluation mode; the first process's numbers are kept.

What is in ``state_dict()`` is in the checkpoints: a centre or teacher belongs into a buffer or a
module, so that a resumed run has it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.training.draws import Draw
from sightline.training.schedules import cosine_schedule
from sightline.training.settings import TrainSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterGroup:
    """Parameters that share their rates."""

    name: str
    parameters: Sequence[nn.Parameter]
    lr_scale: float = 1.0
    """Factor on the learning rate."""
    decay: bool = True
    """Whether weight decay acts."""
    clip: str = "all"
    """Groups of one name are clipped together, by the norm of all their gradients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long training takes and who shares it; known once the processes know each other."""

    steps: int
    epoch_steps: int
    """Steps of one pass over the data; all steps of an endless stream."""
    rank: int
    world: int
    """Processes."""
    batch: int
    """Items a step, over all processes and accumulated batches."""
    device: torch.device


class TrainTask(nn.Module):
    """Base of all trainers; see the module's text.

    Attributes:
        settings: Of the loop; a subclass has the trainer's own too.
        name: Of the trainer, for messages and the report.
        epoch_size: Items of one pass over the data; 0 for an endless stream.
        unused: Whether a step may leave some trainable parameters without gradient.
        plan: Set by `begin`.
    """

    name = "task"
    epoch_size = 0
    unused = False
    plan: Plan

    def __init__(self, settings: TrainSettings) -> None:
        """Keep the settings; subclasses build their networks after this, from ``settings.seed``."""
        super().__init__()
        self.settings = settings

    def check(self) -> None:
        """Look at the data and the options, before anything starts.

        Raises:
            InputError: If training could not work; with what to do about it.
        """

    def begin(self, plan: Plan) -> None:
        """Take the plan; subclasses make their schedules here."""
        self.plan = plan
        self._rates = self.schedule(self.settings.lr, self.settings.min_lr)

    def schedule(self, peak: float, final: float) -> Sequence[float]:
        """Return a linear warm-up of the settings' length and a cosine, over all steps."""
        warmup = self.settings.warmup
        rise = round(warmup * self.plan.steps) if warmup < 1 else round(warmup)
        rise = min(rise, self.plan.steps - 1)
        return cosine_schedule(peak, final, self.plan.steps, warmup=rise).tolist()

    def batch(self, draw: Draw) -> Any:  # noqa: ANN401
        """Return the batch of one share of a step: a pure function of ``draw``.

        May run in a data worker, so it uses no state that training changes.
        """
        raise NotImplementedError

    def forward(self, batch: Any, step: int) -> dict[str, Tensor]:  # noqa: ANN401
        """Return ``loss`` and any parts of it to log, all of them scalars.

        The mean over processes is what counts; `sightline.training.collectives` has what a loss
        needs whose terms span the whole batch.
        """
        raise NotImplementedError

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return what is trained; by default all parameters that want a gradient."""
        return weight_groups(self)

    def rates(self, group: ParameterGroup, step: int) -> tuple[float, float]:
        """Return the learning rate and the weight decay of a group at a step."""
        decay = self.settings.weight_decay if group.decay else 0.0
        return self._rates[step] * group.lr_scale, decay

    def after_step(self, step: int) -> None:
        """Act after the optimiser's step, on every process alike."""

    def validate(self, step: int) -> dict[str, float]:
        """Return measures on held-out data; ``step`` steps were made before."""
        return {}

    def pictures(self, step: int, folder: Path) -> None:
        """Leave pictures in a folder that the report shows; on the first process alone."""

    def export(self, state: Mapping[str, Tensor], path: Path) -> list[Path]:
        """Write the result as normal checkpoints, and return them.

        Args:
            state: The task's whole ``state_dict()``, the moving average where one is kept.
            path: Folder for them; it exists.
        """
        return []

    def facts(self) -> dict[str, Any]:
        """Return what should stand in ``run.json`` about the data and the networks."""
        return {}

    def shards(self) -> Iterable[nn.Module]:
        """Return the modules whose weights FSDP gathers one at a time, such as blocks."""
        return [module for module in self.modules() if type(module).__name__ == "Block"]


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Tell whether weight decay acts on a parameter: not on biases, norms, scales and tokens.

    That is everything of fewer than two axes that are longer than one, as in the recipes of DINO
    and VGGT.
    """
    return sum(size > 1 for size in parameter.shape) >= 2 and not name.endswith("bias")


def weight_groups(
    module: nn.Module, *, name: str = "", lr_scale: float = 1.0, clip: str = "all"
) -> list[ParameterGroup]:
    """Return a module's trainable parameters in two groups: with weight decay and without.

    See `is_decayed`.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for key, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        (decayed if is_decayed(key, parameter) else plain).append(parameter)
    prefix = f"{name}." if name else ""
    groups = [
        ParameterGroup(name=f"{prefix}weights", parameters=decayed, lr_scale=lr_scale, clip=clip),
        ParameterGroup(
            name=f"{prefix}no decay", parameters=plain, lr_scale=lr_scale, decay=False, clip=clip
        ),
    ]
    return [group for group in groups if group.parameters]


def part_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries below a prefix such as ``"student."``, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
