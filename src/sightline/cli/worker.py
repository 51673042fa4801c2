"""The process in which jobs of the app run: ``python -m sightline.cli.worker``.

It is a process of its own so that a job can be stopped at any moment, so that its memory is given
back, and so that nothing a job does can hurt the server. It runs one command line after the other
and keeps networks loaded between them.

Requests come as lines of JSON on standard input, ``{"words", "folder", "cwd"}``. Answers go
as lines of JSON to what was standard output: ``{"stage", "done", "total"}`` and
``{"stage", "note"}`` while a verb works, and ``{"exit", "error", "loaded"}`` when it has ended. What
a verb prints lies in ``stdout.txt`` and ``stderr.txt`` of the folder. SIGINT stops the verb at work
as Ctrl-C would. The process ends when its standard input closes, because the server has then gone.
"""

import gc
import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from sightline.cli import prepare_process, run_verb
from sightline.cli.session import SESSION

_EVERY = 0.1
"""Seconds between two reports of a stage."""
_MOST_LOADED = 2
"""Networks that stay: a geometry model and a backbone."""


class _Interrupts:
    """Ctrl-C counts only while a verb is at work."""

    def __init__(self) -> None:
        self.working = False
        signal.signal(signal.SIGINT, self._act)

    def _act(self, number: int, frame: FrameType | None) -> None:
        if self.working:
            self.working = False  # one is enough: the second would hit the clean-up
            raise KeyboardInterrupt


class Channel:
    """Answers to the server, from any thread."""

    def __init__(self, stream: TextIO) -> None:
        """Take the stream that the server reads."""
        self._stream = stream
        self._lock = threading.Lock()
        self._last: dict[tuple[str, str], float] = {}

    def send(self, message: dict[str, Any]) -> None:
        """Write one line."""
        with self._lock:
            self._stream.write(json.dumps(message) + "\n")
            self._stream.flush()

    def report(self, message: dict[str, Any]) -> None:
        """Write a line of progress, unless the last of its kind was only just written."""
        key = (str(message["stage"]), "note" if "note" in message else "done")
        now = time.monotonic()
        ended = "note" not in message and message["done"] >= message["total"]
        if not ended and now - self._last.get(key, -_EVERY) < _EVERY:
            return
        if len(self._last) > 1000:  # stages named after files of a long list
            self._last.clear()
        self._last[key] = now
        self.send(message)


def main() -> None:
    """Serve requests until standard input closes."""
    prepare_process()
    channel = Channel(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    source = os.fdopen(os.dup(0), "r", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)  # a verb that asks a question gets no answer
    os.dup2(nothing, 1)
    _die_first()
    SESSION.loaded = {}
    SESSION.listener = channel.report
    interrupts = _Interrupts()
    threading.Thread(target=_read, args=(source, requests), daemon=True).start()
    while True:
        request = requests.get()
        code, error = _serve(request, interrupts)
        channel.send({"exit": code, "error": error, "loaded": _tidy()})


def _read(source: TextIO, requests: "queue.SimpleQueue[dict[str, Any]]") -> None:
    for line in source:
        requests.put(json.loads(line))
    if sys.platform != "win32" and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # and whatever the verb has started
    os._exit(0)


def _die_first() -> None:
    """Where memory runs out, ask the system to end this process and not the server."""
    try:
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    except OSError:
        return  # no Linux


def _serve(request: dict[str, Any], interrupts: _Interrupts) -> tuple[int, str]:
    words, folder = request["words"], Path(request["folder"])
    os.chdir(request["cwd"])  # an empty folder: no relative name in a request means a file
    for name, number in (("stdout.txt", 1), ("stderr.txt", 2)):
        target = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(target, number)
        os.close(target)
    try:
        interrupts.working = True
        code, error = run_verb(words[0], words[1:])
        interrupts.working = False
    except KeyboardInterrupt:
        code, error = 3, "cancelled"
    except SystemExit as stop:
        code, error = stop.code if isinstance(stop.code, int) else 1, ""
    finally:
        interrupts.working = False
    sys.stdout.flush()
    sys.stderr.flush()
    if code and not error:  # a parser has said it on stderr
        lines = (folder / "stderr.txt").read_text(encoding="utf-8", errors="replace").split("\n")
        said = [line for line in lines if line.strip()]
        error = said[-1].partition(": ")[2] if said else "it ended without a word"
    return code, error


def _tidy() -> list[str]:
    """Give back what the verb left, and return the names of the networks that stay."""
    assert SESSION.loaded is not None
    for key in list(SESSION.loaded)[:-_MOST_LOADED]:
        del SESSION.loaded[key]
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    return [name for name, _, _ in SESSION.loaded]


if __name__ == "__main__":
    main()
