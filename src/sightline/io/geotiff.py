"""Where a GeoTIFF lies on the earth, and what its bands are called.

GeoTIFF (OGC 19-008r4): ModelPixelScale 33550, ModelTiepoint 33922, ModelTransformation 34264,
GeoKeyDirectory 34735. GDAL writes band names and nodata into 42112 and 42113.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import FileFormatError
from sightline.io.decoding import DAMAGE, damaged
from sightline.io.tiff import parse_nodata, read_tags

_SCALE, _TIEPOINT, _TRANSFORM, _KEYS = 33550, 33922, 34264, 34735
_WIDTH, _HEIGHT = 256, 257
_SAMPLES, _DATE_TIME, _GDAL_METADATA, _GDAL_NODATA = 277, 306, 42112, 42113
_GEOGRAPHIC, _PROJECTED, _RASTER_TYPE = 2048, 3072, 1025
_GEO = (_SCALE, _TIEPOINT, _TRANSFORM, _KEYS)
_POINT, _USER_DEFINED = 2, 32767
_ITEM = re.compile(r"<Item ([^>]{0,300})>([^<]{0,300})</Item>")
_ACQUIRED = ("ACQUISITIONDATETIME", "DATETIME", "ACQUISITION_DATE", "SENSING_TIME")

Affine = tuple[float, float, float, float, float, float]
"""GDAL's order: x0, x per column, x per row, y0, y per column, y per row; of pixel corners."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeoTags:
    """What the tags of a TIFF say."""

    is_raster: bool
    """True with GeoKeys or more than four bands: measured bands, not a photo."""
    width: int
    height: int
    crs: str | None
    """``EPSG:32618``, or None when the file states no code."""
    geotransform: Affine | None
    names: tuple[str | None, ...]
    """One a band."""
    nodata: float | None
    acquired: str | None
    """As written in the file."""

    def to_json(
        self, column: float, row: float, step: tuple[float, float], size: tuple[int, int]
    ) -> dict[str, Any]:
        """Return the manifest's ``geo`` object of a part of the raster.

        Args:
            column: Source pixels left of the part.
            row: Source pixels above it.
            step: Source pixels a pixel of the part, across and down.
            size: Height and width of the part, in its own pixels.
        """
        record: dict[str, Any] = {"crs": self.crs, "acquired": self.acquired}
        if self.geotransform is not None:
            x0, xc, xr, y0, yc, yr = self.geotransform
            part = (
                x0 + column * xc + row * xr,
                xc * step[0],
                xr * step[1],
                y0 + column * yc + row * yr,
                yc * step[0],
                yr * step[1],
            )
            height, width = size
            corners = [
                (part[0] + c * part[1] + r * part[2], part[3] + c * part[4] + r * part[5])
                for c in (0, width)
                for r in (0, height)
            ]
            xs, ys = zip(*corners, strict=True)
            record |= {
                "geotransform": list(part),
                "bounds": [min(xs), min(ys), max(xs), max(ys)],
            }
        if self.nodata is not None and math.isfinite(self.nodata):
            record["nodata"] = self.nodata
        return {name: value for name, value in record.items() if value is not None}


def read_geo(path: Path) -> GeoTags:
    """Read the tags of a TIFF; one without GeoKeys gives a record of unknowns.

    Raises:
        FileFormatError: If the file is damaged.
    """
    try:
        with path.open("rb") as file:
            tags = read_tags(file)
            metadata = tags.get(_GDAL_METADATA)
            items = _ITEM.findall(metadata[:1_000_000]) if isinstance(metadata, str) else []
            keys = _geo_keys(tags.get(_KEYS, ()))
            bands = int(tags.get(_SAMPLES, 1))
            code = keys.get(_PROJECTED, keys.get(_GEOGRAPHIC, 0))
            return GeoTags(
                is_raster=any(tag in tags for tag in _GEO) or bands > 4,
                width=int(tags.get(_WIDTH, 0)),
                height=int(tags.get(_HEIGHT, 0)),
                crs=f"EPSG:{code}" if 1024 <= code < _USER_DEFINED else None,
                geotransform=_geotransform(tags, point=keys.get(_RASTER_TYPE) == _POINT),
                names=_band_names(items, bands),
                nodata=parse_nodata(tags.get(_GDAL_NODATA)),
                acquired=_acquired(items, tags.get(_DATE_TIME)),
            )
    except FileFormatError:
        raise
    except DAMAGE as error:
        raise damaged(path, "tiff", error) from error


def _geo_keys(directory: Sequence[int]) -> dict[int, int]:
    """Return the keys whose value stands in the directory itself."""
    entries = (directory[i : i + 4] for i in range(4, len(directory) - 3, 4))
    return {key: int(value) for key, place, _, value in entries if place == 0}


def _geotransform(tags: Any, *, point: bool) -> Affine | None:  # noqa: ANN401
    matrix, scale, tie = (tags.get(tag, ()) for tag in (_TRANSFORM, _SCALE, _TIEPOINT))
    if len(matrix) == 16:
        m = [float(v) for v in matrix]
        found = (m[3], m[0], m[1], m[7], m[4], m[5])
    elif len(scale) >= 2 and len(tie) >= 6:
        across, down = float(scale[0]), -float(scale[1])
        column, row, _, x, y, _ = (float(v) for v in tie[:6])
        found = (x - column * across, across, 0.0, y - row * down, 0.0, down)
    else:
        return None
    if not all(math.isfinite(v) for v in found):
        return None
    x0, xc, xr, y0, yc, yr = found
    if point:  # the tie point names a pixel's middle, not its corner
        x0, y0 = x0 - 0.5 * (xc + xr), y0 - 0.5 * (yc + yr)
    return (x0, xc, xr, y0, yc, yr)


def _band_names(items: Sequence[tuple[str, str]], bands: int) -> tuple[str | None, ...]:
    names: list[str | None] = [None] * min(bands, 4096)
    for attributes, text in items:
        sample = re.search(r'sample="(\d{1,4})"', attributes)
        if sample and 'role="description"' in attributes and int(sample[1]) < len(names):
            names[int(sample[1])] = text.strip()[:80] or None
    return tuple(names)


def _acquired(items: Sequence[tuple[str, str]], date_time: Any) -> str | None:  # noqa: ANN401
    for attributes, text in items:
        name = re.search(r'name="([^"]{1,80})"', attributes)
        if name and name[1].upper() in _ACQUIRED:
            return text.strip()[:80] or None
    return str(date_time).strip("\0 ")[:80] or None if date_time else None
