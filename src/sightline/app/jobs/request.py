"""What users ask for, what may be asked, and what they are told when it cannot be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sightline.app.jobs.kinds import Kind
from sightline.errors import InputError, SightlineError


class NotFound(SightlineError):
    """There is no such job, or it is another user's."""


class Busy(SightlineError):
    """The request is fine, but not now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLimits:
    """Bounds on what one server takes on.

    Attributes:
        owner_queued: Jobs of one user that wait.
        queued: Jobs of all users that wait.
        job_files: Files of one job.
    """

    owner_queued: int = 50
    queued: int = 1000
    job_files: int = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a user wants to be run.

    Attributes:
        kind: A name of `kinds.KINDS`.
        options: Plain options by the names of the command line.
        inputs: References to positional inputs.
        files: Role -> references.
        scene: Id of the job whose run is worked on.
        title: For people; made up where it is absent.
        force: Start although the memory is estimated not to suffice.

    A reference is the id of an upload, ``weights:NAME`` of the server's weights, or
    ``JOB/NAME`` for a result of an own job.
    """

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[str] = ()
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    scene: str | None = None
    title: str | None = None
    force: bool = False


def check_shape(kind: Kind, request: Request, job_files: int) -> None:
    """Compare what is given with what the kind takes, before any file is looked at.

    Raises:
        InputError: If there is too much or too little of something.
    """
    count = len(request.inputs)
    if kind.scene == "no" and request.scene is not None:
        raise InputError(f"{kind.name} takes no scene; leave it out")
    if kind.scene == "needed" and request.scene is None:
        raise InputError(
            f"{kind.name} needs a {kind.works_on}: under scene, the id of a job that has made one"
        )
    if kind.scene == "optional" and (request.scene is None) == (count == 0):
        raise InputError(f"{kind.name} needs a scene or one file; give one of them")
    if count and not kind.inputs:
        raise InputError(f"{kind.name} takes no inputs; leave them out")
    most = min(kind.most, job_files)
    fewest = kind.fewest if kind.inputs and kind.scene == "no" else 0
    if not fewest <= count <= most:
        amount = "one file" if most == 1 else f"{fewest} to {most} files"
        remedy = "add some" if count < fewest else "leave some out"
        raise InputError(
            f"{kind.name} takes {amount} ({', '.join(kind.inputs)}), got {count or 'none'}; {remedy}"
        )
    for role, texts in request.files.items():
        if role not in kind.roles:
            known = ", ".join(kind.roles) or "none"
            raise InputError(f"{kind.name} takes no file for {role[:60]!r}; it has {known}")
        most_files = 1 if kind.roles[role].shape == "file" else job_files
        if not 1 <= len(texts) <= most_files:
            amount = "one file" if most_files == 1 else f"1 to {most_files} files"
            raise InputError(f"{role} takes {amount}, got {len(texts)}")
