"""Add the page, and the viewer of each run, to the server's application."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.errors import InputError, SightlineError

if TYPE_CHECKING:
    import gradio as gr
    from fastapi import FastAPI, Request

    from sightline.app.server import Context

_LONGEST = 600.0
"""Seconds that writing a viewer page may take."""
_ONE_AT_A_TIME = threading.Lock()


def mount_page(app: "FastAPI", context: "Context") -> "FastAPI":
    """Mount the tabs at ``/`` and the viewer pages at ``/runs/ID/viewer``."""
    # What Gradio keeps stays with the jobs, not in a folder that all users of the machine share.
    os.environ["GRADIO_TEMP_DIR"] = str(context.jobs.own / "gradio")
    import gradio as gr
    from fastapi import HTTPException, Request
    from fastapi.responses import FileResponse
    from starlette.middleware import Middleware

    from sightline.app.page.build import build_page
    from sightline.app.page.calls import PageCalls
    from sightline.app.page.look import page_options

    jobs = context.jobs

    def owner_of(request: "gr.Request | Request") -> str:
        inner = getattr(request, "request", request)
        owner = inner.scope["state"].get("owner")
        if owner is None:
            raise InputError("this browser has no key; load the page again and allow its cookie")
        return owner

    @app.get("/runs/{id}/viewer", include_in_schema=False)
    def viewer(request: Request, id: str, file: str | None = None) -> FileResponse:
        """Show the scene of a job, or one splat or point file among its results."""
        try:
            owner = owner_of(request)
        except InputError as error:
            raise HTTPException(401, str(error)) from error
        folder = jobs.folder(owner, id)
        if file is None:
            source, page = jobs.run_folder(owner, id), folder / "viewer.html"
        else:
            results = jobs.results(owner, id)
            if file not in results:
                raise InputError(f"job {id} has no result of that name; look at its results")
            source, page = results[file].path, folder / f"viewer-{Path(file).suffix[1:]}.html"
        write_in_child(source, page)
        headers = {"cache-control": "no-store"}
        return FileResponse(page, media_type="text/html; charset=utf-8", headers=headers)

    blocks = build_page(jobs, owner_of)
    events = {id: len(event.inputs) for id, event in blocks.fns.items() if event.fn is not None}
    guard = {"middleware": [Middleware(PageCalls, events=events)]}
    return gr.mount_gradio_app(app, blocks, path="/", app_kwargs=guard, **page_options())


def write_in_child(source: Path, page: Path) -> None:
    """Write a viewer page in a process of its own, which takes its memory with it.

    Raises:
        InputError: If there is nothing to show.
        SightlineError: If it takes too long.
    """
    words = [sys.executable, "-m", "sightline.app.scene_page", str(source), str(page)]
    with _ONE_AT_A_TIME:
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=_LONGEST, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise SightlineError(
                f"the view was not ready in {_LONGEST:.0f} s; export it"
            ) from error
    if done.returncode:
        said = done.stderr.strip().split("\n")[-1]
        raise InputError(said or "the view could not be written; look at the server's log")
