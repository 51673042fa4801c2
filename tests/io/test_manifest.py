"""The manifest's round trip and its checks."""

import json

import pytest

from sightline.errors import FileFormatError, InputError
from sightline.io.manifest import Record, read_manifest, write_manifest

FULL = Record(
    id="a",
    file="images/a.png",
    width=6,
    height=4,
    source="/photos/a.jpg",
    sha256="00",
    modality="thermal",
    kind="frame",
    channels=3,
    dtype="uint8",
    source_width=4,
    source_height=6,
    source_channels=1,
    source_dtype="uint16",
    transform=[[0.0, 1.0, 0.0], [-1.0, 0.0, 6.0]],
    range={"rule": "percentile", "low": 1.0, "high": 99.0, "min": 3.5, "max": 9.0},
    bands=[3, 2, 1],
    video={"frame": 3, "time_s": 0.1, "sharpness": 12.5},
    camera={"model": "PINHOLE", "params": [5.0, 5.0, 3.0, 2.0], "source": "given"},
    pose=[[1.0, 0, 0, 1 / 3], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]],
    depth={"file": "depth/a.png", "scale": 0.001, "unit": "m", "invalid": 0},
    geo={"crs": 32618},
    exif={"Make": "X"},
    mask="masks/a.png",
    group="g",
    split="test",
    labels={"weather": "rain"},
)


def test_round_trip(tmp_path):
    plain = Record(id="b", file="images/b.png", width=1, height=1)
    write_manifest(tmp_path / "m.json", [FULL, plain], options={"fps": 2}, notes=["careful"])
    records, notes = read_manifest(tmp_path / "m.json")
    assert records == (FULL, plain)
    assert notes == ("careful",)
    raw = json.loads((tmp_path / "m.json").read_text())
    assert raw["format"] == "sightline-manifest"
    assert raw["version"] == 1
    assert raw["options"] == {"fps": 2}
    assert "created" in raw
    assert set(raw["records"][1]) == {"id", "file", "width", "height", "modality", "kind"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"file": "../../etc/passwd"}, "paths relative to the file's own folder"),
        ({"file": "/etc/passwd"}, "paths relative"),
        ({"mask": "..\\x.png"}, "paths relative"),
        ({"mask": 3}, "expected mask to be a path"),
        ({"file": None}, "expected file to be str"),
        ({"width": "6"}, "expected width to be int"),
        ({"width": True}, "expected width to be int"),
        ({"height": 0}, "expected height to be a number above 0"),
        ({"width": 10**9}, "expected width to be a number above 0"),
        ({"modality": "x-ray"}, "expected modality to be one of visible"),
        ({"split": "training"}, "expected split to be one of train"),
        ({"pose": [[1, 0], [0, 1]]}, "expected pose to be 4 x 4 finite numbers"),
        ({"pose": "eye"}, "expected pose to be 4 x 4"),
        ({"transform": [[1, 0, None], [0, 1, 0]]}, "expected transform to be 2 x 3"),
        ({"camera": []}, "expected camera to be an object"),
        ({"depth": {"scale": 0.1}}, r"expected depth\.file to be a path"),
        ({"depth": {"file": "d.png", "scale": 0}}, r"expected depth\.scale to be a number above 0"),
        ({"group": 5}, "expected group to be a text"),
        ({"bands": "rgb"}, "expected bands to be a list"),
    ],
)
def test_wrong_fields_are_named(tmp_path, change, text):
    row = {"id": "a", "file": "a.png", "width": 6, "height": 4} | change
    manifest = {"format": "sightline-manifest", "version": 1, "records": [row]}
    (tmp_path / "m.json").write_text(json.dumps(manifest))
    with pytest.raises(FileFormatError, match=rf"m\.json: .*{text}"):
        read_manifest(tmp_path / "m.json")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[]", "expected a manifest"),
        ("{", "expected JSON"),
        ("[" * 100_000, "expected JSON"),
        ('{"format": "sightline-manifest", "version": 2, "records": []}', "expected version 1"),
        ('{"format": "sightline-manifest", "version": 1, "records": []}', "a list of records"),
        ('{"format": "sightline-manifest", "version": 1, "records": [1]}', "an object"),
    ],
)
def test_other_files(tmp_path, content, text):
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(FileFormatError, match=rf"m\.json: .*{text}"):
        read_manifest(tmp_path / "m.json")


def test_repeated_and_missing(tmp_path):
    row = {"id": "a", "file": "a.png", "width": 6, "height": 4}
    manifest = {"format": "sightline-manifest", "version": 1, "records": [row, row]}
    (tmp_path / "m.json").write_text(json.dumps(manifest))
    with pytest.raises(FileFormatError, match="one record a id, got one twice"):
        read_manifest(tmp_path / "m.json")
    with pytest.raises(InputError, match="there is no file"):
        read_manifest(tmp_path / "none.json")
