import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from sightline.app.server import AppSettings, open_context, serve, stay_offline
from sightline.errors import InputError


def test_ctrl_c_ends_everything_and_a_new_server_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "root"
    # A shell that runs tests in the background makes them deaf to Ctrl-C.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from sightline.cli import main; main()"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code, "app", "--no-browser", "--root", str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        assert server.stdout is not None
        address, _, key = server.stdout.readline().strip().partition("?key=")
        job = ask(address, key, "jobs", {"kind": "demo", "options": {"steps": 5000}})
        while job["state"] == "queued" or (
            job["state"] == "running" and not job["progress"]["stage"]
        ):
            job = ask(address, key, f"jobs/{job['id']}?wait=25&version={job['version']}")
        worker = ask(address, key, "machine")["workers"][0]
        assert worker["busy"]
        server.send_signal(signal.SIGINT)
        _, told = server.communicate(timeout=600)
    finally:
        server.kill()
    assert server.returncode == 3
    assert told.splitlines()[-1] == "sightline app: cancelled; what was finished is kept"
    record = json.loads((root / job["id"] / "job.json").read_text())
    assert record["state"] in ("queued", "running")
    assert not workers_in(root), "nothing works on without the server"


def ask(address: str, key: str, path: str, body: dict | None = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    headers = {"x-sightline-key": key, "content-type": "application/json"}
    request = urllib.request.Request(f"{address}api/v1/{path}", data, headers)
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def workers_in(root: Path) -> list[str]:
    """The processes that stand in the root folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (place / "cwd").readlink().is_relative_to(root):
                found.append(place.name)
        except OSError:
            continue
    return found


def test_a_taken_port_and_a_taken_root(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = AppSettings(root=tmp_path / "root", port=port, open_browser=False)
        with pytest.raises(InputError, match=f"cannot listen to 127.0.0.1, port {port}"):
            serve(settings)
    context = open_context(AppSettings(root=tmp_path / "root"))
    try:
        with pytest.raises(InputError, match="another process is working in"):
            serve(AppSettings(root=tmp_path / "root", open_browser=False))
    finally:
        context.jobs.close()


def test_another_host_asks_for_a_token(tmp_path: Path) -> None:
    context = open_context(AppSettings(root=tmp_path / "root", host="0.0.0.0"))
    context.jobs.close()
    assert context.access.token is not None
    assert len(context.access.token) >= 32
    alone = open_context(AppSettings(root=tmp_path / "root"))
    alone.jobs.close()
    assert alone.access.token is None


def test_nothing_is_told_to_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "OTEL_SDK_DISABLED"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("DO_NOT_TRACK", "x")
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "x")
    stay_offline()
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert os.environ["OTEL_SDK_DISABLED"] == "true"
