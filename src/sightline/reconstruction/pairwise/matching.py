"""Matches between two pictures: exact nearest neighbours, and the fast reciprocal search of MASt3R."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy import ndarray
from scipy.spatial import KDTree
from torch import Tensor

BLOCK = 2**13
"""Rows and columns of similarities held at a time."""


class Matches(NamedTuple):
    """Pixels of two pictures that show the same point.

    Attributes:
        xy1: (x, y) in the first picture.
        xy2: (x, y) in the second.
        confidence: Of each match.
    """

    xy1: Int64[Tensor, "m 2"]
    xy2: Int64[Tensor, "m 2"]
    confidence: Float[Tensor, " m"]


def nearest_neighbors(
    query: Float[Tensor, "n d"], database: Float[Tensor, "m d"], block: int = BLOCK
) -> Int64[Tensor, " n"]:
    """Return which row of the database has the largest dot product; the first of equal ones."""
    best = torch.full((len(query),), -torch.inf, dtype=query.dtype, device=query.device)
    index = torch.zeros(len(query), dtype=torch.int64, device=query.device)
    for top in range(0, len(query), block):
        rows = slice(top, top + block)
        for left in range(0, len(database), block):
            value, column = (query[rows] @ database[left : left + block].T).max(1)
            better = value > best[rows]
            best[rows] = torch.where(better, value, best[rows])
            index[rows] = torch.where(better, column + left, index[rows])
    return index


def reciprocal_matches(
    first: Float[Tensor, "h1 w1 d"],
    second: Float[Tensor, "h2 w2 d"],
    *,
    subsample: int = 8,
    block: int = BLOCK,
) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"]]:
    """Find reciprocal matches from a grid of starts (Leroy et al. 2024, section 3.3).

    Each start goes to its nearest neighbour in the second picture and back until it returns to
    where it was; within ten rounds almost all do, and the others are left out.

    Args:
        first: Descriptors of the first picture.
        second: Of the second.
        subsample: Step of the grid.
        block: See `nearest_neighbors`.

    Returns:
        Unique matches as pixel numbers (row by row), sorted.
    """
    here, there, done = _follow(first, second, _grid(first, subsample), block)
    return _unique(here[done], there[done], second)


def reciprocal_basins(
    first: Float[Tensor, "h1 w1 d"],
    second: Float[Tensor, "h2 w2 d"],
    *,
    subsample: int = 8,
    block: int = BLOCK,
) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " _"]]:
    """Tell where pixels on the way of `reciprocal_matches` lead to.

    Every start is followed until it comes back to itself in the first picture.

    Returns:
        The pixels of the first picture that got a match, and for every pixel of it the one that it
        leads to, -1 where no path came by; a last entry, always -1, belongs to no pixel.
    """
    size = first.shape[0] * first.shape[1]
    basin = torch.full((size + 1,), -1, dtype=torch.int64, device=first.device)
    here, there, done = _follow(first, second, _grid(first, subsample), block, basin)
    return _unique(here[done], there[done], second)[0], basin


def matches_of_pixels(
    first: Float[Tensor, "h1 w1 d"],
    second: Float[Tensor, "h2 w2 d"],
    start: Int64[Tensor, "k 2"],
    *,
    tolerance: float = 0.0,
    block: int = BLOCK,
) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"]]:
    """Match chosen pixels (x, y), and keep those from which the way back ends near the start.

    Args:
        first: Descriptors of the first picture.
        second: Of the second.
        start: Pixels of the first picture.
        tolerance: The way back must end less than this many pixels away; 0: exactly there.
        block: See `nearest_neighbors`.

    Returns:
        Unique matches as pixel numbers, sorted; those of the first picture are start pixels.
    """
    width = first.shape[1]
    here = torch.unique(start[:, 1] * width + start[:, 0])
    flat, other = first.flatten(0, 1), second.flatten(0, 1)
    there = nearest_neighbors(flat[here], other, block)
    back = nearest_neighbors(other[there], flat, block)
    gap = torch.stack([here % width - back % width, here // width - back // width], -1).double()
    distance = gap.norm(dim=-1)
    keep = distance < tolerance if tolerance > 0 else distance == 0
    return _unique(here[keep], there[keep], second)


def _grid(first: Float[Tensor, "h w d"], subsample: int) -> Int64[Tensor, " k"]:
    height, width = first.shape[:2]
    y = torch.arange(subsample // 2, height, subsample, device=first.device)
    x = torch.arange(subsample // 2, width, subsample, device=first.device)
    return (y[:, None] * width + x).flatten()


def _follow(
    first: Float[Tensor, "h1 w1 d"],
    second: Float[Tensor, "h2 w2 d"],
    start: Int64[Tensor, " k"],
    block: int,
    basin: Int64[Tensor, " _"] | None = None,
) -> tuple[Int64[Tensor, " k"], Int64[Tensor, " k"], Bool[Tensor, " k"]]:
    """Go there and back up to ten times; return both ends and which paths have settled."""
    flat, other = first.flatten(0, 1), second.flatten(0, 1)
    here, there = start.clone(), torch.full_like(start, -1)
    active = torch.ones_like(start, dtype=torch.bool)
    for _ in range(10):
        rows = active.nonzero()[:, 0]
        if len(rows) == 0:
            break
        found = nearest_neighbors(flat[here[rows]], other, block)
        moved = found != there[rows]
        there[rows] = found
        if basin is None:
            active[rows] = moved  # the way back from a known place is known too
            rows, found = rows[moved], found[moved]
        back = nearest_neighbors(other[found], flat, block)
        if basin is not None:
            basin[here[rows]] = back
        active[rows] = back != here[rows]
        here[rows] = back
    return here, there, ~active


def _unique(
    here: Int64[Tensor, " m"], there: Int64[Tensor, " m"], second: Float[Tensor, "h2 w2 d"]
) -> tuple[Int64[Tensor, " k"], Int64[Tensor, " k"]]:
    size = second.shape[0] * second.shape[1]
    codes = torch.unique(here * size + there)
    return codes // size, codes % size


def merge_matches(
    first: Int64[Tensor, " m"],
    second: Int64[Tensor, " m"],
    confidence: Float[Tensor, " m"],
    widths: tuple[int, int],
) -> Matches:
    """Drop repeated matches (the first one's confidence stays) and sort them.

    Args:
        first: Pixel numbers, row by row.
        second: In the other picture.
        confidence: Of each match.
        widths: Of both pictures.
    """
    size = int(second.max()) + 1 if len(second) else 1
    codes, where = torch.unique(first * size + second, return_inverse=True)
    order = torch.arange(len(first), device=first.device)
    index = torch.full_like(codes, len(first)).scatter_reduce(0, where, order, "amin")
    pixels = [
        torch.stack([number[index] % width, number[index] // width], -1)
        for number, width in zip((first, second), widths, strict=True)
    ]
    return Matches(pixels[0], pixels[1], confidence[index])


Descriptors = tuple[Float[Tensor, "_ _ _"], Float[Tensor, "_ _"]]
"""Descriptors of a picture and their confidence."""


def _both_ways(
    first: Descriptors, second: Descriptors, subsample: int, block: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return matches from the starts of both pictures, and the confidence of each end."""
    options = {"subsample": subsample, "block": block}
    here, there = reciprocal_matches(first[0], second[0], **options)
    back, forth = reciprocal_matches(second[0], first[0], **options)
    index1, index2 = torch.cat([here, forth]), torch.cat([there, back])
    return index1, index2, first[1].flatten()[index1], second[1].flatten()[index2]


def match_pair(
    first: Descriptors, second: Descriptors, *, subsample: int = 8, block: int = BLOCK
) -> Matches:
    """Match two pictures from one pass of the network; confidence is the smaller of both ends."""
    index1, index2, conf1, conf2 = _both_ways(first, second, subsample, block)
    widths = (first[0].shape[1], second[0].shape[1])
    return merge_matches(index1, index2, torch.minimum(conf1, conf2), widths)


def match_symmetric(
    first: tuple[Descriptors, Descriptors],
    second: tuple[Descriptors, Descriptors],
    *,
    subsample: int = 8,
    block: int = BLOCK,
) -> Matches:
    """Match two pictures from both passes of the network.

    Args:
        first: Of the first picture, in the pass where it came first and where it came second.
        second: Of the second picture, in the same two passes.
        subsample: Step of the grid of starts.
        block: See `nearest_neighbors`.

    Returns:
        Matches of both passes; confidence is the geometric mean of both ends.
    """
    passes = [_both_ways(a, b, subsample, block) for a, b in zip(first, second, strict=True)]
    index1, index2, conf1, conf2 = (torch.cat(parts) for parts in zip(*passes, strict=True))
    widths = (first[0][0].shape[1], second[0][0].shape[1])
    return merge_matches(index1, index2, (conf1 * conf2).sqrt(), widths)


def drop_border(
    matches: Matches, size1: tuple[int, int], size2: tuple[int, int], margin: int = 3
) -> Matches:
    """Leave out matches within ``margin`` pixels of a border; sizes are height and width."""
    keep = torch.ones(len(matches.xy1), dtype=torch.bool, device=matches.xy1.device)
    for xy, (height, width) in ((matches.xy1, size1), (matches.xy2, size2)):
        limit = torch.tensor([width, height], device=xy.device) - margin
        keep &= ((xy >= margin) & (xy < limit)).all(-1)
    return Matches(*(part[keep] for part in matches))


def reciprocal_points(
    first: Float[ndarray, "n 3"], second: Float[ndarray, "m 3"]
) -> tuple[Bool[ndarray, " m"], Int64[ndarray, " m"]]:
    """Return for every second point whether its nearest first point has it as nearest, and which."""
    nearest1 = np.asarray(KDTree(second).query(first)[1])
    nearest2 = np.asarray(KDTree(first).query(second)[1])
    return nearest1[nearest2] == np.arange(len(second)), nearest2
