"""The live table of a grid on stderr; plain lines where stderr is not a terminal."""

import sys
import time
from collections import Counter
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sightline.cli.session import SESSION
from sightline.probing.graph import Event
from sightline.probing.store import TASK_FILE

_KINDS = {
    "scene": "scenes",
    "cloud": "geometry",
    "features": "features",
    "probe": "probes",
    "video": "videos",
    "probe3d": "Probe3D",
    "maps": "error maps",
}
_LAST = 6


class LiveTable:
    """Counts by kind, what is at work, and the newest scores."""

    def __init__(self, output: Path) -> None:
        """Nothing is drawn before the first event."""
        self._store = output / "store"
        self._counts: dict[str, Counter[str]] = {kind: Counter() for kind in _KINDS}
        self._states: dict[str, tuple[str, str]] = {}
        self._seconds: dict[str, float] = dict.fromkeys(_KINDS, 0.0)
        self._now: dict[str, str] = {}
        self._share = ""
        self._recent: list[str] = []
        self._terminal = sys.stderr.isatty()
        self._live = Live(console=Console(stderr=True), refresh_per_second=4, auto_refresh=False)
        self._drawn = 0.0

    def __enter__(self) -> "LiveTable":  # noqa: PYI034
        """Start drawing."""
        if self._terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last table on the screen."""
        if self._terminal:
            self._draw(force=True)
            self._live.stop()

    def event(self, event: Event) -> None:
        """Take note of what happened to a task."""
        task = event.task
        state = "running" if event.state == "retried" else event.state
        before = self._states.get(task.key)
        if before is not None:
            self._counts[before[0]][before[1]] -= 1
        self._states[task.key] = (task.kind, state)
        self._counts[task.kind][state] += 1
        self._seconds[task.kind] += event.seconds
        if state == "running":
            self._now[task.key] = f"{_KINDS[task.kind]}: {task.label}"
        else:
            self._now.pop(task.key, None)
        if event.state in ("done", "failed", "retried", "blocked"):
            self._recent.append(self._line(event))
            if not self._terminal:
                done = sum(c["done"] + c["kept"] for c in self._counts.values())
                sys.stderr.write(f"[{done}/{len(self._states)}] {self._recent[-1]}\n")
                sys.stderr.flush()
        self._share = ""
        if SESSION.listener is not None:
            done = sum(c["done"] + c["kept"] for c in self._counts.values())
            SESSION.listener({"stage": "grid", "done": done, "total": len(self._states)})
        self._draw(force=event.state not in ("waiting", "kept"))

    def progress(self, stage: str, done: float, total: float) -> None:
        """Show how far the task at work is."""
        self._share = f"{stage} {done:.0f}/{total:.0f}"
        if SESSION.listener is not None:
            now = next(iter(self._now.values()), "")
            SESSION.listener({"stage": "grid", "note": f"{now}  {self._share}".strip()})
        self._draw()

    def _line(self, event: Event) -> str:
        task = event.task
        text = f"{event.state:<7} {task.kind} {task.label}"
        if event.state == "done":
            return f"{text}  {event.seconds:.1f} s{self._score(event)}"
        return f"{text}: {event.note}"

    def _score(self, event: Event) -> str:
        if event.task.kind != "probe":
            return ""
        from sightline.io.reading import read_json

        summary = read_json(self._store / "probe" / event.task.key / TASK_FILE)["summary"]
        values = [v for v in summary.get("scores", {}).get("psnr", []) if v is not None]
        return f"  {sum(values) / len(values):.2f} dB" if values else ""

    def _draw(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if not self._terminal or (not force and now - self._drawn < 0.25):
            return
        self._drawn = now
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("", "done", "kept", "left", "failed", "s a task", "to go"):
            table.add_column(name, justify="left" if not name else "right")
        for kind, title in _KINDS.items():
            counts = self._counts[kind]
            if not sum(counts.values()):
                continue
            left = counts["waiting"] + counts["running"]
            each = self._seconds[kind] / counts["done"] if counts["done"] else None
            table.add_row(
                title,
                str(counts["done"]),
                str(counts["kept"]),
                str(left),
                str(counts["failed"] + counts["blocked"]),
                "" if each is None else f"{each:.1f}",
                "" if each is None or not left else f"{each * left / 60:.1f} min",
            )
        lines = [Text(f"{text}  {self._share}", style="bold") for text in self._now.values()]
        lines += [Text(text, style="dim") for text in self._recent[-_LAST:]]
        self._live.update(Group(table, *lines), refresh=True)
