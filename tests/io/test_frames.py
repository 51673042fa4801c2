"""Which frames of a video are taken."""

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import Cancelled, FileFormatError, InputError
from sightline.io.frames import (
    FrameOptions,
    parse_time,
    plan_frames,
    read_frames,
    sharpness,
    spread,
)

from .clips import moving, set_durations, write_clip
from .pictures import texture


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Three seconds at 30 a second."""
    return write_clip(tmp_path_factory.mktemp("clip") / "walk.mp4", moving(90))


def numbers(path, **options):
    return [f.number for f in plan_frames(path, FrameOptions(**options)).frames]


def test_by_rate_number_and_interval(clip):
    assert numbers(clip, fps=10.0) == list(range(0, 90, 3))
    assert numbers(clip, num_frames=4) == [0, 30, 59, 89]
    assert numbers(clip, num_frames=1) == [0]
    assert numbers(clip, every=40) == [0, 40, 80]
    assert numbers(clip, fps=1000.0) == list(range(90))
    assert numbers(clip, fps=0.1) == [0]


def test_span_and_cap(clip):
    assert numbers(clip, fps=10.0, start=1.0, end="0:02") == list(range(30, 61, 3))
    assert numbers(clip, fps=10.0, max_frames=4) == [0, 30, 57, 87]
    assert numbers(clip, every=1, start=2.9) == [87, 88, 89]
    assert len(numbers(clip, num_frames=10, max_frames=20)) == 10


def test_more_frames_than_there_are(clip):
    plan = plan_frames(clip, FrameOptions(num_frames=1000))
    assert len(plan.frames) == 90
    assert any("has only 90 frames" in note for note in plan.notes)


def test_default_is_denser_for_short_clips_and_says_so(clip):
    plan = plan_frames(clip)
    assert len(plan.frames) == 24  # 8 a second is the densest default
    assert plan.frames[0].number == 0
    assert plan.frames[-1].number == 89
    assert any("walk.mp4 is short (3.0 s): took 24 frames" in note for note in plan.notes)


@pytest.mark.parametrize(("seconds", "expected"), [(6, 40), (12, 40), (39, 40), (60, 61)])
def test_default_number_of_frames(tmp_path, seconds, expected):
    path = write_clip(tmp_path / "a.mp4", moving(10 * seconds + 1, 32, 48, 1), fps=10.0)
    plan = plan_frames(path)
    assert len(plan.frames) == expected
    assert bool(plan.notes) == (seconds < 40)


def test_variable_rate_is_sampled_by_time(tmp_path):
    path = write_clip(tmp_path / "a.mp4", moving(40))
    set_durations(path, [20] * 20 + [100] * 20)  # 0.4 s, then 2 s
    plan = plan_frames(path, FrameOptions(fps=5.0))
    np.testing.assert_allclose([f.time for f in plan.frames], np.arange(12) / 5, atol=0.051)
    assert [f.number for f in plan.frames][:4] == [0, 10, 20, 22]


def test_frames_are_read_back_with_names(clip):
    plan = plan_frames(clip, FrameOptions(every=30))
    got = list(read_frames(plan))
    assert [plan.name(f) for f, _ in got] == [
        "walk_000000.png",
        "walk_000030.png",
        "walk_000060.png",
    ]
    source = moving(90)
    for frame, picture in got:
        difference = np.abs(picture.astype(int) - source[frame.number])
        assert difference.mean() < 15  # the codec's loss; another frame differs by over 30
        assert frame.time == pytest.approx(frame.number / 30, abs=1e-3)


def blur(frames, which, sigma=4.0):
    return [cv2.GaussianBlur(f, (0, 0), sigma) if i in which else f for i, f in enumerate(frames)]


def test_blurred_frames_are_rejected_and_reported(tmp_path):
    blurred = {10, 20, 30}
    path = write_clip(tmp_path / "a.mp4", blur(moving(45), blurred))
    plan = plan_frames(path, FrameOptions(every=5))
    assert [f.number for f in plan.rejected] == [10, 20, 30]
    assert [f.number for f in plan.frames] == [0, 5, 15, 25, 35, 40]
    (note,) = plan.notes
    assert "left out 3 blurred frames of 9" in note
    for frame in plan.rejected:
        assert f"{frame.number} ({frame.sharpness:.3g})" in note
    assert numbers(path, every=5, reject_blurred=False) == list(range(0, 45, 5))


def test_never_rejects_more_than_half(tmp_path):
    path = write_clip(tmp_path / "a.mp4", moving(20))
    plan = plan_frames(path, FrameOptions(every=2, min_sharpness=1e9))
    assert len(plan.frames) == len(plan.rejected) == 5
    assert max(f.sharpness for f in plan.rejected) <= min(f.sharpness for f in plan.frames)


def test_sharp_takes_the_best_of_each_window(tmp_path):
    blurred = set(range(60)) - {4, 17, 22, 31, 44, 59}
    path = write_clip(tmp_path / "a.mp4", blur(moving(60), blurred, 2.0))
    chosen = numbers(path, num_frames=6, select="sharp")
    assert chosen == [4, 17, 22, 31, 44, 59]


def test_video_of_a_still_camera_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    scene = texture(96, 128).astype(np.int16)
    noise = (np.clip(scene + rng.normal(0, 2, scene.shape), 0, 255) for _ in range(30))
    path = write_clip(tmp_path / "still.mp4", (f.astype(np.uint8) for f in noise))
    with pytest.raises(InputError, match=r"still\.mp4: all frames show nearly the same picture"):
        plan_frames(path)


def test_frames_without_any_change_hint_at_interlacing(tmp_path):
    path = write_clip(tmp_path / "slide.mp4", [np.full((96, 128, 3), 90, np.uint8)] * 30)
    with pytest.raises(InputError, match=r"slide\.mp4: every frame decodes to exactly the same"):
        plan_frames(path)


def test_still_camera_with_a_moving_subject_is_warned_about(tmp_path):
    def frames():
        for i in range(30):
            frame = texture(96, 128)
            frame[20:80, 3 * i : 3 * i + 30] = texture(60, 30, seed=5)
            yield frame

    plan = plan_frames(write_clip(tmp_path / "a.mp4", frames()), FrameOptions(every=3))
    assert any("the camera hardly seems to move" in note for note in plan.notes)


def test_interlaced_frames_are_noticed(tmp_path):
    def frames():
        fields = moving(61, 192, 256, 8)
        for even, odd in itertools.pairwise(fields):
            woven = even.copy()
            woven[1::2] = odd[1::2]
            yield woven

    woven = plan_frames(write_clip(tmp_path / "a.avi", frames()), FrameOptions(every=10))
    assert any("is interlaced" in note for note in woven.notes)
    whole = write_clip(tmp_path / "b.avi", moving(60, 192, 256, 8))
    assert plan_frames(whole, FrameOptions(every=10)).notes == ()


def test_truncated_video_is_noticed(tmp_path):
    path = write_clip(tmp_path / "a.avi", moving(200, 64, 64, 1), fps=10.0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    plan = plan_frames(path, FrameOptions(fps=1.0))
    assert plan.frames
    assert any("seems to be truncated" in note for note in plan.notes)


def test_one_frame_is_a_video_too(tmp_path):
    path = write_clip(tmp_path / "a.mp4", moving(1))
    assert numbers(path) == [0]
    assert numbers(path, fps=3.0) == [0]
    assert numbers(path, num_frames=1, select="sharp") == [0]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"fps": 1.0, "every": 2}, "--fps and --every contradict each other; give one of them"),
        ({"fps": 0.0}, "--fps must be above 0, got 0.0"),
        ({"num_frames": -1}, "--num-frames must be above 0"),
        ({"max_frames": 0}, "--max-frames must be above 0"),
        ({"start": 2.0, "end": 1.0}, r"--end \(1 s\) must come after --start \(2 s\)"),
        ({"start": 99.0}, r"--start \(99 s\) lies after the end of walk.mp4 \(3\.0 s\)"),
        ({"start": "soon"}, "--start must be seconds or hh:mm:ss, got 'soon'"),
    ],
)
def test_bad_options(clip, options, text):
    with pytest.raises(InputError, match=text):
        plan_frames(clip, FrameOptions(**options))


def test_no_decodable_frame(tmp_path):
    path = write_clip(tmp_path / "a.avi", moving(10))
    data = bytearray(path.read_bytes())
    start = data.index(b"movi") + 4
    data[start:] = b"\xff" * (len(data) - start)
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=r"a\.avi: .*none of its frames can be decoded"):
        plan_frames(path)


def test_cancel(clip):
    def stop(stage, done, total):
        assert stage == "survey walk.mp4"
        assert 0 <= done <= total
        raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        plan_frames(clip, progress=stop)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), (12.5, 12.5), ("1:30", 90), ("01:00:01.5", 3601.5), ("0:00:00", 0)],
)
def test_parse_time(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1:2:3:4", "1:", "nan", "1e3"])
def test_parse_time_refuses(text):
    with pytest.raises(InputError, match="must be seconds or hh:mm:ss"):
        parse_time(text)


@given(st.integers(1, 300), st.integers(1, 50))
def test_spread_keeps_both_ends(count, limit):
    kept = spread(np.arange(count), limit)
    assert len(kept) == min(count, limit)
    assert len(set(kept.tolist())) == len(kept)
    assert kept[0] == 0
    assert limit == 1 or kept[-1] == count - 1


def test_sharpness_drops_with_blur_and_not_with_resolution():
    large = texture(768, 1024, seed=3)[..., 0]
    soft = cv2.GaussianBlur(large, (0, 0), 6)
    assert sharpness(soft) < 0.5 * sharpness(large)
    doubled = cv2.resize(large, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    assert sharpness(doubled) == pytest.approx(sharpness(large), rel=0.02)
