"""Jobs and servers without a browser, run by a small stand-in for the worker."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from sightline.app.gate import Access
from sightline.app.jobs import worker
from sightline.app.jobs.manager import Jobs, new_owner
from sightline.app.jobs.record import Job
from sightline.app.jobs.request import JobLimits, Request
from sightline.app.jobs.uploads import UploadLimits
from sightline.app.server import Context, create_app
from sightline.app.sessions import Sessions

FAKE = Path(__file__).parent / "jobs" / "fake_worker.py"


@pytest.fixture
def fake_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of this test are run by a small stand-in."""
    monkeypatch.setattr(worker, "COMMAND", (sys.executable, str(FAKE)))


@pytest.fixture
def open_jobs(fake_worker: None, tmp_path: Path) -> Iterator[Callable[..., Jobs]]:
    """Opens the same root again and again; what is left open is closed."""
    opened: list[Jobs] = []

    def make(**limits: int) -> Jobs:
        jobs = Jobs(
            tmp_path / "root",
            models=tmp_path / "models",
            upload_limits=UploadLimits(spare_bytes=0),
            limits=JobLimits(**limits),
        )
        opened.append(jobs)
        return jobs

    yield make
    for jobs in opened:
        jobs.close()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    file = tmp_path / "photo.png"
    Image.new("RGB", (8, 6), (200, 100, 50)).save(file)
    return file


@pytest.fixture
def owner() -> str:
    return new_owner()


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """One server's jobs for all tests of a module, run by the stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "COMMAND", (sys.executable, str(FAKE)))
        jobs = Jobs(
            tmp_path_factory.mktemp("app") / "root", upload_limits=UploadLimits(spare_bytes=0)
        )
        access = Access(upload_bytes=100_000)
        yield Context(jobs=jobs, sessions=Sessions(jobs.own), access=access)
        jobs.close()


@pytest.fixture(scope="module")
def application(context: Context) -> FastAPI:
    return create_app(context)


@pytest.fixture
def client(application: FastAPI) -> TestClient:
    """A program that talks to the server on the loopback address, with a key of its own."""
    client = TestClient(application, base_url="http://127.0.0.1:7860")
    client.headers["x-sightline-key"] = client.post("/api/v1/session").json()["key"]
    return client


@pytest.fixture
def visitor(application: FastAPI) -> TestClient:
    """Somebody without a key."""
    return TestClient(application, base_url="http://127.0.0.1:7860")


def demo(steps: int = 3, seed: int = 0) -> Request:
    return Request(kind="demo", options={"steps": steps, "seed": seed})


def finish(jobs: Jobs, job: Job) -> Job:
    last = job
    for last in jobs.updates(job.owner, job.id):
        pass
    assert last.has_ended
    return last
