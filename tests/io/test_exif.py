"""The four focal rules, the sensor table and the selection of tags."""

import math

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from sightline.io.exif import SENSOR_MM, focal_prior, read_exif
from sightline.io.images import read_image

from .pictures import quarters

DIAGONAL = math.hypot(4000, 3000)


@pytest.mark.parametrize(
    ("exif", "pixels", "source"),
    [
        ({"FocalLengthIn35mmFilm": 26}, 26 / 43.27 * DIAGONAL, "35mm"),
        # the 35-mm equivalent wins over everything else
        (
            {"FocalLengthIn35mmFilm": 50, "FocalLength": 5.0, "FocalPlaneXResolution": 1000},
            50 / 43.27 * DIAGONAL,
            "35mm",
        ),
        # pixels per inch, cm, mm and micrometre; no unit means inch
        ({"FocalLength": 10.0, "FocalPlaneXResolution": 5080.0}, 2000.0, "plane"),
        (
            {"FocalLength": 10.0, "FocalPlaneXResolution": 2000.0, "FocalPlaneResolutionUnit": 3},
            2000.0,
            "plane",
        ),
        (
            {"FocalLength": 10.0, "FocalPlaneXResolution": 200.0, "FocalPlaneResolutionUnit": 4},
            2000.0,
            "plane",
        ),
        (
            {"FocalLength": 10.0, "FocalPlaneXResolution": 0.2, "FocalPlaneResolutionUnit": 5},
            2000.0,
            "plane",
        ),
        # resized to half after capture
        (
            {
                "FocalLength": 10.0,
                "FocalPlaneXResolution": 5080.0,
                "PixelXDimension": 8000,
                "PixelYDimension": 6000,
            },
            1000.0,
            "plane",
        ),
        (
            {"FocalLength": 10.0, "FocalPlaneXResolution": 5080.0, "PixelXDimension": 8000},
            1000.0,
            "plane",
        ),
        # pixels turned by a program that left the tags alone
        (
            {
                "FocalLength": 10.0,
                "FocalPlaneXResolution": 5080.0,
                "PixelXDimension": 3000,
                "PixelYDimension": 4000,
            },
            2000.0,
            "plane",
        ),
        (
            {"FocalLength": 18.0, "Make": "NIKON CORPORATION", "Model": "NIKON D90"},
            18 / 23.6 * 4000,
            "sensor table",
        ),
        (
            {"FocalLength": 50.0, "Make": "Canon", "Model": "Canon EOS 6D Mark II"},
            50 / 36 * 4000,
            "sensor table",
        ),
        ({"FocalLength": 3.0, "Make": "GoPro", "Model": "HERO4 Silver"}, 3 / 6.17 * 4000, None),
        # D800 is not D80, and an unknown camera has no sensor width
        ({"FocalLength": 50.0, "Make": "NIKON", "Model": "NIKON D800E"}, 50 / 35.9 * 4000, None),
        ({"FocalLength": 50.0, "Make": "ACME", "Model": "X1"}, 4800.0, "guessed"),
        ({"FocalLength": 50.0}, 4800.0, "guessed"),
        ({"FocalLengthIn35mmFilm": 0, "FocalLength": 0.0}, 4800.0, "guessed"),
        ({"FocalLengthIn35mmFilm": float("nan")}, 4800.0, "guessed"),
        ({"FocalLengthIn35mmFilm": "26"}, 4800.0, "guessed"),
        ({}, 4800.0, "guessed"),
    ],
)
def test_focal_rules(exif, pixels, source):
    for width, height in ((4000, 3000), (3000, 4000)):
        if "PixelXDimension" in exif and "PixelYDimension" not in exif and width < height:
            continue  # one dimension alone compares with the same side
        prior = focal_prior(exif, width, height)
        assert prior.pixels == pytest.approx(pixels)
        assert prior.source == (source or "sensor table")
        assert prior.guessed == (source == "guessed")


def test_sensor_table_is_plausible():
    assert all(key == key.lower() and 5 < width <= 36 for key, width in SENSOR_MM.items())


def _photo_with(tmp_path, fill):
    exif = Image.Exif()
    fill(exif)
    path = tmp_path / "a.jpg"
    Image.fromarray(quarters()).save(path, exif=exif.tobytes())
    return path


def test_tags_and_position_are_read_from_a_file(tmp_path):
    def fill(exif):
        exif[0x010F], exif[0x0110] = "Apple\0", "iPhone 12"
        exif[0x0112] = 6
        inner = exif.get_ifd(0x8769)
        inner[0xA405] = 26
        inner[0x920A] = IFDRational(42, 10)
        inner[0x829A] = IFDRational(1, 120)
        gps = exif.get_ifd(0x8825)
        gps[1], gps[2] = "S", (IFDRational(20), IFDRational(30), IFDRational(36))
        gps[3], gps[4] = "W", (IFDRational(43), IFDRational(15), IFDRational(0))
        gps[5], gps[6] = b"\x01", IFDRational(50, 2)

    photo = read_image(_photo_with(tmp_path, fill))
    assert photo.exif == {
        "Make": "Apple",
        "Model": "iPhone 12",
        "Orientation": 6,
        "FocalLengthIn35mmFilm": 26,
        "FocalLength": 4.2,
        "ExposureTime": pytest.approx(1 / 120),
        "GPS": {
            "latitude": pytest.approx(-20.51),
            "longitude": pytest.approx(-43.25),
            "altitude": -25.0,
        },
    }
    assert photo.focal.pixels == pytest.approx(26 / 43.27 * 80)
    assert photo.size == (64, 48)


def test_nonsense_values_are_dropped(tmp_path):
    def fill(exif):
        exif[0x010F] = "x" * 5000
        exif[0x0112] = 77
        exif.get_ifd(0x8769)[0x920A] = IFDRational(1, 0)
        exif.get_ifd(0x8825)[2] = (IFDRational(400), IFDRational(0), IFDRational(0))

    photo = read_image(_photo_with(tmp_path, fill))
    assert photo.orientation == 1
    assert len(photo.exif["Make"]) == 200
    assert "FocalLength" not in photo.exif
    assert "GPS" not in photo.exif


def test_a_picture_without_exif_has_an_empty_record():
    assert read_exif(Image.fromarray(np.zeros((2, 2, 3), np.uint8))) == {}
