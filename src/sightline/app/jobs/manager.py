"""Jobs from submission to result: what the HTTP API and the page call.

Every job is a folder below the root, and ``job.json`` in it says all there is to know. The folders
are read when the server starts: what was queued is queued again, what was running goes on where
its verb can, and is marked as interrupted where it cannot.
"""

import contextlib
import dataclasses
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sightline.app.jobs.board import Board
from sightline.app.jobs.kinds import Kind, Made, find_kind
from sightline.app.jobs.lane import Lane, memory_of, settle_run
from sightline.app.jobs.memory import MemoryEstimate, estimate
from sightline.app.jobs.record import RECORD, Job, JobProgress, new_id, now
from sightline.app.jobs.request import Busy, JobLimits, Request, check_shape
from sightline.app.jobs.results import Result, list_results
from sightline.app.jobs.staging import (
    OUTPUT,
    Found,
    check_kinds,
    command_of,
    made_below,
    make_folder,
)
from sightline.app.jobs.uploads import UploadLimits, Uploads, kind_of
from sightline.app.jobs.weights import Weights
from sightline.app.jobs.words import check_options
from sightline.errors import InputError
from sightline.run import file_lock

_MOST_ATTEMPTS = 3
"""Starts of a job after which a server that starts does not try it again by itself."""
_MOST_LOG = 20_000


class Jobs:
    """All jobs of one root folder. Every method may be called from any thread.

    Attributes:
        root: The folder of all jobs.
        own: The server's own files, below the root.
        uploads: What users have sent.
        weights: The server's weights.
        limits: What the server takes on.
    """

    def __init__(
        self,
        root: Path,
        *,
        models: Path | None = None,
        upload_limits: UploadLimits | None = None,
        limits: JobLimits | None = None,
    ) -> None:
        """Open a root folder, which is made where it is missing, and go on with what waits there.

        Raises:
            InputError: If another server works in it.
        """
        self.root = root.resolve()
        self.own = self.root / ".sightline"
        self.own.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._empty = self.own / "empty"
        self._empty.mkdir(exist_ok=True)
        self.limits = limits or JobLimits()
        self._held = contextlib.ExitStack()
        self._held.enter_context(file_lock(self.own / "lock", self.root))
        self.uploads = Uploads(self.own / "uploads", upload_limits or UploadLimits())
        self.weights = Weights(models or Path("models"))
        self.board = Board(self.root, self.weights.folder)
        self._lanes: dict[str, Lane] = {}
        for job in self.board.read():
            self._take_up(job)

    # -- what users ask for ---------------------------------------------------------------------

    def submit(self, owner: str, request: Request) -> Job:
        """Check a request, put its files in place and queue it.

        Raises:
            InputError: If something in it is wrong.
            NotFound: If it names a job that the user does not have.
            Busy: If too many jobs wait.
            OutOfMemoryError: If it is estimated not to fit, unless ``force`` is set.
        """
        kind = find_kind(request.kind)
        options = check_options(kind, request.options)
        check_shape(kind, request, self.limits.job_files)
        self._check_room(owner)
        kind.check(options, list(request.files))
        scene = self._scene(owner, request, kind)
        positional = [self._find(owner, text) for text in request.inputs]
        roles = {
            role: [self._find(owner, text) for text in texts]
            for role, texts in request.files.items()
        }
        check_kinds("inputs", kind.inputs, positional)
        for role, found in roles.items():
            check_kinds(role, kind.roles[role].kinds, found)
        guess = estimate(kind.name, options, [one.path for one in positional], scene)
        if not request.force:
            guess.require()
        job = Job(
            id=new_id(),
            owner=owner,
            kind=kind.name,
            title=_title(request.title, kind, positional),
            options=options,
            scene=request.scene,
            lane=_lane_of(kind, options),
            created=now(),
            resumable=kind.resumable,
            memory=guess.as_dict(),
        )
        folder = self.root / job.id
        try:
            job = make_folder(folder, job, kind, positional, roles)
            job = self.board.put(job)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._queue(job)
        return job

    def estimate(self, owner: str, request: Request) -> MemoryEstimate:
        """Return how much memory a request would take, without starting it.

        Raises:
            InputError: If something in it is wrong.
            NotFound: If it names a job that the user does not have.
        """
        kind = find_kind(request.kind)
        options = check_options(kind, request.options)
        found = [self._find(owner, text).path for text in request.inputs]
        return estimate(kind.name, options, found, self._scene(owner, request, kind))

    def get(self, owner: str, id: str) -> Job:
        """Return a user's job as it is now.

        Raises:
            NotFound: If the user has none of that id.
        """
        return self.board.get(owner, id)

    def jobs_of(self, owner: str) -> list[Job]:
        """Return a user's jobs, newest first."""
        mine = [job for job in self.board.all() if job.owner == owner]
        return sorted(mine, key=lambda job: (job.created, job.id), reverse=True)

    def position(self, job: Job) -> int | None:
        """Return how many jobs are before a queued one, None where it does not wait."""
        with self.board.changed:
            lane = self._lanes.get(job.lane)
            if lane is None or job.id not in lane.waiting:
                return None
            return lane.waiting.index(job.id) + (lane.current is not None)

    def cancel(self, owner: str, id: str) -> Job:
        """Stop a job that waits or runs; what is finished of it is kept.

        Raises:
            NotFound: If the user has none of that id.
        """
        with self.board.changed:
            job = self.board.get(owner, id)
            lane = self._lanes.get(job.lane)
            if lane is None or job.has_ended:
                return job
            if id in lane.waiting:
                lane.waiting.remove(id)
                text = "cancelled before it began"
                return self.board.end(job, "cancelled", exit_code=3, error=text)
            lane.cancel(id)
            return self.board.get(owner, id)

    def resume(self, owner: str, id: str, options: Mapping[str, Any] | None = None) -> Job:
        """Queue an ended job again, in its own folder; see ``Kind.resumable``.

        Args:
            owner: The user.
            id: Of the job.
            options: Changed options, for kinds that continue (a further step of a probe).

        Raises:
            NotFound: If the user has none of that id.
            Busy: If it has not ended, or too many jobs wait.
            InputError: If options are given and the kind does not continue, or they are wrong.
        """
        self._check_room(owner)
        with self.board.changed:
            job = self.board.get(owner, id)
            kind = find_kind(job.kind)
            if not job.has_ended:
                raise Busy(f"job {id} has not ended; cancel it first")
            if options and not kind.continues:
                raise InputError(f"{kind.name} keeps its options; submit a new job")
            if job.state == "done" and not options:
                raise InputError(f"job {id} is done; there is nothing left of it to do")
            wanted = check_options(kind, {**job.options, **(options or {})})
            kind.check(wanted, [*job.files, *job.weights])
            job = dataclasses.replace(
                job,
                options=wanted,
                state="queued",
                error=None,
                exit_code=None,
                advice=(),
                started=None,
                ended=None,
                progress=JobProgress(),
                result={},
            )
            job = self.board.put(job, command=command_of(job, kind))
            self._queue(job)
            return job

    def delete(self, owner: str, id: str) -> None:
        """Remove a job that has ended, with all its files.

        Raises:
            NotFound: If the user has none of that id.
            Busy: If it, or a job that works on it, has not ended.
        """
        with self.board.changed:
            job = self.board.get(owner, id)
            at_work = [j.id for j in self.board.all() if id in (j.id, j.scene) and not j.has_ended]
            if at_work:
                raise Busy(f"job {at_work[0]} has not ended; cancel it first")
            self.board.remove(job.id)
        folder = self.root / job.id
        # Its record first: a removal that is cut short leaves no job behind.
        (folder / RECORD).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def results(self, owner: str, id: str) -> dict[str, Result]:
        """Return the files of a job's output that its owner may fetch, by name.

        Raises:
            NotFound: If the user has none of that id.
        """
        return list_results(self.root / self.board.get(owner, id).id / OUTPUT)

    def folder(self, owner: str, id: str) -> Path:
        """Return a job's folder.

        Raises:
            NotFound: If the user has none of that id.
        """
        return self.root / self.board.get(owner, id).id

    def run_folder(self, owner: str, id: str, what: Made = "scene") -> Path:
        """Return the folder that a job has made, or is making.

        Args:
            owner: The user.
            id: Of the job.
            what: What is wanted of it.

        Raises:
            NotFound: If the user has none of that id.
            InputError: If the job makes none, or has not begun one yet.
        """
        job = self.board.get(owner, id)
        path = made_below(self.root / job.id, what)
        if path is None or job.kind.startswith("train"):
            raise InputError(f"job {job.id} has no {what} (yet); give a job that has made one")
        return path

    def log(self, owner: str, id: str) -> str:
        """Return the end of what the verb told on stderr.

        Raises:
            NotFound: If the user has none of that id.
        """
        file = self.folder(owner, id) / "stderr.txt"
        try:
            with file.open("rb") as stream:
                stream.seek(max(0, file.stat().st_size - _MOST_LOG))
                text = stream.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
        return self.board.plain(text, id)

    def trained_weights(self, owner: str) -> dict[str, str]:
        """Return what a user's finished trainings made: reference -> what people read."""
        found = {}
        for job in self.jobs_of(owner):
            if job.state != "done" or not job.kind.startswith("train-"):
                continue
            for path in job.result.get("exports", ()):
                name = str(path).removeprefix(f"{OUTPUT}/")
                shown = f"{Path(name).name} of {job.title} ({job.created[:16]})"
                found[f"{job.id}/{name}"] = shown
        return found

    # -- watching -------------------------------------------------------------------------------

    def watch(self, id: str, callback: Callable[[], object]) -> Callable[[], None]:
        """Call ``callback`` (from any thread, briefly) at every change; return how to stop that."""
        return self.board.watch(id, callback)

    def updates(self, owner: str, id: str) -> Iterator[Job]:
        """Yield a job whenever it has changed, until it has ended or the server stops.

        Raises:
            NotFound: If the user has none of that id.
        """
        version = -1
        while True:
            job = self.board.wait(owner, id, version, 10.0)
            if job.version > version:
                yield job
            version = job.version
            if job.has_ended or self.board.closed:
                return

    # -- the machine ----------------------------------------------------------------------------

    def loaded(self) -> list[dict[str, Any]]:
        """Return which processes are alive, and which networks stay loaded in them."""
        with self.board.changed:
            return [
                {
                    "lane": lane.name,
                    "loaded": list(lane.worker.loaded),
                    "busy": lane.current is not None,
                    "memory": memory_of(lane.worker.pid),
                }
                for lane in self._lanes.values()
                if lane.worker.alive
            ]

    def unload(self) -> None:
        """End processes that have no work; the networks in them leave the memory."""
        with self.board.changed:
            for lane in self._lanes.values():
                if lane.current is None:
                    lane.worker.stop()

    def close(self) -> None:
        """Stop what runs; the next server goes on with it."""
        self.board.close()
        for lane in self._lanes.values():
            lane.join()
        self._held.close()

    # -- inside ---------------------------------------------------------------------------------

    def _check_room(self, owner: str) -> None:
        if self.board.closed:
            raise Busy("the server is stopping; try again when it is back")
        waiting = [job.owner for job in self.board.all() if job.state == "queued"]
        mine = waiting.count(owner)
        if mine >= self.limits.owner_queued or len(waiting) >= self.limits.queued:
            raise Busy(
                f"{len(waiting)} jobs wait, {mine} of them yours; wait for one to end, or cancel one"
            )

    def _scene(self, owner: str, request: Request, kind: Kind) -> Path | None:
        if request.scene is None:
            return None
        job = self.board.get(owner, request.scene)
        if not job.has_ended:
            raise Busy(f"job {job.id} has not ended; wait for it")
        return self.run_folder(owner, job.id, kind.works_on)

    def keep_weights(self, owner: str, id: str, folder: str) -> str:
        """Copy a user's upload to the server's weights and return its name there.

        Args:
            owner: The user.
            id: Of the upload.
            folder: One of `weights.FOLDERS`.

        Raises:
            NotFound: If the user has no such upload.
            InputError: If it is no file of weights, or one of that name is there already.
        """
        upload = self.uploads.get(owner, id)
        if upload.kind != "weights":
            raise InputError(f"{upload.name} is a {upload.kind} file, no weights; send another")
        return self.weights.keep(folder, Path(upload.name).name, self.uploads.path(upload))

    def _find(self, owner: str, text: str) -> Found:
        """Return the file behind a reference; names are only ever looked up, never joined."""
        if text.startswith("weights:"):
            name = text.removeprefix("weights:")
            return Found(path=self.weights.find(name), name=name, kind="weights", shared=True)
        id, slash, name = text.partition("/")
        if not slash:
            upload = self.uploads.get(owner, text)
            return Found(path=self.uploads.path(upload), name=upload.name, kind=upload.kind)
        results = self.results(owner, id)
        if name not in results:
            raise InputError(f"job {id[:40]} has no result {name[:80]!r}; look at its results")
        path = results[name].path
        kind = kind_of(path, name, self.uploads.limits.pixels)
        # Masks are matched by the names of pictures, not by the folders that a verb put them in.
        return Found(path=path, name=Path(name).name, kind=kind)

    def _queue(self, job: Job) -> None:
        with self.board.changed:
            lane = self._lanes.get(job.lane)
            if lane is None:
                lane = Lane(job.lane, self.board, self.weights, self._empty)
                self._lanes[job.lane] = lane
            lane.add(job.id)

    def _take_up(self, job: Job) -> None:
        """Go on with a job of an earlier server."""
        if job.state == "queued":
            self._queue(job)
        elif job.state == "running":
            settle_run(self.root / job.id, "failed")
            if job.resumable and job.attempts < _MOST_ATTEMPTS:
                self._queue(self.board.put(job, state="queued", progress=JobProgress()))
            else:
                text = "the server stopped while it ran; resume it"
                self.board.end(job, "interrupted", error=text)


def _lane_of(kind: Kind, options: Mapping[str, Any]) -> str:
    if kind.lane != "device":
        return kind.lane
    wanted = options.get("device", "auto")
    return default_device() if wanted == "auto" else str(wanted)


def default_device() -> str:
    """Return where ``--device auto`` works on this machine."""
    if sys.platform == "linux" and not Path("/dev/nvidiactl").exists():
        return "cpu"  # known without loading torch
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _title(given: str | None, kind: Kind, inputs: list[Found]) -> str:
    if given:
        return "".join(c for c in given if c.isprintable())[:120]
    if not inputs:
        return kind.title
    more = f" and {len(inputs) - 1} more" if len(inputs) > 1 else ""
    return f"{inputs[0].name}{more}"


def new_owner() -> str:
    """Return the id of a new user."""
    return secrets.token_hex(16)
