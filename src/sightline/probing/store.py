"""Results on disk: immutable, found by a digest of everything that they depend on.

A result is a folder ``KIND/KEY`` that appears all at once, with ``task.json`` in it. Nothing is
ever changed or replaced, so an interrupted, repeated or extended grid redoes nothing.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from sightline.errors import FileFormatError, InputError
from sightline.io.reading import read_json

TASK_FILE = "task.json"
VERSIONS = {
    "scene": 2,
    "cloud": 2,
    "features": 1,
    "probe": 2,
    "video": 2,
    "probe3d": 1,
    "maps": 1,
}
"""Kind of task -> version of what it computes; raise it when results change."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One piece of work, named by what it depends on.

    Attributes:
        kind: A key of `VERSIONS`.
        params: Plain values that decide the result, together with the inputs.
        inputs: Tasks whose results are read.
        label: For people; not part of the key.
    """

    kind: str
    params: Mapping[str, Any]
    inputs: tuple["Task", ...] = ()
    label: str = field(default="", compare=False)

    @cached_property
    def key(self) -> str:
        """A digest of kind, version, parameters and the inputs' keys."""
        material = [self.kind, VERSIONS[self.kind], dict(self.params), [t.key for t in self.inputs]]
        text = json.dumps(material, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def __hash__(self) -> int:
        """Hash by key."""
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        """Compare by key."""
        return isinstance(other, Task) and other.key == self.key


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of results."""

    root: Path

    def path(self, task: Task) -> Path:
        """Return where a result is, or will be."""
        return self.root / task.kind / task.key

    def done(self, task: Task) -> bool:
        """Say whether a result is there."""
        return (self.path(task) / TASK_FILE).is_file()

    def summary(self, task: Task) -> dict[str, Any]:
        """Return what a finished task said of itself.

        Raises:
            FileFormatError: If its ``task.json`` is damaged.
        """
        path = self.path(task) / TASK_FILE
        data = read_json(path)
        if not isinstance(data, dict):
            raise FileFormatError(f"{path} holds no object; remove its folder and run again")
        return data

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store for one grid; left-overs of killed runs are removed.

        The system releases the lock when the process ends, however it ends.

        Raises:
            InputError: If another run holds it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            try:
                _lock(file)
            except OSError as error:
                raise InputError(
                    f"another run works in {self.root.parent}; wait for it or choose another -o"
                ) from error
            self._sweep()
            try:
                yield
            finally:
                self._sweep()

    def _sweep(self) -> None:
        for left in self.root.glob("*/.*.tmp*"):
            shutil.rmtree(left, ignore_errors=True)


def _lock(file: IO[str]) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
