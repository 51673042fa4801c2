"""Does anything stay behind? Memory, open files, threads, processes and temporary files over many jobs.

    python benchmarks/leaks.py [--raster 1000] [--jobs 100]

1. ``--raster`` pictures of Gaussians of varying number and size, forward and backward, in this
   process.
2. ``--jobs`` jobs by the HTTP API of a ``sightline app`` of its own: features, prepared data and
   checked weights, one in ten of them refused by its verb. What is sent is removed again, and half
   of the jobs too.

Growth is the median of the last fifth over that of the fifth after the warm-up (the first fifth).
"""

import argparse
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from common import RESULTS, write

API = "/api/v1"
LIMIT = 5.0
"""Per cent of memory that may stay."""


def state(pids: list[int], folder: Path) -> dict[str, float]:
    """Return what processes hold, and how many files lie in a folder of temporary ones."""
    found = {"memory_mb": 0.0, "files": 0.0, "threads": 0.0, "processes": float(len(pids))}
    for pid in pids:
        try:
            pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
            found["files"] += sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
            found["threads"] += sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
        except OSError:  # it has just ended
            continue
        found["memory_mb"] += int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6
    found["temporary"] = float(sum(1 for _ in folder.rglob("*")))
    return found


def family(pid: int) -> list[int]:
    """Return a process and all that it has started, however deep."""
    found, left = [], [pid]
    while left:
        found.append(left.pop())
        for task in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            try:
                left += [int(word) for word in task.read_text(encoding="ascii").split()]
            except OSError:
                continue
    return found


def compare(samples: list[dict[str, float]]) -> dict[str, Any]:
    """Return what each number was after the warm-up and at the end."""
    fifth = len(samples) // 5
    table: dict[str, Any] = {"samples": len(samples)}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        before, after = median(values[fifth : 2 * fifth]), median(values[-fifth:])
        growth = round(100 * (after / before - 1), 2) if before else after
        table[name] = {"before": round(before, 1), "after": round(after, 1), "growth": growth}
    return table


def rasterise(count: int) -> Iterator[None]:
    """Draw and differentiate, each time another size."""
    import torch

    from sightline.splatting.rasterize import rasterization

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    for _ in range(count):
        number, width, height, views = draw(50, 3000), draw(16, 160), draw(16, 160), draw(1, 4)
        focal = float(max(width, height))
        means = torch.randn(number, 3, generator=generator) + torch.tensor([0.0, 0.0, 4.0])
        trained = {
            "means": means,
            "quats": torch.randn(number, 4, generator=generator),
            "scales": torch.rand(number, 3, generator=generator) * 0.1 + 0.005,
            "opacities": torch.rand(number, generator=generator),
            "colors": torch.rand(number, 3, generator=generator),
        }
        for tensor in trained.values():
            tensor.requires_grad_()
        lens = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
        picture, alpha, _ = rasterization(
            **trained,
            viewmats=torch.eye(4).repeat(views, 1, 1),
            Ks=lens.repeat(views, 1, 1),
            width=width,
            height=height,
        )
        (picture.square().mean() + alpha.mean()).backward()
        yield


class Server:
    """A ``sightline app`` of its own."""

    def __init__(self, folder: Path) -> None:
        """Start it, and become a user."""
        import httpx

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.scratch = folder / "tmp"
        self.scratch.mkdir()
        words = ["app", "--root", str(folder / "root"), "--no-browser", "--port", str(port)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sightline", *words],
            stdout=subprocess.DEVNULL,
            cwd=folder,
            env={**os.environ, "TMPDIR": str(self.scratch)},
        )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}{API}", timeout=120)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            try:
                self.http.headers["x-sightline-key"] = self.http.post("/session").json()["key"]
                return
            except httpx.TransportError:
                time.sleep(0.3)
        raise TimeoutError("the server does not answer")

    def send(self, name: str, content: bytes) -> str:
        """Upload a file."""
        answer = self.http.post("/uploads", params={"name": name}, content=content)
        return answer.raise_for_status().json()["id"]

    def run(self, body: dict[str, Any]) -> dict[str, Any]:
        """Run a job to its end."""
        job = self.http.post("/jobs", json=body).raise_for_status().json()
        while job["state"] in ("queued", "running"):
            query = {"version": job["version"], "wait": 25}
            job = self.http.get(f"/jobs/{job['id']}", params=query).raise_for_status().json()
        return job

    def close(self) -> int:
        """Stop it as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(timeout=60)
        finally:
            self.process.kill()


def jobs(server: Server, count: int) -> Iterator[str]:
    """Run jobs of three kinds, one after the other; yields how each has ended."""
    import torch
    from PIL import Image
    from safetensors.torch import save

    weights = save({"a.weight": torch.rand(3, 4)})
    for number in range(count):
        picture = io.BytesIO()
        Image.new("RGB", (32 + number % 7, 24), (number % 256, 90, 60)).save(picture, "PNG")
        bad = number % 10 == 9
        if number % 3 == 2:
            sent = [server.send("w.safetensors", weights)]
            body: dict[str, Any] = {"kind": "models-check", "inputs": sent}
        else:
            # The header of a picture, without its end: only the verb finds out.
            content = picture.getvalue()[: -30 if bad else None]
            sent = [server.send(f"{number}.png", content)]
            if number % 3:
                body = {"kind": "prepare", "inputs": sent, "options": {"size": 16}}
            else:
                body = {"kind": "features", "inputs": sent, "options": {"backbone": "iuvrgb"}}
        job = server.run(body)
        for upload in sent:
            server.http.delete(f"/uploads/{upload}")
        if number % 2:
            server.http.delete(f"/jobs/{job['id']}").raise_for_status()
        yield f"{job['kind']} {job['state']}"


def main() -> None:
    """Run both, compare, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--raster", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--add", action="store_true", help="keep the other part of the output")
    parser.add_argument("--output", type=Path, default=RESULTS / "leaks.json")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="leaks-") as name:
        folder = Path(name)
        if arguments.raster:
            empty = folder / "none"
            empty.mkdir()
            tempfile.tempdir = str(empty)
            own = [state(family(os.getpid()), empty) for _ in rasterise(arguments.raster)]
            found["rasteriser"] = {"jobs": arguments.raster, **compare(own)}
            print(found["rasteriser"], flush=True)
        if arguments.jobs:
            server, samples, ended = Server(folder), [], {}
            try:
                for end in jobs(server, arguments.jobs):
                    ended[end] = ended.get(end, 0) + 1
                    samples.append(state(family(server.process.pid), server.scratch))
            finally:
                code = server.close()
            found["app"] = {"jobs": arguments.jobs, "ended": ended, "exit_code": code}
            found["app"] |= compare(samples)
            print(found["app"], flush=True)
    if arguments.add and arguments.output.is_file():
        before = json.loads(arguments.output.read_text("utf-8"))
        found = {k: before[k] for k in ("rasteriser", "app") if k in before} | found
    leaking = [
        f"{part} {key}"
        for part, table in found.items()
        for key in ("memory_mb", "files", "threads", "processes", "temporary")
        if table[key]["growth"] > LIMIT
    ]
    write(arguments.output, {"limit_percent": LIMIT, "leaking": leaking, **found})
    if leaking:
        sys.exit(f"these grow: {', '.join(leaking)}")


if __name__ == "__main__":
    main()
