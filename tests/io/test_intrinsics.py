"""Lenses from texts and files, and which one belongs to a picture."""

import json

import numpy as np
import pytest

from sightline.errors import FileFormatError, InputError
from sightline.io.intrinsics import (
    Lens,
    choose_lens,
    fit_lens,
    lens_from_json,
    parse_intrinsics,
    pinhole_lens,
    stack_lenses,
)


def test_four_numbers():
    (lens,) = parse_intrinsics("500, 510,320.5,240")
    np.testing.assert_array_equal(lens.K, [[500, 0, 320.5], [0, 510, 240], [0, 0, 1]])
    assert not lens.distortion.any()
    assert (lens.height, lens.width) == (0, 0)
    chosen = choose_lens([lens], 480, 640, "a.jpg")
    assert (chosen.height, chosen.width) == (480, 640)


@pytest.mark.parametrize(
    ("content", "distortion", "fisheye"),
    [
        ({"fl_x": 500, "fl_y": 510, "cx": 320, "cy": 240, "w": 640, "h": 480}, [], False),
        ({"fx": 500, "fy": 510, "cx": 320, "cy": 240, "width": 640, "height": 480}, [], False),
        (
            {"fl_x": 500, "fl_y": 510, "cx": 320, "cy": 240, "w": 640, "h": 480}
            | {"k1": 0.1, "k2": 0.2, "p1": 0.3, "p2": 0.4, "k3": 0.5},
            [0.1, 0.2, 0.3, 0.4, 0.5],
            False,
        ),
        (
            {"fl_x": 500, "fl_y": 510, "cx": 320, "cy": 240, "w": 640, "h": 480}
            | {"camera_model": "OPENCV_FISHEYE", "k1": 0.1, "k2": 0.2, "k3": 0.3, "k4": 0.4},
            [0.1, 0.2, 0.3, 0.4],
            True,
        ),
        (
            {
                "model": "OPENCV",
                "params": [500, 510, 320, 240, 0.1, 0.2, 0.3, 0.4],
                "width": 640,
                "height": 480,
            },
            [0.1, 0.2, 0.3, 0.4],
            False,
        ),
        (
            {
                "width": 640,
                "height": 480,
                "camera": {"model": "PINHOLE", "params": [500, 510, 320, 240]},
            },
            [],
            False,
        ),
    ],
)
def test_json_files(tmp_path, content, distortion, fisheye):
    (tmp_path / "c.json").write_text(json.dumps(content))
    (lens,) = parse_intrinsics(str(tmp_path / "c.json"))
    np.testing.assert_array_equal(lens.K, [[500, 0, 320], [0, 510, 240], [0, 0, 1]])
    np.testing.assert_array_equal(lens.distortion[: len(distortion)], distortion)
    assert not lens.distortion[len(distortion) :].any()
    assert lens.fisheye == fisheye
    assert (lens.height, lens.width) == (480, 640)


def test_colmap_file_with_two_cameras(tmp_path):
    (tmp_path / "cameras.txt").write_text(
        "# cameras\n1 SIMPLE_RADIAL 640 480 500 320 240 0.1\n2 PINHOLE 480 640 400 400 240 320\n"
    )
    lenses = parse_intrinsics(str(tmp_path / "cameras.txt"))
    assert choose_lens(lenses, 480, 640, "a").K[0, 0] == 500
    assert choose_lens(lenses, 640, 480, "a").K[0, 0] == 400
    # half the size of the first camera
    small = choose_lens(lenses, 240, 320, "a")
    np.testing.assert_allclose(small.K, [[250, 0, 160], [0, 250, 120], [0, 0, 1]])
    assert small.distortion[0] == 0.1
    with pytest.raises(InputError, match="is for pictures of 640 x 480, 480 x 640, but a has 500"):
        choose_lens(lenses, 500, 500, "a")


def test_two_cameras_of_one_size_are_ambiguous():
    lenses = [pinhole_lens(500.0, 480, 640), pinhole_lens(600.0, 480, 640)]
    with pytest.raises(InputError, match="has 2 cameras for pictures of 640 x 480"):
        choose_lens(lenses, 480, 640, "a")
    assert choose_lens([lenses[0], lenses[0]], 480, 640, "a").K[0, 0] == 500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("500,500,320", "expects fx,fy,cx,cy or a file"),
        ("500,500,320,240,1", "expects fx,fy,cx,cy or a file"),
        ("nowhere.json", "there is no file nowhere.json"),
        ("-500,500,320,240", "expected positive focal lengths"),
        ("0,500,320,240", "expected positive focal lengths"),
        ("1e999,500,320,240", "expected positive focal lengths"),
    ],
)
def test_bad_texts(text, message):
    with pytest.raises(InputError, match=message):
        parse_intrinsics(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"fl_x": 500}, "expected intrinsics"),
        ([1, 2, 3, 4], "expected intrinsics"),
        ({"fl_x": "500", "cx": 1, "cy": 1}, "expected intrinsics"),
        ({"model": "MAGIC", "params": [1]}, "no camera model 'MAGIC'"),
        ({"model": "PINHOLE", "params": [1, 2, 3]}, "expected 4 finite numbers"),
        ({"fl_x": 500, "cx": 1, "cy": 1, "k1": "x"}, "expected finite distortion"),
    ],
)
def test_bad_files(tmp_path, content, message):
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(FileFormatError, match=message):
        parse_intrinsics(str(tmp_path / "c.json"))


def test_json_round_trip_is_exact(tmp_path):
    rng = np.random.default_rng(0)
    K = np.array([[500 / 3, 0, 320 / 7], [0, 510 / 3, 240 / 7], [0, 0, 1]])
    for fisheye, terms in ((False, 0), (False, 4), (False, 8), (True, 4)):
        distortion = np.zeros(8)
        distortion[:terms] = rng.normal(size=terms)
        lens = Lens(K=K, distortion=distortion, fisheye=fisheye, height=4, width=6)
        text = json.loads(json.dumps(lens.to_json("given")))
        back = lens_from_json(tmp_path / "x.json", text, 4, 6)
        np.testing.assert_array_equal(back.K, K)
        np.testing.assert_array_equal(back.distortion, distortion)
        assert back.fisheye == fisheye


def test_fit_and_stack():
    lens = pinhole_lens(500.0, 480, 640)
    assert fit_lens(lens, 480, 480) is None
    scaled = fit_lens(lens, 960, 1280)
    assert scaled is not None
    np.testing.assert_array_equal(scaled.K, [[1000, 0, 640], [0, 1000, 480], [0, 0, 1]])
    stacked = stack_lenses([lens, scaled])
    assert stacked.sizes.tolist() == [[480, 640], [960, 1280]]
    assert stacked.is_pinhole
