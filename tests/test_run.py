import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sightline.errors import Cancelled, InputError
from sightline.run import RunFolder, is_run


def test_create_then_open(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "scene", {"seed": 3})
    with run.working(), run.stage("ingest") as facts:
        facts["views"] = 5
    again = RunFolder.open(tmp_path / "scene")
    assert again.state["status"] == "done"
    assert again.finished("ingest")
    assert not again.finished("cameras")
    assert again.state["stages"]["ingest"]["views"] == 5
    assert again.state["config"] == {"seed": 3}
    assert again.state["peak_memory_mb"] > 10


def test_a_failing_stage_is_not_finished(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, {})
    with pytest.raises(InputError), run.working(), run.stage("ingest"):
        raise InputError("no pictures")
    state = json.loads((tmp_path / "run.json").read_text())
    assert state["status"] == "failed"
    assert state["error"] == "no pictures"
    assert state["stages"] == {}


def test_a_file_that_changed_after_its_stage_is_named(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, {})
    with run.stage("ingest", leaves=("inputs.json", "images", "masks")):
        (tmp_path / "inputs.json").write_text("[]")
        (tmp_path / "images" / "left").mkdir(parents=True)
        for name in ("a.png", "left/b.png"):
            (tmp_path / "images" / name).write_bytes(name.encode())
    with run.stage("views"):
        (tmp_path / "geometry.npz").write_bytes(b"may change")
    again = RunFolder.open(tmp_path)
    assert len(again.state["stages"]["ingest"]["sums"]) == 3
    assert "sums" not in again.state["stages"]["views"]
    (tmp_path / "geometry.npz").write_bytes(b"has changed")
    (tmp_path / "inputs.json").unlink()
    again.check_files()
    (tmp_path / "images" / "left" / "b.png").write_bytes(b"left/B.png")
    with pytest.raises(
        InputError, match=r"left/b\.png is not as the stage ingest left it.*restore"
    ):
        again.check_files()


@pytest.mark.parametrize("entry", [3, {"sums": [1]}, {"sums": {"images/a.png": 5}}, {}])
def test_sums_that_are_none_are_not_trusted(tmp_path: Path, entry: object) -> None:
    run = RunFolder.create(tmp_path, {})
    run.state["stages"]["ingest"] = entry
    run.check_files()


@pytest.mark.parametrize("kind", [Cancelled, KeyboardInterrupt])
def test_cancelling_is_recorded(tmp_path: Path, kind: type[BaseException]) -> None:
    run = RunFolder.create(tmp_path, {})
    with pytest.raises(kind), run.working():
        raise kind
    assert RunFolder.open(tmp_path).state["status"] == "cancelled"


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not empty and is not a sightline run"):
            RunFolder.create(tmp_path, {}, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_overwrite_removes_only_what_a_run_writes(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, {"seed": 1})
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").touch()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="already holds a run"):
        RunFolder.create(tmp_path, {})
    run = RunFolder.create(tmp_path, {"seed": 2}, overwrite=True)
    assert run.state["config"] == {"seed": 2}
    assert not (tmp_path / "images").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "scene").touch()
    with pytest.raises(InputError, match="is a file"):
        RunFolder.create(tmp_path / "scene", {})


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": "other"}', '{"format": "sightline-run"}']
)
def test_damaged_run_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError):
        RunFolder.open(tmp_path)
    assert not is_run(tmp_path)


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, {})
    code = (
        "import sys; from pathlib import Path; from sightline.run import RunFolder\n"
        "with RunFolder.open(Path(sys.argv[1])).locked(): pass"
    )
    with run.locked():
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
        )
    assert "another process is working" in done.stderr
    after = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert after.returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX kill")
def test_kill_leaves_a_run_that_opens(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from sightline.run import RunFolder\n"
        "run = RunFolder.create(Path(sys.argv[1]), {})\n"
        "with run.locked(), run.working():\n"
        "    with run.stage('ingest'): pass\n"
        "    os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    run = RunFolder.open(tmp_path)
    assert run.state["status"] == "running"
    assert run.finished("ingest")
    with run.locked():
        pass
