"""Start the SfM worker, follow it, and stop it within a moment when asked to."""

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

import sightline
from sightline import errors
from sightline.io.arrays import read_npz
from sightline.protocols import Progress
from sightline.reconstruction.job import JOB, LOG, RESULT, Job

_TICK = 0.2
"""Seconds between two looks at the worker; also how soon a cancelled run stops."""
_LEAST_FREE = 16 << 20
"""Bytes; a worker that broke down with less left on the disk broke down for that."""
_STACK = re.compile(r"\s*(@\s+0x|\*\*\*|$)")


def run_worker(job: Job, workspace: Path, progress: Progress | None) -> dict[str, np.ndarray]:
    """Do a job in a process of its own.

    Args:
        job: What to do.
        workspace: Folder that exists; what is in it is used again when it fits the job.
        progress: Called at least five times a second, so that it can cancel.

    Returns:
        The arrays of the worker's result.

    Raises:
        InputError: If a picture is unusable.
        ReconstructionError: If COLMAP broke down; its log is named.
        OutOfMemoryError: If the system ended the worker.
        OutputError: If the disk is full.
        Cancelled: If ``progress`` raised it. The workspace stays usable.
    """
    job.write(workspace / JOB)
    process = _start(workspace, job.settings.num_threads)
    assert process.stdout is not None
    messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    listener = threading.Thread(target=_listen, args=(process.stdout, messages), daemon=True)
    listener.start()
    try:
        outcome = _follow(messages, progress)
        code = process.wait()
    finally:  # also on Ctrl-C: the worker is in a session of its own and did not get it
        process.kill()
        process.wait()
        listener.join()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
    if "finished" in outcome:
        return read_npz(workspace / RESULT)
    raise _error(outcome, code, workspace)


def _start(workspace: Path, num_threads: int) -> subprocess.Popen[str]:
    threads = str(num_threads)
    source = str(Path(sightline.__file__).parents[1])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
    }
    # -P: a file in the user's folder must not pass for a module.
    command = [sys.executable, "-P", "-m", "sightline.reconstruction.worker", str(workspace)]
    with (workspace / LOG).open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            start_new_session=True,
        )


def _listen(stream: Iterable[str], messages: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    try:
        for line in stream:
            messages.put(json.loads(line))
    except ValueError:  # the worker was killed within a line
        pass
    finally:  # whatever happens, the follower must not wait for ever
        messages.put(None)


def _follow(
    messages: queue.SimpleQueue[dict[str, Any] | None], progress: Progress | None
) -> dict[str, Any]:
    """Pass progress on until the worker ends; return its last word."""
    outcome: dict[str, Any] = {}
    latest: tuple[str, float, float] | None = None
    while True:
        try:
            message = messages.get(timeout=_TICK)
        except queue.Empty:
            message = {}
        if message is None:
            return outcome
        if "stage" in message:
            latest = (message["stage"], float(message["done"]), float(message["total"]))
        elif message:
            outcome = message
        if progress is not None and latest is not None:
            progress(*latest)


def _error(outcome: dict[str, Any], code: int, workspace: Path) -> errors.SightlineError:
    if "error" in outcome:
        kind = getattr(errors, outcome["error"], errors.ReconstructionError)
        made = errors.SightlineError.__new__(kind)
        Exception.__init__(made, outcome["text"])
        return made
    if code == -getattr(signal, "SIGKILL", 9):
        return errors.OutOfMemoryError(
            "the system ended structure from motion, most likely because memory ran out; use "
            "fewer or smaller pictures (--max-frames)"
        )
    if shutil.disk_usage(workspace).free < _LEAST_FREE:
        return errors.OutputError(
            f"structure from motion stopped because the disk of {workspace} is full; free some "
            "space and go on with --resume, or choose another disk with -o"
        )
    log = workspace / LOG
    lines = log.read_text(errors="replace").strip().splitlines()
    # A crash ends with the addresses of its stack; what was said before tells more.
    told = [line for line in lines if not _STACK.match(line)] or ["no message"]
    return errors.ReconstructionError(
        f"structure from motion broke down (exit code {code}): {told[-1][:200]}; the log is {log}"
    )
