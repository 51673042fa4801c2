"""The process in which the app's jobs run, for real."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sightline.cli.progress import ProgressBars
from sightline.cli.session import SESSION
from sightline.cli.worker import Channel


def test_one_command_after_the_other_until_the_server_has_gone(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    worker = subprocess.Popen(
        [sys.executable, "-m", "sightline.cli.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=empty,
        start_new_session=True,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None

    def ask(*words: str) -> dict:
        request = {"words": words, "folder": str(tmp_path), "cwd": str(empty)}
        worker.stdin.write(json.dumps(request) + "\n")
        worker.stdin.flush()
        return json.loads(worker.stdout.readline())

    try:
        missing = ask("export", "nowhere.ply", "--to", "splat", "-o", "x")
        assert missing["exit"] == 2
        assert missing["error"].startswith("there is no")
        worker.send_signal(signal.SIGINT)  # without a command at work it means nothing
        wrong = ask("export", "nowhere.ply", "--too", "splat")
        assert (wrong["exit"], wrong["loaded"]) == (2, [])
        assert wrong["error"].startswith('unknown option "--too"')
        assert "unknown option" in (tmp_path / "stderr.txt").read_text()
        told = ask("doctor")
        assert (told["exit"], told["error"]) == (0, "")
        assert "torch" in (tmp_path / "stdout.txt").read_text()
        worker.stdin.close()
        assert worker.wait(timeout=600) == -signal.SIGKILL, "with all that it started"
    finally:
        worker.kill()
        worker.stdout.close()
    assert list(empty.iterdir()) == []


def test_reports_are_thinned_but_an_end_is_always_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    file = tmp_path / "answers"
    stream = file.open("w", encoding="utf-8")
    channel = Channel(stream)
    for done in range(100):
        now[0] += 0.01
        channel.report({"stage": "splats", "done": done + 1, "total": 100})
        channel.report({"stage": "splats", "note": f"loss {done}"})
    stream.close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert 20 <= len(lines) <= 24
    assert lines[-1] == {"stage": "splats", "done": 100, "total": 100}


def test_bars_tell_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict] = []
    monkeypatch.setattr(SESSION, "listener", told.append)
    with ProgressBars() as bars:
        bars("splats", 1.0, 4.0)
        bars.note("splats", "loss 0.1")
    assert told == [
        {"stage": "splats", "done": 1.0, "total": 4.0},
        {"stage": "splats", "note": "loss 0.1"},
    ]
