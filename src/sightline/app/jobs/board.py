"""All jobs as they are now: in memory for who asks, on disk for the next server."""

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sightline.app.jobs.record import Job, JobProgress, State, is_id, now, read_job, write_job
from sightline.app.jobs.request import NotFound
from sightline.errors import InputError


class Board:
    """The jobs of a root folder; every method may be called from any thread.

    ``changed`` is notified of every change; its lock may be held over several calls.
    """

    def __init__(self, root: Path, models: Path) -> None:
        """Take the root folder, and the folder of weights, both absolute."""
        self.root = root
        self.changed = threading.Condition(threading.RLock())
        self.closed = False
        self._models = models
        self._jobs: dict[str, Job] = {}
        self._watchers: dict[str, set[Callable[[], object]]] = {}

    def read(self) -> list[Job]:
        """Take up the jobs of an earlier server, and return them, oldest first."""
        found = []
        for place in sorted(self.root.iterdir()):
            if not is_id(place.name) or not place.is_dir() or place.is_symlink():
                continue
            try:
                found.append(read_job(place))
            except InputError:
                continue  # not ours, or a submission that was cut short
        with self.changed:
            self._jobs |= {job.id: job for job in found}
        return found

    def folder(self, id: str) -> Path:
        """Return the folder of a job that is known to exist."""
        return self.root / id

    def get(self, owner: str, id: str) -> Job:
        """Return a user's job.

        Raises:
            NotFound: If the user has none of that id.
        """
        job = self._jobs.get(id)
        if job is None or job.owner != owner:
            shown = id if is_id(id) else "of that name"
            raise NotFound(f"there is no job {shown}; look at the list of your jobs")
        return job

    def now(self, id: str) -> Job:
        """Return a job that is known to exist."""
        return self._jobs[id]

    def all(self) -> list[Job]:
        """Return every user's jobs."""
        with self.changed:
            return list(self._jobs.values())

    def put(self, job: Job, **changes: Any) -> Job:  # noqa: ANN401
        """Enter a new state of a job, on disk too, and return it."""
        with self.changed:
            job = dataclasses.replace(job, **changes, version=job.version + 1)
            write_job(self.folder(job.id), job)
            self._enter(job)
            return job

    def end(self, job: Job, state: State, **changes: Any) -> Job:  # noqa: ANN401
        """Enter the end of a job."""
        return self.put(job, state=state, ended=now(), **changes)

    def advance(self, id: str, progress: JobProgress) -> None:
        """Enter where a job is, in memory only."""
        with self.changed:
            job = self._jobs[id]
            self._enter(dataclasses.replace(job, progress=progress, version=job.version + 1))

    def _enter(self, job: Job) -> None:
        self._jobs[job.id] = job
        self.changed.notify_all()
        for callback in list(self._watchers.get(job.id, ())):
            callback()

    def remove(self, id: str) -> None:
        """Forget a job; its folder is the caller's business."""
        with self.changed:
            del self._jobs[id]
            self._watchers.pop(id, None)

    def close(self) -> None:
        """Wake everybody who waits; nothing more will happen."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
            for watchers in list(self._watchers.values()):
                for callback in list(watchers):
                    callback()

    def watch(self, id: str, callback: Callable[[], object]) -> Callable[[], None]:
        """Call ``callback`` (from any thread, briefly) at every change; return how to stop that."""
        with self.changed:
            self._watchers.setdefault(id, set()).add(callback)

        def stop() -> None:
            with self.changed:
                watchers = self._watchers.get(id)
                if watchers is not None:
                    watchers.discard(callback)
                    if not watchers:
                        del self._watchers[id]

        return stop

    def wait(self, owner: str, id: str, version: int, timeout: float) -> Job:
        """Return a job once it is newer than ``version``, or as it is after ``timeout`` seconds.

        Raises:
            NotFound: If the user has none of that id.
        """
        end = time.monotonic() + timeout
        with self.changed:
            while True:
                job = self.get(owner, id)
                left = end - time.monotonic()
                if job.version > version or left <= 0 or self.closed:
                    return job
                self.changed.wait(left)

    def plain(self, text: str, id: str) -> str:
        """Take the server's paths out of a text."""
        folder = self.folder(id)
        for path in (folder / "inputs", folder / "files", folder):
            text = text.replace(f"{path}/", "").replace(str(path), ".")
        text = text.replace(f"{self._models}/", "models/").replace(f"{self.root}/", "")
        return text.replace(str(self.root), "the server's folder")
