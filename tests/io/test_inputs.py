"""What was given is told by content; order is natural, names are unique, errors are plain."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sightline.errors import FileFormatError, InputError
from sightline.io.inputs import discover, natural_key, unique_names

from .clips import moving, write_clip

MODEL = ("cameras.txt", "images.txt", "points3D.txt")


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(path, format="PNG")
    return path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names(source):
    return [path.name for path in source.files]


def test_folder_is_searched_in_natural_order(tmp_path):
    for name in ("img10.jpg", "img2.jpg", "IMG1.jpg", "b/2.png", "b/10.png", "a/9.png"):
        picture(tmp_path / name)
    picture(tmp_path / ".hidden.jpg")
    picture(tmp_path / ".thumbs/x.jpg")
    picture(tmp_path / "__MACOSX/x.jpg")
    picture(tmp_path / "masks/img2.png")
    write(tmp_path / "notes.txt", "hello")
    (source,) = discover([tmp_path])
    assert source.kind == "photos"
    assert names(source) == ["9.png", "2.png", "10.png", "IMG1.jpg", "img2.jpg", "img10.jpg"]
    assert source.notes == ()


def test_side_folders_and_raw_files_are_left_out_with_a_note(tmp_path):
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "depth/a.png")
    picture(tmp_path / "a.NEF")
    write_clip(tmp_path / "live.mp4", moving(2))
    (source,) = discover([tmp_path])
    assert names(source) == ["a.jpg"]
    assert [note.split(":")[0] for note in source.notes] == [
        f"left out {tmp_path / 'depth'}",
        "left out 1 files of unsupported kinds",
        "left out 1 videos beside the photos",
    ]


def test_former_results_beside_the_photos_are_no_input(tmp_path):
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "out/images/a.jpg")
    write(tmp_path / "out/run.json", "{}")
    (source,) = discover([tmp_path])
    assert names(source) == ["a.jpg"]


def test_mixed_list_keeps_its_order_and_joins_single_pictures(tmp_path):
    a, b = picture(tmp_path / "a.jpg"), picture(tmp_path / "b.jpg")
    clip = write_clip(tmp_path / "clip.mp4", moving(2)).rename(tmp_path / "clip.dat")
    other = picture(tmp_path / "other" / "c.jpg")
    sources = discover([b, a, clip, other.parent, str(tmp_path / "[ab].jpg")])
    assert [s.kind for s in sources] == ["photos", "video", "photos"]
    assert names(sources[0]) == ["b.jpg", "a.jpg"]
    assert sources[1].path == clip
    assert names(sources[2]) == ["c.jpg"]


def test_a_picture_given_twice_counts_once(tmp_path):
    a, b = picture(tmp_path / "a.jpg"), picture(tmp_path / "b.jpg")
    (source,) = discover([a, b, a])
    assert names(source) == ["a.jpg", "b.jpg"]
    assert source.notes == ("left out 1 pictures that were given twice",)


def test_pattern_and_home(tmp_path, monkeypatch):
    for name in ("v10.jpg", "v9.jpg", "w1.jpg"):
        picture(tmp_path / "x" / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (source,) = discover(["~/x/v*.jpg"])
    assert names(source) == ["v9.jpg", "v10.jpg"]
    (source,) = discover([str(tmp_path / "**/*.jpg")])
    assert len(source.files) == 3


def test_name_with_brackets_is_a_file_first(tmp_path):
    path = picture(tmp_path / "shot[1].jpg")
    (source,) = discover([str(path)])
    assert source.files == (path,)


@pytest.mark.parametrize("place", ["sparse/0", "sparse", "."])
def test_colmap_workspace(tmp_path, place):
    picture(tmp_path / "images/a.jpg")
    for name in MODEL:
        write(tmp_path / place / name, "#\n")
    (source,) = discover([tmp_path])
    assert (source.kind, source.path) == ("colmap", tmp_path)
    (photos,) = discover([tmp_path], kind="photos")
    assert photos.kind == "photos"


def test_transforms_and_manifest(tmp_path):
    nerf = write(tmp_path / "nerf/transforms.json", json.dumps({"frames": []}))
    prepared = write(
        tmp_path / "data/manifest.json", json.dumps({"format": "sightline-manifest", "records": []})
    )
    sources = discover([nerf.parent, nerf, prepared.parent, prepared])
    assert [(s.kind, s.path) for s in sources] == [
        ("transforms", nerf),
        ("transforms", nerf),
        ("manifest", prepared),
        ("manifest", prepared),
    ]


def test_folder_of_videos(tmp_path):
    for name in ("b.mp4", "a10.mp4", "a9.mp4"):
        write_clip(tmp_path / name, moving(2))
    sources = discover([tmp_path])
    assert [(s.kind, s.path.name) for s in sources] == [
        ("video", "a9.mp4"),
        ("video", "a10.mp4"),
        ("video", "b.mp4"),
    ]


def test_unreadable_files_stop_or_are_skipped(tmp_path):
    picture(tmp_path / "a.jpg")
    write(tmp_path / "zero.jpg", "")
    write(tmp_path / "fake.mp4", "not a video")
    with pytest.raises(
        FileFormatError, match=r"not readable as a picture.*fake\.mp4.*zero\.jpg.*--keep-going"
    ):
        discover([tmp_path])
    (source,) = discover([tmp_path], keep_going=True)
    assert names(source) == ["a.jpg"]
    assert [p.name for p in source.unreadable] == ["fake.mp4", "zero.jpg"]


def test_only_unreadable_files(tmp_path):
    zero = write(tmp_path / "zero.jpg", "")
    with pytest.raises(FileFormatError, match=r"zero\.jpg"):
        discover([zero])
    with pytest.raises(InputError, match="nothing readable in .*: all 1 files are damaged"):
        discover([zero], keep_going=True)


def test_plain_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "texts/a.md", "x")
    write(tmp_path / "other.json", "{}")
    write(tmp_path / "broken.json", "{")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    cases = [
        ([], "nothing was given"),
        ([tmp_path / "none"], "there is no file or folder"),
        (["https://example.com/a.jpg"], "is an address, not a file"),
        ([str(tmp_path / "*.webp")], "no file matches"),
        ([tmp_path / "empty"], "is empty; give a folder with pictures"),
        ([tmp_path / "texts"], r"no pictures or videos in .*, only 1 other files \(a\.md\)"),
        ([tmp_path / "texts/a.md"], r"a\.md: expected a picture"),
        ([tmp_path / "other.json"], r"other\.json: expected a transforms\.json"),
        ([tmp_path / "broken.json"], r"broken\.json: expected JSON"),
        ([tmp_path / "link.jpg"], "is a link to a file that does not exist"),
    ]
    for inputs, text in cases:
        with pytest.raises(InputError, match=text):
            discover(inputs)


def test_forced_kind_must_fit(tmp_path):
    path = picture(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="should be of kind video, but its content is photos"):
        discover([path], kind="video")
    with pytest.raises(InputError, match=r"there is no transforms\.json"):
        discover([tmp_path], kind="transforms")
    with pytest.raises(InputError, match="no pictures or videos"):
        discover([tmp_path], kind="video")


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(InputError, match="is a device or a pipe"):
        discover([tmp_path / "pipe.jpg"])


@given(st.lists(st.integers(0, 10**12), unique=True))
def test_natural_key_sorts_numbers(values):
    names = [f"img{v}.jpg" for v in values]
    assert sorted(names, key=natural_key) == [f"img{v}.jpg" for v in sorted(values)]


@given(st.lists(st.text(min_size=1, max_size=20)))
def test_natural_key_is_total(texts):
    sorted(texts, key=natural_key)


def test_unique_names(tmp_path):
    paths = [
        tmp_path / "left" / "001.jpg",
        tmp_path / "right" / "001.JPG",
        tmp_path / "right" / "002.jpg",
        tmp_path / "right" / "002.png",
        tmp_path / "x" / "my photo (1).jpeg",
        tmp_path / "y" / 'a:b*c"d.png',
        tmp_path / "y" / "Ünïcode.png",
        tmp_path / "y" / "..png",
    ]
    assert unique_names(paths, [".png"] * 8) == (
        "left_001.png",
        "right_001.png",
        "right_002.png",
        "right_002_2.png",
        "my_photo_(1).png",
        "a_b_c_d.png",
        "Ünïcode.png",
        "picture.png",
    )


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["x", "X", "x_2", "a_x"]))))
def test_unique_names_never_collide(parts):
    made = unique_names([Path(f"/{d}/{n}.jpg") for d, n in parts], [".jpg"] * len(parts))
    assert len({n.casefold() for n in made}) == len(parts)
