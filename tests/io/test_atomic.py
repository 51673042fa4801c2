import errno
import os

import pytest

from sightline.errors import OutputError
from sightline.io.atomic import atomic_folder, atomic_path, atomic_write_bytes, atomic_write_text


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_content_appears_only_at_the_end(tmp_path):
    target = tmp_path / "new" / "scene.ply"
    with atomic_path(target) as tmp:
        assert tmp.suffix == ".ply"
        assert tmp.name.startswith(".")
        assert tmp.parent == target.parent
        tmp.write_bytes(b"x")
        assert not target.exists()
    assert target.read_bytes() == b"x"
    assert names(target.parent) == ["scene.ply"]


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_failure_keeps_the_old_content_and_leaves_nothing(tmp_path, error):
    target = tmp_path / "a.txt"
    atomic_write_text(target, "old")

    def fail():
        with atomic_path(target) as tmp:
            tmp.write_text("half")
            raise error

    pytest.raises(type(error), fail)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_full_disk_is_one_sentence(tmp_path):
    def fail():
        with atomic_path(tmp_path / "a.bin"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match=r"cannot write .*a\.bin: no space left .*free some spa"):
        fail()
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(OutputError, match="permission denied; choose a folder"):
        atomic_write_bytes(tmp_path / "a", b"")
    tmp_path.chmod(0o755)


def test_parent_is_a_file(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(OutputError, match="parents are folders"):
        atomic_write_bytes(tmp_path / "a" / "b", b"")
    with pytest.raises(OutputError, match="a file has that name"), atomic_folder(tmp_path / "a"):
        pass


def test_target_is_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        atomic_write_bytes(tmp_path / "a", b"")
    assert names(tmp_path) == ["a"]


def test_missing_input_is_not_blamed_on_the_output(tmp_path):
    with pytest.raises(FileNotFoundError, match="input"), atomic_path(tmp_path / "out") as tmp:
        tmp.write_bytes((tmp_path / "input").read_bytes())
    with pytest.raises(OutputError, match="made no file"), atomic_path(tmp_path / "out"):
        pass


def test_folder_replaces_folder(tmp_path):
    target = tmp_path / "sparse" / "0"
    for content in ("one", "two"):
        with atomic_folder(target) as tmp:
            (tmp / content).write_text(content)
        assert names(target) == [content]

    def fail():
        with atomic_folder(target) as tmp:
            (tmp / "three").write_text("")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="no space left"):
        fail()
    assert names(target) == ["two"]
    assert names(target.parent) == ["0"]
