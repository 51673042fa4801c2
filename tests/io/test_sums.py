"""Sums tell whether files are what they were."""

import hashlib
from pathlib import Path

import pytest

from sightline.errors import InputError
from sightline.io.sums import first_changed, sha256, sums_of


def test_sums_are_sha256_of_the_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(data)
    assert sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_folders_count_with_all_that_is_in_them(tmp_path: Path) -> None:
    for name in ("one.txt", "deep/er/two.txt", "deep/three.txt", "not asked for"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    sums = sums_of(tmp_path, ["one.txt", "deep", "absent"])
    assert list(sums) == ["one.txt", "deep/er/two.txt", "deep/three.txt"]
    assert first_changed(tmp_path, sums) is None
    (tmp_path / "one.txt").unlink()
    assert first_changed(tmp_path, sums) is None
    (tmp_path / "deep/three.txt").write_text("damaged")
    assert first_changed(tmp_path, sums) == "deep/three.txt"


def test_a_name_that_leads_out_is_not_followed(tmp_path: Path) -> None:
    inside = tmp_path / "run"
    inside.mkdir()
    (tmp_path / "secret").write_text("secret")
    for name in ("../secret", str(tmp_path / "secret")):
        assert first_changed(inside, {name: sha256(tmp_path / "secret")}) == name


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read .*absent"):
        sha256(tmp_path / "absent")
