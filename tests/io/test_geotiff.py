from pathlib import Path

import numpy as np
import pytest

from sightline.errors import InputError
from sightline.io.decoding import MAX_PIXELS
from sightline.io.geotiff import read_geo
from sightline.io.tiff import read_bands
from tests.io.rasters import GEO_KEYS, write_raster

VALUES = np.arange(6 * 8 * 3, dtype=np.uint16).reshape(6, 8, 3)


def test_place_and_names(tmp_path: Path) -> None:
    path = write_raster(
        tmp_path / "a.tif", VALUES, names=("blue", "green", "red"), nodata="7", pixel=10.0
    )
    geo = read_geo(path)
    assert (geo.crs, geo.nodata, geo.names) == ("EPSG:32618", 7.0, ("blue", "green", "red"))
    assert geo.geotransform == (500000.0, 10.0, 0.0, 4000000.0, 0.0, -10.0)
    part = geo.to_json(column=2.0, row=3.0, step=(2.0, 2.0), size=(1, 3))
    assert part["geotransform"] == [500020.0, 20.0, 0.0, 3999970.0, 0.0, -20.0]
    assert part["bounds"] == [500020.0, 3999950.0, 500080.0, 3999970.0]


def test_tie_point_of_pixel_middles_moves_half_a_pixel(tmp_path: Path) -> None:
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 2, 3072, 0, 1, 32618)
    geo = read_geo(write_raster(tmp_path / "a.tif", VALUES, keys=keys))
    assert geo.geotransform == (499995.0, 10.0, 0.0, 4000005.0, 0.0, -10.0)


def test_plain_tiff_is_no_raster(tmp_path: Path) -> None:
    assert not read_geo(write_raster(tmp_path / "a.tif", VALUES, keys=())).is_raster
    assert read_geo(write_raster(tmp_path / "b.tif", VALUES, keys=GEO_KEYS)).is_raster


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_bands_in_any_order(tmp_path: Path, dtype: type, bands: int) -> None:
    values = np.random.default_rng(0).integers(0, 255, (6, 8, bands)).astype(dtype)
    path = write_raster(tmp_path / "a.tif", values, nodata="255")
    wanted = tuple(range(bands))[::-1]
    raster = read_bands(path, wanted, MAX_PIXELS)
    np.testing.assert_array_equal(raster.samples, values[..., list(wanted)])
    assert raster.valid is not None
    assert raster.valid.all()
    with pytest.raises(InputError, match=f"expected bands 0 to {bands - 1}, got 9"):
        read_bands(path, (9,), MAX_PIXELS)


def test_many_bands_with_the_extra(tmp_path: Path) -> None:
    pytest.importorskip("tifffile")
    values = np.random.default_rng(0).integers(0, 4000, (6, 8, 7)).astype(np.uint16)
    path = write_raster(tmp_path / "a.tif", values)
    raster = read_bands(path, (6, 0, 3), MAX_PIXELS)
    np.testing.assert_array_equal(raster.samples, values[..., [6, 0, 3]])
