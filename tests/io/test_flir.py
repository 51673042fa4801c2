import contextlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.errors import FileFormatError
from sightline.io.flir import is_radiometric, read_radiometric
from tests.io.rasters import radiometric

COUNTS = (np.arange(48 * 64).reshape(48, 64) * 3 + 12000).astype(np.uint16)


@pytest.mark.parametrize("as_png", [False, True])
@pytest.mark.parametrize("parts", [1, 3])
def test_counts_come_back(tmp_path: Path, as_png: bool, parts: int) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(radiometric(COUNTS, as_png=as_png, parts=parts))
    assert is_radiometric(path)
    found = read_radiometric(path, max_pixels=10**6)
    np.testing.assert_array_equal(found.counts, COUNTS)
    assert found.constants["PlanckB"] == 1400.0


def test_ordinary_jpeg_is_not_radiometric(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    assert not is_radiometric(tmp_path / "a.jpg")


def test_size_is_checked_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(radiometric(COUNTS))
    with pytest.raises(FileFormatError, match="expected at most"):
        read_radiometric(path, max_pixels=1000)


@pytest.mark.parametrize("seed", range(20))
def test_damage_gives_one_sentence(tmp_path: Path, seed: int) -> None:
    data = bytearray(radiometric(COUNTS))
    rng = np.random.default_rng(seed)
    for at in rng.integers(2, 400, 12):
        data[at] = rng.integers(256)
    path = tmp_path / "a.jpg"
    path.write_bytes(bytes(data[: rng.integers(100, len(data))]))
    if is_radiometric(path):
        # What is left may still be whole; only errors of ours may come out.
        with contextlib.suppress(FileFormatError):
            assert read_radiometric(path, max_pixels=10**6).counts.ndim == 2


def test_shared_thermal_pictures(shared_data: Path) -> None:
    for path in sorted((shared_data / "thermal").glob("*.jpg")):
        counts = read_radiometric(path, max_pixels=10**7).counts
        reference = np.asarray(Image.open(path.with_name(f"{path.stem}_raw16.png")))
        np.testing.assert_array_equal(counts, reference.astype(np.uint16))
