"""Run independent tasks: in threads here, or on a Ray cluster. What comes out is the same."""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from sightline.errors import InputError, MissingExtraError

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    workers: int | None = None,
    cluster: str | None = None,
    gpus: float = 0.0,
) -> Generator[tuple[int, Result | InputError], None, None]:
    """Yield (position, result) as tasks finish; a task's InputError is its result.

    Any other error stops everything. Few tasks more than workers are begun at a time. Close the
    generator (``contextlib.closing``): left to the garbage collector, a worker may have to wait for
    itself.

    Args:
        function: A function of a module, so that another machine can import it.
        tasks: Its arguments.
        workers: Threads; default: the cores, at most 4.
        cluster: ``auto`` for the Ray cluster of this machine, or an address; all its machines must
            have this package and see the same files. None works here.
        gpus: What a task takes of a cluster's GPUs.

    Raises:
        MissingExtraError: If Ray is asked for and not installed.
        InputError: If there is no such cluster.
    """
    if cluster is not None:
        yield from _on_cluster(function, tasks, cluster, gpus)
        return
    threads = workers or min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        running: dict[Future[Result], int] = {}
        try:
            for at, task in enumerate(tasks):
                running[pool.submit(function, task)] = at
                if len(running) >= 2 * threads:
                    yield from _finished(running)
            while running:
                yield from _finished(running)
        finally:
            for future in running:
                future.cancel()


def _finished(running: dict[Future[Result], int]) -> Iterator[tuple[int, Result | InputError]]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in sorted(done, key=running.__getitem__):
        at = running.pop(future)
        try:
            yield at, future.result()
        except InputError as error:
            yield at, error


def _on_cluster(
    function: Callable[[Task], Result], tasks: Sequence[Task], cluster: str, gpus: float
) -> Iterator[tuple[int, Result | InputError]]:
    try:
        import ray  # pyright: ignore[reportMissingImports]  # optional extra
    except ImportError as error:
        raise MissingExtraError("--cluster", "ray", "cluster", "leave out --cluster") from error
    own = not ray.is_initialized()
    if own:
        try:
            ray.init(address=cluster, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"no Ray cluster at {cluster} ({str(error).splitlines()[0][:120]}); start one with "
                "ray start --head, or leave out --cluster"
            ) from error
    try:
        remote = ray.remote(_caught).options(num_cpus=1, num_gpus=gpus)
        sent = ray.put(function)  # once: it may carry much
        ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        running: dict[Any, int] = {}
        for at, task in enumerate(tasks):
            running[remote.remote(sent, task)] = at
            if len(running) >= ahead:
                yield from _ready(ray, running)
        while running:
            yield from _ready(ray, running)
    finally:
        if own:
            ray.shutdown()


def _ready(ray: Any, running: dict[Any, int]) -> Iterator[tuple[int, Any]]:  # noqa: ANN401
    done, _ = ray.wait(list(running), num_returns=1)
    for reference in done:
        yield running.pop(reference), ray.get(reference)


def _caught(function: Callable[[Task], Result], task: Task) -> Result | InputError:
    """Run a task elsewhere; what is wrong with its input comes back as a value."""
    try:
        return function(task)
    except InputError as error:
        # Only the sentence travels: errors with several arguments cannot be rebuilt from it.
        return InputError(str(error))
