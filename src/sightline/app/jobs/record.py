"""One job as plain values: what ``job.json`` holds and what the HTTP API shows."""

import dataclasses
import datetime
import json
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sightline.errors import InputError
from sightline.io.atomic import atomic_write_text

State = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
ENDED: tuple[State, ...] = ("done", "failed", "cancelled", "interrupted")
RECORD = "job.json"
FORMAT = "sightline-job"
_ID = re.compile(r"\d{8}T\d{6}-[0-9a-f]{16}")
_MOST_BYTES = 4 << 20


def new_id() -> str:
    """Return an id that sorts by time and cannot be guessed."""
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(8)}"


def is_id(text: str) -> bool:
    """Tell whether a text has the form of a job's id (and so is no path)."""
    return _ID.fullmatch(text) is not None


def now() -> str:
    """Return the time as ``job.json`` writes it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageProgress:
    """How far one stage is."""

    name: str
    done: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """How far a job is."""

    fraction: float = 0.0
    """Of the whole job, from the weights of its stages; it never goes back."""
    stage: str = ""
    """The stage at work."""
    note: str = ""
    """Live numbers of that stage, such as its loss."""
    seconds_left: float | None = None
    stages: tuple[StageProgress, ...] = ()
    """Every stage so far, in the order in which they began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job at one moment; every change makes a new record with the next ``version``."""

    id: str
    owner: str
    kind: str
    title: str
    options: dict[str, Any]
    """What was asked for, by the names of the command line."""
    inputs: tuple[str, ...] = ()
    """Files in ``inputs/``, below the job's folder."""
    files: dict[str, str] = field(default_factory=dict)
    """Option -> file or folder of the job that it was given, relative to the job's folder."""
    weights: dict[str, str] = field(default_factory=dict)
    """Option -> name of weights of the server."""
    scene: str | None = None
    """Id of the job whose result this one works on."""
    command: str = ""
    """The command line that does the same."""
    lane: str = "cpu"
    """The queue: one job of a lane runs at a time."""
    state: State = "queued"
    created: str = ""
    started: str | None = None
    ended: str | None = None
    attempts: int = 0
    exit_code: int | None = None
    error: str | None = None
    """What the user is told, one sentence."""
    advice: tuple[dict[str, Any], ...] = ()
    """Options that would fit, after the machine's memory did not suffice."""
    memory: dict[str, Any] = field(default_factory=dict)
    """The estimate before the start, in bytes: ``need`` and ``free``."""
    result: dict[str, Any] = field(default_factory=dict)
    """What the verb printed as JSON; paths are relative to the job's folder."""
    progress: JobProgress = JobProgress()
    resumable: bool = False
    """Whether what is finished is kept when it is started again."""
    version: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.state in ENDED

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self)


def write_job(folder: Path, job: Job) -> None:
    """Write ``job.json`` whole."""
    content = {"format": FORMAT, "format_version": 1, **job.as_dict()}
    atomic_write_text(folder / RECORD, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def read_job(folder: Path) -> Job:
    """Read ``job.json``.

    Raises:
        InputError: If it is missing, damaged, or of another folder.
    """
    file = folder / RECORD
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise InputError(f"{file} is larger than {_MOST_BYTES} bytes; it is not a job's")
        plain = json.loads(file.read_text(encoding="utf-8"))
        if plain.pop("format") != FORMAT or plain.pop("format_version") != 1:
            raise InputError(f"{file} is not a job of this version; remove the folder")
        progress = plain.pop("progress")
        stages = tuple(StageProgress(**stage) for stage in progress.pop("stages"))
        plain["progress"] = JobProgress(**progress, stages=stages)
        plain["inputs"], plain["advice"] = tuple(plain["inputs"]), tuple(plain["advice"])
        job = Job(**plain)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({error}); remove the folder") from error
    if job.id != folder.name:
        raise InputError(f"{file} belongs to the job {job.id}; move it back")
    return job
