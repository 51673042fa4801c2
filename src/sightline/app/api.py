"""The HTTP API: jobs, uploads and results, for the page and for programs.

Its OpenAPI description is at ``/api/v1/openapi.json``. Errors are ``{"error": SENTENCE}``, with
``"advice"`` (options that would fit) where memory does not suffice.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Security
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response, StreamingResponse
from fastapi.security import APIKeyHeader
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from sightline import __version__
from sightline.app.gate import API
from sightline.app.jobs.kinds import KINDS, Kind
from sightline.app.jobs.manager import Jobs, default_device
from sightline.app.jobs.record import Job
from sightline.app.jobs.request import Busy, NotFound
from sightline.app.jobs.request import Request as JobRequest
from sightline.app.jobs.results import INLINE
from sightline.app.jobs.staging import INPUTS
from sightline.app.jobs.uploads import TooLarge
from sightline.app.jobs.words import json_schema
from sightline.app.sessions import KEY_HEADER, TOKEN_HEADER, Sessions
from sightline.errors import InputError, OutOfMemoryError, SightlineError
from sightline.hub.catalogue import CATALOGUE
from sightline.run import free_memory_bytes

_LONGEST_WAIT = 30.0
_SANDBOX = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; script-src 'unsafe-inline' blob:; "
    "style-src 'unsafe-inline'; img-src data: blob:; media-src data: blob:; worker-src blob:; "
    "connect-src data: blob:"
)
"""A page among the results runs apart from the app: without its cookies, without the network."""
_Reference = Annotated[str, Field(max_length=400)]


class ErrorAnswer(BaseModel):
    """What went wrong, in one sentence for people."""

    error: str
    advice: list[dict[str, JsonValue]] = []


class SessionAnswer(BaseModel):
    """The key of a new user; it owns what is sent and run with it."""

    key: str


class UploadAnswer(BaseModel):
    """A file that was sent."""

    id: str
    name: str
    kind: Literal["picture", "video", "weights", "text", "scene"]
    size: int


class ResultAnswer(BaseModel):
    """A file that a job has made."""

    name: str
    size: int
    media_type: str
    url: str


class StageAnswer(BaseModel):
    """How far one stage is."""

    name: str
    done: float
    total: float


class ProgressAnswer(BaseModel):
    """How far a job is."""

    fraction: float
    stage: str
    note: str
    seconds_left: float | None
    stages: list[StageAnswer]


class JobAnswer(BaseModel):
    """A job at one moment; ``version`` grows with every change."""

    id: str
    kind: str
    title: str
    state: Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
    options: dict[str, JsonValue]
    scene: str | None
    command: str
    position: int | None
    created: str
    started: str | None
    ended: str | None
    attempts: int
    exit_code: int | None
    error: str | None
    advice: list[dict[str, JsonValue]]
    memory: dict[str, JsonValue]
    result: dict[str, JsonValue]
    progress: ProgressAnswer
    resumable: bool
    version: int


class SubmitBody(BaseModel):
    """What to run. A reference is an upload's id, ``weights:NAME``, or ``JOB_ID/RESULT``."""

    model_config = ConfigDict(extra="forbid")
    kind: str = Field(max_length=80, json_schema_extra={"enum": list(KINDS)})
    options: dict[str, JsonValue] = Field(default={}, description="by the command line's names")
    inputs: list[_Reference] = Field(default=[], max_length=5000)
    files: dict[str, list[_Reference]] = Field(default={}, description="option: references")
    scene: Annotated[str, Field(max_length=80)] | None = Field(
        default=None, description="id of the job whose scene is worked on"
    )
    title: Annotated[str, Field(max_length=120)] | None = None
    force: bool = Field(default=False, description="start although memory may not suffice")

    def request(self) -> JobRequest:
        """Return it as the jobs take it."""
        return JobRequest(
            kind=self.kind,
            options=self.options,
            inputs=self.inputs,
            files=self.files,
            scene=self.scene,
            title=self.title,
            force=self.force,
        )


class ResumeBody(BaseModel):
    """Changed options, for kinds that continue step by step."""

    model_config = ConfigDict(extra="forbid")
    options: dict[str, JsonValue] = {}


class EstimateAnswer(BaseModel):
    """Memory that a job would take, in bytes, and what would fit."""

    need: int
    free: int | None
    views: int
    fits: bool
    advice: list[dict[str, JsonValue]]


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in (
        (400, "something in the request is wrong"),
        (401, "the key or the server's token is missing"),
        (403, "refused: foreign host or foreign page"),
        (404, "there is none, or it is another user's"),
        (409, "not now: a queue, a job at work, or memory"),
        (413, "too large, or too many"),
        (422, "the request has not the described form"),
    )
}

_key = APIKeyHeader(name=KEY_HEADER, auto_error=False, description="a user's key")
_token = APIKeyHeader(name=TOKEN_HEADER, auto_error=False, description="the server's token")


def _owner(
    request: Request,
    _k: Annotated[str | None, Security(_key)] = None,
    _t: Annotated[str | None, Security(_token)] = None,
) -> str:
    owner = request.scope["state"].get("owner")
    if owner is None:
        raise HTTPException(401, f"send your key as {KEY_HEADER}; POST {API}/session gives one")
    return owner


Owner = Annotated[str, Depends(_owner)]
JobId = Annotated[str, InPath(max_length=80, description="id of a job")]


def add_api(app: FastAPI, jobs: Jobs, sessions: Sessions) -> None:
    """Add the API's routes and its way to answer errors."""
    add_errors(app)
    router = APIRouter(prefix=API, responses=_ERRORS)
    _add_machine(router, jobs, sessions)
    _add_uploads(router, jobs)
    _add_jobs(router, jobs)
    _add_watching(router, jobs)
    _add_results(router, jobs)
    app.include_router(router)


def _add_machine(router: APIRouter, jobs: Jobs, sessions: Sessions) -> None:
    @router.get("/health", tags=["server"])
    def health() -> dict[str, str]:
        """Tell that the server is there."""
        return {"status": "ok", "version": __version__}

    @router.post("/session", tags=["server"], status_code=201)
    def session() -> SessionAnswer:
        """Become a new user. Keep the key: what is sent and run with it is seen with it only."""
        return SessionAnswer(key=sessions.new_key())

    @router.get("/kinds", tags=["jobs"])
    def kinds(owner: Owner) -> list[dict[str, JsonValue]]:
        """List what can be run, with its options as JSON schemas."""
        return [describe(kind) for kind in KINDS.values()]

    @router.get("/machine", tags=["server"])
    def machine(owner: Owner) -> dict[str, JsonValue]:
        """Tell the device, the free memory, and which networks stay loaded."""
        free = free_memory_bytes()
        rows: Any = jobs.loaded()
        return {"device": default_device(), "free_memory": free, "workers": rows}

    @router.get("/weights", tags=["models"])
    def weights(owner: Owner) -> list[dict[str, JsonValue]]:
        """List the server's own weights; ``weights:NAME`` refers to one."""
        return jobs.weights.rows()

    @router.get("/models", tags=["models"])
    def models(owner: Owner) -> list[dict[str, JsonValue]]:
        """List published weights with their licences; ``models-download`` fetches one."""
        return [
            {
                "name": entry.name,
                "family": entry.family,
                "parameters": entry.parameters,
                "memory": entry.memory,
                "licence": entry.licence,
                "gated": entry.gated,
            }
            for entry in CATALOGUE.values()
        ]


def _add_uploads(router: APIRouter, jobs: Jobs) -> None:
    body = {"required": True, "content": {"application/octet-stream": {"schema": _BINARY}}}

    @router.post("/uploads", tags=["uploads"], status_code=201, openapi_extra={"requestBody": body})
    async def upload(
        request: Request,
        owner: Owner,
        name: Annotated[str, Query(max_length=400, description="name, with its suffix")],
    ) -> UploadAnswer:
        """Send one file: its bytes are the body of the request."""
        incoming = await run_in_threadpool(jobs.uploads.begin, owner, name)
        try:
            async for block in request.stream():
                if block:
                    await run_in_threadpool(incoming.write, block)
        except BaseException:
            jobs.uploads.abort(incoming)
            raise
        kept = await run_in_threadpool(jobs.uploads.finish, incoming)
        return UploadAnswer(**kept.as_dict())

    @router.get("/uploads", tags=["uploads"])
    def uploads(owner: Owner) -> list[UploadAnswer]:
        """List the files that wait for a job."""
        return [UploadAnswer(**one.as_dict()) for one in jobs.uploads.of(owner)]

    @router.delete("/uploads/{id}", tags=["uploads"], status_code=204)
    def remove_upload(owner: Owner, id: Annotated[str, InPath(max_length=80)]) -> None:
        """Remove a file; jobs that took it keep it."""
        jobs.uploads.remove(owner, id)


_BINARY = {"type": "string", "format": "binary"}


def _add_jobs(router: APIRouter, jobs: Jobs) -> None:
    @router.post("/jobs", tags=["jobs"], status_code=201)
    def submit(owner: Owner, body: SubmitBody) -> JobAnswer:
        """Queue a job."""
        return answer(jobs, jobs.submit(owner, body.request()))

    @router.post("/estimate", tags=["jobs"])
    def estimate(owner: Owner, body: SubmitBody) -> EstimateAnswer:
        """Estimate the memory of a job without starting it."""
        guess = jobs.estimate(owner, body.request())
        return EstimateAnswer(**guess.as_dict(), advice=guess.suggestions())

    @router.get("/jobs", tags=["jobs"])
    def list_jobs(
        owner: Owner,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    ) -> list[JobAnswer]:
        """List your jobs, newest first."""
        return [answer(jobs, job) for job in jobs.jobs_of(owner)[offset : offset + limit]]

    @router.post("/jobs/{id}/cancel", tags=["jobs"])
    def cancel(owner: Owner, id: JobId) -> JobAnswer:
        """Stop a job; what is finished of it is kept."""
        return answer(jobs, jobs.cancel(owner, id))

    @router.post("/jobs/{id}/resume", tags=["jobs"])
    def resume(owner: Owner, id: JobId, body: ResumeBody | None = None) -> JobAnswer:
        """Queue an ended job again; what is finished of it is kept where its verb can."""
        return answer(jobs, jobs.resume(owner, id, body.options if body else None))

    @router.delete("/jobs/{id}", tags=["jobs"], status_code=204)
    def delete(owner: Owner, id: JobId) -> None:
        """Remove an ended job with all its files."""
        jobs.delete(owner, id)


def _add_watching(router: APIRouter, jobs: Jobs) -> None:
    @router.get("/jobs/{id}", tags=["jobs"])
    async def get(
        owner: Owner,
        id: JobId,
        version: Annotated[int, Query(ge=-1, le=2**53, description="the one known")] = -1,
        wait: Annotated[float, Query(ge=0, le=_LONGEST_WAIT, description="seconds")] = 0.0,
    ) -> JobAnswer:
        """Tell how a job is; with ``wait``, as soon as it is newer than ``version``."""
        return answer(jobs, await next_version(jobs, owner, id, version, wait))

    @router.get(
        "/jobs/{id}/events",
        tags=["jobs"],
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def events(owner: Owner, id: JobId) -> StreamingResponse:
        """Stream a job's states as server-sent events until it has ended."""
        jobs.get(owner, id)
        return StreamingResponse(_events(jobs, owner, id), media_type="text/event-stream")


async def _events(jobs: Jobs, owner: str, id: str) -> AsyncIterator[str]:
    version = -1
    while True:
        try:
            job = await next_version(jobs, owner, id, version, 15.0)
        except NotFound:
            return  # deleted
        if job.version == version:
            yield ": still there\n\n"
        else:
            version = job.version
            yield f"event: job\ndata: {answer(jobs, job).model_dump_json()}\n\n"
        if job.has_ended or jobs.board.closed:
            return
        await asyncio.sleep(0.1)


async def next_version(jobs: Jobs, owner: str, id: str, version: int, wait: float) -> Job:
    """Return a job once it is newer than ``version``, or as it is after ``wait`` seconds."""
    job = jobs.get(owner, id)
    if wait <= 0 or job.version > version:
        return job
    changed = asyncio.Event()
    loop = asyncio.get_running_loop()
    stop = jobs.watch(id, lambda: loop.call_soon_threadsafe(changed.set))
    try:
        if jobs.get(owner, id).version <= version and not jobs.board.closed:
            async with asyncio.timeout(wait):
                await changed.wait()
    except TimeoutError:
        pass
    finally:
        stop()
    return jobs.get(owner, id)


def _add_results(router: APIRouter, jobs: Jobs) -> None:
    @router.get("/jobs/{id}/results", tags=["results"])
    def results(owner: Owner, id: JobId) -> list[ResultAnswer]:
        """List the files that a job has made."""
        found = jobs.results(owner, id)
        return [
            ResultAnswer(**one.as_dict(), url=f"{API}/jobs/{id}/results/{one.name}")
            for one in found.values()
        ]

    @router.get(
        "/jobs/{id}/results/{name:path}",
        tags=["results"],
        response_class=FileResponse,
        responses={200: {"content": {"application/octet-stream": {"schema": _BINARY}}}},
    )
    def download(
        owner: Owner,
        id: JobId,
        name: Annotated[str, InPath(max_length=1000)],
        inline: Annotated[bool, Query(description="show it, where a browser can")] = False,
    ) -> FileResponse:
        """Fetch one of the listed files."""
        found = jobs.results(owner, id).get(name)
        if found is None:
            raise NotFound(f"job {id} has no result of that name; look at its results")
        shown = inline and found.media_type in INLINE
        return FileResponse(
            found.path,
            media_type=found.media_type,
            filename=found.path.name,
            content_disposition_type="inline" if shown else "attachment",
            headers={"content-security-policy": _SANDBOX},
        )

    @router.get("/jobs/{id}/inputs", tags=["results"])
    def inputs(owner: Owner, id: JobId) -> list[str]:
        """Return the names of the files that a job was given, without those of options."""
        return [path.removeprefix(f"{INPUTS}/") for path in jobs.get(owner, id).inputs]

    @router.get("/jobs/{id}/log", tags=["results"])
    def log(owner: Owner, id: JobId) -> dict[str, str]:
        """Return the end of what the verb has told."""
        return {"log": jobs.log(owner, id)}


def answer(jobs: Jobs, job: Job) -> JobAnswer:
    """Return what a job's owner sees."""
    plain = job.as_dict()
    shown = {name: plain[name] for name in JobAnswer.model_fields if name != "position"}
    return JobAnswer(**shown, position=jobs.position(job))


def describe(kind: Kind) -> dict[str, Any]:
    """Return a kind with its options as plain values."""
    return {
        "name": kind.name,
        "title": kind.title,
        "inputs": list(kind.inputs),
        "scene": kind.scene,
        "required": list(kind.required),
        "options": {
            name: {"default": one.default, "help": one.text, "schema": json_schema(one)}
            for name, one in kind.options().items()
        },
        "files": {
            name: {"shape": role.shape, "kinds": list(role.kinds), "help": role.text}
            for name, role in kind.roles.items()
        },
    }


def add_errors(app: FastAPI) -> None:
    """Answer every error with one sentence."""

    def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, SightlineError)
        return _error(_status(error), str(error))

    def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        return _error(error.status_code, str(error.detail), error.headers)

    def form(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return _error(422, f"{where}: {first['msg']}")

    def gone(request: Request, error: Exception) -> Response:
        return _error(400, "the connection closed before the request was complete; send it again")

    def unknown(request: Request, error: Exception) -> Response:
        return _error(500, f"internal error, {type(error).__name__}; the server goes on")

    app.add_exception_handler(SightlineError, known)
    app.add_exception_handler(StarletteHTTPException, http)
    app.add_exception_handler(RequestValidationError, form)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, unknown)


def _status(error: SightlineError) -> int:
    for kind, status in ((NotFound, 404), (Busy, 409), (TooLarge, 413), (OutOfMemoryError, 409)):
        if isinstance(error, kind):
            return status
    return 400 if isinstance(error, InputError) else 500


def _error(
    status: int,
    sentence: str,
    headers: Mapping[str, str] | None = None,
    **more: Any,  # noqa: ANN401
) -> Response:
    # ASCII, because a sentence may quote what is no valid text.
    content = json.dumps({"error": sentence[:2000], **more})
    return Response(content, status, headers, media_type="application/json")
