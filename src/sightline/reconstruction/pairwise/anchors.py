"""What MASt3R's sparse alignment works on: matches tied to depth on a coarse grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sightline.errors import ReconstructionError
from sightline.reconstruction.pairwise.canonical import anchor_offsets, canonical_view
from sightline.reconstruction.pairwise.focal import estimate_focal
from sightline.reconstruction.pairwise.graph import Pair
from sightline.reconstruction.pairwise.matching import Matches
from sightline.reconstruction.pairwise.pairs import Grid, PairMaps, Predictions


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Canonical:
    """One picture's shape, from all its pairs."""

    relative: Float[Tensor, "_ _"]
    """Depth of every pixel over that of its block's centre."""
    confidence: Float[Tensor, "_ _"]
    focal: float
    """In the grid's pixels."""
    core: Float[Tensor, "_ _"]
    """Depth at the centres of the blocks."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Anchors:
    """All matched pixels of all pictures, in one list, sorted by picture."""

    image: Int64[Tensor, " m"]
    pixels: Int64[Tensor, "m 2"]
    """(column, row)."""
    places: Float[Tensor, "m 2"]
    """In the grid's pixels."""
    block: Int64[Tensor, " m"]
    """Among the blocks of the picture."""
    offset: Float[Tensor, " m"]
    """Depth over that of the block's centre."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SparseProblem:
    """Everything that the optimiser needs."""

    grids: tuple[Grid, ...]
    canonical: tuple[Canonical, ...]
    anchors: Anchors
    first: Int64[Tensor, " k"]
    """Of every match, its anchor in the first picture."""
    second: Int64[Tensor, " k"]
    confidence: Float[Tensor, " k"]
    counts: Float[Tensor, "n n"]
    """Number of matches between every two pictures."""
    guess: Float[Tensor, "g 3"]
    """Where the network sees anchors of pairs that match badly..."""
    guess_frame: Int64[Tensor, " g"]
    """... in the camera of this picture ..."""
    guess_anchor: Int64[Tensor, " g"]
    """... and which anchors they are."""
    guess_weight: Float[Tensor, " g"]
    subsample: int


def make_canonical(
    views: Sequence[PairMaps], grid: Grid, subsample: int, focal: float | None = None
) -> Canonical:
    """Merge what several pairs say about the picture that comes first in them.

    Args:
        views: The pairs.
        grid: Of the picture.
        subsample: Side of a block.
        focal: In the grid's pixels, where it is known.
    """
    points = torch.stack([maps.points[0] for maps in views])
    confidence = torch.stack([maps.confidence[0] for maps in views])
    counted = (confidence > 0).any(0)
    # A pixel that must not count keeps its place in the averages with hardly any weight.
    mean, relative, sure = canonical_view(points, confidence.clamp(min=1.0), subsample)
    sure = torch.where(counted, sure, 0.0)
    if focal is None:
        center = mean.new_tensor(grid.center)
        pixels = grid.pixels().to(mean)
        focal = float(
            estimate_focal(
                mean[None],
                center[None],
                pixels=pixels[None],
                weights=None if bool(counted.all()) else counted[None].to(mean),
                low=0.5,
                high=3.5,
            )
        )
    start = subsample // 2
    return Canonical(
        relative=relative,
        confidence=sure,
        focal=focal,
        core=mean[start::subsample, start::subsample, 2],
    )


def make_problem(
    predictions: Predictions,
    matches: Mapping[Pair, Matches],
    grids: Sequence[Grid],
    *,
    subsample: int = 8,
    focals: Sequence[float | None] | None = None,
    min_match_confidence: float = 5.0,
) -> SparseProblem:
    """Put predictions and matches into the optimiser's form.

    Args:
        predictions: Of both directions of every pair.
        matches: Of each pair, in one direction.
        grids: Of the pictures; their sides are multiples of ``subsample``.
        subsample: Side of a block.
        focals: Known focal lengths in the grids' pixels.
        min_match_confidence: A pair whose best match is not above it is compared point by point
            instead.

    Raises:
        ReconstructionError: If a direction is missing.
    """
    for i, j in matches:
        if (i, j) not in predictions or (j, i) not in predictions:
            raise ReconstructionError(
                f"expected predictions for pictures {i} and {j} in both orders; use symmetric pairs"
            )
    count = len(grids)
    canonical = []
    for image, grid in enumerate(grids):
        views = [maps for (i, _), maps in predictions.items() if i == image]
        known = None if focals is None else focals[image]
        canonical.append(make_canonical(views, grid, subsample, known))
    # A picture's anchors are those of its pairs, one after the other in the order of the pairs.
    ends: list[list[Tensor]] = [[] for _ in range(count)]
    spans: dict[tuple[Pair, int], tuple[int, int]] = {}
    for pair, found in matches.items():
        for side in (0, 1):
            mine = ends[pair[side]]
            begin = sum(len(t) for t in mine)
            mine.append((found.xy1, found.xy2)[side].long())
            spans[pair, side] = (begin, begin + len(found.xy1))
    anchors, base = _join(ends, canonical, grids, subsample)

    def numbers(pair: Pair, side: int) -> Tensor:
        begin, end = spans[pair, side]
        return torch.arange(begin, end) + base[pair[side]]

    counts = torch.zeros(count, count)
    good: list[Pair] = []
    bad: list[Pair] = []
    for (i, j), found in matches.items():
        counts[i, j] = counts[j, i] = len(found.confidence)
        best = float(found.confidence.max()) if len(found.confidence) else 0.0
        (good if best > min_match_confidence else bad).append((i, j))
    guesses = [_guess(predictions, pair, anchors, base, grids, subsample) for pair in bad]
    guesses += [_guess(predictions, (j, i), anchors, base, grids, subsample) for i, j in bad]
    empty = (torch.zeros(0, 3), _no_numbers(), _no_numbers(), torch.zeros(0))
    points, frame, anchor, weight = (
        torch.cat(parts) for parts in zip(empty, *guesses, strict=True)
    )
    return SparseProblem(
        grids=tuple(grids),
        canonical=tuple(canonical),
        anchors=anchors,
        first=torch.cat([_no_numbers(), *(numbers(p, 0) for p in good)]),
        second=torch.cat([_no_numbers(), *(numbers(p, 1) for p in good)]),
        confidence=torch.cat([torch.zeros(0), *(matches[p].confidence for p in good)]),
        counts=counts,
        guess=points,
        guess_frame=frame,
        guess_anchor=anchor,
        guess_weight=weight,
        subsample=subsample,
    )


def _no_numbers() -> Int64[Tensor, "0"]:
    return torch.zeros(0, dtype=torch.int64)


def _join(
    ends: Sequence[Sequence[Tensor]],
    canonical: Sequence[Canonical],
    grids: Sequence[Grid],
    subsample: int,
) -> tuple[Anchors, list[int]]:
    pixels = [torch.cat([torch.zeros(0, 2, dtype=torch.int64), *mine]) for mine in ends]
    base, total = [], 0
    blocks, offsets, places = [], [], []
    for mine, view, grid in zip(pixels, canonical, grids, strict=True):
        base.append(total)
        total += len(mine)
        block, offset = anchor_offsets(view.relative, mine, subsample)
        blocks.append(block)
        offsets.append(offset)
        places.append(mine * torch.tensor(grid.step) + torch.tensor(grid.origin))
    image = torch.repeat_interleave(
        torch.arange(len(pixels)), torch.tensor([len(mine) for mine in pixels])
    )
    anchors = Anchors(
        image=image,
        pixels=torch.cat(pixels),
        places=torch.cat(places),
        block=torch.cat(blocks),
        offset=torch.cat(offsets),
    )
    return anchors, base


def _guess(
    predictions: Predictions,
    pair: Pair,
    anchors: Anchors,
    base: list[int],
    grids: Sequence[Grid],
    subsample: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the pair's points of all anchors of its second picture, and their weights."""
    frame, image = pair
    mine = (anchors.image == image).nonzero()[:, 0]
    maps = predictions[pair]
    points = maps.points[1][::subsample, ::subsample].reshape(-1, 3)
    weights = maps.confidence[1][::subsample, ::subsample].flatten()
    block = anchors.block[mine]
    return points[block], torch.full_like(mine, frame), mine, weights[block]


def dense_anchors(problem: SparseProblem, image: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return place, block and offset of every pixel of a picture, row by row."""
    grid = problem.grids[image]
    y, x = torch.meshgrid(torch.arange(grid.height), torch.arange(grid.width), indexing="ij")
    pixels = torch.stack([x, y], -1).reshape(-1, 2)
    block, offset = anchor_offsets(problem.canonical[image].relative, pixels, problem.subsample)
    return grid.pixels().reshape(-1, 2), block, offset
