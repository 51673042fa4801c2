"""EXIF of a picture: a small JSON-able selection, and the focal length in pixels that it implies.

The focal rules are COLMAP's, so both paths to a reconstruction start from the same prior.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

FocalSource = Literal["35mm", "plane", "sensor table", "guessed"]

GUESS = 1.2
"""Focal length over the long side when nothing is known: a 53-degree field of view."""

_FILM_DIAGONAL_MM = 43.27
_MM_PER_UNIT = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # tag 0xA210: inch, cm, mm, micrometre
_MAX_TEXT = 200

_BASE_TAGS = {0x010F: "Make", 0x0110: "Model", 0x0112: "Orientation", 0x0132: "DateTime"}
_EXIF_TAGS = {
    0x829A: "ExposureTime",
    0x829D: "FNumber",
    0x8827: "ISOSpeedRatings",
    0x9003: "DateTimeOriginal",
    0x920A: "FocalLength",
    0xA002: "PixelXDimension",
    0xA003: "PixelYDimension",
    0xA20E: "FocalPlaneXResolution",
    0xA20F: "FocalPlaneYResolution",
    0xA210: "FocalPlaneResolutionUnit",
    0xA405: "FocalLengthIn35mmFilm",
    0xA434: "LensModel",
}
_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
# What Pillow raises on damaged or hostile EXIF; such a block is worth less than the picture.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    ArithmeticError,
    EOFError,
    Warning,
)

# Long side of the sensor in mm, from the makers' data sheets, for cameras that often write no
# 35-mm equivalent. Keys are lower case and match the beginning of "make model" or of "model".
SENSOR_MM = {
    "canon eos 10d": 22.7,
    "canon eos 1000d": 22.2,
    "canon eos 20d": 22.5,
    "canon eos 300d": 22.7,
    "canon eos 30d": 22.5,
    "canon eos 350d": 22.2,
    "canon eos 400d": 22.2,
    "canon eos 40d": 22.2,
    "canon eos 450d": 22.2,
    "canon eos 500d": 22.3,
    "canon eos 50d": 22.3,
    "canon eos 550d": 22.3,
    "canon eos 5d": 36.0,
    "canon eos 600d": 22.3,
    "canon eos 60d": 22.3,
    "canon eos 650d": 22.3,
    "canon eos 6d": 36.0,
    "canon eos 700d": 22.3,
    "canon eos 70d": 22.5,
    "canon eos 750d": 22.3,
    "canon eos 7d": 22.3,
    "canon eos 80d": 22.3,
    "canon eos digital rebel xt": 22.2,
    "canon eos digital rebel": 22.7,
    "canon eos r5": 36.0,
    "canon eos r6": 36.0,
    "canon powershot g12": 7.44,
    "canon powershot s95": 7.44,
    "canon powershot sx230": 6.17,
    "dji fc200": 6.17,
    "dji fc300": 6.17,
    "dji fc330": 6.17,
    "dji fc350": 6.17,
    "dji fc6310": 13.2,
    "dji fc6510": 13.2,
    "dji fc6520": 17.3,
    "dji phantom vision fc200": 6.17,
    "fujifilm x-t1": 23.6,
    "fujifilm x-t2": 23.6,
    "fujifilm x100": 23.6,
    "gopro hero": 6.17,
    "nikon d1": 23.7,
    "nikon d200": 23.6,
    "nikon d300": 23.6,
    "nikon d3": 36.0,
    "nikon d3000": 23.6,
    "nikon d40": 23.7,
    "nikon d50": 23.7,
    "nikon d5000": 23.6,
    "nikon d600": 35.9,
    "nikon d70": 23.7,
    "nikon d7000": 23.6,
    "nikon d700": 36.0,
    "nikon d750": 35.9,
    "nikon d80": 23.6,
    "nikon d800": 35.9,
    "nikon d810": 35.9,
    "nikon d90": 23.6,
    "olympus e-m1": 17.3,
    "olympus e-m5": 17.3,
    "olympus e-m10": 17.3,
    "panasonic dmc-gf1": 17.3,
    "panasonic dmc-gh": 17.3,
    "panasonic dmc-lx5": 8.07,
    "pentax k-5": 23.7,
    "pentax k10d": 23.5,
    "ricoh gr digital": 7.27,
    "sony dsc-rx100": 13.2,
    "sony ilce-5000": 23.2,
    "sony ilce-5100": 23.5,
    "sony ilce-6000": 23.5,
    "sony ilce-7": 35.9,
    "sony nex-5": 23.4,
    "sony nex-7": 23.5,
    "sony slt-a77": 23.5,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FocalPrior:
    """A focal length before any geometry is known."""

    pixels: float
    """Of the stored picture; orientation does not change it."""
    source: FocalSource

    @property
    def guessed(self) -> bool:
        """True when it says nothing about this camera."""
        return self.source == "guessed"


def read_exif(image: Image.Image) -> dict[str, Any]:
    """Return the tags that matter here, by their EXIF names, as numbers and short texts.

    Position, where present, is under ``GPS`` with ``latitude`` and ``longitude`` in degrees
    (north and east positive) and ``altitude`` in metres. A damaged block gives an empty record.
    """
    try:
        exif = image.getexif()
        blocks = ((exif, _BASE_TAGS), (exif.get_ifd(_EXIF_IFD), _EXIF_TAGS))
        gps = exif.get_ifd(_GPS_IFD)
    except _DAMAGE:
        return {}
    found: dict[str, Any] = {}
    for block, names in blocks:
        for tag, name in names.items():
            value = _plain(block.get(tag))
            if value is not None:
                found[name] = value
    position = _position(gps)
    if position:
        found["GPS"] = position
    return found


def focal_prior(exif: Mapping[str, Any], width: int, height: int) -> FocalPrior:
    """Return the focal length in pixels of a picture of ``width`` x ``height`` stored pixels.

    The first rule that applies: 35-mm equivalent over the film's diagonal; focal length and
    focal-plane resolution (rescaled when the file was resized after capture); focal length and
    sensor width of known cameras; ``GUESS`` times the long side.
    """
    long_side = max(width, height)
    film = _number(exif, "FocalLengthIn35mmFilm")
    if film:
        return FocalPrior(
            pixels=film / _FILM_DIAGONAL_MM * math.hypot(width, height), source="35mm"
        )
    focal = _number(exif, "FocalLength")
    if focal:
        resolution = _number(exif, "FocalPlaneXResolution")
        unit = _MM_PER_UNIT.get(int(_number(exif, "FocalPlaneResolutionUnit") or 2))
        if resolution and unit:
            captured = _captured_long_side(exif, width, height)
            return FocalPrior(
                pixels=focal * resolution / unit * long_side / captured, source="plane"
            )
        sensor = _sensor_mm(exif)
        if sensor:
            return FocalPrior(pixels=focal / sensor * long_side, source="sensor table")
    return FocalPrior(pixels=GUESS * long_side, source="guessed")


def _captured_long_side(exif: Mapping[str, Any], width: int, height: int) -> float:
    across, down = _number(exif, "PixelXDimension"), _number(exif, "PixelYDimension")
    if across and down:
        # Some programs turn the pixels and leave these tags, so the long sides are compared.
        return max(across, down)
    return across * max(width, height) / width if across else float(max(width, height))


def _sensor_mm(exif: Mapping[str, Any]) -> float | None:
    make, model = (" ".join(str(exif.get(k, "")).lower().split()) for k in ("Make", "Model"))
    if not model:
        return None
    # "NIKON CORPORATION" + "NIKON D90", "Canon" + "Canon EOS 6D", "SONY" + "ILCE-7"
    brand = make.split(" ")[0] if make else ""
    names = [f"{brand} {model}", model]
    keys = [k for k in SENSOR_MM for name in names if _names_camera(k, name)]
    return SENSOR_MM[max(keys, key=len)] if keys else None


def _names_camera(key: str, name: str) -> bool:
    # A following digit is another camera: "nikon d80" is not "nikon d800".
    return name.startswith(key) and not (key[-1].isdigit() and name[len(key) :][:1].isdigit())


def _number(exif: Mapping[str, Any], name: str) -> float | None:
    value = exif.get(name)
    usable = isinstance(value, (int, float)) and math.isfinite(value) and 0 < value < 1e7
    return float(value) if usable else None  # type: ignore[arg-type]


def _plain(value: Any) -> float | int | str | None:  # noqa: ANN401
    if isinstance(value, (tuple, list)):
        return _plain(value[0]) if value and not isinstance(value[0], (tuple, list)) else None
    if isinstance(value, str):
        text = "".join(c for c in value if c.isprintable()).strip()
        return text[:_MAX_TEXT] or None
    if isinstance(value, int):
        return int(value)
    try:
        number = float(value)
    except (TypeError, ValueError, ArithmeticError):
        return None
    return number if math.isfinite(number) else None


def _position(gps: Mapping[int, Any]) -> dict[str, float]:
    found = {}
    for name, tag, limit, minus in (("latitude", 2, 90.0, "S"), ("longitude", 4, 180.0, "W")):
        try:
            degrees, minutes, seconds = (float(v) for v in gps[tag])
        except (KeyError, *_DAMAGE):
            return {}
        value = degrees + minutes / 60 + seconds / 3600
        if not 0 <= value <= limit:
            return {}
        found[name] = -value if str(gps.get(tag - 1, "")).upper().startswith(minus) else value
    altitude = _plain(gps.get(6))
    if isinstance(altitude, (int, float)):
        below = gps.get(5) in (1, b"\x01")
        found["altitude"] = -float(altitude) if below else float(altitude)
    return found
