"""Run lengths and polygons of COCO files to masks and back, bounded.

Runs go down the columns and start with background. The text form packs each run into characters of
six bits; from the fourth on, a run is stored as the difference to the one two before. Polygons are
filled exactly as in pycocotools: outlines are drawn five times finer, and a pixel counts by where
its centre row meets the outline.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from sightline.errors import FileFormatError
from sightline.io.images import MAX_PIXELS

Mask = Bool[np.ndarray, "height width"]

MAX_VERTICES = 1 << 20
"""Of all polygons of one annotation; drawn outlines are bounded too."""
_MAX_OUTLINE = 1 << 26
_FINER = 5.0


def encode_runs(mask: Mask) -> list[int]:
    """Return run lengths down the columns, background first."""
    flat = mask.ravel(order="F")
    if flat.size == 0:
        return [0]
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    return [0, *runs] if flat[0] else runs


def decode_runs(runs: Sequence[Any], height: int, width: int) -> Mask:
    """Return the mask of run lengths.

    Raises:
        FileFormatError: The runs are negative or do not fill the picture.
    """
    _check_size(height, width)
    if len(runs) > height * width + 2:
        raise FileFormatError(
            f"expected at most {height * width + 2} runs for a {width} x {height} mask, got "
            f"{len(runs)}; write the annotations again"
        )
    if not all(type(run) is int and 0 <= run <= height * width for run in runs):
        raise FileFormatError(
            f"expected whole run lengths from 0 to {height * width}, got others; write the "
            "annotations again"
        )
    counts = np.array(runs, dtype=np.int64)
    if counts.sum() != height * width:
        raise FileFormatError(
            f"expected runs of {height * width} pixels for a {width} x {height} mask, got "
            f"{counts.sum()}; write the annotations again"
        )
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(height, width, order="F")


def runs_to_text(runs: Sequence[int]) -> str:
    """Return the compressed text of run lengths."""
    out = []
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        more = True
        while more:
            five = value & 31
            value >>= 5
            more = value != (-1 if five & 16 else 0)
            out.append(chr((five | 32 if more else five) + 48))
    return "".join(out)


def text_to_runs(text: str) -> list[int]:
    """Return the run lengths of compressed text.

    Raises:
        FileFormatError: The text has other characters, or a number does not end.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 40:
            raise FileFormatError(
                f"expected run lengths as text of COCO, got {text[:20]!r}...; write the "
                "annotations again"
            )
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise FileFormatError(
            "expected whole run lengths, got cut text; write the annotations again"
        )
    return runs


def encode_mask(mask: Mask) -> dict[str, Any]:
    """Return ``{"size": [height, width], "counts": text}``.

    >>> mask = np.array([[False, True], [False, True], [True, True]])
    >>> encode_runs(mask)
    [2, 4]
    >>> encode_mask(mask)
    {'size': [3, 2], 'counts': '24'}
    """
    return {"size": list(mask.shape), "counts": runs_to_text(encode_runs(mask))}


def decode_segmentation(segmentation: Any, height: int, width: int) -> Mask:  # noqa: ANN401
    """Return the mask of a COCO ``segmentation``: polygons, run lengths, or their text.

    Raises:
        FileFormatError: It is none of these, or not for a picture of this size.
    """
    if isinstance(segmentation, Mapping):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if size != [height, width] and size != (height, width):
            raise FileFormatError(
                f"expected a mask of {width} x {height} like its image, got size {str(size)[:40]}; "
                "write the annotations again"
            )
        if isinstance(counts, str):
            if len(counts) > 13 * (height * width + 2):
                raise FileFormatError("a mask has more runs than pixels; write it again")
            counts = text_to_runs(counts)
        if not isinstance(counts, list):
            raise FileFormatError("expected run lengths in a mask, got none; write it again")
        return decode_runs(counts, height, width)
    if isinstance(segmentation, list):
        return fill_polygons(segmentation, height, width)
    raise FileFormatError(
        f"expected polygons or run lengths as segmentation, got {type(segmentation).__name__}; "
        "write the annotations again"
    )


def fill_polygons(polygons: Sequence[Any], height: int, width: int) -> Mask:
    """Return the union of polygons ``[x0, y0, x1, y1, ...]`` in pixels, corner convention.

    Raises:
        FileFormatError: A polygon has too few, too many or no finite coordinates.
    """
    _check_size(height, width)
    out = np.zeros((height, width), bool)
    if sum(len(p) if isinstance(p, list | tuple) else 0 for p in polygons) > 2 * MAX_VERTICES:
        raise FileFormatError(f"expected at most {MAX_VERTICES} vertices in a mask; simplify it")
    for polygon in polygons:
        try:
            points = np.asarray(polygon, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise FileFormatError("expected numbers in a polygon; write it again") from error
        if points.ndim != 1 or points.size < 6 or points.size % 2 or not np.isfinite(points).all():
            raise FileFormatError(
                "expected a polygon of three or more points x, y with finite coordinates; write "
                "the annotations again"
            )
        limit = 16 * max(height, width)
        if np.abs(points).max() > limit:
            raise FileFormatError(
                f"expected polygons near their {width} x {height} image, got coordinates beyond "
                f"{limit}; write the annotations again"
            )
        out |= _fill(points.reshape(-1, 2), height, width)
    return out


def _fill(points: np.ndarray, height: int, width: int) -> Mask:
    fine = (_FINER * points + 0.5).astype(np.int64)  # truncates towards zero, as C does
    fine = np.concatenate((fine, fine[:1]))
    start, end = fine[:-1], fine[1:]
    span = np.abs(end - start)
    flat = span[:, 0] >= span[:, 1]
    flip = np.where(flat, start[:, 0] > end[:, 0], start[:, 1] > end[:, 1])
    first = np.where(flip[:, None], end, start)
    last = np.where(flip[:, None], start, end)
    steps = span.max(1)
    if steps.sum() > _MAX_OUTLINE:
        raise FileFormatError("expected a polygon with a shorter outline; simplify it")
    slope = np.where(flat, last[:, 1] - first[:, 1], last[:, 0] - first[:, 0])
    slope = slope / np.maximum(steps, 1)
    edge = np.repeat(np.arange(len(steps)), steps + 1)
    at = np.arange(len(edge)) - np.repeat(np.cumsum(steps + 1) - (steps + 1), steps + 1)
    at = np.where(flip[edge], steps[edge] - at, at)
    across = slope[edge] * at
    u = np.where(flat[edge], first[edge, 0] + at, (first[edge, 0] + across + 0.5).astype(np.int64))
    v = np.where(flat[edge], (first[edge, 1] + across + 0.5).astype(np.int64), first[edge, 1] + at)
    turn = np.flatnonzero(u[1:] != u[:-1]) + 1
    x = np.where(u[turn] < u[turn - 1], u[turn], u[turn] - 1)
    x = (x + 0.5) / _FINER - 0.5
    on_column = (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
    y = (np.minimum(v[turn], v[turn - 1]) + 0.5) / _FINER - 0.5
    y = np.ceil(np.clip(y, 0, height))
    # Each crossing of a column's centre line switches between background and object from there on.
    flips = (x * height + y)[on_column].astype(np.int64)
    switches = np.bincount(flips, minlength=height * width + 1)[: height * width]
    inside = (np.cumsum(switches) & 1).astype(bool)
    return inside.reshape(height, width, order="F")


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise FileFormatError(
            f"expected a mask of 1 to {MAX_PIXELS} pixels, got {width} x {height}; check its size"
        )
