"""What a worker that breaks down is taken for."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from sightline.errors import OutOfMemoryError, OutputError, ReconstructionError
from sightline.reconstruction import engine
from sightline.reconstruction.job import LOG


def free(monkeypatch: pytest.MonkeyPatch, amount: int) -> None:
    monkeypatch.setattr(engine.shutil, "disk_usage", lambda _: SimpleNamespace(free=amount))


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free(monkeypatch, 1000)
    error = engine._error({}, -6, tmp_path)
    assert isinstance(error, OutputError)
    assert "disk" in str(error)
    assert "--resume" in str(error)


def test_a_crash_shows_what_was_said_before_the_stack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    free(monkeypatch, 1 << 40)
    said = "F20 database.cc:12] Check failed: no such table\n*** Aborted\n    @ 0x7f81 (libc)\n\n"
    (tmp_path / LOG).write_text("fine so far\n" + said)
    error = engine._error({}, -6, tmp_path)
    assert isinstance(error, ReconstructionError)
    assert "no such table" in str(error)
    (tmp_path / LOG).write_text("")
    assert "no message" in str(engine._error({}, 1, tmp_path))


def test_a_killed_worker_ran_out_of_memory(tmp_path: Path) -> None:
    assert isinstance(engine._error({}, -9, tmp_path), OutOfMemoryError)
