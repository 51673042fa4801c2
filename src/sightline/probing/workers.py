"""Several tasks at once on one machine: a process each, so that small tasks fill all cores."""

import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch

from sightline.errors import InputError, OutputError
from sightline.io.atomic import atomic_write_text
from sightline.probing.graph import OnRetry, Work, execute, is_lasting, reason_of
from sightline.probing.store import Store, Task

_CONTEXT = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork


@dataclass(slots=True)
class _Worker:
    """A process, the line to it, and what it does."""

    process: SpawnProcess
    line: connection.Connection
    task: Task | None = None
    began: float = 0.0


@dataclass(frozen=True, slots=True)
class _Failure:
    """What a worker says of a task that failed."""

    reason: str
    trace: str
    lasting: bool
    output: bool
    """The results' own folder cannot be written, which ends the run."""


class WorkerPool:
    """Runs tasks in processes of this machine; one that dies is replaced and its task tried again.

    Use it as a context: at the end all processes are gone. They also end when this process does,
    however it ends.
    """

    def __init__(
        self,
        store: Store,
        work: Work,
        workers: int,
        retries: int = 1,
        failures: Path | None = None,
        on_retry: OnRetry | None = None,
    ) -> None:
        """Nothing starts before the first task.

        Args:
            store: Of the results.
            work: What does a task; every process gets a copy.
            workers: Processes; each gets its share of this process's threads.
            retries: How often a failed task, or one whose process died, is tried again.
            failures: Folder for the traces of failed tasks.
            on_retry: Told of each.

        Raises:
            InputError: If ``work`` cannot be sent to a process.
        """
        try:
            pickle.dumps(work)
        except Exception as error:  # any: an object's own code may run
            raise InputError(
                f"a backbone of your own cannot be sent to workers ({error}); define its class in "
                "a module, or leave workers at 1"
            ) from error
        self.at_once: int | None = workers
        self._count = workers
        self._given = (store, work, max(1, torch.get_num_threads() // workers))
        self._retries, self._failures, self._on_retry = retries, failures, on_retry
        self._tries: dict[str, int] = {}
        self._workers: list[_Worker] = []

    def __enter__(self) -> "WorkerPool":  # noqa: PYI034
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes, whatever they do."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            self._forget(worker)
        self._workers = []

    def run(self, ready: Sequence[Task]) -> Iterator[tuple[Task, str | None, float]]:
        """Start what is not running yet, as far as processes are free, and yield what ends."""
        at_work = {worker.task.key for worker in self._workers if worker.task is not None}
        for task in ready:
            if task.key not in at_work and len(at_work) < self._count:
                self._start(task)
                at_work.add(task.key)
        ended: list[tuple[Task, str | None, float]] = []
        while not ended:
            busy = {worker.line: worker for worker in self._workers if worker.task is not None}
            for line in connection.wait(list(busy)):
                worker = busy[line]  # pyright: ignore[reportArgumentType]
                result = self._hear(worker)
                if result is not None:
                    ended.append(result)
        yield from ended

    def _start(self, task: Task) -> None:
        worker = next((w for w in self._workers if w.task is None), None)
        if worker is None:
            here, there = _CONTEXT.Pipe()
            level = logging.getLogger("sightline").level
            process = _CONTEXT.Process(
                target=_serve, args=(there, level, *self._given), daemon=True
            )
            process.start()
            there.close()  # so that its end is heard here
            worker = _Worker(process, here)
            self._workers.append(worker)
        worker.task, worker.began = task, time.perf_counter()
        with suppress(OSError):  # it has died; `_hear` finds out
            worker.line.send(task)

    def _hear(self, worker: _Worker) -> tuple[Task, str | None, float] | None:
        """Take a worker's answer; None where the task is tried again."""
        task = worker.task
        assert task is not None
        try:
            failure: _Failure | None = worker.line.recv()
            worker.task = None
        except (EOFError, OSError):
            self._workers.remove(worker)
            self._forget(worker)
            reason = f"its process ended with code {worker.process.exitcode}"
            failure = _Failure(reason=reason, trace=reason, lasting=False, output=False)
        seconds = time.perf_counter() - worker.began
        if failure is None:
            return task, None, seconds
        if failure.output:
            raise OutputError(failure.reason)
        if self._failures is not None:
            path = self._failures / f"{task.kind}-{task.key}.log"
            atomic_write_text(path, f"{task.kind} {task.label}\n{failure.trace}\n")
        tries = self._tries[task.key] = self._tries.get(task.key, 0) + 1
        if failure.lasting or tries > self._retries:
            return task, failure.reason, seconds
        if self._on_retry is not None:
            self._on_retry(task, failure.reason)
        self._start(task)
        return None

    def _forget(self, worker: _Worker) -> None:
        worker.line.close()
        worker.process.join()


def _serve(line: connection.Connection, level: int, store: Store, work: Work, threads: int) -> None:
    """Do tasks until told to stop, or until nobody is there to tell."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; one decides
    logging.getLogger("sightline").setLevel(level)
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            task = line.recv()
        except EOFError:
            return
        line.send(_attempt(task, store, work))


def _attempt(task: Task, store: Store, work: Work) -> _Failure | None:
    try:
        execute(task, store, work)
    except Exception as error:  # noqa: BLE001 - goes back to the runner as text
        return _Failure(
            reason=reason_of(error),
            trace=traceback.format_exc(),
            lasting=is_lasting(error),
            output=isinstance(error, OutputError),
        )
    return None


def _end_with_parent() -> Any:  # noqa: ANN401
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
