"""Videos come back with their frames, whole or not at all."""

import shutil

import numpy as np
import pytest

from sightline.errors import Cancelled, InputError, OutputError, ShapeError
from sightline.io import video_writer as module
from sightline.io.video import VideoReader, iterate_frames
from sightline.io.video_writer import h264_encoder, write_video

from .clips import moving
from .pictures import texture


def test_vp9_round_trip(tmp_path):
    frames = moving(12, 96, 128)
    made = write_video(tmp_path / "v.mp4", iter(frames), 24.0)
    assert (made.codec, made.encoder) == ("vp9", "opencv")
    assert (made.num_frames, made.height, made.width, made.fps) == (12, 96, 128, 24.0)
    with VideoReader(made.path) as video:
        assert video.info.codec.lower() in ("vp90", "vp09")
        assert video.info.nominal_fps == pytest.approx(24)
    back = list(iterate_frames(made.path))
    assert [t for _, t, _ in back] == pytest.approx([i / 24 for i in range(12)], abs=1e-3)
    for (_, _, got), want in zip(back, frames, strict=True):
        assert np.abs(got.astype(int) - want).mean() < 15


def test_colours_are_right_and_tagged(tmp_path):
    colours = [(200, 60, 40), (40, 200, 60), (60, 40, 200), (128, 128, 128), (0, 0, 0)]
    frame = np.repeat(np.array(colours, np.uint8)[None], 32, 0).repeat(32, 1)
    made = write_video(tmp_path / "v.mp4", [frame] * 3)
    for _, _, got in iterate_frames(made.path):
        for i, colour in enumerate(colours):
            assert np.abs(got[16, 32 * i + 16].astype(int) - colour).max() <= 5
    data = made.path.read_bytes()
    at = data.rindex(b"vpcC")
    assert data[at + 11 : at + 14] == b"\x01\x0d\x06"


@pytest.mark.parametrize("size", [(33, 48), (32, 49), (33, 49)])
def test_odd_sizes_are_padded(tmp_path, size):
    made = write_video(tmp_path / "v.mp4", [texture(*size)] * 2)
    assert (made.height, made.width) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    (_, _, got), *_ = iterate_frames(made.path)
    assert got.shape == (made.height, made.width, 3)


def test_nothing_is_left_when_it_fails(tmp_path):
    def frames():
        yield texture(32, 32)
        raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        write_video(tmp_path / "v.mp4", frames())
    with pytest.raises(ShapeError, match=r"frames must be \[H W 3\] = \[32, 32, 3\].*for frame 1"):
        write_video(tmp_path / "v.mp4", [texture(32, 32), texture(32, 34)])
    with pytest.raises(InputError, match="at least one frame"):
        write_video(tmp_path / "v.mp4", [])
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments(tmp_path):
    with pytest.raises(InputError, match=r"written as \.mp4, got v\.avi"):
        write_video(tmp_path / "v.avi", [texture(32, 32)])
    with pytest.raises(InputError, match="--fps must be above 0"):
        write_video(tmp_path / "v.mp4", [texture(32, 32)], 0.0)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        write_video(tmp_path / "file" / "v.mp4", [texture(32, 32)])


def test_h264_only_where_there_is_an_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "h264_encoder", lambda: None)
    with pytest.raises(InputError, match="H.264 needs an ffmpeg program with libx264, or the av"):
        write_video(tmp_path / "v.mp4", [texture(32, 32)], codec="h264")
    made = write_video(tmp_path / "v.mp4", [texture(32, 32)], codec="auto")
    assert made.codec == "vp9"


@pytest.mark.skipif(h264_encoder() is None, reason="no H.264 encoder on this machine")
def test_h264_round_trip(tmp_path):
    frames = moving(6, 97, 128)
    made = write_video(tmp_path / "v.mp4", frames, 30.0, codec="h264")
    assert made.codec == "h264"
    back = list(iterate_frames(made.path))
    assert len(back) == 6
    assert np.abs(back[3][2][:97].astype(int) - frames[3]).mean() < 15


def test_a_failing_ffmpeg_is_reported(tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\ncat > /dev/null\necho no space left >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(module, "h264_encoder", lambda: "ffmpeg")
    monkeypatch.setattr(shutil, "which", lambda name: str(program))
    with pytest.raises(OutputError, match=r"ffmpeg could not write the video \(no space left\)"):
        write_video(tmp_path / "out" / "v.mp4", [texture(32, 32)], codec="h264")
    assert not (tmp_path / "out" / "v.mp4").exists()
