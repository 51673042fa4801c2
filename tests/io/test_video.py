"""Decoding: time stamps, rotation, what the container warns of, and files that are no videos."""

import re

import numpy as np
import pytest

from sightline.errors import FileFormatError, InputError
from sightline.io.video import VideoReader, is_video, iterate_frames

from .clips import edit_boxes, moving, set_durations, set_rotation, write_clip
from .pictures import HEIC_UPRIGHT, quarters
from .test_images import SHOWN, corners


def times_of(path):
    return [time for _, time, _ in iterate_frames(path)]


@pytest.mark.parametrize("suffix", ["mp4", "avi", "webm"])
def test_constant_rate(tmp_path, suffix):
    path = write_clip(tmp_path / f"a.{suffix}", moving(10), fps=25.0)
    assert is_video(path)
    assert times_of(path) == pytest.approx([i / 25 for i in range(10)], abs=2e-3)
    with VideoReader(path) as video:
        assert (video.info.height, video.info.width) == (96, 128)
        assert video.info.nominal_fps == pytest.approx(25)
        assert video.info.notes == ()


def test_variable_rate_times_come_from_the_stream(tmp_path):
    path = write_clip(tmp_path / "a.mp4", moving(12))
    durations = [33] * 4 + [200] * 4 + [16] * 4
    set_durations(path, durations)
    want = np.concatenate([[0], np.cumsum(durations)[:-1]]) / 1000
    np.testing.assert_allclose(times_of(path), want, atol=1e-3)


@pytest.mark.parametrize(("degrees", "orientation"), [(0, 1), (90, 6), (180, 3), (270, 8)])
def test_rotation_of_the_container_is_applied(tmp_path, degrees, orientation):
    path = write_clip(tmp_path / "a.mp4", [quarters()] * 3)
    set_rotation(path, degrees)
    with VideoReader(path) as video:
        assert video.info.rotation == degrees
        size = (video.info.height, video.info.width)
    for _, _, frame in iterate_frames(path):
        assert corners(frame) == SHOWN[orientation]
        assert frame.shape[:2] == size == ((64, 48) if degrees % 180 else (48, 64))


@pytest.mark.parametrize(
    ("box", "text"),
    [
        (b"\0\0\0\x13colrnclx\0\x09\0\x10\0\x09\0", r"is HDR \(PQ\)"),
        (b"\0\0\0\x13colrnclx\0\x09\0\x12\0\x09\0", r"is HDR \(HLG\)"),
        (b"\0\0\0\x20dvvC" + bytes(24), r"is HDR \(Dolby Vision\)"),
        (b"\0\0\0\x0afiel\x02\x0e", "is interlaced"),
    ],
)
def test_container_warnings(tmp_path, box, text):
    path = write_clip(tmp_path / "a.mp4", moving(3))

    def add(body: bytes) -> bytes:
        size = int.from_bytes(body[8:12], "big") + len(box)
        return body[:8] + size.to_bytes(4, "big") + body[12:] + box

    edit_boxes(path, {b"stsd": add})
    with VideoReader(path) as video:
        assert len(video.info.notes) == 1
        assert re.search(text, video.info.notes[0])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "got an empty file"),
        (b"just some text " * 40, "got other bytes"),
        (HEIC_UPRIGHT, "got other bytes"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(500), "damaged or truncated mp4 or mov"),
        (b"\x1a\x45\xdf\xa3" + bytes(500), "damaged or truncated mkv or webm"),
    ],
)
def test_files_that_are_no_videos(tmp_path, data, text):
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=rf"clip\.mp4: .*{text}"):
        VideoReader(path)


def test_missing_file_and_too_large_pictures(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        VideoReader(tmp_path / "none.mp4")
    assert not is_video(tmp_path / "none.mp4")
    path = write_clip(tmp_path / "a.mp4", moving(2))
    with pytest.raises(FileFormatError, match="got 128 x 96; convert it to a smaller size"):
        VideoReader(path, max_pixels=1000)


def test_malformed_boxes_are_ignored(tmp_path):
    path = write_clip(tmp_path / "a.mp4", moving(3))
    # a box that claims to be longer than the file, and one of length 3
    path.write_bytes(path.read_bytes() + b"\xff\xff\xff\xffjunk")
    assert len(times_of(path)) == 3
    path.write_bytes(path.read_bytes()[:-8] + b"\0\0\0\x03junk")
    assert len(times_of(path)) == 3
