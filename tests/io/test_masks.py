"""Names, sizes, colours and the sense of masks."""

import numpy as np
import pytest
from PIL import Image

from sightline.errors import FileFormatError, InputError
from sightline.io.masks import find_masks, read_mask, resize_mask, write_mask


@pytest.fixture
def half():
    mask = np.zeros((4, 6), bool)
    mask[:, :2] = True
    return mask


def _touch(path, pixels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((4, 6), 255, np.uint8) if pixels is None else pixels
    Image.fromarray(pixels).save(path)
    return path


def test_round_trip_and_invert(tmp_path, half):
    write_mask(tmp_path / "m.png", half)
    stored = np.asarray(Image.open(tmp_path / "m.png"))
    assert stored.dtype == np.uint8
    assert set(stored.ravel().tolist()) == {0, 255}
    mask, note = read_mask(tmp_path / "m.png", size=(4, 6))
    assert note is None
    np.testing.assert_array_equal(mask, half)
    inverted, _ = read_mask(tmp_path / "m.png", size=(4, 6), invert=True)
    np.testing.assert_array_equal(inverted, ~half)


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "P", "I;16", "LA", "RGBA"])
def test_any_value_above_black_is_kept(tmp_path, half, mode):
    if mode == "I;16":
        image = Image.fromarray(half.astype(np.uint16))  # 1 of 65535 is still not black
    elif mode == "P":
        image = Image.fromarray(half.astype(np.uint8))
        image.putpalette([0, 0, 0, 0, 0, 90])
    else:
        image = Image.fromarray(half.astype(np.uint8) * 255).convert(mode)
    image.save(tmp_path / "m.png")
    mask, note = read_mask(tmp_path / "m.png", size=(4, 6))
    assert note is None
    np.testing.assert_array_equal(mask, half)


def test_transparent_mask_pixels_are_ignored(tmp_path):
    pixels = np.full((2, 2, 4), 255, np.uint8)
    pixels[0, 0, 3] = 0
    _touch(tmp_path / "m.png", pixels)
    mask, _ = read_mask(tmp_path / "m.png", size=(2, 2))
    assert mask.tolist() == [[False, True], [True, True]]


def test_wrong_size_is_resized_with_a_warning(tmp_path, half):
    write_mask(tmp_path / "m.png", half)
    mask, note = read_mask(tmp_path / "m.png", size=(8, 12))
    assert note == (
        "the mask m.png is 6 x 4 and its picture 12 x 8; resized it to the nearest pixel"
    )
    np.testing.assert_array_equal(mask, half.repeat(2, 0).repeat(2, 1))


def test_mask_drawn_before_rotation_turns_with_its_picture(tmp_path, half):
    write_mask(tmp_path / "m.png", half)
    mask, note = read_mask(tmp_path / "m.png", size=(6, 4), orientation=6)
    assert note is not None
    assert "turned it too" in note
    assert mask[:2].all()
    assert not mask[2:].any()


def test_empty_mask_is_reported(tmp_path, half):
    write_mask(tmp_path / "m.png", half & False)
    mask, note = read_mask(tmp_path / "m.png", size=(4, 6))
    assert not mask.any()
    assert note == (
        "the mask m.png keeps nothing of its picture; black is ignored, see --invert-masks"
    )


def test_resize_mask_takes_the_nearest_centre():
    mask = np.array([[True, False, False]])
    assert resize_mask(mask, 1, 6).tolist() == [[True, True, False, False, False, False]]
    assert resize_mask(mask, 2, 1).tolist() == [[False], [False]]


@pytest.mark.parametrize(
    ("mask", "root"),
    [
        ("in/masks/sub/a.png", "in"),
        ("in/masks/sub/a.jpg.png", "in"),
        ("in/masks/a.png", "in"),
        ("in/sub/masks/a.png", "in"),
        ("in/mask/sub/a.png", "in"),
        ("masks/sub/a.png", "images"),
        ("masks/a.jpg.png", "images"),
    ],
)
def test_masks_are_found_by_name(tmp_path, mask, root):
    picture = _touch(tmp_path / root / "sub" / "a.jpg")
    wanted = _touch(tmp_path / mask)
    found, notes = find_masks([picture], root=tmp_path / root)
    assert found == (wanted,)
    assert notes == ()


def test_longer_name_wins_and_missing_ones_are_listed(tmp_path):
    files = [_touch(tmp_path / name) for name in ("a.jpg", "a.png", "b.jpg")]
    short = _touch(tmp_path / "masks" / "a.png")
    long = _touch(tmp_path / "masks" / "a.png.png")
    found, notes = find_masks(files, root=tmp_path)
    assert found == (short, long, None)
    assert notes == ("1 of 3 pictures have no mask (b.jpg): all counts",)


def test_one_mask_for_all(tmp_path):
    files = [_touch(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    camera = _touch(tmp_path / "masks" / "camera.png")
    found, notes = find_masks(files, root=tmp_path)
    assert found == (camera, camera)
    assert notes == ("used the one mask camera.png for all pictures",)
    given, _ = find_masks(files, masks=camera)
    assert given == (camera, camera)


def test_no_masks(tmp_path):
    files = [_touch(tmp_path / "a.jpg")]
    assert find_masks(files, root=tmp_path) == ((None,), ())


def test_bad_mask_options(tmp_path):
    files = [_touch(tmp_path / "a.jpg")]
    with pytest.raises(InputError, match="there is no mask file or folder"):
        find_masks(files, masks=tmp_path / "none")
    _touch(tmp_path / "m" / "x.png")
    _touch(tmp_path / "m" / "y.png")
    with pytest.raises(InputError, match=r"expected for instance a\.png or a\.jpg\.png"):
        find_masks(files, masks=tmp_path / "m")
    (tmp_path / "m.txt").write_text("no picture at all")
    with pytest.raises(FileFormatError, match=r"m\.txt: expected a mask picture"):
        find_masks(files, masks=tmp_path / "m.txt")
