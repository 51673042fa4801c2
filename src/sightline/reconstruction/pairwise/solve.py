"""From the predictions of all pairs to cameras and dense depth, by one of the aligners."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.errors import ReconstructionError
from sightline.geometry.align import Similarity
from sightline.geometry.pose import rigid_matrix
from sightline.reconstruction.pairwise.align import (
    Alignment,
    Distance,
    Schedule,
    Weighting,
    optimize,
)
from sightline.reconstruction.pairwise.anchors import make_problem
from sightline.reconstruction.pairwise.clean import clean_confidence
from sightline.reconstruction.pairwise.consistency import Relations, consistent_pairs
from sightline.reconstruction.pairwise.focal import LONGEST, WIDEST, estimate_focal
from sightline.reconstruction.pairwise.frames import PairFrames
from sightline.reconstruction.pairwise.fuse import fuse_depth
from sightline.reconstruction.pairwise.graph import Pair, count_groups
from sightline.reconstruction.pairwise.initialize import initialize_tree
from sightline.reconstruction.pairwise.matching import Matches
from sightline.reconstruction.pairwise.pairs import Grid, Predictions
from sightline.reconstruction.pairwise.sparse import SparseAlignment, optimize_sparse
from sightline.reconstruction.pairwise.tree import TreeMode, kinematic_tree
from sightline.reconstruction.pairwise.viewer import view_pair

OnStep = Callable[[int, int], None]

_IN_FRONT = 0.02
"""Share of the depth by which a point must be in front of a surer one to be dropped; the original's
0.001 is below the noise of its depth."""


class Solution(NamedTuple):
    """A scene at network size.

    Attributes:
        K: In the grids' pixels.
        poses: Camera to world.
        depth: z-depth of every picture.
        confidence: 0 where a pixel does not count.
        scale: What one unit of the predictions (metres for MASt3R) is in this world.
        pairs: From the frame of each pair that was used to the world.
    """

    K: Float[Tensor, "V 3 3"]
    poses: Float[Tensor, "V 4 4"]
    depth: list[Float[Tensor, "_ _"]]
    confidence: list[Float[Tensor, "_ _"]]
    scale: float
    pairs: dict[Pair, Similarity]


def intrinsics(frames: PairFrames, focals: Float[Tensor, " V"]) -> Float[Tensor, "V 3 3"]:
    """Return K of the grids with these focal lengths."""
    K = torch.eye(3).repeat(len(focals), 1, 1)
    K[:, 0, 0] = K[:, 1, 1] = focals
    K[:, :2, 2] = torch.tensor([grid.center for grid in frames.grids])
    return K


def solve_single(frames: PairFrames, predictions: Predictions) -> Solution:
    """One picture, paired with itself: its own point map and focal length."""
    maps = predictions[0, 0]
    grid, points, sure = frames.grids[0], maps.points[0], maps.confidence[0]
    focal = frames.focals[0]
    if focal is None:
        found = estimate_focal(
            points[None],
            torch.tensor([grid.center]),
            pixels=grid.pixels()[None],
            weights=(sure > 0).float()[None],
            low=WIDEST,
            high=LONGEST,
        )
        focal = float(found)
    return Solution(
        intrinsics(frames, torch.tensor([focal])),
        torch.eye(4)[None],
        [points[..., 2]],
        [sure],
        1.0,
        {(0, 0): _identity()},
    )


def solve_viewer(
    frames: PairFrames, predictions: Predictions, *, min_confidence: float
) -> Solution:
    """Two pictures without optimisation.

    Raises:
        ReconstructionError: If no pose fits.
    """
    scene = view_pair(
        predictions, frames.grids, min_confidence=min_confidence, focals=frames.focals
    )
    base = 0 if predictions[0, 1].score > predictions[1, 0].score else 1
    if not scene.found[1 - base]:
        raise ReconstructionError(
            f"no camera position for {frames.views.names[1 - base]} fits what the network sees in "
            "both pictures; take pictures with more overlap"
        )
    return Solution(
        intrinsics(frames, scene.focals),
        scene.poses,
        scene.depth,
        scene.confidence,
        1.0,
        {(base, 1 - base): _identity()},
    )


def _identity() -> Similarity:
    return Similarity(scale=torch.ones(()), rotation=torch.eye(3), translation=torch.zeros(3))


def solve_cloud(
    frames: PairFrames,
    predictions: Predictions,
    *,
    per_edge: bool = False,
    iterations: int = 300,
    rate: float = 0.01,
    schedule: Schedule = "cosine",
    shared_focal: bool = False,
    known_focal: float | None = None,
    distance: Distance = "l1",
    weighting: Weighting = "log",
    min_confidence: float = 3.0,
    most_points: int = 2048,
    robust: bool = True,
    clean: bool = True,
    on_step: OnStep | None = None,
) -> Solution:
    """Global alignment of DUSt3R.

    Args:
        frames: The pictures.
        predictions: Of all pairs.
        per_edge: See `align.Alignment`.
        iterations: Of the optimiser.
        rate: Its first step size.
        schedule: How the step size falls.
        shared_focal: Fix all focal lengths at the mean of their first guesses.
        known_focal: Fix all focal lengths at this one, in pixels of the source pictures.
        distance: See `align.Alignment`.
        weighting: See `align.Alignment`.
        min_confidence: Above it, a pixel helps to find poses.
        most_points: Pixels of a picture that the optimiser works on; the others follow in closed
            form. The originals work on all; so do we with ``frames.raw``.
        robust: Leave out pairs that contradict the others.
        clean: Drop points that other pictures look through.
        on_step: Called with the steps done and their number.

    Raises:
        ReconstructionError: If the pairs do not link all pictures.
    """
    grids = frames.grids
    count = len(grids)
    scores: dict[Pair, float] | None = None
    used = predictions
    if robust and not frames.raw:
        scores, _ = consistent_pairs(predictions, count)
        used = {pair: predictions[pair] for pair in scores}
    stride = 1
    if not frames.raw:
        largest = max(grid.height * grid.width for grid in grids)
        stride = max(1, round((largest / most_points) ** 0.5))
    if max(float(c.max()) for m in used.values() for c in m.confidence) <= 1.0 + 1e-6:
        weighting = "id"  # a network without confidence: its logarithm would weigh nothing
    alignment = Alignment(
        {pair: maps.thin(stride) for pair, maps in used.items()},
        [grid.thin(stride) for grid in grids],
        per_edge=per_edge,
        distance=distance,
        weighting=weighting,
        min_confidence=min_confidence,
    )
    focals = torch.tensor([f if f is not None else torch.nan for f in frames.focals])
    if known_focal is not None:
        focals = torch.tensor([known_focal * lens.unit[0] for lens in frames.lenses])
    alignment.preset_focals(focals, focals.isfinite())
    if int(frames.posed.sum()) > 1:
        alignment.preset_poses(frames.poses.float(), frames.posed)
    initialize_tree(alignment, scores=scores, original=frames.raw, shared_focal=shared_focal)
    optimize(alignment, iterations=iterations, rate=rate, schedule=schedule, on_step=on_step)
    with torch.no_grad():
        transforms, scales = alignment.pair_transforms(), alignment.pair_scales()
        K, poses = alignment.intrinsics(), alignment.poses()
    sure = [_best(used, i) for i in range(count)]
    if stride == 1 and frames.raw:
        depth = alignment.depth_maps()
    else:
        depth = fuse_depth(used, alignment.edges, transforms, poses, K, grids)
    if clean:
        points = [_lift(d, g, k, p) for d, g, k, p in zip(depth, grids, K, poses, strict=True)]
        sure = _clean(frames, used, sure, depth, points, poses, K)
    return Solution(K, poses, depth, sure, float(scales.log().median().exp()), {
        pair: Similarity(scale=s, rotation=t[:3, :3] / s, translation=t[:3, 3])
        for pair, s, t in zip(alignment.edges, scales, transforms, strict=True)
    })  # fmt: skip


def _clean(
    frames: PairFrames,
    used: Predictions,
    confidence: list[Tensor],
    depth: list[Tensor],
    points: list[Tensor],
    poses: Float[Tensor, "V 4 4"],
    K: Float[Tensor, "V 3 3"],
) -> list[Float[Tensor, "_ _"]]:
    scene = (confidence, depth, points, poses, K, frames.grids)
    if frames.raw:
        return clean_confidence(*scene)
    return clean_confidence(*scene, tolerance=_IN_FRONT, radius=1, pairs=used.keys())


def _best(predictions: Predictions, image: int) -> Float[Tensor, "_ _"]:
    """Return for every pixel its largest confidence in any pair."""
    maps = [m.confidence[s] for p, m in predictions.items() for s in (0, 1) if p[s] == image]
    return torch.stack(maps).amax(0)


def _lift(
    depth: Float[Tensor, "h w"],
    grid: "Grid",
    K: Float[Tensor, "3 3"],
    pose: Float[Tensor, "4 4"],
) -> Float[Tensor, "h w 3"]:
    rays = (grid.pixels() - K[:2, 2]) / K[[0, 1], [0, 1]]
    local = torch.cat([rays, torch.ones_like(rays[..., :1])], -1) * depth[..., None]
    return local @ pose[:3, :3].T + pose[:3, 3]


def solve_sparse(
    frames: PairFrames,
    predictions: Predictions,
    matches: Mapping[Pair, Matches],
    *,
    subsample: int = 8,
    tree: TreeMode = "hclust-ward",
    coarse: tuple[int, float, float] = (300, 0.07, 1.5),
    fine: tuple[int, float, float] = (300, 0.01, 0.5),
    min_match_confidence: float = 5.0,
    shared_intrinsics: bool = False,
    optimize_center: bool = False,
    robust: bool = True,
    clean: bool = True,
    on_step: OnStep | None = None,
) -> Solution:
    """Sparse global alignment of MASt3R.

    Args:
        frames: The pictures.
        predictions: Of both directions of all pairs.
        matches: Of each pair.
        subsample: Step of the grid of depth and matches.
        tree: How cameras hang on each other.
        coarse: Steps, step size and gamma of the first stage.
        fine: Of the second.
        min_match_confidence: Pairs without a better match are compared point by point.
        shared_intrinsics: One camera took all pictures.
        optimize_center: Let principal points move, as the original does.
        robust: Leave out pairs that contradict the others, and start from what they agree on.
        clean: Drop points that other pictures look through.
        on_step: Called with the steps done and their number.

    Raises:
        ReconstructionError: If matches do not link all pictures.
    """
    grids = frames.grids
    count = len(grids)
    relations: Relations | None = None
    if robust and not frames.raw:
        scores, relations = consistent_pairs(predictions, count)
        both = {(i, j) for i, j in matches if (i, j) in scores and (j, i) in scores}
        trial = {pair: matches[pair] for pair in matches if pair in both}
        if _linked(trial, count):
            matches = trial
            predictions = {p: m for p, m in predictions.items() if p in both or p[::-1] in both}
    problem = make_problem(
        predictions,
        matches,
        grids,
        subsample=subsample,
        focals=frames.focals,
        min_match_confidence=min_match_confidence,
    )
    patches = torch.tensor([c.core.numel() for c in problem.canonical])
    root, edges = kinematic_tree(problem.counts.numpy(), patches.numpy(), tree)
    alignment = SparseAlignment(problem, root, edges, shared_intrinsics=shared_intrinsics)
    if relations is not None:
        _start_chain(alignment, relations, edges)
    known = torch.tensor([focal is not None for focal in frames.focals])
    _, scene = optimize_sparse(
        alignment,
        coarse=coarse,
        fine=fine,
        known_focal=known if bool(known.any()) else None,
        optimize_center=optimize_center,
        on_step=on_step,
    )
    points, depth = alignment.dense(scene)
    sure = [c.confidence for c in problem.canonical]
    if clean:
        sure = _clean(frames, predictions, sure, depth, points, scene.poses, scene.intrinsics)
    scale = float(scene.sizes.log().median().exp())
    return Solution(scene.intrinsics, scene.poses, depth, sure, scale, {})


def _linked(matches: Mapping[Pair, Matches], count: int) -> bool:
    return count_groups([p for p, m in matches.items() if len(m.confidence)], count) == 1


def _start_chain(
    alignment: SparseAlignment, relations: Relations, edges: list[tuple[int, int]]
) -> None:
    """Place the cameras along the tree by what its pairs say, if all of them say something."""
    count = len(alignment.problem.grids)
    poses: list[Tensor] = [torch.eye(4)] * count
    scales = torch.ones(count)  # of each picture's shape of median depth 1
    for parent, child in edges:
        if not bool(relations.known[parent, child]):
            return
        turn = poses[parent][:3, :3]
        shift = scales[parent] * (turn @ relations.shift[parent, child])
        rotation = turn @ relations.rotation[parent, child]
        poses[child] = rigid_matrix(rotation, poses[parent][:3, 3] + shift)
        scales[child] = scales[parent] * relations.scale[parent, child]
    alignment.start_from(torch.stack(poses), scales / alignment.medians)
