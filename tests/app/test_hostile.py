"""Five hundred requests that nobody honest sends: refused, nothing written, the server goes on."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from sightline.app.jobs.kinds import KINDS
from sightline.app.server import Context

API = "/api/v1"
PATHS = [
    "../../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/secret",
    "....//....//secret",
    "..\\..\\secret",
    "/etc/passwd",
    "//etc/passwd",
    "file:///etc/passwd",
    "C:\\Windows\\win.ini",
    "~/.ssh/id_rsa",
    ".sightline/secret",
    "\x00",
    "a\x00.png",
    "con",
    "weights:../../etc/passwd",
    "weights:/etc/passwd",
    "weights:",
    "https://evil.example/x.pt",
    "hf:../../x",
    "`id`",
    "$(id)",
    ";id",
    "|id",
    "--config=/etc/passwd",
    "-o/etc/x",
    "{{7*7}}",
    "\ud800",
    "é" * 100,
    "x" * 390,
    "20260101T000000-0123456789abcdef/../../secret",
]
WRONG_VALUES: list[Any] = [
    *(float("nan"), float("inf"), -1, 0, 10**400, 2**64, 1e308, "", "1", [], [1], {}, {"a": 1}),
    *(True, None, "../..", "/etc", "--resume", "a\nb", "x" * 5000, [None], [["a"]]),
]
FILES = [
    ("a.png", b""),
    ("a.png", b"\x89PNG\r\n\x1a\n"),
    ("a.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 40),
    # Width and height of two billion.
    (
        "a.png",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\2\0\0\0" + b"x" * 60,
    ),
    ("a.jpg", b"\xff\xd8\xff" + b"\0" * 100),
    ("a.bmp", b"BM" + b"\xff" * 4 + b"\0" * 4 + b"\xff" * 40),
    ("a.webp", b"RIFF\xff\xff\xff\xffWEBP" + b"\xff" * 30),
    ("a.ppm", b"P6 99999999 99999999 255\n"),
    ("a.svg", b"<svg onload=alert(1)>"),
    ("a.html", b"<script>alert(1)</script>"),
    ("a.pt", b"import os"),
    ("a.safetensors", b"\xff" * 64),
    ("a.safetensors", b"\2\0\0\0\0\0\0\0[]"),
    ("a.json", b"[" * 50_000),
    ("a.json", b'{"a": '),
    ("a.json", b"\xff\xfe"),
    ("a.ply", b"#!/bin/sh"),
    ("a.spz", b"\0" * 100),
    ("a.glb", b"<x>"),
    ("a.mp4", b"ftyp"),
    ("a.exe", b"MZ" + b"\0" * 100),
    ("a.sh", b"#!/bin/sh\nid"),
    ("a.py", b"import os"),
    ("a.zip", b"PK\3\4"),
    ("a.gif", b"GIF89a"),
    ("..", b"\x89PNG"),
    ("", b"x"),
    ("///", b"x"),
    ("a", b"x"),
    ("a.png", b"x" * 150_000),
]


def requests() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield method, path and what goes with it."""
    for path in PATHS:
        quoted = path.encode(errors="replace").decode("ascii", errors="replace")
        quoted = "".join(
            c if c.isprintable() and c not in "?#" else f"%{ord(c):02x}" for c in quoted
        )
        for template in ("/jobs/{}", "/jobs/{}/results", "/jobs/{}/log", "/jobs/{}/results/{}"):
            yield "GET", API + template.replace("{}", quoted), {}
        yield "POST", f"{API}/jobs/{quoted}/cancel", {}
        yield "DELETE", f"{API}/uploads/{quoted}", {}
        yield "POST", f"{API}/jobs", _json({"kind": "reconstruct", "inputs": [path]})
        yield "POST", f"{API}/jobs", _json({"kind": "render", "scene": path})
        files = {"masks": [path], "checkpoint": [path]}
        yield "POST", f"{API}/jobs", _json({"kind": "reconstruct", "inputs": ["x"], "files": files})
        options = {"repo_id": path, "filename": path}
        yield "POST", f"{API}/jobs", _json({"kind": "models-download", "options": options})
    for kind, value in itertools.product(KINDS, WRONG_VALUES[:6]):
        yield "POST", f"{API}/jobs", _json({"kind": kind, "options": {"steps": value, "x": value}})
    for value in WRONG_VALUES:
        yield "POST", f"{API}/jobs", _json(value)
        yield "POST", f"{API}/jobs", _json({"kind": value})
        yield "POST", f"{API}/jobs", _json({"kind": "demo", "options": value or {"x": 1}})
        yield "POST", f"{API}/jobs", _json({"kind": "reconstruct", "inputs": value})
        yield "POST", f"{API}/estimate", _json({"kind": "reconstruct", "inputs": [value]})
    for name, content in FILES:
        yield "POST", f"{API}/uploads", {"params": {"name": name}, "content": content}
    for content in (b"", b"{", b"\xff", b"null", b"[" * 100_000, b'{"kind": "demo"' * 1000):
        yield "POST", f"{API}/jobs", {"content": content}


def _json(value: Any) -> dict[str, Any]:
    headers = {"content-type": "application/json"}
    return {"content": json.dumps(value).encode(), "headers": headers}


def test_five_hundred_hostile_requests(client: TestClient, context: Context) -> None:
    root = context.jobs.root
    before = sorted(root.rglob("*"))
    count = 0
    for method, path, more in requests():
        answer = client.request(method, path, **more)
        assert 400 <= answer.status_code < 500, (method, path, more, answer.text)
        sentence = answer.json()["error"]
        assert str(root) not in sentence
        assert "Traceback" not in sentence
        count += 1
    assert count >= 450
    for path, headers in itertools.product(
        ("/jobs", "/uploads", "/machine", "/kinds", "/weights", "/models", "/estimate", "/x"),
        (
            {"x-sightline-key": ""},
            {"x-sightline-key": "x" * 97},
            {"x-sightline-key": "0" * 32 + "." + "f" * 64},
            {"host": "evil.example"},
            {"host": "127.0.0.1:7860, evil.example"},
            {"cookie": "sightline_key=" + "x" * 20_000, "x-sightline-key": "x"},
            {"origin": "http://evil.example", "host": "evil.example"},
        ),
    ):
        answer = client.get(API + path, headers=headers)
        assert answer.status_code in (401, 403, 404, 405), (path, headers, answer.text)
        count += 1
    assert count >= 500
    assert sorted(root.rglob("*")) == before
    assert client.get(f"{API}/health").json()["status"] == "ok"
    assert client.get(f"{API}/jobs").json() == []


@pytest.mark.parametrize("name", ["secret", "job.json", "../job.json", "stdout.txt", "output"])
def test_results_are_looked_up_never_joined(
    client: TestClient, context: Context, name: str
) -> None:
    job = client.post(f"{API}/jobs", json={"kind": "demo"}).json()
    while client.get(f"{API}/jobs/{job['id']}").json()["state"] in ("queued", "running"):
        pass
    output = context.jobs.root / job["id"] / "output"
    (output / "secret").symlink_to(context.jobs.own / "secret")
    (output / "up").symlink_to(context.jobs.root, target_is_directory=True)
    answer = client.get(f"{API}/jobs/{job['id']}/results/{name.replace('.', '%2e')}")
    assert answer.status_code == 404
    names = {one["name"] for one in client.get(f"{API}/jobs/{job['id']}/results").json()}
    assert names == {"scene/run.json", "scene/splats.ply"}
