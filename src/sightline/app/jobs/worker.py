"""The server's side of the process that runs jobs; the other side is `sightline.cli.worker`."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-m", "sightline.cli.worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a command line ended.

    Attributes:
        code: Its exit code; None where the process died.
        error: What it told the user.
        signal: What the process died of, where it did.
    """

    code: int | None
    error: str = ""
    signal: int = 0


class Worker:
    """A process that runs one command line at a time; it is started when it is needed.

    `run` is called by one thread; `cancel` and `stop` by any.
    """

    def __init__(self, environment: Mapping[str, str], cwd: Path) -> None:
        """Take what is added to this process's environment, and an empty folder to work in."""
        self._environment = dict(environment)
        self._cwd = cwd
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.RLock()
        self._run = 0  # number of the command line at work, 0 for none
        self._runs = 0
        self.idle_since = time.monotonic()
        self.loaded: tuple[str, ...] = ()
        """Networks that stay in its memory."""

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        process = self._process
        return process is not None and process.poll() is None

    @property
    def pid(self) -> int | None:
        """The process id, where one runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def run(
        self,
        words: Sequence[str],
        folder: Path,
        *,
        on_message: Callable[[dict[str, Any]], None],
        cancelled: Callable[[], bool],
    ) -> Outcome:
        """Run one command line and return when it has ended.

        Args:
            words: The command line, without ``sightline``.
            folder: Where ``stdout.txt`` and ``stderr.txt`` go.
            on_message: Called with every report of progress.
            cancelled: Asked once, for a cancel that came before `cancel` could find anything.
        """
        with self._lock:
            process = self._start()
            self._runs += 1
            self._run = self._runs
        try:
            if cancelled():
                return Outcome(code=3)
            return self._follow(process, words, folder, on_message)
        finally:
            with self._lock:
                self._run = 0
                self.idle_since = time.monotonic()

    def _follow(
        self,
        process: "subprocess.Popen[str]",
        words: Sequence[str],
        folder: Path,
        on_message: Callable[[dict[str, Any]], None],
    ) -> Outcome:
        assert process.stdin is not None
        assert process.stdout is not None
        request = {"words": list(words), "folder": str(folder), "cwd": str(self._cwd)}
        with contextlib.suppress(OSError):  # it died before; the next line tells
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        for line in process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if "exit" in message:
                self.loaded = tuple(message["loaded"])
                return Outcome(code=int(message["exit"]), error=str(message["error"]))
            on_message(message)
        code = process.wait()
        self._forget()
        _close(process)
        return Outcome(code=None if code < 0 else code, signal=-code if code < 0 else 0)

    def cancel(self, patience: float) -> None:
        """Stop the command line at work: politely, and after ``patience`` seconds by force."""
        with self._lock:
            process, run = self._process, self._run
        if process is None or not run:
            return
        _signal(process, signal.SIGINT)

        def insist() -> None:
            with self._lock:
                if self._run == run and self._process is process:
                    _kill(process)

        timer = threading.Timer(patience, insist)
        timer.daemon = True
        timer.start()

    def stop(self) -> None:
        """End the process, whatever it does; its memory is given back."""
        with self._lock:
            process = self._process
            self._forget()
        if process is not None:
            _kill(process)
            process.wait()
            # While a command line is at work, its thread still reads, and closes the pipes.
            with self._lock:
                if not self._run:
                    _close(process)

    def _forget(self) -> None:
        self._process = None
        self.loaded = ()

    def _start(self) -> "subprocess.Popen[str]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            errors="replace",
            cwd=self._cwd,
            env={**os.environ, **self._environment, "PYTHONUTF8": "1"},
            start_new_session=True,  # Ctrl-C in the terminal is the server's business
        )
        return self._process


def _signal(process: "subprocess.Popen[str]", number: int) -> None:
    with contextlib.suppress(OSError):
        process.send_signal(number)


def _close(process: "subprocess.Popen[str]") -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def _kill(process: "subprocess.Popen[str]") -> None:
    """End a process and all that it has started."""
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
