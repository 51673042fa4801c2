"""Compiled loops of `proposals`: graph-based segmentation and greedy merging of regions."""

# ruff: noqa: ANN001, ANN201, ANN202 - numba infers the types of compiled kernels

import numpy as np

from sightline.segmentation.kernels import kernel


@kernel
def _find(parent, i):
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@kernel
def segment(edges, weights, count, scale, smallest):
    """Return the root of each pixel; ``edges [E, 2]`` come by rising weight.

    Two components join when the edge is no heavier than either's heaviest inner edge plus
    ``scale / size``; then components below ``smallest`` join a neighbour.
    """
    parent = np.arange(count)
    size = np.ones(count, np.int64)
    limit = np.full(count, scale)
    for e in range(len(edges)):
        a, b = _find(parent, edges[e, 0]), _find(parent, edges[e, 1])
        if a != b and weights[e] <= limit[a] and weights[e] <= limit[b]:
            parent[b] = a
            size[a] += size[b]
            limit[a] = weights[e] + scale / size[a]
    for e in range(len(edges)):
        a, b = _find(parent, edges[e, 0]), _find(parent, edges[e, 1])
        if a != b and (size[a] < smallest or size[b] < smallest):
            parent[b] = a
            size[a] += size[b]
    for i in range(count):
        parent[i] = _find(parent, i)
    return parent


@kernel
def _distance(histograms, sizes, borders, strengths, total, i, j):
    # Colour, small regions first, and the edge between the two.
    colour = 0.0
    for k in range(histograms.shape[1]):
        colour += abs(histograms[i, k] - histograms[j, k])
    small = (sizes[i] + sizes[j]) / total
    edge = strengths[i, j] / borders[i, j]
    return colour / 2 + small + edge / 20


@kernel
def merge(first, first_sizes, first_borders, first_strengths, total):
    """Merge neighbours of least distance until one region is left.

    Returns ``parents [2R - 1]`` (-1 for the last), the distance at which each region came to be
    (monotone; 0 for the first ones), and that at which it was merged.
    """
    count = len(first)
    nodes = max(2 * count - 1, 1)
    histograms, sizes, borders, strengths = (
        first.copy(),
        first_sizes.copy(),
        first_borders.copy(),
        first_strengths.copy(),
    )
    node_of = np.arange(count)
    alive = np.ones(count, np.bool_)
    parents = np.full(nodes, -1)
    birth = np.zeros(nodes)
    death = np.ones(nodes)
    distance = np.full((count, count), np.inf)
    best = np.full(count, np.inf)
    partner = np.zeros(count, np.int64)
    for i in range(count):
        for j in range(count):
            if i != j and borders[i, j] > 0:
                distance[i, j] = _distance(histograms, sizes, borders, strengths, total, i, j)
                if distance[i, j] < best[i]:
                    best[i] = distance[i, j]
                    partner[i] = j
    level = 0.0
    new = count
    while new < nodes:
        i = -1
        for r in range(count):
            if alive[r] and best[r] < np.inf and (i < 0 or best[r] < best[i]):
                i = r
        if i < 0:
            break
        j = partner[i]
        level = max(level, best[i])
        parents[node_of[i]] = new
        parents[node_of[j]] = new
        death[node_of[i]] = level
        death[node_of[j]] = level
        birth[new] = level
        death[new] = level
        share = sizes[i] / (sizes[i] + sizes[j])
        for k in range(histograms.shape[1]):
            histograms[i, k] = share * histograms[i, k] + (1 - share) * histograms[j, k]
        sizes[i] += sizes[j]
        alive[j] = False
        node_of[i] = new
        new += 1
        for r in range(count):
            if r != i and r != j and alive[r]:
                borders[i, r] += borders[j, r]
                strengths[i, r] += strengths[j, r]
                borders[r, i] = borders[i, r]
                strengths[r, i] = strengths[i, r]
        best[i] = np.inf
        for r in range(count):
            distance[r, j] = np.inf
            distance[j, r] = np.inf
            distance[i, r] = np.inf
            if alive[r] and r != i and borders[i, r] > 0:
                d = _distance(histograms, sizes, borders, strengths, total, i, r)
                distance[i, r] = d
                distance[r, i] = d
                if d < best[i]:
                    best[i] = d
                    partner[i] = r
        for r in range(count):
            if (
                alive[r]
                and r != i
                and (partner[r] == i or partner[r] == j or distance[r, i] < best[r])
            ):
                best[r] = np.inf
                for s in range(count):
                    if alive[s] and distance[r, s] < best[r]:
                        best[r] = distance[r, s]
                        partner[r] = s
    return parents, birth, death
