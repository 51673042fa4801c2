"""One loader for every picture: modes, depths, orientation, transparency and bad files."""

import contextlib
import importlib.util
import io
import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from sightline.errors import FileFormatError, InputError, MissingExtraError
from sightline.io.images import is_deep, is_image, orient, read_image, upright_to_stored
from sightline.io.ranges import ValueRange

from .pictures import HEIC_TURNED, HEIC_UPRIGHT, quarters

# Pillow has AVIF since 11.3, and not in every build; older ones warn at the question.
AVIF = importlib.util.find_spec("PIL.AvifImagePlugin") is not None and features.check("avif")

# What a viewer must show of `quarters()` for each orientation: colours of the four corners.
R, G, B, Y = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
SHOWN = {
    1: ((R, G), (B, Y)),
    2: ((G, R), (Y, B)),
    3: ((Y, B), (G, R)),
    4: ((B, Y), (R, G)),
    5: ((R, B), (G, Y)),
    6: ((B, R), (Y, G)),
    7: ((Y, G), (B, R)),
    8: ((G, Y), (R, B)),
}


def save(path: Path, pixels: np.ndarray, orientation: int | None = None, **kw) -> Path:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    if path.suffix == ".avif" and not AVIF:
        pytest.skip("this Pillow has no AVIF")
    Image.fromarray(pixels).save(path, exif=exif.tobytes(), **kw)
    return path


def corners(pixels: np.ndarray) -> tuple:
    return tuple(
        tuple(tuple(int(v > 127) * 255 for v in pixels[y, x]) for x in (3, -4)) for y in (3, -4)
    )


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path, suffix, orientation):
    path = save(tmp_path / f"a.{suffix}", quarters(), orientation)
    photo = read_image(path)
    assert photo.size == ((64, 48) if orientation >= 5 else (48, 64))
    assert photo.source_size == (48, 64)
    assert photo.orientation == orientation
    assert corners(photo.pixels) == SHOWN[orientation]
    assert photo.plain == (orientation == 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_deep_tiff(tmp_path, orientation):
    path = tmp_path / "deep.tif"
    path.write_bytes(_deep_tiff(quarters().astype(np.uint16) * 257, orientation))
    photo = read_image(path)
    assert photo.source_dtype == "uint16"
    assert corners(photo.pixels) == SHOWN[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_to_stored_maps_pixel_centres(orientation):
    stored = np.arange(12).reshape(3, 4)
    upright = orient(stored, orientation)
    affine = upright_to_stored(orientation, 3, 4)
    for row in range(upright.shape[0]):
        for column in range(upright.shape[1]):
            x, y = affine @ (column + 0.5, row + 0.5, 1)
            assert stored[int(y), int(x)] == upright[row, column]
            assert x % 1 == 0.5
            assert y % 1 == 0.5


@pytest.mark.parametrize(("data", "shown"), [(HEIC_UPRIGHT, SHOWN[1]), (HEIC_TURNED, SHOWN[6])])
def test_heic_is_not_rotated_twice(tmp_path, data, shown):
    path = tmp_path / "photo.jpg"  # a wrong suffix does not matter
    path.write_bytes(data)
    photo = read_image(path)
    assert photo.format == "heif"
    assert corners(photo.pixels) == shown
    assert photo.exif["Model"] == "iPhone 12"
    assert photo.focal.source == "35mm"
    assert not photo.plain


def test_heic_without_its_extra_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "photo.heic"
    path.write_bytes(HEIC_UPRIGHT)
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(MissingExtraError, match=r'photo.heic .*pip install "sightline\[heif\]"'):
        read_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "ppm", "tif"])
def test_format_goes_by_content(tmp_path, suffix):
    made = tmp_path / f"made.{suffix}"
    Image.fromarray(quarters()).save(made)
    path = made.rename(tmp_path / "picture.xyz")
    assert is_image(path)
    photo = read_image(path)
    assert corners(photo.pixels) == SHOWN[1]
    assert photo.format == {"jpg": "jpeg", "tif": "tiff", "ppm": "pnm"}.get(suffix, suffix)
    assert photo.focal.source == "guessed"
    assert photo.focal.pixels == pytest.approx(1.2 * 64)


def test_plain_rgb_is_exact(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    photo = read_image(save(tmp_path / "a.png", pixels))
    np.testing.assert_array_equal(photo.pixels, pixels)
    assert photo.mask is None
    assert photo.plain
    assert photo.value_range.rule == "none"


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "I;16"])
def test_every_opaque_mode_becomes_rgb(tmp_path, mode):
    grey = np.tile(np.linspace(0, 255, 16).astype(np.uint8), (8, 1))
    suffix = "tif" if mode == "CMYK" else "png"
    image = (
        Image.fromarray(grey.astype(np.uint16) * 200)
        if mode == "I;16"
        else Image.fromarray(np.repeat(grey[..., None], 3, 2)).convert(mode)
    )
    image.save(tmp_path / f"a.{suffix}")
    photo = read_image(tmp_path / f"a.{suffix}")
    assert photo.pixels.shape == (8, 16, 3)
    assert photo.pixels.dtype == np.uint8
    assert photo.mask is None
    ramp = photo.pixels[0].astype(int)
    assert mode == "1" or (np.diff(ramp[:, 0]) >= -1).all()  # 1-bit is dithered
    assert ramp[0].max() <= 2
    assert ramp[-1].min() >= 253
    assert np.abs(ramp - ramp[:, :1]).max() <= 2


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA", "P", "RGB"])
def test_alpha_is_composited_and_becomes_the_mask(tmp_path, mode):
    image = Image.new("RGBA", (4, 1))
    for x, alpha in enumerate((255, 128, 127, 0)):
        image.putpixel((x, 0), (100, 100, 100, alpha))
    if mode == "RGB":  # a tRNS chunk: one colour is transparent
        image = Image.new("RGB", (4, 1), (100, 100, 100))
        image.putpixel((3, 0), (1, 2, 3))
        image.info["transparency"] = (1, 2, 3)
        image.save(tmp_path / "a.png", transparency=(1, 2, 3))
        want = [100, 100, 100, 255]
        mask = [True, True, True, False]
    elif mode in ("P", "PA"):
        palette = Image.new("P", (4, 1))
        palette.putpalette([100, 100, 100, 200, 200, 200])
        palette.putpixel((3, 0), 1)
        palette.save(tmp_path / "a.png", transparency=1)
        want = [100, 100, 100, 255]
        mask = [True, True, True, False]
    else:
        image.convert(mode).save(tmp_path / "a.png")
        want = [100, 177, 178, 255]
        mask = [True, True, False, False]
    white = read_image(tmp_path / "a.png")
    assert white.pixels[0, :, 0].tolist() == want
    assert white.mask is not None
    assert white.mask[0].tolist() == mask
    assert not white.plain
    black = read_image(tmp_path / "a.png", alpha="black")
    assert black.pixels[0, -1].tolist() == [0, 0, 0]
    ignored = read_image(tmp_path / "a.png", alpha="ignore")
    assert ignored.mask is None
    assert ignored.pixels[0, 0].tolist() == [100, 100, 100]


def test_opaque_alpha_masks_nothing(tmp_path):
    pixels = np.dstack([quarters(), np.full((48, 64), 255, np.uint8)])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    photo = read_image(tmp_path / "a.png")
    assert photo.mask is None
    assert not photo.plain  # readers differ on RGBA, so it is stored again as RGB


def test_alpha_turns_with_the_picture(tmp_path):
    pixels = np.dstack([quarters(), np.zeros((48, 64), np.uint8)])
    pixels[:24, :32, 3] = 255  # the red quarter is kept; orientation 6 shows it top right
    photo = read_image(save(tmp_path / "a.png", pixels, 6))
    assert photo.mask is not None
    assert photo.mask.shape == (64, 48)
    assert photo.mask[:32, 24:].all()
    assert not photo.mask[32:].any()


def test_sixteen_bit_grey_stretches_between_percentiles(tmp_path):
    counts = np.linspace(3000, 28000, 10_000).astype(np.uint16).reshape(100, 100)
    counts[0, 0], counts[0, 1] = 0, 65535  # dead and hot pixels do not set the range
    Image.fromarray(counts).save(tmp_path / "t.png")
    photo = read_image(tmp_path / "t.png")
    assert photo.value_range.rule == "percentile"
    assert (photo.value_range.low, photo.value_range.high) == (1.0, 99.0)
    assert photo.value_range.minimum[0] == pytest.approx(3250, abs=10)
    assert photo.value_range.maximum[0] == pytest.approx(27750, abs=10)
    assert int(photo.pixels[50, 50, 0]) == pytest.approx(128, abs=2)
    assert photo.pixels[0, 0].tolist() == [0, 0, 0]
    assert photo.pixels[0, 1].tolist() == [255, 255, 255]
    record = photo.value_range.to_json()
    assert record == {
        "rule": "percentile",
        "low": 1.0,
        "high": 99.0,
        "min": photo.value_range.minimum[0],
        "max": photo.value_range.maximum[0],
    }


def test_a_given_range_is_used(tmp_path):
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "t.png")
    fixed = ValueRange(rule="percentile", low=1.0, high=99.0, minimum=(0.0,), maximum=(2000.0,))
    photo = read_image(tmp_path / "t.png", value_range=fixed)
    assert photo.value_range is fixed
    assert (photo.pixels == 128).all()


def test_constant_sixteen_bit_picture_is_black(tmp_path):
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "t.png")
    assert (read_image(tmp_path / "t.png").pixels == 0).all()


def test_sixteen_bit_pgm(tmp_path):
    counts = np.arange(10_000, dtype=np.uint16).reshape(100, 100)
    (tmp_path / "a.pgm").write_bytes(b"P5 100 100 65535\n" + counts.astype(">u2").tobytes())
    photo = read_image(tmp_path / "a.pgm")
    assert photo.source_dtype == "uint16"
    assert int(photo.pixels[50, 0, 0]) == pytest.approx(127, abs=1)


@pytest.mark.parametrize("suffix", ["png", "tif", "ppm"])
def test_sixteen_bit_colour_keeps_its_full_range(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 65536, (30, 20, 3)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), pixels[..., ::-1])
    photo = read_image(tmp_path / f"a.{suffix}")
    assert photo.value_range.rule == "full"
    assert photo.source_dtype == "uint16"
    np.testing.assert_array_equal(photo.pixels, np.rint(pixels / 257.0).astype(np.uint8))


def test_twelve_bit_colour_in_sixteen_bits_is_stretched(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4096, (30, 20, 3)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), pixels[..., ::-1])
    photo = read_image(tmp_path / "a.png")
    assert photo.value_range.rule == "percentile"
    assert photo.pixels.mean() == pytest.approx(127, abs=5)


def test_sixteen_bit_alpha(tmp_path):
    pixels = np.full((2, 2, 4), 40_000, np.uint16)
    pixels[0, 0, 3] = 0
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    photo = read_image(tmp_path / "a.png")
    assert photo.mask is not None
    assert photo.mask.tolist() == [[False, True], [True, True]]
    assert photo.pixels[0, 0].tolist() == [255, 255, 255]


def test_float_tiff_is_linear_light_and_nan_is_black(tmp_path):
    values = np.full((10, 10), 0.5, np.float32)
    values[0] = np.linspace(0, 1, 10)
    values[5, 5] = np.nan
    plain = [cv2.IMWRITE_TIFF_COMPRESSION, 1]  # OpenCV 4 would use a lossy float code
    cv2.imwrite(str(tmp_path / "a.tif"), np.repeat(values[..., None], 3, 2), plain)
    photo = read_image(tmp_path / "a.tif")
    assert photo.value_range.rule == "exposure"
    assert photo.pixels[5, 5].tolist() == [0, 0, 0]
    white = photo.value_range.maximum[0]
    assert int(photo.pixels[2, 2, 0]) == pytest.approx(
        255 * (1.055 * (0.5 / white) ** (1 / 2.4) - 0.055), abs=1
    )
    cv2.imwrite(str(tmp_path / "b.tif"), values)
    single = read_image(tmp_path / "b.tif")
    assert single.value_range.rule == "percentile"
    assert single.source_dtype == "float32"


def test_satellite_picture_reads_named_bands_and_masks_nodata(tmp_path):
    values = np.random.default_rng(0).integers(1, 200, (20, 30, 3)).astype(np.uint8)
    values[:, :5] = 0
    tags = {33550: (1.0, 1.0, 0.0), 42113: "0"}
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo=tags)
    photo = read_image(tmp_path / "a.tif")
    assert photo.mask is not None
    assert not photo.mask[:, :5].any()
    assert photo.mask[:, 5:].all()
    assert photo.bands == (0, 1, 2)


def test_many_bands_need_the_geo_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    (tmp_path / "eight.tif").write_bytes(_tiff_header(bands=8))
    with pytest.raises(
        MissingExtraError, match=r'eight.tif \(8 bands of 16 bits.*"sightline\[geo\]"'
    ):
        read_image(tmp_path / "eight.tif")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "ppm", "avif", "heic"])
def test_truncated_files_are_named(tmp_path, suffix):
    path = tmp_path / f"half.{suffix}"
    if suffix == "heic":
        path.write_bytes(HEIC_UPRIGHT)
    else:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        save(path, noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(FileFormatError, match=rf"half\.{suffix}: .*truncated"):
        read_image(path)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "got an empty file"),
        (b"hello, world, this is text", "got other bytes"),
        (b"%PDF-1.7 something", "got a PDF document"),
        (b"GIF89a" + bytes(20), "got a GIF animation"),
        (b"PK\x03\x04" + bytes(20), "got a zip archive"),
        (b"\x89PNG\r\n\x1a\n", "damaged or truncated"),
        (b"\xff\xd8\xff\xe0", "damaged or truncated"),
        (b"II*\0", "damaged or truncated"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "damaged or truncated"),
        (b"P6\n", "damaged or truncated"),
    ],
)
def test_files_that_are_no_pictures(tmp_path, data, text):
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=rf"photo\.jpg: .*{text}"):
        read_image(path)


def test_missing_file_folder_and_raw(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(InputError, match="is a folder"):
        read_image(tmp_path)
    save(tmp_path / "a.tif", quarters()).rename(tmp_path / "a.NEF")
    with pytest.raises(FileFormatError, match=r"a\.NEF: .*camera raw file; develop it"):
        read_image(tmp_path / "a.NEF")


def test_decompression_bomb_is_refused_before_decoding(tmp_path):
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9999)))
    )
    (tmp_path / "bomb.png").write_bytes(data + chunk(b"IEND", b""))
    with pytest.raises(FileFormatError, match=r"bomb\.png: expected at most 300 million pixels"):
        read_image(tmp_path / "bomb.png")
    path = save(tmp_path / "small.jpg", quarters())
    with pytest.raises(FileFormatError, match="got 64 x 48"):
        read_image(path, max_pixels=3000)


def test_damaged_exif_does_not_hide_the_picture(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(quarters()).save(buffer, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\xff" + bytes(6))
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    photo = read_image(tmp_path / "a.png")
    assert photo.orientation == 1
    assert corners(photo.pixels) == SHOWN[1]


def _tiff(tags: dict[int, tuple[int, list[int]]], data: bytes) -> bytes:
    """Assemble a little-endian TIFF: tag -> (type 3 short or 4 long, values)."""
    size, code = {3: 2, 4: 4}, {3: "H", 4: "I"}
    extra_at = 8 + 2 + 12 * len(tags) + 4
    extra, entries = b"", b""
    for tag in sorted(tags):
        kind, values = tags[tag]
        packed = struct.pack(f"<{len(values)}{code[kind]}", *values)
        if size[kind] * len(values) > 4:
            field = struct.pack("<I", extra_at + len(extra))
            extra += packed
        else:
            field = packed.ljust(4, b"\0")
        entries += struct.pack("<HHI", tag, kind, len(values)) + field
    start = struct.pack("<I", extra_at + len(extra))
    entries = entries.replace(b"DATA", start)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + extra + data


def _deep_tiff(pixels: np.ndarray, orientation: int) -> bytes:
    height, width, _ = pixels.shape
    data = pixels.astype("<u2").tobytes()
    (offset,) = struct.unpack("<I", b"DATA")
    tags = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [16, 16, 16]),
        259: (3, [1]),
        262: (3, [2]),
        273: (4, [offset]),
        274: (3, [orientation]),
        277: (3, [3]),
        278: (4, [height]),
        279: (4, [len(data)]),
    }
    return _tiff(tags, data)


def _tiff_header(bands: int) -> bytes:
    tags = {
        256: (4, [4]),
        257: (4, [4]),
        258: (3, [16] * bands),
        259: (3, [1]),
        262: (3, [1]),
        277: (3, [bands]),
    }
    return _tiff(tags, b"")


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_stored_pixels_on_request(tmp_path, suffix, orientation):
    photo = read_image(save(tmp_path / f"a.{suffix}", quarters(), orientation), upright=False)
    assert corners(photo.pixels) == SHOWN[1]
    assert photo.size == photo.source_size == (48, 64)
    assert photo.orientation == 1
    assert photo.plain == (orientation == 1)


def test_is_deep(tmp_path):
    deep = np.zeros((4, 4), np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(deep).save(tmp_path / name)
    (tmp_path / "a.pgm").write_bytes(b"P5 1 1 65535\n\0\0")
    for name in ("b.png", "b.tif", "b.jpg", "b.ppm"):
        Image.fromarray(quarters()).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    made = {p.name: is_deep(p) for p in tmp_path.iterdir()}
    assert {name for name, deep in made.items() if deep} == {"a.png", "a.tif", "a.pgm"}


def test_heic_item_names_are_checked_before_the_decoder_sees_them(tmp_path):
    """Its C code crashes the whole process on names that are no UTF-8."""
    damaged = bytearray(HEIC_UPRIGHT)
    at = damaged.index(b"Exif", damaged.index(b"iinf"))
    damaged[at + 2] = 0xFB
    (tmp_path / "a.heic").write_bytes(damaged)
    with pytest.raises(FileFormatError, match=r"a\.heic: .*unreadable item names"):
        read_image(tmp_path / "a.heic")


def _seeds() -> dict[str, bytes]:
    made = {"heic": HEIC_UPRIGHT, "deep": _deep_tiff(quarters(24, 32).astype(np.uint16), 3)}
    for suffix, kind in (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("bmp", "BMP")):
        buffer = io.BytesIO()
        Image.fromarray(quarters(24, 32)).save(buffer, kind)
        made[suffix] = buffer.getvalue()
    for compression in ("raw", "tiff_lzw", "jpeg"):
        buffer = io.BytesIO()
        Image.fromarray(quarters(24, 32)).save(buffer, "TIFF", compression=compression)
        made[compression] = buffer.getvalue()
    return made


SEEDS = _seeds()


@given(
    kind=st.sampled_from(sorted(SEEDS)),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8),
    keep=st.floats(0.05, 1),
)
def test_any_damage_is_a_plain_error(tmp_path_factory, kind, changes, keep):
    data = bytearray(SEEDS[kind])
    for where, value in changes:
        data[int(where * len(data))] = value
    path = tmp_path_factory.mktemp("damage") / "picture"
    path.write_bytes(data[: int(len(data) * keep) + 1])
    with contextlib.suppress(FileFormatError, MissingExtraError):
        photo = read_image(path, max_pixels=1_000_000)
        assert photo.pixels.shape[2] == 3


def test_a_flipped_bit_of_a_png_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(file)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(FileFormatError, match="expected a whole png picture"):
        read_image(file)
