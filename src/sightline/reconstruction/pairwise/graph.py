"""Which pairs of pictures the network looks at."""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sightline.errors import InputError

Pair = tuple[int, int]

GRAPHS = "complete, swin-K, logwin-K (both also with -noncyclic), oneref-R, retrieval-A-K"
_DEFAULT_WINDOW = 3


def make_pairs(
    graph: str,
    count: int,
    *,
    symmetrize: bool = True,
    prefilter: str | None = None,
    similarity: Float[ndarray, "n n"] | None = None,
    seed: int = 0,
) -> list[Pair]:
    """Return the pairs of a scene graph, in the official order where there is one.

    Args:
        graph: ``complete``: every two. ``swin-K``: each with its next K in order. ``logwin-K``:
            with those 1, 2, 4, ... 2^(K-1) away. Both wrap round unless ``-noncyclic`` follows.
            ``oneref-R``: picture R with every other. ``retrieval-A-K``: a complete graph of A key
            pictures far apart in ``similarity``, every other one with its nearest key, and each
            with its K nearest (itself included, as in the original).
        count: Pictures.
        symmetrize: Append every pair swapped.
        prefilter: ``seqD`` drops pairs more than D apart in order, ``cycD`` the same round a cycle.
        similarity: For ``retrieval``, in [0, 1].
        seed: Of the first key picture.

    Raises:
        InputError: If the graph is unknown or lacks what it needs.
    """
    kind, *rest = graph.split("-")
    if kind == "complete" and not rest:
        pairs = [(i, j) for i in range(count) for j in range(i)]
    elif kind in {"swin", "logwin"}:
        pairs = _window(count, kind, rest)
    elif kind == "oneref":
        center = int(rest[0]) if rest and rest[0].isdigit() else 0
        if center >= count:
            raise InputError(
                f'expected a picture 0 to {count - 1} in "{graph}", got {center}; choose another'
            )
        pairs = [(center, j) for j in range(count) if j != center]
    elif kind == "retrieval":
        pairs = _retrieval(graph, rest, similarity, seed)
    else:
        raise InputError(f'unknown scene graph "{graph}"; expected one of {GRAPHS}')
    if symmetrize:
        pairs += [(j, i) for i, j in pairs]
    return pairs if prefilter is None else filter_pairs(pairs, count, prefilter)


def filter_pairs(pairs: Sequence[Pair], count: int, prefilter: str) -> list[Pair]:
    """Drop pairs that are far apart in the order of the pictures; see `make_pairs`."""
    match = re.fullmatch(r"(seq|cyc)(\d+)", prefilter)
    if match is None:
        raise InputError(f'expected a pair filter like seq5 or cyc5, got "{prefilter}"; correct it')
    limit = int(match[2])

    def apart(i: int, j: int) -> int:
        straight = abs(i - j)
        return (
            straight if match[1] == "seq" else min(straight, abs(i + count - j), abs(i - count - j))
        )

    return [(i, j) for i, j in pairs if apart(i, j) <= limit]


def count_groups(pairs: Sequence[Pair], count: int) -> int:
    """Return into how many groups of linked pictures the pairs put them."""
    rows, columns = np.array(list(pairs), dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    return int(connected_components(graph, directed=False)[0])


def _window(count: int, kind: str, rest: list[str]) -> list[Pair]:
    cyclic = "noncyclic" not in rest
    digits = [part for part in rest if part.isdigit()]
    size = int(digits[0]) if digits else _DEFAULT_WINDOW
    if kind == "swin":
        offsets = list(range(1, size + 1))
    else:
        offsets = [sign * 2**k for k in range(size) for sign in (-1, 1)]
    found: dict[Pair, None] = {}
    for i in range(count):
        for offset in offsets:
            j = i + offset
            if cyclic:
                j %= count
            if j == i or not 0 <= j < count:
                continue
            found[min(i, j), max(i, j)] = None
    return list(found)


def _retrieval(
    graph: str, rest: list[str], similarity: Float[ndarray, "n n"] | None, seed: int
) -> list[Pair]:
    if len(rest) != 2 or not all(part.isdigit() for part in rest):
        raise InputError(f'expected a graph like retrieval-20-10, got "{graph}"; correct it')
    if similarity is None:
        raise InputError(
            f'the graph "{graph}" needs the similarity of all pictures; give it or use complete'
        )
    keys, neighbors = (int(part) for part in rest)
    count = len(similarity)
    far = 1 - similarity
    chosen = farthest_points(far, min(keys, count), seed)
    # A dictionary keeps the order and drops what was found twice.
    found: dict[Pair, None] = {}

    def add(i: int, j: int) -> None:
        if i != j:
            found[min(i, j), max(i, j)] = None

    for a, i in enumerate(chosen):
        for j in chosen[:a]:
            add(i, j)
    if chosen:
        nearest = far[:, chosen].argmin(1)
        for i in range(count):
            if i not in chosen:
                add(i, chosen[int(nearest[i])])
    if neighbors > 0:
        for i, row in enumerate(np.argsort(far, axis=1, kind="stable")[:, :neighbors]):
            for j in row.tolist():
                add(i, j)
    return list(found)


def farthest_points(distance: Float[ndarray, "n n"], count: int, seed: int = 0) -> list[int]:
    """Pick items one after the other, each the farthest from those before; the first at random."""
    if count == 0:
        return []
    chosen = [int(np.random.default_rng(seed).integers(len(distance)))]
    nearest = distance[chosen[0]].copy()
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distance[chosen[-1]])
    return chosen
