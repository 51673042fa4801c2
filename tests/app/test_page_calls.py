"""What a visitor may ask of Gradio, and what the page's handlers make of nonsense."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import Response
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from sightline.app.page.calls import PageCalls
from sightline.app.page.sent import sent_files, sent_job, sent_list
from sightline.errors import InputError
from tests.app.conftest import App

FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
EVENTS = "/gradio_api/run/predict"
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["job", "files", "id", "name", "pending", "marks", "x"]), inner
        )
    ),
    max_leaves=9,
)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Stand in for Gradio: answers with the body that has come."""
    message = await receive()
    assert not message.get("more_body")
    await Response(message.get("body", b""))(scope, receive, send)


@pytest.fixture
def calls() -> TestClient:
    return TestClient(PageCalls(echo, {0: 1, 7: 2}))


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/upload",
        "/gradio_api/proxy=http://127.0.0.1/",
        "/gradio_api/component_server",
        "/gradio_api/vibe-edit/",
        "/gradio_api/info",
        "/gradio_api/queue/join",
        "/gradio_api/heartbeat/a",
        "/gradio_api/run/predict/",
        "//gradio_api/run/predict",
        "/monitoring/summary",
        "/login",
    ],
)
def test_other_doors_are_closed(calls: TestClient, path: str) -> None:
    for method in ("GET", "POST", "HEAD"):
        answer = calls.request(method, path, content=b"{}" if method == "POST" else None)
        assert answer.status_code == 404
    assert calls.get("/").status_code == 200
    assert calls.get("/assets/index.js").status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"data": [FILE]},
        {"data": [[{"a": FILE}]]},
        {"data": [0], "event_data": FILE},
        {"data": [{"meta": {"_type": "gradio.FileData"}}]},
        {"data": [{"path": "http://127.0.0.1/"}]},
    ],
)
def test_events_name_no_files(calls: TestClient, body: dict[str, Any]) -> None:
    answer = calls.post(EVENTS, json={"fn_index": 0, **body})
    assert answer.status_code == 400
    assert "names no files" in answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"x=1", b"\xff", b"[" * 100_000, b"1" * 5000, b"[]"),
        *(b'{"data": [0]}', b'{"data": [0], "fn_index": 1}', b'{"data": [0], "fn_index": false}'),
        *(b'{"data": {"0": 0}, "fn_index": 0}', b'{"data": [0], "fn_index": 7}'),
        *(b'{"data": [NaN], "fn_index": 0}', b'{"data": [[1e999]], "fn_index": 0}'),
        *(b'{"data": ["\\ud800"], "fn_index": 0}', b'{"data": [{"\\udcff": 1}], "fn_index": 0}'),
    ],
)
def test_events_are_the_pages_own(calls: TestClient, body: bytes) -> None:
    answer = calls.post(EVENTS, content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_honest_events_arrive_whole(calls: TestClient) -> None:
    values = [{"files": [{"id": "a", "name": "b"}]}, "ü\U0001f600" + "x" * 200_000]
    body = json.dumps({"fn_index": 7, "data": values}).encode()
    pieces = (body[at : at + 50_000] for at in range(0, len(body), 50_000))
    assert calls.post(EVENTS, content=pieces).content == body


def test_a_file_of_the_machine_stays_where_it_is(app: App, tmp_path: Path) -> None:
    secret = tmp_path / "secret_of_another_user.txt"
    secret.write_text("a secret", encoding="utf-8")
    named = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    with httpx.Client(follow_redirects=True, timeout=600) as browser:
        assert browser.get(app.address).status_code == 200
        events = browser.get(f"{app.home}config").json()["dependencies"]
        sending = [event for event in events if event["inputs"]]
        assert len(sending) > 20
        for event in sending:
            data = [named] * len(event["inputs"])
            body = {"fn_index": event["id"], "data": data, "session_hash": "a"}
            answer = browser.post(f"{app.home}{EVENTS[1:]}", json=body)
            assert answer.status_code == 400
            assert "names no files" in answer.json()["error"]
        assert browser.get(f"{app.home}gradio_api/file={secret}").status_code == 404
        for query in ("page=x", "deep_link=../../x", "job=x&view=api"):  # Gradio's own, and ours
            assert browser.get(f"{app.home}?{query}").status_code == 200
            assert browser.get(f"{app.home}config?{query}").status_code == 200
    assert not [path for path in app.root.rglob("*") if path.name == secret.name]


@given(value=JSON_VALUES)
def test_parts_send_what_they_should_or_are_refused(value: Any) -> None:
    job = sent_job(value)
    assert job is None or (isinstance(job, str) and job)
    try:
        files = sent_files(value)
        marks = sent_list(value, "marks")
    except InputError:
        return
    assert all(isinstance(text, str) for pair in files.items() for text in pair)
    assert all(isinstance(mark, dict) for mark in marks)


def test_files_on_their_way_are_awaited() -> None:
    with pytest.raises(InputError, match="on their way"):
        sent_files({"files": [], "pending": 1})
    assert sent_files({"files": [{"id": "a", "name": "b.png"}], "pending": 0}) == {"a": "b.png"}
    assert sent_files(None) == {}
