"""Which pairs contradict the others, before anything is optimised.

A pair network that is shown two look-alike places answers with full confidence. Going round
triangles of pairs tells: the way from one camera to another must not depend on the third.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sightline.errors import InputError
from sightline.geometry.align import Similarity, align_umeyama, transform_points
from sightline.reconstruction.pairwise.graph import Pair, count_groups
from sightline.reconstruction.pairwise.pairs import Predictions

_ANGLE = math.radians(12)
_SHIFT = 0.25
"""Largest gap of two camera positions, as a share of how far the cameras and the scene are."""
_LOG_SCALE = 0.3
_RESIDUAL = 0.2
"""Largest median misfit of a picture's points, over their median depth."""
_VOTE = 0.3
"""Share of triangles that must agree, against the best pair."""
_SAMPLES = 1024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Relations:
    """How every picture's own shape lies in that of another, where a pair says so.

    ``x_i = scale[i, j] * rotation[i, j] @ x_j + shift[i, j]``.
    """

    scale: Float[Tensor, "n n"]
    rotation: Float[Tensor, "n n 3 3"]
    shift: Float[Tensor, "n n 3"]
    known: Bool[Tensor, "n n"]


def relate(predictions: Predictions, count: int) -> Relations:
    """Find the similarity between the two pictures of every pair.

    The shape of a picture is the median of what its pairs say, each in units of its median depth;
    a pair whose points do not fit these shapes says nothing.
    """
    steps = {}
    shapes: dict[int, Tensor] = {}
    for image in range(count):
        own = [maps.points[0] for (i, _), maps in predictions.items() if i == image]
        if not own:  # then only others see it: take its shape from them, up to a similarity
            continue
        size = own[0].shape[0] * own[0].shape[1]
        steps[image] = max(1, size // _SAMPLES)
        scaled = []
        for points in own:
            some = points.reshape(-1, 3)[:: steps[image]]
            depth = some[:, 2].median()
            scaled.append(some / depth if float(depth) > 0 else torch.full_like(some, torch.nan))
        shapes[image] = torch.stack(scaled).nanmedian(0).values
    like = next(iter(shapes.values()))
    scale = like.new_ones(count, count)
    rotation = torch.eye(3, dtype=like.dtype).repeat(count, count, 1, 1)
    shift = like.new_zeros(count, count, 3)
    known = torch.zeros(count, count, dtype=torch.bool)
    for (i, j), maps in predictions.items():
        if i not in shapes or j not in shapes or i == j:
            continue
        fits = []
        for side, image in ((0, i), (1, j)):
            points = maps.points[side].reshape(-1, 3)[:: steps[image]]
            weights = maps.confidence[side].flatten()[:: steps[image]]
            fits.append(_fit(shapes[image], points, weights))
        if fits[0] is None or fits[1] is None:
            continue
        # From the shape of j to the pair's frame, and from there to the shape of i.
        link = fits[0].inverse() @ fits[1]
        scale[i, j], rotation[i, j], shift[i, j] = link.scale, link.rotation, link.translation
        known[i, j] = True
    return Relations(scale=scale, rotation=rotation, shift=shift, known=known)


def _fit(shape: Tensor, points: Tensor, weights: Tensor) -> Similarity | None:
    good = shape.isfinite().all(-1) & points.isfinite().all(-1) & (weights > 0)
    if int(good.sum()) < 3:
        return None
    try:
        found = align_umeyama(shape[good], points[good], weights[good])
    except InputError:  # all on a line
        return None
    gap = (transform_points(shape[good], found) - points[good]).norm(dim=-1)
    if not float(found.scale) > 0 or float(gap.median()) > _RESIDUAL * float(found.scale):
        return None
    return found


def triangle_votes(
    relations: Relations,
) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
    """Return for every pair the share of detours over a third picture that agree, and how many.

    The way back counts as one detour.
    """
    r = relations
    n = len(r.scale)
    agree, total = torch.zeros(n, n), torch.zeros(n, n)
    log_scale = r.scale.log()
    for k in range(n):
        through = r.known[:, k, None] & r.known[None, k] & r.known
        rotation = r.rotation[:, k, None] @ r.rotation[None, k]
        shift = r.shift[:, k, None] + r.scale[:, k, None, None] * (
            r.rotation[:, k, None] @ r.shift[None, k, :, :, None]
        ).squeeze(-1)
        size = log_scale[:, k, None] + log_scale[None, k]
        same = _same(r, rotation, shift, size)
        agree += (through & same).float()
        total += through.float()
    back = r.known & r.known.T
    turned = r.rotation.transpose(0, 1).mT
    home = -(turned @ r.shift.transpose(0, 1)[..., None]).squeeze(-1) / r.scale.T[..., None]
    same = _same(r, turned, home, -log_scale.T)
    return (agree + (back & same)) / (total + back).clamp(min=1), total + back


def _same(r: Relations, rotation: Tensor, shift: Tensor, log_scale: Tensor) -> Bool[Tensor, "n n"]:
    trace = (r.rotation * rotation).sum((-2, -1))
    angle = ((trace - 1) / 2).clamp(-1, 1).acos()
    # The shapes have median depth 1, which is what a shift is measured against.
    gap = (r.shift - shift).norm(dim=-1) / (1 + r.shift.norm(dim=-1))
    return (angle < _ANGLE) & (gap < _SHIFT) & ((r.scale.log() - log_scale).abs() < _LOG_SCALE)


def consistent_pairs(predictions: Predictions, count: int) -> tuple[dict[Pair, float], Relations]:
    """Drop pairs that most others contradict, as far as the pictures stay linked.

    Args:
        predictions: Of all pairs.
        count: Pictures.

    Returns:
        The pairs kept with their scores: confidence times the share of detours that agree.
    """
    relations = relate(predictions, count)
    votes, checks = triangle_votes(relations)
    best = float(votes[checks > 1].max()) if bool((checks > 1).any()) else 0.0
    kept: dict[Pair, float] = {}
    dropped: dict[Pair, float] = {}
    for (i, j), maps in predictions.items():
        vote = float(votes[i, j])
        if checks[i, j] < 2:  # nobody can tell
            vote = max(best, 1.0) if bool(relations.known[i, j]) or not best else 0.0
        good = vote >= _VOTE * best
        (kept if good else dropped)[i, j] = maps.score * (vote + 1e-6)
    for i, j in sorted(dropped, key=lambda pair: -dropped[pair]):
        groups = count_groups(list(kept), count)
        if groups == 1:
            break
        if count_groups([*kept, (i, j)], count) < groups:
            kept |= {p: dropped[p] for p in ((i, j), (j, i)) if p in dropped}
    return {pair: kept[pair] for pair in predictions if pair in kept}, relations
