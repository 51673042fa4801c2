"""Which pictures to compare, and comparing them: the worker's second stage. Needs no torch.

A few of the coarsest features of every picture are matched with those of every other one. That
costs milliseconds a pair and tells well enough which pictures show the same place (on 50 photos,
a correlation of 0.96 with the number of verified matches), so that only promising pairs are
matched in full. It takes the place of a vocabulary tree, which would have to be downloaded.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap
from jaxtyping import Bool, Float32, Int

from sightline.reconstruction.features import image_id, picture_name, view_of
from sightline.reconstruction.job import Job, Matching
from sightline.reconstruction.log import Report

_FEW = 16
"""Up to this many views all pairs are matched: choosing would save nothing."""
_COARSE_FEATURES = 384
_COARSE_RATIO = 0.85
_LEAST_COARSE = 4
"""Fewer coarse matches than this are chance."""
_LIKELY_COARSE = 12
_NEAR_STEPS = (1, 2, 3, 4, 6, 8)
_FAR_STEPS = (12, 16, 24, 32, 48, 64, 96, 128)
_NEAR_IN_TIME = 16
_COLUMNS = 48
"""Pictures compared in one matrix product: 384 x 18,432 numbers, 28 MB."""


def coarse_descriptors(database: Path, views: int) -> Float32[np.ndarray, "V F 128"]:
    """Return unit descriptors of each view's features of largest scale; missing rows are zero."""
    # Fewer for large sets, where n^2 pairs are compared; more pictures also mean closer ones.
    count = _COARSE_FEATURES if views <= 200 else _COARSE_FEATURES // 2
    found = np.zeros((views, count, 128), np.float32)
    with pycolmap.Database.open(database) as opened:
        for view in range(views):
            points = np.asarray(opened.read_keypoints(image_id(view)))
            rows = np.asarray(opened.read_descriptors(image_id(view)).data)
            if len(rows) == 0:
                continue
            area = np.abs(points[:, 2] * points[:, 5] - points[:, 3] * points[:, 4])
            largest = np.argsort(-area, kind="stable")[:count]
            chosen = rows[largest].astype(np.float32)
            chosen /= np.linalg.norm(chosen, axis=1, keepdims=True) + 1e-9
            found[view, : len(chosen)] = chosen
    return found


def coarse_matches(
    descriptors: Float32[np.ndarray, "V F D"], report: Report | None = None
) -> Int[np.ndarray, "V V"]:
    """Count mutual nearest neighbours that pass Lowe's ratio test, for every pair of views."""
    views, features, dims = descriptors.shape
    counts = np.zeros((views, views), np.int64)
    rows = np.arange(features)
    for i in range(views - 1):
        if report is not None and i % 16 == 0:
            report.progress("compare", i, views)
        for start in range(i + 1, views, _COLUMNS):
            others = descriptors[start : start + _COLUMNS]
            near = (descriptors[i] @ others.reshape(-1, dims).T).reshape(features, -1, features)
            back = near.argmax(axis=0)  # [others, F]: the best of i for each of theirs
            best = near.argmax(axis=2)  # [F, others]
            first = np.take_along_axis(near, best[..., None], 2)[..., 0]
            np.put_along_axis(near, best[..., None], -1.0, 2)
            second = near.max(axis=2)
            angles = [np.arccos(np.clip(value, -1.0, 1.0)) for value in (first, second)]
            mutual = np.take_along_axis(back.T, best, 0) == rows[:, None]
            good = mutual & (angles[0] < _COARSE_RATIO * angles[1]) & (first > 0)
            counts[i, start : start + len(others)] = good.sum(axis=0)
    return counts + counts.T


def choose_pairs(
    counts: Int[np.ndarray, "V V"],
    sequences: Sequence[Sequence[int]],
    matching: Matching,
    neighbors: int,
) -> Bool[np.ndarray, "V V"]:
    """Choose the pairs of views to match in full.

    Args:
        counts: Coarse matches of every pair.
        sequences: Views of each video in the order of time.
        matching: ``exhaustive`` takes all; ``sequential`` compares mostly with the next views in
            time (or in the given order), ``auto`` mostly with the most similar ones.
        neighbors: How many similar views to take for each view.

    Returns:
        A symmetric matrix. It always joins all views that have any coarse match, because it
        contains a maximum spanning tree of the counts.
    """
    views = len(counts)
    chosen = np.zeros((views, views), bool)
    if matching == "exhaustive" or (matching == "auto" and views <= _FEW):
        chosen[:] = True
    else:
        lines = [list(line) for line in sequences]
        if matching == "sequential":
            lines = lines or [list(range(views))]
        near = np.zeros((views, views), bool)
        for line in lines:
            for step in _NEAR_STEPS if matching == "auto" else range(1, 11):
                chosen[line[:-step], line[step:]] = True
            # Far steps where the camera still sees the same: without wide baselines between them
            # the views of a video say little about depth.
            for step in _FAR_STEPS:
                likely = counts[line[:-step], line[step:]] >= _LIKELY_COARSE
                chosen[np.array(line[:-step], int)[likely], np.array(line[step:], int)[likely]] = (
                    True
                )
            rank = np.argsort(line)  # time of each view of the line
            ordered = np.sort(line)
            close = np.abs(rank[:, None] - rank[None]) <= _NEAR_IN_TIME
            near[np.ix_(ordered, ordered)] |= close
        similar = max(2, neighbors // 4) if lines else neighbors
        for view in range(views):
            # What is near in time has its own rule; the rest are returns to the same place.
            rank = np.where(near[view], -1, counts[view])
            rank[view] = -1
            best = np.argsort(-rank, kind="stable")[:similar]
            chosen[view, best[rank[best] >= _LEAST_COARSE]] = True
        for a, b in _spanning_tree(counts):
            chosen[a, b] = True
    chosen |= chosen.T
    np.fill_diagonal(chosen, val=False)
    return chosen


def _spanning_tree(counts: Int[np.ndarray, "V V"]) -> list[tuple[int, int]]:
    """Return the edges of a maximum spanning tree (Prim), without edges of count zero."""
    views = len(counts)
    inside = np.zeros(views, bool)
    inside[0] = True
    link = np.zeros(views, int)  # the tree's node with the best edge to each view
    weight = counts[0].copy()
    edges = []
    for _ in range(views - 1):
        nearest = int(np.where(inside, -1, weight).argmax())
        if weight[nearest] > 0:
            edges.append((int(link[nearest]), nearest))
        inside[nearest] = True
        better = counts[nearest] > weight
        link[better] = nearest
        weight = np.maximum(weight, counts[nearest])
    return edges


def match_pairs(
    job: Job,
    database: Path,
    pairs: Bool[np.ndarray, "V V"],
    listing: Path,
    report: Report,
) -> None:
    """Match the chosen pairs and verify each geometrically; pairs already there are kept.

    The list of pairs is left at ``listing``.
    """
    listed = [(int(a), int(b)) for a, b in np.argwhere(np.triu(pairs, 1))]
    lines = [f"{picture_name(a)} {picture_name(b)}\n" for a, b in listed]
    listing.write_text("".join(lines))
    if not listed:
        return
    settings = job.settings
    options = pycolmap.FeatureMatchingOptions()
    options.num_threads = settings.num_threads
    options.use_gpu = False
    pairing = pycolmap.ImportedPairingOptions()
    pairing.match_list_path = str(listing)
    pairing.block_size = max(10, min(200, len(listed) // 20))  # a block is a step of progress
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = settings.seed
    total = len(listed)
    report.progress("matching", 0, total)
    with report.counted("matching", -pairing.block_size, total, pairing.block_size):
        pycolmap.match_image_pairs(
            database,
            matching_options=options,
            pairing_options=pairing,
            verification_options=verification,
            device=pycolmap.Device.cpu,
        )
    report.progress("matching", total, total)


def read_pairs(listing: Path, views: int) -> Bool[np.ndarray, "V V"]:
    """Return the pairs that `match_pairs` listed, as a symmetric matrix."""
    pairs = np.zeros((views, views), bool)
    for line in listing.read_text().splitlines():
        a, b = map(view_of, line.split())
        pairs[a, b] = pairs[b, a] = True
    return pairs
