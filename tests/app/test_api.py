import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from sightline.app.jobs.kinds import KINDS
from sightline.app.server import Context

API = "/api/v1"


def send(client: TestClient, photo: Path, name: str = "photo.png") -> str:
    answer = client.post(f"{API}/uploads", params={"name": name}, content=photo.read_bytes())
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def submit(client: TestClient, **body: object) -> dict:
    answer = client.post(f"{API}/jobs", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def follow(client: TestClient, job: dict) -> dict:
    while job["state"] in ("queued", "running"):
        query = {"version": job["version"], "wait": 5}
        newer = client.get(f"{API}/jobs/{job['id']}", params=query).json()
        assert newer["version"] > job["version"]
        job = newer
    return job


def test_a_job_over_http(client: TestClient, photo: Path) -> None:
    upload = send(client, photo, "../up/photo.png")
    assert client.get(f"{API}/uploads").json() == [
        {"id": upload, "name": "up/photo.png", "kind": "picture", "size": photo.stat().st_size}
    ]
    job = submit(client, kind="reconstruct", inputs=[upload], options={"steps": 3}, title="Fox\n")
    assert (job["title"], job["state"]) == ("Fox", "queued")
    assert job["command"].startswith("sightline reconstruct up/photo.png --steps=3")
    done = follow(client, job)
    assert (done["state"], done["progress"]["fraction"]) == ("done", 1.0)
    assert client.get(f"{API}/jobs").json() == [done]
    names = [one["name"] for one in client.get(f"{API}/jobs/{job['id']}/results").json()]
    assert names == ["scene/run.json", "scene/splats.ply"]
    results = client.get(f"{API}/jobs/{job['id']}/results").json()
    file = client.get(results[1]["url"])
    assert file.content == b"ply\n"
    assert file.headers["content-disposition"] == 'attachment; filename="splats.ply"'
    assert "sandbox" in file.headers["content-security-policy"]
    shown = client.get(results[0]["url"], params={"inline": True})
    assert shown.headers["content-disposition"].startswith("inline")
    assert client.get(f"{API}/jobs/{job['id']}/inputs").json() == ["up/photo.png"]
    assert client.get(f"{API}/jobs/{job['id']}/log").json() == {"log": "told by a.png\n"}
    assert client.delete(f"{API}/uploads/{upload}").status_code == 204
    assert client.delete(f"{API}/jobs/{job['id']}").status_code == 204
    assert client.get(f"{API}/jobs/{job['id']}").status_code == 404


def test_events_are_streamed_to_the_end(client: TestClient) -> None:
    job = submit(client, kind="demo", options={"steps": 10})
    with client.stream("GET", f"{API}/jobs/{job['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in stream.iter_lines() if line.startswith("data: ")]
    states = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert states[-1]["state"] == "done"
    assert [s["version"] for s in states] == sorted({s["version"] for s in states})


def test_cancel_and_resume(client: TestClient) -> None:
    job = submit(client, kind="demo", options={"steps": 100_000})
    assert client.post(f"{API}/jobs/{job['id']}/resume").status_code == 409
    assert client.delete(f"{API}/jobs/{job['id']}").status_code == 409
    client.post(f"{API}/jobs/{job['id']}/cancel")
    assert follow(client, job)["state"] == "cancelled"
    again = client.post(f"{API}/jobs/{job['id']}/resume").json()
    assert again["state"] == "queued"
    client.post(f"{API}/jobs/{job['id']}/cancel")
    assert follow(client, again)["state"] == "cancelled"


def test_the_machine_and_what_can_be_run(client: TestClient) -> None:
    kinds = {one["name"]: one for one in client.get(f"{API}/kinds").json()}
    assert list(kinds) == list(KINDS)
    steps = kinds["reconstruct"]["options"]["steps"]
    assert (steps["default"], steps["schema"]["anyOf"][0]) == (None, {"type": "integer"})
    assert kinds["reconstruct"]["files"]["masks"]["shape"] == "folder"
    assert client.get(f"{API}/health").json()["status"] == "ok"
    assert client.get(f"{API}/machine").json()["device"] in ("cpu", "cuda")
    assert client.get(f"{API}/weights").json() == []
    models = client.get(f"{API}/models").json()
    assert {"vggt_1b", "dinov2_vits14"} <= {one["name"] for one in models}


def test_memory_is_told_before_the_start(
    client: TestClient, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [send(client, photo)] * 20
    body = {"kind": "reconstruct", "inputs": ids, "options": {"geometry": "vggt"}}
    monkeypatch.setattr("sightline.app.jobs.memory.free_memory_bytes", lambda: 9e9)
    guess = client.post(f"{API}/estimate", json=body).json()
    assert not guess["fits"]
    assert guess["advice"] == [{"memory_limit": 8.1}, {"max_frames": 8}, {"resolution": 240}]
    refused = client.post(f"{API}/jobs", json=body)
    assert refused.status_code == 409
    assert refused.json()["error"].startswith("this would not fit into memory: about 10.0 GB")
    assert refused.json()["error"].endswith(
        "of 9.0 GB needed; try --memory-limit 8.1 or --max-frames 8 or --resolution 240"
    )
    job = submit(client, **body, force=True)
    assert follow(client, job)["state"] == "done"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("GET", "/jobs/nothing", None, 404, "there is no job of that name"),
        ("GET", "/jobs/20260101T000000-0123456789abcdef", None, 404, "there is no job 2026"),
        ("GET", "/nothing", None, 404, "Not Found"),
        ("PUT", "/jobs", None, 405, "Method Not Allowed"),
        ("POST", "/jobs", {"kind": "magic"}, 400, 'no kind of job "magic"; closest:'),
        ("POST", "/jobs", {}, 422, "body.kind: Field required"),
        ("POST", "/jobs", {"kind": "demo", "more": 1}, 422, "body.more: Extra inputs"),
        ("POST", "/jobs", {"kind": "demo", "options": {"steps": 1.5}}, 400, "option steps:"),
        ("GET", "/jobs?limit=0", None, 422, "query.limit: Input should be greater"),
        ("DELETE", "/uploads/x", None, 404, "there is no upload 'x'"),
    ],
)
def test_errors_are_one_sentence(
    client: TestClient, method: str, path: str, body: object, status: int, text: str
) -> None:
    answer = client.request(method, f"{API}{path}", json=body)
    assert answer.status_code == status
    assert text in answer.json()["error"]


def test_without_a_key_there_is_nothing(context: Context, visitor: TestClient) -> None:
    assert visitor.get(f"{API}/jobs").status_code == 401
    for key in ("x", "0" * 32 + "." + "0" * 64, context.sessions.new_key()[:-1] + "é"):
        answer = visitor.get(f"{API}/jobs", headers={"x-sightline-key": key.encode()})
        assert answer.status_code == 401
    key = context.sessions.new_key()
    assert visitor.get(f"{API}/jobs", headers={"x-sightline-key": key}).json() == []


def test_uploads_above_a_limit_are_refused_and_leave_nothing(
    client: TestClient, context: Context
) -> None:
    before = sorted(context.jobs.root.rglob("*"))

    def slices() -> object:
        for _ in range(30):
            yield b"\x89PNG" * 1000

    told = client.post(f"{API}/uploads", params={"name": "a.png"}, content=b"x" * 200_000)
    counted = client.post(f"{API}/uploads", params={"name": "a.png"}, content=slices())
    for answer in (told, counted):
        assert answer.status_code == 413
        assert answer.json() == {"error": "the request may have up to 100000 bytes"}
    body = client.post(f"{API}/jobs", content=b"[" * 5_000_000)
    assert body.status_code == 413
    assert sorted(context.jobs.root.rglob("*")) == before
