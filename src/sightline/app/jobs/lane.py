"""One queue: a thread that takes one job after the other, and the process that runs them."""

import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sightline.app.jobs.board import Board
from sightline.app.jobs.kinds import Kind, find_kind
from sightline.app.jobs.memory import estimate
from sightline.app.jobs.record import Job, JobProgress, State, now
from sightline.app.jobs.stages import ProgressTracker
from sightline.app.jobs.staging import made_below, words_of
from sightline.app.jobs.weights import Weights
from sightline.app.jobs.worker import Outcome, Worker
from sightline.errors import SightlineError
from sightline.run import RunFolder

_MOST_RESULT = 1 << 20
_IDLE = 600.0
"""Seconds after which a process without work gives its memory back."""
_KILL = 9
"""The signal by which the system ends a process for want of memory; otherwise only we use it."""


class Lane:
    """Runs the jobs of one queue, one at a time.

    Attributes:
        name: Of the queue.
        waiting: Ids of jobs, the next first; the board's lock guards it, and ``current``.
        current: The job at work.
        worker: Its process.
    """

    def __init__(self, name: str, board: Board, weights: Weights, empty: Path) -> None:
        """Start the thread; ``empty`` is a folder without files, in which verbs stand."""
        self.name = name
        self.waiting: deque[str] = deque()
        self.current: str | None = None
        # Only who asks for a download gets one.
        environment = {} if name == "network" else {"SIGHTLINE_OFFLINE": "1"}
        self.worker = Worker(environment, empty)
        self._board = board
        self._weights = weights
        self._cancelled: set[str] = set()
        self._thread = threading.Thread(target=self._work, name=f"jobs-{name}", daemon=True)
        self._thread.start()

    def add(self, id: str) -> None:
        """Queue a job."""
        with self._board.changed:
            self.waiting.append(id)
            self._board.changed.notify_all()

    def cancel(self, id: str) -> None:
        """Stop the job at work, if it is this one."""
        with self._board.changed:
            if self.current == id:
                patience = find_kind(self._board.now(id).kind).patience
                patience = 0.0 if id in self._cancelled else patience
                self._cancelled.add(id)
                self.worker.cancel(patience)

    def join(self) -> None:
        """End the process and wait for the thread; the board has been closed before."""
        self.worker.stop()
        self._thread.join(timeout=10.0)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._run(job)
            except (SightlineError, OSError) as error:  # a full disk must not stop the queue
                text = self._board.plain(str(error), job.id)
                with contextlib.suppress(SightlineError):
                    self._board.end(self._board.now(job.id), "failed", exit_code=1, error=text)
            finally:
                with self._board.changed:
                    self.current = None
                    self._cancelled.discard(job.id)
                    self._board.changed.notify_all()

    def _next(self) -> Job | None:
        board = self._board
        with board.changed:
            while not self.waiting and not board.closed:
                board.changed.wait(30.0)
                if not self.waiting and time.monotonic() - self.worker.idle_since > _IDLE:
                    self.worker.stop()
            if board.closed:
                return None
            self.current = self.waiting.popleft()
            return board.now(self.current)

    def _run(self, job: Job) -> None:
        board = self._board
        progress = JobProgress()
        attempt = job.attempts + 1
        job = board.put(job, state="running", started=now(), attempts=attempt, progress=progress)
        kind = find_kind(job.kind)
        tracker = ProgressTracker(kind.stages)
        outcome = self.worker.run(
            words_of(job, kind, board.root, self._weights),
            board.folder(job.id),
            on_message=lambda message: board.advance(job.id, tracker.take(message)),
            cancelled=lambda: board.closed or job.id in self._cancelled,
        )
        if kind.fresh or outcome.code not in (0, 2):
            self.worker.stop()  # its state may be anything
        with board.changed:
            if board.closed:
                return  # `running` on disk: the next server goes on with it
            self._enter(job.id, kind, outcome, cancelled=job.id in self._cancelled)

    def _enter(self, id: str, kind: Kind, outcome: Outcome, *, cancelled: bool) -> None:
        """Enter how a job has ended."""
        board = self._board
        job, folder = board.now(id), board.folder(id)
        result = _printed(folder / "stdout.txt") if kind.flags else {}
        result = json.loads(board.plain(json.dumps(result, ensure_ascii=False), id))
        error: str | None = board.plain(outcome.error, id) or None
        code, advice, state = outcome.code, (), _state(kind, outcome, result, cancelled=cancelled)
        if state == "cancelled":
            code, error = 3, "cancelled; what was finished is kept"
        elif state == "failed" and (code == 4 or outcome.signal == _KILL):
            guess = estimate(
                kind.name,
                job.options,
                [folder / path for path in job.inputs],
                None if job.scene is None else made_below(board.folder(job.scene)),
            )
            code, advice = 4, tuple(guess.suggestions())
            error = guess.sentence(error or "the system ended the job for want of memory")
        elif state == "failed" and outcome.code is None:
            error = f"its process died (signal {outcome.signal}); what was finished is kept"
        progress = job.progress
        if state == "done":
            progress = replace(progress, fraction=1.0, seconds_left=0.0)
            error = error if outcome.code else None
        else:
            settle_run(folder, state)
        changes: Mapping[str, Any] = {"error": error, "advice": advice, "result": result}
        board.end(job, state, exit_code=code, progress=progress, **changes)


def _state(kind: Kind, outcome: Outcome, result: dict[str, Any], *, cancelled: bool) -> State:
    if outcome.code == 0 or (outcome.code == 2 and kind.finding and result):
        return "done"
    return "cancelled" if cancelled else "failed"


def _printed(file: Path) -> dict[str, Any]:
    """Return the JSON that a verb has printed last."""
    try:
        if file.stat().st_size > _MOST_RESULT:
            return {}
        lines = file.read_text(encoding="utf-8", errors="replace").strip().split("\n")
        found = json.loads(lines[-1])
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def settle_run(folder: Path, status: str) -> None:
    """Correct a run that says it is running although its process has gone."""
    run = made_below(folder)
    if run is None:
        return
    with contextlib.suppress(SightlineError, OSError):
        state = RunFolder.open(run)
        if state.state.get("status") == "running":
            state.state["status"] = status
            state.save()


def memory_of(pid: int | None) -> int | None:
    """Return the resident bytes of a process, where the system tells."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return None
