"""From what a verb says of its stages to one number between 0 and 1."""

import time
from collections.abc import Mapping
from typing import Any

from sightline.app.jobs.record import JobProgress, StageProgress

_OTHER = 1.0
"""Weight of a stage that the table does not name."""
_SURE = 0.03
"""Share of the job after which the time left is more than a guess."""


class ProgressTracker:
    """Follows one job; not safe for several threads."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Take the stages that may come, in their order, with their shares of the time.

        A stage whose name begins with one of these (``read clip.mp4``) counts as that one.
        """
        self._weights = dict(weights)
        self._stages: dict[str, tuple[float, float]] = {}
        self._now = ""
        self._notes: dict[str, str] = {}
        self._fraction = 0.0
        self._start = time.monotonic()

    def take(self, message: Mapping[str, Any]) -> JobProgress:
        """Take one message of the worker and return where the job is."""
        name = str(message["stage"])[:200]
        if "note" in message:
            self._notes[name] = str(message["note"])[:500]
        else:
            total = max(float(message["total"]), 1e-9)
            self._stages[name] = (min(float(message["done"]), total), total)
            self._now = name
            self._fraction = max(self._fraction, self._measure())
        return self.progress()

    def progress(self) -> JobProgress:
        """Return where the job is."""
        left = None
        if self._fraction > _SURE:
            spent = time.monotonic() - self._start
            left = round(spent / self._fraction * (1 - self._fraction), 1)
        shown = list(self._stages.items())[-40:]
        return JobProgress(
            fraction=round(self._fraction, 4),
            stage=self._now,
            note=self._notes.get(self._now, ""),
            seconds_left=left,
            stages=tuple(StageProgress(name=n, done=d, total=t) for n, (d, t) in shown),
        )

    def _entry(self, name: str) -> str:
        if name in self._weights:
            return name
        return next((e for e in self._weights if name.startswith(f"{e} ")), name)

    def _measure(self) -> float:
        """Weigh what is done; named stages before the newest that never came do not count."""
        seen: dict[str, list[float]] = {}
        for name, (done, total) in self._stages.items():
            seen.setdefault(self._entry(name), []).append(done / total)
        current = self._entry(self._now)
        order = list(self._weights)
        at = order.index(current) if current in order else -1
        whole = finished = 0.0
        for entry in {**self._weights, **dict.fromkeys(seen, 0.0)}:
            weight = self._weights.get(entry, _OTHER)
            named = entry in order
            passed = order.index(entry) < at if named else entry != current
            if entry not in seen and passed:
                continue
            shares = seen.get(entry, [0.0])
            share = 1.0 if passed else sum(shares) / len(shares)
            whole += weight
            finished += weight * share
        return min(finished / whole, 1.0) if whole else 0.0
