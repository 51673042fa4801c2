import json
from pathlib import Path

import pytest
from PIL import Image

from sightline.app.jobs.request import NotFound
from sightline.app.jobs.uploads import TooLarge, UploadLimits, Uploads, clean_name, kind_of
from sightline.errors import FileFormatError, InputError


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("IMG 01.JPG", "IMG_01.JPG"),
        ("../../etc/passwd", "etc/passwd"),
        ("C:\\photos\\a.png", "C_/photos/a.png"),
        ("a/b/c/d/e.png", "b/c/d/e.png"),
        ("-rf", "rf"),
        (".bashrc", "bashrc"),
        ("schön.png", "sch_n.png"),
        ("a\nb\x00.png", "a_b_.png"),
        ("x" * 300 + ".png", "x" * 96 + ".png"),
    ],
)
def test_names_are_cleaned(name: str, clean: str) -> None:
    assert clean_name(name) == clean


@pytest.mark.parametrize("name", ["", "/", "..", "///", ".", "\x00", "___"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InputError, match="needs a name"):
        clean_name(name)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.ply", b"ply\nformat", "scene"),
        ("a.splat", b"\0" * 32, "scene"),
        ("a.pt", b"PK\3\4" + b"\0" * 20, "weights"),
        ("a.pth", b"\x80\2}", "weights"),
        ("a.safetensors", b"\2\0\0\0\0\0\0\0{}", "weights"),
        ("a.json", b"{}", "text"),
        ("cameras.txt", b"# Camera list", "text"),
        ("a.mp4", b"\0\0\0\x20ftypisom" + b"\0" * 40, "video"),
    ],
)
def test_kinds_are_told_by_content(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    file = tmp_path / "content"
    file.write_bytes(content)
    assert kind_of(file, name, 1000) == kind


def test_pictures_of_any_name_have_bounds(tmp_path: Path) -> None:
    file = tmp_path / "content"
    Image.new("L", (40, 30)).save(file, "JPEG")
    assert kind_of(file, "a.txt", 1200) == "picture"
    with pytest.raises(FileFormatError, match=r"a\.jpg"):
        kind_of(file, "a.jpg", 1199)


def test_what_is_too_much_is_refused_and_leaves_nothing(tmp_path: Path, photo: Path) -> None:
    size = photo.stat().st_size
    limits = UploadLimits(file_bytes=size, owner_bytes=2 * size, owner_files=3, spare_bytes=0)
    uploads = Uploads(tmp_path / "store", limits)
    uploads.adopt("me", photo)
    uploads.adopt("me", photo)
    with pytest.raises(TooLarge, match="together"):
        uploads.adopt("me", photo)
    assert len(uploads.of("me")) == len(list((tmp_path / "store").iterdir())) == 2
    large = tmp_path / "large.png"
    large.write_bytes(photo.read_bytes() + b"x")
    with pytest.raises(TooLarge, match="a file may have up to"):
        uploads.adopt("you", large)
    full = Uploads(tmp_path / "other", UploadLimits(spare_bytes=1 << 60))
    with pytest.raises(TooLarge, match="disk is full"):
        full.adopt("me", photo)
    many = Uploads(tmp_path / "third", UploadLimits(owner_files=1, spare_bytes=0))
    many.adopt("me", photo)
    with pytest.raises(TooLarge, match="up to 1 files"):
        many.adopt("me", photo)


def test_uploads_outlive_the_server_until_they_are_old(tmp_path: Path, photo: Path) -> None:
    store = tmp_path / "store"
    uploads = Uploads(store, UploadLimits(spare_bytes=0))
    kept = uploads.adopt("me", photo)
    half = uploads.begin("me", "half.png")
    half.write(b"x")
    half.file.close()
    again = Uploads(store, UploadLimits(spare_bytes=0))
    assert again.of("me") == [kept]
    assert [place.name for place in store.iterdir()] == [kept.id], "half a file is removed"
    with pytest.raises(NotFound):
        again.get("you", kept.id)
    assert Uploads(store, UploadLimits(seconds=-1.0)).of("me") == []
    assert list(store.iterdir()) == []


def test_a_damaged_note_is_no_upload(tmp_path: Path, photo: Path) -> None:
    store = tmp_path / "store"
    uploads = Uploads(store, UploadLimits(spare_bytes=0))
    for text in ("", "[]", json.dumps({"id": "x"})):
        upload = uploads.adopt("me", photo)
        (store / upload.id / "upload.json").write_text(text)
    assert Uploads(store, UploadLimits(spare_bytes=0)).of("me") == []
