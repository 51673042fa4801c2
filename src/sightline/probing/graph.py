"""The runner: tasks in order of their inputs, with retries, logs and nothing done twice."""

import json
import logging
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from sightline.errors import Cancelled, InputError, MissingExtraError, OutputError, SightlineError
from sightline.io.atomic import atomic_folder, atomic_write_text
from sightline.probing.store import TASK_FILE, Store, Task
from sightline.run import peak_memory_mb

State = Literal["waiting", "running", "done", "kept", "retried", "failed", "blocked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a task."""

    task: Task
    state: State
    note: str = ""
    seconds: float = 0.0


OnEvent = Callable[[Event], None]
OnRetry = Callable[[Task, str], None]
"""Told of a task that is tried again, and why."""
Work = Callable[[Task, Sequence[Path], Path], dict[str, Any]]
"""``work(task, inputs, out)`` reads the folders of the inputs, writes files into ``out`` and returns
plain values for ``task.json``."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of a grid's tasks."""

    done: list[Task] = field(default_factory=list)
    kept: list[Task] = field(default_factory=list)
    """Finished before."""
    failed: dict[str, str] = field(default_factory=dict)
    """Key -> reason, of tasks that failed or whose inputs did."""


@runtime_checkable
class Executor(Protocol):
    """Anything that runs tasks whose inputs are done."""

    at_once: int | None
    """Tasks that run at a time; None: all that are ready."""

    def run(self, ready: Sequence[Task]) -> Iterator[tuple[Task, str | None, float]]:
        """Start ``ready`` and yield (task, reason of failure or None, seconds) as they end.

        May be called again with more tasks while some still run.
        """
        ...


def ordered(tasks: Iterable[Task]) -> list[Task]:
    """Return tasks and all that they depend on, each once, inputs first."""
    found: dict[str, Task] = {}

    def visit(task: Task) -> None:
        if task.key not in found:
            for needed in task.inputs:
                visit(needed)
            found[task.key] = task

    for task in tasks:
        visit(task)
    return list(found.values())


def execute(task: Task, store: Store, work: Work) -> float:
    """Do one task now; its folder appears only when all of it is written. Returns seconds."""
    path = store.path(task)
    if store.done(task):
        return 0.0
    began, busy = time.perf_counter(), time.process_time()
    with atomic_folder(path) as out, _logged(out / "log.txt") as say:
        say(f"{task.kind} {task.label}: {json.dumps(dict(task.params), default=str)}")
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        summary = work(task, [store.path(needed) for needed in task.inputs], out)
        seconds = time.perf_counter() - began
        say(f"done in {seconds:.1f} s: {json.dumps(summary)[:4000]}")
        record = {
            "kind": task.kind,
            "key": task.key,
            "label": task.label,
            "params": dict(task.params),
            "inputs": [needed.key for needed in task.inputs],
            "seconds": seconds,
            "cpu_seconds": time.process_time() - busy,
            "peak_memory": peak_memory(),
            "summary": summary,
        }
        text = json.dumps(record, indent=1, sort_keys=True)
        (out / TASK_FILE).write_text(text + "\n", "utf-8")
    return seconds


def peak_memory() -> int:
    """Return bytes: of the GPU since the task began, else of the process since it began."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return round(peak_memory_mb() * 1e6)


class _LogFile(logging.FileHandler):
    """A log that a full disk cuts short; what the task itself writes says so."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing, where logging would print a traceback."""

    def close(self) -> None:
        """Close the file, whether or not its end still fits."""
        with suppress(OSError):
            super().close()


@contextmanager
def _logged(path: Path) -> Iterator[Callable[[str], object]]:
    """Copy what the package logs to a file while the body runs; yields what writes a line there."""
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    package = logging.getLogger("sightline")
    package.addHandler(handler)
    record = logging.LogRecord
    try:
        # Straight to the file: progress is shown elsewhere.
        yield lambda text: handler.handle(record(__name__, logging.INFO, "", 0, text, None, None))
    finally:
        package.removeHandler(handler)
        handler.close()


@dataclass(slots=True)
class InProcess:
    """Runs one task after another, here."""

    store: Store
    work: Work
    retries: int = 1
    failures: Path | None = None
    """Folder for the traces of failed tasks."""
    on_retry: OnRetry | None = None
    at_once: int | None = 1

    def run(self, ready: Sequence[Task]) -> Iterator[tuple[Task, str | None, float]]:
        """Do the first of ``ready``."""
        task = ready[0]
        for attempt in range(self.retries + 1):
            began = time.perf_counter()
            try:
                yield task, None, execute(task, self.store, self.work)
                return
            except (Cancelled, OutputError):
                raise
            except Exception as error:  # noqa: BLE001 - one task must not stop the others
                reason = reason_of(error)
                _write_trace(self.failures, task)
                if is_lasting(error) or attempt == self.retries:
                    yield task, reason, time.perf_counter() - began
                    return
                if self.on_retry is not None:
                    self.on_retry(task, reason)


def is_lasting(error: BaseException) -> bool:
    """Say whether another try will not mend an error."""
    return isinstance(error, (InputError, MissingExtraError))


def reason_of(error: BaseException) -> str:
    """Return one sentence."""
    text = " ".join(str(error).split())
    return text if isinstance(error, SightlineError) else f"{type(error).__name__}: {text}"


def _write_trace(folder: Path | None, task: Task) -> None:
    if folder is not None:
        text = f"{task.kind} {task.label}\n{traceback.format_exc()}"
        atomic_write_text(folder / f"{task.kind}-{task.key}.log", text)


def run_graph(
    tasks: Sequence[Task], store: Store, executor: Executor, on_event: OnEvent | None = None
) -> Outcome:
    """Do all tasks and what they need.

    What is finished is kept; what depends on a failed task is not started. A failure does not stop
    the others. May be interrupted at any moment.
    """

    def tell(task: Task, state: State, note: str = "", seconds: float = 0.0) -> None:
        if on_event is not None:
            on_event(Event(task=task, state=state, note=note, seconds=seconds))

    outcome = Outcome()
    left: list[Task] = []
    for task in ordered(tasks):
        if store.done(task):
            outcome.kept.append(task)
            tell(task, "kept")
        else:
            left.append(task)
            tell(task, "waiting")
    started: set[str] = set()
    while left:
        for task in [t for t in left if any(n.key in outcome.failed for n in t.inputs)]:
            needed = next(n for n in task.inputs if n.key in outcome.failed)
            outcome.failed[task.key] = f"needs {needed.kind} {needed.label}, which failed"
            tell(task, "blocked", outcome.failed[task.key])
            left.remove(task)
        ready = [t for t in left if all(store.done(n) for n in t.inputs)]
        if not ready:
            break
        free = len(ready) if executor.at_once is None else executor.at_once
        free -= sum(task.key in started for task in ready)
        for task in [t for t in ready if t.key not in started][: max(free, 0)]:
            tell(task, "running")
            started.add(task.key)
        for task, reason, seconds in executor.run([t for t in ready if t.key in started]):
            left.remove(task)
            if reason is None:
                outcome.done.append(task)
                tell(task, "done", seconds=seconds)
            else:
                outcome.failed[task.key] = reason
                tell(task, "failed", reason, seconds)
    return outcome
