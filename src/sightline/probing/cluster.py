"""The same tasks on Ray, across GPUs and machines that share the folder of results."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sightline.errors import MissingExtraError
from sightline.io.atomic import atomic_write_text
from sightline.probing.graph import execute, reason_of
from sightline.probing.store import Store, Task

_POLL = 0.5


def start_ray(address: str) -> Any:  # noqa: ANN401 - an optional package's module
    """Connect to a cluster, or start one on this machine.

    Args:
        address: ``auto`` takes a running cluster and else this machine's cores and GPUs; ``local``
            always starts one; anything else is an address.

    Raises:
        MissingExtraError: If Ray is not installed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError(
            "--cluster", "ray", "cluster", "leave it out to run in this process"
        ) from error
    if ray.is_initialized():
        return ray
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        ray.init(**quiet)
    elif address == "auto":
        try:
            ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError:
            ray.init(**quiet)
    else:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    return ray


class RayExecutor:
    """Runs tasks on Ray's workers; a worker that dies is replaced and its task tried again."""

    at_once: int | None = None

    def __init__(
        self,
        store: Store,
        work: Callable[[Task, Sequence[Path], Path], dict[str, Any]],
        address: str,
        retries: int = 1,
        failures: Path | None = None,
    ) -> None:
        """Connect.

        Args:
            store: A folder that all machines see under one path.
            work: What does a task; it is sent to the workers.
            address: See `start_ray`.
            retries: How often a failed task, or one whose worker died, is tried again.
            failures: Folder for reasons of failures.
        """
        self.ray = start_ray(address)
        self.store, self.failures = store, failures
        self.gpus = 1 if getattr(work, "device", "cpu") == "cuda" else 0
        self.retries = retries
        self.work = self.ray.put(work)
        self.remote = self.ray.remote(_run)
        self.running: dict[Any, tuple[Task, float]] = {}

    def run(self, ready: Sequence[Task]) -> Iterator[tuple[Task, str | None, float]]:
        """Start what is not running yet, wait until something ends, and yield it."""
        at_work = {task.key for task, _ in self.running.values()}
        for task in ready:
            if task.key not in at_work:
                call = self.remote.options(
                    num_cpus=1, num_gpus=self.gpus, max_retries=self.retries
                ).remote(task, self.store, self.work, self.retries)
                self.running[call] = (task, time.perf_counter())
        ended: list[Any] = []
        while not ended:
            ended, _ = self.ray.wait(list(self.running), num_returns=1, timeout=_POLL)
        for call in ended:
            task, began = self.running.pop(call)
            try:
                reason = self.ray.get(call)
            except self.ray.exceptions.RayError as error:
                reason = reason_of(error)
            if reason is not None and self.failures is not None:
                path = self.failures / f"{task.kind}-{task.key}.log"
                atomic_write_text(path, f"{task.kind} {task.label}\n{reason}\n")
            yield task, reason, time.perf_counter() - began


def _run(task: Task, store: Store, work: Any, retries: int) -> str | None:  # noqa: ANN401
    """Do one task in a worker; return why it failed, or None."""
    for attempt in range(retries + 1):
        try:
            execute(task, store, work)
        except Exception as error:  # noqa: BLE001 - goes back to the runner as text
            if attempt == retries:
                return reason_of(error)
        else:
            return None
    return None
