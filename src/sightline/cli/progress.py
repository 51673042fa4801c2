"""Progress bars on stderr, one a stage; plain lines where stderr is not a terminal."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sightline.cli.session import SESSION

_EVERY = 10.0
"""Seconds between two plain lines of one stage."""


class ProgressBars:
    """A ``protocols.Progress`` callback for people.

    Use as a context manager and pass the object as ``progress=``. ``note(stage, text)`` shows live
    numbers beside a stage's bar.
    """

    def __init__(self) -> None:
        """Nothing is drawn before the first call."""
        self._terminal = sys.stderr.isatty()
        self._bars = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=Console(stderr=True),
            disable=not self._terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, float] = {}
        self._notes: dict[str, str] = {}

    def __enter__(self) -> "ProgressBars":  # noqa: PYI034
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop drawing and leave the bars on the screen."""
        self._bars.stop()

    def note(self, stage: str, text: str) -> None:
        """Show live numbers beside the bar of a stage."""
        if SESSION.listener is not None:
            SESSION.listener({"stage": stage, "note": text})
        self._notes[stage] = text
        if stage in self._tasks:
            self._bars.update(self._tasks[stage], note=text)

    def __call__(self, stage: str, done: float, total: float) -> None:
        """Move the bar of ``stage``."""
        if SESSION.listener is not None:
            SESSION.listener({"stage": stage, "done": done, "total": total})
        if self._terminal:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total, note="")
            note = self._notes.get(stage, "")
            self._bars.update(self._tasks[stage], completed=done, total=total, note=note)
            return
        now = time.monotonic()
        # A stage's first line says that it began; its last that it ended.
        if done < total and now - self._last.get(stage, -_EVERY) < _EVERY:
            return
        if done >= total and self._last.get(stage) == float("inf"):
            return
        self._last[stage] = float("inf") if done >= total else now
        note = f"  {self._notes[stage]}" if stage in self._notes else ""
        sys.stderr.write(f"{stage}: {done:.0f}/{total:.0f}{note}\n")
        sys.stderr.flush()
