"""Twenty users submit jobs and two hundred watchers follow them: is any lost, crossed, or leaked?

Every user sends a picture of its own colour and name, computes features of it, waits, and reads the
result back: pixels must have the user's colour and the file the job's name. Watchers follow the
jobs of one user each by long polls. Now and then a user asks for another's job and must not get it.

    python benchmarks/app_load.py --seconds 300
"""

import argparse
import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from common import RESULTS, write
from PIL import Image

API = "/api/v1"
WARM_UP = 0.2
"""Share of the time after which memory is measured."""


class _Load:
    """What the users and watchers have in common."""

    def __init__(self, server: str, seconds: float) -> None:
        self.server = server
        self.end = time.monotonic() + seconds
        self.jobs: dict[int, list[str]] = {}
        self.clients: dict[int, httpx.AsyncClient] = {}
        self.waits: list[float] = []
        self.answers: list[float] = []
        self.polls = 0
        self.trouble: Counter[str] = Counter()

    @property
    def over(self) -> bool:
        return time.monotonic() > self.end

    async def client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        client = httpx.AsyncClient(
            base_url=self.server, timeout=120, limits=limits, trust_env=False
        )
        key = (await client.post(f"{API}/session")).json()["key"]
        client.headers["x-sightline-key"] = key
        return client


async def _user(load: _Load, number: int) -> None:
    """Submit job after job and look at every result."""
    client = load.clients[number]
    color = (40 + 10 * number, 255 - 10 * number, 60)
    picture = io.BytesIO()
    Image.new("RGB", (48, 32), color).save(picture, "PNG")
    count = 0
    while not load.over:
        name = f"user{number}-{count}"
        start = time.monotonic()
        sent = await client.post(
            f"{API}/uploads", params={"name": f"{name}.png"}, content=picture.getvalue()
        )
        upload = sent.json()["id"]
        body = {"kind": "features", "options": {"backbone": "iuvrgb"}, "inputs": [upload]}
        job = (await client.post(f"{API}/jobs", json=body)).json()
        load.answers.append(time.monotonic() - start)
        load.jobs[number].append(job["id"])
        job = await _follow(load, client, job)
        load.waits.append(time.monotonic() - start)
        if job["state"] != "done":
            load.trouble[f"ended as {job['state']}: {job['error']}"] += 1
            continue
        await _check(load, client, job["id"], name, color)
        await client.delete(f"{API}/uploads/{upload}")
        other = (number + 1) % len(load.clients)
        if load.jobs[other]:
            found = await client.get(f"{API}/jobs/{load.jobs[other][-1]}")
            if found.status_code != 404:
                load.trouble["another user's job was shown"] += 1
        count += 1


async def _follow(load: _Load, client: httpx.AsyncClient, job: dict[str, Any]) -> dict[str, Any]:
    while job["state"] in ("queued", "running"):
        query = {"version": job["version"], "wait": 25}
        answer = await client.get(f"{API}/jobs/{job['id']}", params=query)
        load.polls += 1
        if answer.status_code != 200:
            load.trouble[f"a job was lost: {answer.status_code}"] += 1
            return {**job, "state": "lost", "error": answer.text}
        job = answer.json()
    return job


async def _check(
    load: _Load, client: httpx.AsyncClient, id: str, name: str, color: tuple[int, int, int]
) -> None:
    """Compare a result with what its user has sent."""
    listed = (await client.get(f"{API}/jobs/{id}/results")).json()
    names = {one["name"] for one in listed}
    if names != {"features/features.npz", f"features/pca/{name}.png"}:
        load.trouble["another job's files"] += 1
        return
    answer = await client.get(f"{API}/jobs/{id}/results/features/features.npz")
    with np.load(io.BytesIO(answer.content)) as stored:
        seen = stored["patches"][0].astype(np.float64)
        if str(stored["names"][0]) != f"{name}.png":
            load.trouble["another job's names"] += 1
    # The last three channels are the picture's own colours, from -1 to 1.
    if np.abs(seen[-3:].reshape(3, -1).mean(1) - (np.array(color) / 127.5 - 1)).max() > 0.01:
        load.trouble["another user's pixels"] += 1


async def _watcher(load: _Load, number: int) -> None:
    """Follow one user's newest job, as an open tab does."""
    client = load.clients[number]
    while not load.over:
        if not load.jobs[number]:
            await asyncio.sleep(0.2)
            continue
        job = (await client.get(f"{API}/jobs/{load.jobs[number][-1]}")).json()
        load.polls += 1
        await _follow(load, client, job)
        await asyncio.sleep(0.5)


async def _meter(load: _Load, server: int, samples: list[tuple[float, float, float]]) -> None:
    """Note the memory of the server and of its worker."""
    start = time.monotonic()
    while not load.over:
        workers = sum(_resident(child) for child in _children(server))
        samples.append((time.monotonic() - start, _resident(server), workers))
        await asyncio.sleep(1.0)


def _resident(pid: int) -> float:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0.0
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        found = [int(word) for word in text.split()]
    except OSError:
        found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(word) for word in task.read_text(encoding="ascii").split()]
        except OSError:
            continue
    return sorted(set(found))


async def _run(server: str, pid: int, users: int, watchers: int, seconds: float) -> dict[str, Any]:
    load = _Load(server, seconds)
    for number in range(users):
        load.clients[number] = await load.client()
        load.jobs[number] = []
    samples: list[tuple[float, float, float]] = []
    tasks = [_user(load, n) for n in range(users)]
    tasks += [_watcher(load, n % users) for n in range(watchers)]
    ended = await asyncio.gather(*tasks, _meter(load, pid, samples), return_exceptions=True)
    for error in ended:
        if isinstance(error, BaseException):
            load.trouble[f"{type(error).__name__}: {error}"[:200]] += 1
    listed = 0
    for number, client in load.clients.items():
        mine = (await client.get(f"{API}/jobs", params={"limit": 1000})).json()
        if {job["id"] for job in mine} != set(load.jobs[number]):
            load.trouble["a user's list of jobs is not what it submitted"] += 1
        listed += sum(job["state"] == "done" for job in mine)
        await client.aclose()
    return {
        "users": users,
        "watchers": watchers,
        "seconds": seconds,
        "jobs": sum(map(len, load.jobs.values())),
        "done": listed,
        "polls": load.polls,
        "trouble": dict(load.trouble),
        "submit_seconds": _quantiles(load.answers),
        "job_seconds": _quantiles(load.waits),
        "memory": _memory(samples, seconds),
    }


def _quantiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 95, 100)}


def _memory(samples: list[tuple[float, float, float]], seconds: float) -> dict[str, Any]:
    """Compare the tenth of the time after the warm-up with the last tenth."""
    table = np.array(samples)
    when = table[:, 0] / seconds
    first = table[(when >= WARM_UP) & (when < WARM_UP + 0.1)]
    last = table[when >= 0.9]
    found: dict[str, Any] = {}
    for column, name in ((1, "server"), (2, "worker")):
        before, after = float(first[:, column].mean()), float(last[:, column].mean())
        found[name] = {
            "after_warm_up_mb": round(before, 1),
            "at_the_end_mb": round(after, 1),
            "growth_percent": round(100 * (after / before - 1), 2) if before else None,
        }
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    """Start a server, load it, and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--watchers", type=int, default=200)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "app_load.json")
    arguments = parser.parse_args()
    port = _free_port()
    server = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="sightline-load-") as folder:
        words = ["app", "--root", f"{folder}/root", "--no-browser", "--port", str(port)]
        process = subprocess.Popen(
            [sys.executable, "-m", "sightline", *words], stdout=subprocess.DEVNULL, cwd=folder
        )
        try:
            _wait_for(server)
            found = asyncio.run(
                _run(server, process.pid, arguments.users, arguments.watchers, arguments.seconds)
            )
            process.send_signal(signal.SIGINT)
            found["exit_code"] = process.wait(timeout=30)
        finally:
            process.kill()
        stored = list(Path(folder, "root").glob("*/job.json"))
        found["on_disk"] = len(stored)
    write(arguments.output, found)
    for name, value in found.items():
        print(f"{name}: {value}")
    if found["trouble"] or found["done"] != found["jobs"]:
        raise SystemExit("something was lost or crossed")


def _wait_for(server: str) -> None:
    for _ in range(600):
        try:
            httpx.get(f"{server}{API}/health", trust_env=False)
        except httpx.TransportError:
            time.sleep(0.2)
        else:
            return
    raise SystemExit("the server does not start")


if __name__ == "__main__":
    main()
