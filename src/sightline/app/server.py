"""The app's server: one ASGI application on one address, with the page, the API and the jobs."""

import contextlib
import os
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from sightline import __version__
from sightline.app.api import add_api
from sightline.app.gate import API, Access, Gate, is_loopback
from sightline.app.jobs.manager import Jobs
from sightline.app.jobs.request import JobLimits
from sightline.app.jobs.uploads import UploadLimits
from sightline.app.sessions import Sessions
from sightline.errors import InputError

_PORTS = range(7860, 7960)
_KEEP_ALIVE = 60
"""Seconds that an idle connection stays open: longer than clients keep theirs (5 s in many, as in the
server by default), or a request may meet a connection that is just being closed."""
_START = "<!doctype html><title>sightline</title><p>sightline is running. API: "


@dataclass(frozen=True, slots=True, kw_only=True)
class AppSettings:
    """How the app is started.

    Attributes:
        root: Folder of all jobs.
        models: Folder of weights.
        host: Address to listen to.
        port: Port, or None for a free one.
        open_browser: Whether to show the page.
        names: Further names of this machine, for other hosts than loopback.
        uploads: Bounds on what users send.
        jobs: Bounds on what is taken on.
    """

    root: Path = Path("outputs")
    models: Path = Path("models")
    host: str = "127.0.0.1"
    port: int | None = None
    open_browser: bool = True
    names: tuple[str, ...] = ()
    uploads: UploadLimits = field(default_factory=UploadLimits)
    jobs: JobLimits = field(default_factory=JobLimits)


@dataclass(frozen=True)
class Context:
    """What the page needs."""

    jobs: Jobs
    sessions: Sessions
    access: Access


Mount = Callable[[FastAPI, Context], FastAPI]
"""Adds the page to the application."""


def stay_offline() -> None:
    """Switch off what libraries would tell their makers; call it before they are imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["FASTAPI_OTEL_AUTO_CONFIGURE"] = "false"
    os.environ["OTEL_SDK_DISABLED"] = "true"
    os.environ["DO_NOT_TRACK"] = "1"


def create_app(context: Context, mount: Mount | None = None) -> FastAPI:
    """Return the application; it closes the jobs when it shuts down.

    Args:
        context: The jobs and who may come in.
        mount: Adds the page at ``/``.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        context.jobs.close()

    app = FastAPI(
        title="sightline",
        version=__version__,
        description="Photos and video into 3D: the jobs of the command line over HTTP.",
        openapi_url=f"{API}/openapi.json",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    add_api(app, context.jobs, context.sessions)
    app.add_middleware(Gate, access=context.access, sessions=context.sessions)
    if mount is not None:
        return mount(app, context)

    @app.get("/", include_in_schema=False)
    def start() -> HTMLResponse:
        return HTMLResponse(f'{_START}<a href="{API}/openapi.json">{API}</a></p>')

    return app


def open_context(settings: AppSettings) -> Context:
    """Open the jobs of the root folder, and decide who may come in.

    Raises:
        InputError: If another server works in the root folder.
    """
    jobs = Jobs(
        settings.root,
        models=settings.models,
        upload_limits=settings.uploads,
        limits=settings.jobs,
    )
    token = None if is_loopback(settings.host) else secrets.token_urlsafe(24)
    access = Access(
        host=settings.host,
        token=token,
        names=settings.names,
        upload_bytes=settings.uploads.file_bytes,
    )
    return Context(jobs=jobs, sessions=Sessions(jobs.own), access=access)


def serve(settings: AppSettings, mount: Mount | None = None) -> None:
    """Serve until Ctrl-C.

    Raises:
        InputError: If the port is taken, or another server works in the root folder.
    """
    stay_offline()
    listener = _listen(settings.host, settings.port)
    with contextlib.closing(listener):
        context = open_context(settings)
        try:
            app = create_app(context, mount)
            _say_hello(context, settings, listener.getsockname()[1])
            config = uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=2,
                timeout_keep_alive=_KEEP_ALIVE,
            )
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            context.jobs.close()


def _say_hello(context: Context, settings: AppSettings, port: int) -> None:
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::", "") else settings.host
    address = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
    key = context.sessions.key_of(context.sessions.home)
    token = context.access.token
    own = f"{address}?key={key}" + ("" if token is None else f"&token={token}")
    sys.stdout.write(f"{own}\n")
    sys.stdout.flush()
    sys.stderr.write("the address above is yours: keep it to yourself; stop with Ctrl-C\n")
    if token is not None:
        sys.stderr.write(f"for others: {address}?token={token}\n")
    if settings.open_browser:
        opener = threading.Timer(1.0, webbrowser.open, args=(own,))
        opener.daemon = True
        opener.start()


def _listen(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens; on a free port where none is asked for."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reason = ""
    for number in [port] if port is not None else [*_PORTS, 0]:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, number))
            listener.listen(512)
        except (OSError, OverflowError) as error:
            listener.close()
            reason = str(error)
            continue
        return listener
    raise InputError(
        f"cannot listen to {host}, port {port}: {reason}; choose another --port or --host"
    )
