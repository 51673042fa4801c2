"""Long inputs in overlapping chunks: who goes with whom, and how the chunks are joined.

Every chunk comes out of the network in a world of its own. Chunks that share views are joined by
the similarity that carries the points of the same pixels onto each other; a chain of these drifts,
so views far apart in order that look alike are run together once more, and all similarities are
then balanced on the graph (the idea of VGGT-Long, Deng et al. 2025, arXiv:2507.16443).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from torch import Tensor

from sightline.errors import InputError
from sightline.geometry.align import Similarity, align_robust, transform_points
from sightline.types import TensorStruct, Views

_AGREES = 0.15
"""Largest median distance between matched points, over their distance from the centre."""
_ALIKE = 0.25
"""Two views may show the same place when they are as much alike as this share of neighbours."""
_THUMB = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples(TensorStruct):
    """Points of the same few pixels of every frame of a pass, for joining it with others."""

    points: Float[Tensor, "n s 3"]
    """In the pass's world; NaN where there is no depth."""
    weights: Float[Tensor, "n s"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Link(TensorStruct):
    """How the world of chunk ``source`` lies in that of chunk ``target``."""

    target: int
    source: int
    similarity: Similarity
    """Carries points of ``source`` to ``target``."""


def plan_chunks(count: int, size: int, overlap: int) -> list[list[int]]:
    """Cut views 0 ... count - 1 into runs of at most ``size`` that share ``overlap`` views.

    All runs but the only one have ``size`` views; the last shares more with its neighbour.
    """
    if count <= size:
        return [list(range(count))]
    overlap = min(overlap, size - 1)
    starts = [*range(0, count - size, size - overlap), count - size]
    return [list(range(start, start + size)) for start in starts]


def owners(chunks: Sequence[Sequence[int]], count: int) -> list[int]:
    """Return the chunk that speaks for each view: the one that shows most on both sides of it."""
    best = [(-1, 0)] * count
    for number, chunk in enumerate(chunks):
        for view in chunk:
            # Earlier chunks win ties, so that the choice is stable.
            margin = min(view - chunk[0], chunk[-1] - view)
            best[view] = max(best[view], (margin, -number))
    return [-number for _, number in best]


def thumbnails(views: Views) -> Float[Tensor, "V d"]:
    """Return unit vectors of tiny grey pictures, whose products are correlations."""
    rows = []
    for image, (height, width) in zip(views.images, views.sizes.tolist(), strict=True):
        grey = image[:, :height, :width].float().mean(0)[None, None]
        small = torch.nn.functional.adaptive_avg_pool2d(grey, _THUMB).flatten()
        rows.append(small - small.mean())
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


def central_view(thumbs: Float[Tensor, "n d"]) -> int:
    """Return the view that is most like all the others, the earliest of equals."""
    likeness = (thumbs @ thumbs.T).sum(-1)
    return int((likeness > likeness.max() - 1e-6).nonzero()[0, 0])


def join(
    target: Samples, source: Samples, rows: Sequence[tuple[int, int]], seed: int
) -> Similarity | None:
    """Find the similarity between two passes that share views.

    Args:
        target: Of one pass.
        source: Of the other.
        rows: Pairs of rows, in target and in source, that are the same view.
        seed: Of the robust alignment.

    Returns:
        The map from source to target, or None when the shared points do not agree on one.
    """
    here, there = (list(index) for index in zip(*rows, strict=True))
    a, b = target.points[here].flatten(0, 1), source.points[there].flatten(0, 1)
    weights = (target.weights[here] * source.weights[there]).flatten().sqrt()
    known = a.isfinite().all(-1) & b.isfinite().all(-1) & (weights > 0)
    a, b, weights = a[known], b[known], weights[known]
    try:
        found = align_robust(b, a, weights, seed=seed)
    except InputError:  # too few points, or all on a line
        return None
    error = (transform_points(b, found) - a).norm(dim=-1).median()
    spread = (a - a.median(0).values).norm(dim=-1).median()
    return found if float(error) <= _AGREES * float(spread) else None


def loop_pairs(
    thumbs: Float[Tensor, "V d"], chunks: Sequence[Sequence[int]], owner: Sequence[int]
) -> list[tuple[int, int]]:
    """Return pairs of views of chunks that are no neighbours and may show the same place.

    At most one pair for two chunks and two pairs for each chunk, the likeliest first. Whether they
    do is for geometry to say, so the choice is generous.
    """
    likeness = thumbs @ thumbs.T
    least = float(torch.diagonal(likeness, 1).quantile(_ALIKE))
    chunk_of = torch.tensor(list(owner))
    found = []
    for a in range(len(chunks)):
        for b in range(a + 2, len(chunks)):
            rows, columns = (chunk_of == a).nonzero()[:, 0], (chunk_of == b).nonzero()[:, 0]
            if not len(rows) or not len(columns):
                continue
            block = likeness[rows][:, columns]
            best = int(block.argmax())
            first, second = divmod(best, len(columns))
            if float(block.max()) >= least:
                found.append((float(block.max()), int(rows[first]), int(columns[second])))
    pairs: list[tuple[int, int]] = []
    used = dict.fromkeys(range(len(chunks)), 0)
    for _, first, second in sorted(found, reverse=True):
        ends = (owner[first], owner[second])
        if all(used[end] < 2 for end in ends):
            pairs.append((first, second))
            for end in ends:
                used[end] += 1
    return pairs


def around(view: int, chunk: Sequence[int], count: int) -> list[int]:
    """Return ``count`` views of a chunk nearest in order to one of them, in order."""
    place = chunk.index(view)
    start = min(max(0, place - count // 2), max(0, len(chunk) - count))
    return list(chunk[start : start + count])


def balance(count: int, links: Sequence[Link]) -> list[Similarity | None]:
    """Place every chunk in the world of the first one that each can be reached from.

    Args:
        count: Number of chunks.
        links: Between neighbours, and loops.

    Returns:
        Maps from each chunk's world to that of the first chunk; None for chunks that no link
        joins with it.
    """
    placed: dict[int, Similarity] = {0: _identity()}
    waiting = list(links)
    while True:
        ready = [k for k in waiting if (k.target in placed) != (k.source in placed)]
        if not ready:
            break
        link = ready[0]
        if link.target in placed:
            placed[link.source] = placed[link.target] @ link.similarity
        else:
            placed[link.target] = placed[link.source] @ link.similarity.inverse()
        waiting.remove(link)
    inner = [k for k in links if k.target in placed and k.source in placed]
    if len(inner) >= len(placed):  # more links than a tree has
        placed = _balanced(placed, inner)
    return [placed.get(number) for number in range(count)]


def _balanced(start: dict[int, Similarity], links: Sequence[Link]) -> dict[int, Similarity]:
    """Minimise what is left over around all loops, robustly; the first chunk stays."""
    free = [number for number in start if number != 0]
    row = {number: i for i, number in enumerate(free)}
    unit = float(torch.stack([k.similarity.translation.norm() for k in links]).median()) or 1.0

    def place(values: np.ndarray, number: int) -> tuple[float, np.ndarray, np.ndarray]:
        base = start[number]
        scale, rotation = math.log(float(base.scale)), base.rotation.numpy()
        if number == 0:
            return scale, rotation, base.translation.numpy()
        step = values.reshape(-1, 7)[row[number]]
        turned = Rotation.from_rotvec(step[1:4]).as_matrix() @ rotation
        return scale + step[0], turned, base.translation.numpy() + unit * step[4:]

    def residuals(values: np.ndarray) -> np.ndarray:
        rows = []
        for link in links:
            s_a, R_a, t_a = place(values, link.target)
            s_b, R_b, t_b = place(values, link.source)
            known = link.similarity
            s, R = math.log(float(known.scale)), known.rotation.numpy()
            turn = Rotation.from_matrix(R.T @ R_a.T @ R_b).as_rotvec()
            shift = R_a.T @ (t_b - t_a) * math.exp(-s_a) - known.translation.numpy()
            rows.append(np.concatenate([[s_b - s_a - s], turn, shift / unit]))
        return np.concatenate(rows)

    # A wrong loop must not bend the chain.
    solved = least_squares(
        residuals, np.zeros(7 * len(free)), loss="soft_l1", f_scale=0.02, max_nfev=100
    ).x
    result = {}
    for number in start:
        scale, rotation, translation = place(solved, number)
        result[number] = Similarity(
            scale=torch.tensor(math.exp(scale), dtype=torch.float64),
            rotation=torch.from_numpy(np.ascontiguousarray(rotation)),
            translation=torch.from_numpy(np.ascontiguousarray(translation)),
        )
    return result


def _identity() -> Similarity:
    return Similarity(
        scale=torch.ones((), dtype=torch.float64),
        rotation=torch.eye(3, dtype=torch.float64),
        translation=torch.zeros(3, dtype=torch.float64),
    )
