"""The training loop of every trainer: one process or many, stopped and resumed at will.

`train` leaves a run folder: ``run.json``, ``logs/`` (CSV always, TensorBoard and wandb by choice),
``checkpoints/last.ckpt`` to resume from, what the task exports beside it, ``pictures/`` and
``report.html``.

A step is a pure function of the state before it and of its number (see `sightline.training.draws`),
and the state is in the checkpoint. So a killed run that is resumed repeats the steps since the last
checkpoint and goes on as if nothing had happened. Lightning Fabric brings devices, processes and
precision; the loop is written out here, because every step of it has to be repeatable.
"""

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sightline.errors import Cancelled, InputError, OutOfMemoryError, TrainingError
from sightline.io.atomic import atomic_folder
from sightline.protocols import Progress
from sightline.run import RunFolder, is_run, plain_values
from sightline.training.average import WeightAverage
from sightline.training.collectives import all_max, all_mean
from sightline.training.devices import clip_gradients, is_sharded, launch
from sightline.training.draws import Draw, torch_seed
from sightline.training.log import TrainLog
from sightline.training.settings import FREE, TrainSettings
from sightline.training.state import gather_state, load_state, save_state, spread_state
from sightline.training.stop import StopRequest
from sightline.training.task import ParameterGroup, Plan, TrainTask

if TYPE_CHECKING:
    from lightning.fabric import Fabric

LAST = "checkpoints/last.ckpt"


def train(
    task: TrainTask,
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    command: str = "",
) -> Path:
    """Train a task and return its run folder.

    Args:
        task: What to train; its settings say how.
        output: The run folder.
        resume: Go on with an interrupted run of the same settings; a new one starts where there is
            none.
        overwrite: Replace a run that is there.
        progress: Called as ``progress("train", done, total)``.
        should_stop: Asked after every step; True saves a checkpoint and ends as Ctrl-C does.
        command: The command line, for the report.

    Raises:
        InputError: If the data, the options or the folder do not allow it; nothing was started.
        Cancelled: If it was stopped by Ctrl-C, SIGTERM or ``should_stop``; the checkpoint is there.
        TrainingError: If the loss stops being finite.
        OutOfMemoryError: If a step does not fit into memory.
    """
    task.check()
    fabric = launch(task)
    first = fabric.global_rank == 0
    folder = _open_on_first(fabric, task, output, resume=resume, overwrite=overwrite)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[], enabled=True))
        if first:
            stack.enter_context(folder.locked())
            stack.enter_context(folder.working())
        stop = stack.enter_context(StopRequest(should_stop))
        if folder.finished("report"):
            return output
        try:
            _Training(task, fabric, folder, stop, progress, command).run()
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"a step of {task.settings.batch_size} items does not fit into the GPU's memory; "
                "lower --batch-size and raise --accumulate, or use --precision bf16"
            ) from error
    return output


def _open_on_first(
    fabric: "Fabric", task: TrainTask, output: Path, *, resume: bool, overwrite: bool
) -> RunFolder:
    """Make or open the run folder on the first process; all raise when it refuses."""
    error: InputError | None = None
    if fabric.global_rank == 0:
        try:
            _open(task, output, resume=resume, overwrite=overwrite)
        except InputError as caught:
            error = caught
    # A process that went on alone would wait for the others for ever.
    message = fabric.broadcast(None if error is None else str(error))
    if error is not None:
        raise error
    if message is not None:
        raise InputError(message)
    return RunFolder.open(output)


def _open(task: TrainTask, output: Path, *, resume: bool, overwrite: bool) -> None:
    config = {"task": task.name, **task.settings.as_dict()}
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other; keep one of them")
    if not (resume and is_run(output)):
        RunFolder.create(output, plain_values(config), overwrite=overwrite)
        return
    folder = RunFolder.open(output)
    plain = plain_values(config)
    changed = [
        name
        for name in sorted({*plain, *folder.state["config"]} - FREE)
        if plain.get(name) != folder.state["config"].get(name)
    ]
    if changed:
        name = changed[0]
        flag = f"--{name.replace('_', '-')}"
        raise InputError(
            f"--resume keeps the run's options: {flag} is {folder.state['config'].get(name)} in "
            f"{folder.file('run.json')}, got {plain.get(name)}; leave it out, or start again with "
            "--overwrite"
        )


class _Training:
    """One call of `train`: the objects that its steps share."""

    def __init__(
        self,
        task: TrainTask,
        fabric: "Fabric",
        folder: RunFolder,
        stop: StopRequest,
        progress: Progress | None,
        command: str,
    ) -> None:
        self.task, self.fabric, self.folder, self.stop = task, fabric, folder, stop
        self.progress, self.command = progress, command
        self.settings = task.settings
        self.first = fabric.global_rank == 0
        self.parts = fabric.world_size * self.settings.accumulate
        self.plan = self._plan()
        task.begin(self.plan)
        self.sharded = is_sharded(fabric)
        # Sharding replaces the parameters, so they are asked for afterwards.
        self.module = fabric.setup_module(task)
        self.groups = task.parameter_groups()
        _refuse_bad_groups(self.groups)
        self.optimizer: Any = fabric.setup_optimizers(self._optimizer())
        self.average = WeightAverage(task, self.settings.ema) if self.settings.ema else None
        self.sums: dict[str, Tensor] = {}
        self.summed = 0
        self.seconds = 0.0
        self.step = self._restore()

    def _plan(self) -> Plan:
        settings, size = self.settings, self.task.epoch_size
        batch = settings.batch_size * self.parts
        if settings.steps is not None:
            steps = settings.steps
        elif size:
            steps = (settings.epochs or 1) * max(1, math.ceil(size / batch))
        else:
            raise InputError("this data is an endless stream without epochs; give --steps")
        return Plan(
            steps=steps,
            epoch_steps=max(1, math.ceil(size / batch)) if size else steps,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
            batch=batch,
            device=self.fabric.device,
        )

    def _optimizer(self) -> torch.optim.Optimizer:
        settings = self.settings
        return torch.optim.AdamW(
            [{"params": list(group.parameters)} for group in self.groups],
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
        )

    # -- the loop ---------------------------------------------------------------------------

    def run(self) -> None:
        """Train, then export and report."""
        log = None
        if self.first:
            config = self.settings.as_dict()
            names = self.settings.logger_names()
            log = TrainLog(self.folder.path, names, start=self.step, config=config)
            self.folder.state["facts"] = plain_values(self.task.facts())
        if self.step == 0:
            self._validate(log)
        stream = self._stream()
        self.module.train()
        began = time.perf_counter()
        while self.step < self.plan.steps:
            self._step(stream)
            self.step += 1
            if self._due(self.settings.log_every):
                self._log(log, began)
                began = time.perf_counter()
            if self._due(self.settings.val_every):
                self._validate(log)
                began = time.perf_counter()
            if self._due(self.settings.checkpoint_every):
                self._save()
            if self.progress is not None and self.first:
                self.progress("train", float(self.step), float(self.plan.steps))
            self._stop_if_asked()
        if log is not None:
            log.close()
        self._finish()

    def _due(self, every: int) -> bool:
        return self.step == self.plan.steps or (every > 0 and self.step % every == 0)

    def _stop_if_asked(self) -> None:
        asked = self.stop.asked()
        if self.plan.world > 1:  # all processes must leave at the same step
            asked = bool(all_max(torch.tensor(float(asked), device=self.plan.device)))
        if asked and self.step < self.plan.steps:
            self._save()
            raise Cancelled(
                f"stopped after step {self.step} of {self.plan.steps}; go on with --resume"
            )

    def _stream(self) -> Iterator[Any]:
        settings = self.settings
        loader = DataLoader(
            _Batches(self.task),
            sampler=_Draws(settings, self.plan, self.step, self.parts),
            batch_size=None,
            num_workers=settings.num_workers,
            pin_memory=self.plan.device.type == "cuda",
        )
        return iter(loader)

    def _step(self, stream: Iterator[Any]) -> None:
        settings, step = self.settings, self.step
        for group, row in zip(self.groups, self.optimizer.param_groups, strict=True):
            row["lr"], row["weight_decay"] = self.task.rates(group, step)
        for micro in range(settings.accumulate):
            batch = self.fabric.to_device(next(stream))
            # Dropout and the like: the same however training got here.
            part = micro * self.plan.world + self.plan.rank
            torch.manual_seed(torch_seed(settings.seed, "forward", step, part))
            waiting = micro < settings.accumulate - 1
            with self.fabric.no_backward_sync(self.module, enabled=waiting):
                parts = self.module(batch, step)
                self.fabric.backward(parts["loss"] / settings.accumulate)
            self._add({name: value / settings.accumulate for name, value in parts.items()})
        self._add(clip_gradients(self.fabric, self.optimizer, self.groups, settings.clip))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.task.after_step(step)
        if self.average is not None:
            self.average.update()
        self.summed += 1

    def _add(self, parts: Mapping[str, Tensor]) -> None:
        for name, value in parts.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _log(self, log: TrainLog | None, began: float) -> None:
        names = list(self.sums)
        means = all_mean(torch.stack([self.sums[name] for name in names]) / self.summed).tolist()
        values = dict(zip(names, means, strict=True))
        seconds = time.perf_counter() - began
        self.seconds += seconds
        if not math.isfinite(values["loss"]):
            raise TrainingError(
                f"the loss is not finite at step {self.step}; lower --lr, train with --precision "
                f"32, or look at the data. {LAST} holds the last good checkpoint, if there was one"
            )
        if log is not None:
            rates = {"lr": max(row["lr"] for row in self.optimizer.param_groups)}
            speed = {"items_per_second": round(self.plan.batch * self.summed / seconds, 3)}
            log.step({"step": self.step, **values, **rates, **speed})
            self.folder.state["metrics"]["train"] = plain_values({"step": self.step, **values})
        self.sums, self.summed = {}, 0

    @torch.no_grad()
    def _validate(self, log: TrainLog | None) -> None:
        self.module.eval()
        with self._averaged():
            values = self.task.validate(self.step)
            if self.first:
                folder = self.folder.file("pictures", f"step-{self.step:07d}")
                with atomic_folder(folder) as tmp:
                    self.task.pictures(self.step, tmp)
                if not any(folder.iterdir()):
                    folder.rmdir()
            elif self.sharded:  # the first process needs the others' weights to make them
                with tempfile.TemporaryDirectory() as scratch:
                    self.task.pictures(self.step, Path(scratch))
        self.module.train()
        if log is not None and values:
            log.validate({"step": self.step, **values})
            kept = self.folder.state["metrics"].setdefault("validation", {})
            row = plain_values({"step": self.step, **values})
            kept.setdefault("start", row)
            kept["last"] = row

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    # -- state ------------------------------------------------------------------------------

    def _save(self) -> None:
        task, optimizer = gather_state(self.task, self._bare(), sharded=self.sharded)
        average = None if self.average is None else self.average.state()
        if self.first:
            save_state(
                self.folder.file(LAST),
                {
                    "step": self.step,
                    "task": task,
                    "optimizer": optimizer,
                    "average": average,
                    "sums": self.sums,
                    "summed": self.summed,
                    "seconds": self.seconds,
                },
            )
            self.folder.state["training"] = {"step": self.step, "steps": self.plan.steps}
            self.folder.save()
        self.fabric.barrier()

    def _bare(self) -> torch.optim.Optimizer:
        """Return the optimiser without Fabric around it."""
        return self.optimizer.optimizer

    def _restore(self) -> int:
        path = self.folder.file(LAST)
        if not path.is_file():
            return 0
        content = load_state(path)
        spread_state(self.task, self._bare(), content, path, sharded=self.sharded)
        if self.average is not None:
            self.average.load(content["average"])
        device = self.plan.device
        self.sums = {name: value.to(device) for name, value in content["sums"].items()}
        self.summed, self.seconds = content["summed"], content["seconds"]
        return content["step"]

    def _finish(self) -> None:
        with self._averaged():
            state, _ = gather_state(self.task, self._bare(), sharded=self.sharded)
            if self.first:
                self._export(state)
        self.fabric.barrier()

    def _export(self, state: Mapping[str, Tensor]) -> None:
        from sightline.training.report import write_training_report

        folder, train = self.folder, {"seconds": round(self.seconds, 3), "steps": self.plan.steps}
        folder.state["stages"]["train"] = train
        with folder.stage("export"):
            whole = {name: value.cpu() for name, value in state.items()}
            made = self.task.export(whole, folder.file("checkpoints"))
        folder.state["exports"] = [path.relative_to(folder.path).as_posix() for path in made]
        with folder.stage("report"):
            write_training_report(folder, self.command)


class _Draws:
    """What each batch of this process is drawn by, from a step on; a million steps take no memory."""

    def __init__(self, settings: TrainSettings, plan: Plan, first: int, parts: int) -> None:
        self.settings, self.plan, self.first, self.parts = settings, plan, first, parts

    def __len__(self) -> int:
        return (self.plan.steps - self.first) * self.settings.accumulate

    def __iter__(self) -> Iterator[Draw]:
        for step in range(self.first, self.plan.steps):
            for micro in range(self.settings.accumulate):
                yield Draw(
                    seed=self.settings.seed,
                    step=step,
                    part=micro * self.plan.world + self.plan.rank,
                    parts=self.parts,
                    size=self.settings.batch_size,
                )


class _Batches(Dataset):
    """The task's batches as data workers want them: a batch a `Draw`."""

    def __init__(self, task: TrainTask) -> None:
        self.task = task

    def __getitem__(self, draw: Draw) -> Any:  # noqa: ANN401
        return self.task.batch(draw)


def _refuse_bad_groups(groups: Sequence[ParameterGroup]) -> None:
    if not groups:
        raise InputError("nothing is trained: every part is frozen; free one of them")
    names = [group.name for group in groups]
    known = [id(parameter) for group in groups for parameter in group.parameters]
    if len(set(names)) < len(names) or len(set(known)) < len(known):
        raise InputError("a trainer lists a group or a parameter twice; report this as a bug")
