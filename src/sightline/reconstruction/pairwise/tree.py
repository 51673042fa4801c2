"""In which order cameras hang on each other (MASt3R's kinematic chain)."""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.cluster.hierarchy import linkage
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.spatial.distance import squareform

from sightline.errors import ReconstructionError

TreeMode = Literal["hclust-ward", "mst"]


def kinematic_tree(
    matches: Float[ndarray, "n n"], patches: Int[ndarray, " n"], mode: TreeMode = "hclust-ward"
) -> tuple[int, list[tuple[int, int]]]:
    """Return the root of the tree of cameras, and its edges (parent, child) from the root on.

    Args:
        matches: Number of matches between every two pictures; symmetric.
        patches: Blocks of each picture, which bound how many matches it can have.
        mode: ``mst`` takes the tree with the most matches; ``hclust-ward`` merges pictures into
            ever larger groups of similar ones, and links the best connected picture of both.

    Raises:
        ReconstructionError: If the matches do not link all pictures.
    """
    count = len(matches)
    if count == 1:
        return 0, []
    weights = matches if mode == "mst" else _merge_groups(matches, patches)
    rows, columns = np.nonzero(weights)
    graph = coo_array((-weights[rows, columns], (rows, columns)), shape=(count, count))
    tree = csr_array(minimum_spanning_tree(graph.tocsr()))
    if tree.nnz != count - 1:
        raise ReconstructionError(
            f"matches link only part of the {count} pictures; add pictures between them or use "
            "--graph complete"
        )
    first = _ranks(tree, 0)
    second = _ranks(tree, int(first.argmax()))
    third = _ranks(tree, int(second.argmax()))
    # The picture that is far from both ends of a long path is near the middle of the tree.
    root = int(np.minimum(second, third).argmax())
    order, parents = breadth_first_order(tree, root, directed=False)
    return root, [(int(parents[child]), int(child)) for child in order[1:]]


def _ranks(tree: csr_array, start: int) -> Int[ndarray, " n"]:
    """Return at which place a breadth-first walk meets every picture."""
    order, _ = breadth_first_order(tree, start, directed=False)
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    return ranks


def _merge_groups(
    matches: Float[ndarray, "n n"], patches: Int[ndarray, " n"]
) -> Float[ndarray, "n n"]:
    count = len(matches)
    possible = 3.0 * np.minimum(patches[:, None], patches[None])
    similarity = np.minimum(matches / possible, 1.0)
    np.fill_diagonal(similarity, 1.0)
    distance = np.where(similarity > 0, 1 - similarity, 2.0)
    merges = linkage(squareform(distance, checks=False), "ward")[:, :2].astype(int)
    links = np.zeros((count, count))
    speaker = list(range(count))  # for every group, the picture that stands for it
    for a, b in (tuple(row) for row in merges.tolist()):
        one, other = speaker[a], speaker[b]
        links[one, other] = links[other, one] = 1.0
        best = one if similarity[one].sum() > similarity[other].sum() else other
        speaker.append(best)
        similarity[best] = np.maximum(similarity[one], similarity[other])
    return links
