"""How the worker speaks to its parent, and how COLMAP's own chatter becomes progress."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOBase
from pathlib import Path

_COUNTED = re.compile(r"Process\w+ (?:file|block) \[(\d+)/(\d+)\]")
"""COLMAP says ``Processed file [3/50]`` and ``Processing block [2/9]``. A release that words it
otherwise only makes the bar move in larger steps."""


class Report:
    """Writes one JSON object a line: progress, and at the end the outcome.

    Args:
        stream: Read by the parent process; None says nothing.
        log: The file that COLMAP's log goes to.
    """

    def __init__(self, stream: TextIOBase | None = None, log: Path | None = None) -> None:
        """Write nothing yet."""
        self._stream = stream
        self._log = log
        self._lock = threading.Lock()

    def progress(self, stage: str, done: int, total: int) -> None:
        """Tell how far a stage is."""
        self.say({"stage": stage, "done": done, "total": total})

    def say(self, message: dict[str, object]) -> None:
        """Send one message."""
        if self._stream is None:
            return
        with self._lock:
            self._stream.write(json.dumps(message) + "\n")
            self._stream.flush()

    @contextmanager
    def counted(self, stage: str, offset: int, total: int, each: int = 1) -> Iterator[None]:
        """Follow COLMAP's own count while the body runs.

        Args:
            stage: Name of the stage.
            offset: What was done before the body.
            total: What the whole stage does.
            each: How much of it one counted thing is.
        """
        if self._log is None or self._stream is None:
            yield
            return
        stop = threading.Event()
        follower = threading.Thread(
            target=self._follow, args=(stop, stage, offset, total, each), daemon=True
        )
        follower.start()
        try:
            yield
        finally:
            stop.set()
            follower.join()

    def _follow(
        self, stop: threading.Event, stage: str, offset: int, total: int, each: int
    ) -> None:
        assert self._log is not None
        with self._log.open("r", errors="replace") as log:
            log.seek(0, 2)
            said = offset
            while not stop.wait(0.3):
                counts = [int(found[1]) for found in _COUNTED.finditer(log.read())]
                if counts and offset + each * counts[-1] > said:
                    said = offset + each * counts[-1]
                    self.progress(stage, min(said, total), total)
