"""Where a global alignment starts: a spanning tree of the best pairs, or known poses."""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor

from sightline.errors import ReconstructionError
from sightline.geometry.align import (
    Similarity,
    align_umeyama,
    transform_points,
)
from sightline.geometry.pose import invert_se3, rigid_matrix
from sightline.reconstruction.pairwise.align import Alignment
from sightline.reconstruction.pairwise.focal import LONGEST, WIDEST, estimate_focal
from sightline.reconstruction.pairwise.graph import Pair
from sightline.reconstruction.pairwise.pairs import Grid
from sightline.reconstruction.pairwise.poses import align_poses, solve_pnp, transform_pose

_ENOUGH = 0.05
"""Share of a picture that must be sure; else all that counts is used to find its pose."""


class Start(NamedTuple):
    """A first guess of the scene."""

    points: list[Float[Tensor, "_ _ 3"]]
    focals: list[float]
    poses: Float[Tensor, "N 4 4"]


def spanning_tree(scores: dict[Pair, float], count: int) -> list[tuple[float, int, int]]:
    """Return the edges of the tree with the largest sum of scores, the worst first."""
    rows, columns = np.array(list(scores), dtype=np.int64).T
    graph = coo_array((-np.array(list(scores.values())), (rows, columns)), shape=(count, count))
    tree = minimum_spanning_tree(graph.tocsr()).tocoo()
    edges = zip((-tree.data).tolist(), tree.row.tolist(), tree.col.tolist(), strict=True)
    return sorted(edges)


def initialize_tree(
    alignment: Alignment,
    *,
    iterations: int = 10,
    scores: dict[Pair, float] | None = None,
    original: bool = False,
    shared_focal: bool = False,
) -> None:
    """Start from a spanning tree of the best pairs.

    Args:
        alignment: Changed in place.
        iterations: Of RANSAC, for poses that the tree does not give.
        scores: Of the pairs; by default products of mean confidences.
        original: Take a picture's focal length from the pair that was joined before, which is an
            oversight of the original, instead of from its own.
        shared_focal: Fix all focal lengths, unless they are known, at the mean of the guesses.

    Raises:
        ReconstructionError: If the pairs do not link all pictures.
    """
    scores = scores or {e: maps.score for e, maps in alignment.predictions.items()}
    start = _grow_tree(alignment, scores, iterations, original=original)
    if shared_focal and not bool(alignment.known_focal.any()):
        mean = torch.full((len(start.focals),), math.fsum(start.focals) / len(start.focals))
        alignment.preset_focals(mean, torch.ones(len(mean), dtype=torch.bool))
    _start_from(alignment, start)


def _grow_tree(
    alignment: Alignment, scores: dict[Pair, float], iterations: int, *, original: bool
) -> Start:
    predictions, grids, count = alignment.predictions, alignment.grids, len(alignment.grids)
    todo = spanning_tree(scores, count)
    if len(todo) != count - 1:
        raise ReconstructionError(
            f"the {len(scores)} pairs do not link all {count} pictures; use --graph complete"
        )
    points: dict[int, Tensor] = {}
    poses: dict[int, Tensor] = {}
    focals: dict[int, float] = {}
    _, i, j = todo.pop()
    last = (i, j)
    maps = predictions[last]
    points[i], points[j] = maps.points
    poses[i] = torch.eye(4, dtype=maps.points[0].dtype)
    focals[i] = _focal(alignment, last, grids[i])
    while todo:
        edge = todo.pop()
        _, i, j = edge
        maps = predictions[i, j]
        if i not in focals:
            focals[i] = _focal(alignment, last if original else (i, j), grids[i])
        if i in points:
            side = 0
        elif j in points:
            side = 1
        else:  # neither end has a place yet
            todo.insert(0, edge)
            continue
        last = (i, j)
        world = _register(maps.points[side], points[last[side]], maps.confidence[side])
        points[last[1 - side]] = transform_points(maps.points[1 - side], world)
        poses.setdefault(i, rigid_matrix(world.rotation, world.translation))
    for i, j in sorted(scores, key=lambda pair: -scores[pair]):
        if i not in focals:
            focals[i] = _focal(alignment, (i, j), grids[i])
    sure = alignment.confidence_maps()
    for i in range(count):
        known = alignment.known_focal[i]
        if i not in focals or (known and not original):
            focals[i] = float(alignment.focals()[i, 0].detach()) if known else grids[i].long_side
        if i in poses:
            continue
        chosen = sure[i] > alignment.min_confidence
        if not original and float(chosen.float().mean()) < _ENOUGH:
            chosen = sure[i] > 0
        found = _pose_of(points[i], chosen, grids[i], focals[i], iterations)
        poses[i] = torch.eye(4, dtype=points[i].dtype) if found is None else found
    order = range(count)
    return Start([points[i] for i in order], [focals[i] for i in order], _stack(poses))


def _stack(poses: dict[int, Tensor]) -> Float[Tensor, "N 4 4"]:
    return torch.stack([poses[i] for i in range(len(poses))])


def _focal(alignment: Alignment, pair: Pair, grid: Grid) -> float:
    """Return the focal length of a pair's first picture."""
    maps = alignment.predictions[pair]
    own = alignment.grids[pair[0]]
    if (grid.height, grid.width) != (own.height, own.width):
        grid = own
    points = maps.points[0]
    center = points.new_tensor(grid.center)
    pixels = grid.pixels()[None].to(points)
    found = float(
        estimate_focal(points[None], center[None], pixels=pixels, low=WIDEST, high=LONGEST)
    )
    return found if math.isfinite(found) else own.long_side


def _register(
    source: Float[Tensor, "h w 3"], target: Float[Tensor, "h w 3"], weights: Float[Tensor, "h w"]
) -> Similarity:
    return align_umeyama(source.flatten(0, 1), target.flatten(0, 1), weights.flatten())


def _pose_of(
    points: Float[Tensor, "h w 3"], sure: Tensor, grid: Grid, focal: float, iterations: int
) -> Float[Tensor, "4 4"] | None:
    center = torch.tensor(grid.center)
    found = solve_pnp(points[sure], grid.pixels()[sure], focal, center, iterations=iterations)
    return None if found is None else found[1]


def _start_from(alignment: Alignment, start: Start) -> None:
    points, poses = start.points, start.poses
    known = alignment.known_pose
    if int(known.sum()) > 1:
        world = align_poses(poses[known], alignment.poses().detach()[known])
        poses = transform_pose(world, poses)
        points = [transform_points(p, world) for p in points]
    for edge, (i, j) in enumerate(alignment.edges):
        maps = alignment.predictions[i, j]
        pair = _register(maps.points[0], points[i], maps.confidence[0])
        alignment.set_pair(edge, pair.scale, pair.rotation, pair.translation)
    unit = alignment.scale_factor().detach()
    poses = poses.clone()
    poses[:, :3, 3] *= unit
    w2c = invert_se3(poses)
    for i, cloud in enumerate(points):
        depth = (cloud * unit) @ w2c[i, 2, :3] + w2c[i, 2, 3]
        alignment.set_depth(i, depth)
        alignment.set_pose(i, poses[i])
        alignment.set_focal(i, start.focals[i])


def initialize_known(alignment: Alignment, *, iterations: int = 10, original: bool = False) -> None:
    """Start from poses and focal lengths that are all known.

    Each pair's second camera is found from its points, and the two cameras of the pair are carried
    onto the known ones.

    Args:
        alignment: Changed in place.
        iterations: Of RANSAC.
        original: Take the first picture's focal length and centre for the second, as the original
            does.
    """
    poses = alignment.poses().detach()
    focals = alignment.focals().detach()[:, 0]
    best: dict[int, tuple[float, Tensor]] = {}
    for edge, (i, j) in enumerate(alignment.edges):
        maps = alignment.predictions[i, j]
        lens = i if original else j
        center = torch.tensor(alignment.grids[lens].center)
        pixels = alignment.grids[j].pixels()
        sure = maps.confidence[1] > 0
        found = solve_pnp(
            maps.points[1][sure], pixels[sure], float(focals[lens]), center, iterations=iterations
        )
        second = poses.new_zeros(4, 4) if found is None else found[1]
        first = torch.eye(4, dtype=poses.dtype)
        if found is None:  # then the known cameras say where it is
            second = invert_se3(poses[i]) @ poses[j]
        world = align_poses(torch.stack([first, second]), poses[[i, j]])
        alignment.set_pair(edge, world.scale, world.rotation, world.translation)
        score = float(maps.confidence[0].mean())
        if i not in best or score > best[i][0]:
            best[i] = score, maps.points[0][..., 2] * world.scale
    for i, (_, depth) in best.items():
        alignment.set_depth(i, depth)
