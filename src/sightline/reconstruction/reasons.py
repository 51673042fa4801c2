"""Why a picture found no place in the scene, in words that help to take a better one."""

from pathlib import Path

import numpy as np
import pycolmap
from jaxtyping import Bool, Int

from sightline.reconstruction.features import image_id
from sightline.reconstruction.job import Job

FEW_FEATURES = 150
FEW_MATCHES = 15
"""COLMAP's own least number of verified matches between two views."""


class Evidence:
    """What features and matches say about each view.

    Attributes:
        features: Number of features of each view.
        matches: Verified matches between each two views.
        turns: True where one homography explains them: a turn on the spot, or one flat surface.
    """

    def __init__(self, job: Job, database: Path) -> None:
        """Read the database."""
        views = len(job.names)
        self.features: Int[np.ndarray, " V"] = np.zeros(views, int)
        self.matches: Int[np.ndarray, "V V"] = np.zeros((views, views), int)
        self.turns: Bool[np.ndarray, "V V"] = np.zeros((views, views), bool)
        kinds = pycolmap.TwoViewGeometryConfiguration
        with pycolmap.Database.open(database) as opened:
            for view in range(views):
                self.features[view] = opened.num_keypoints_for_image(image_id(view))
            pairs, geometries = opened.read_two_view_geometries()
        for pair, geometry in zip(pairs, geometries, strict=True):
            a, b = (i - 1 for i in pycolmap.pair_id_to_image_pair(pair))
            self.matches[a, b] = self.matches[b, a] = len(geometry.inlier_matches)
            flat = geometry.config in (kinds.PANORAMIC, kinds.PLANAR_OR_PANORAMIC)
            self.turns[a, b] = self.turns[b, a] = flat


def reason(job: Job, evidence: Evidence, view: int, placed: frozenset[int]) -> str:
    """Return the likely reason why a view was not placed.

    Args:
        job: Names of the views.
        evidence: From the same database.
        view: The view.
        placed: The views that were.
    """
    features, matches = int(evidence.features[view]), evidence.matches[view]
    if features < FEW_FEATURES:
        masked = " outside its mask" if job.masks[view] is not None else ""
        return (
            f"only {features} features{masked}: the picture is blurred, dark or shows too little "
            "texture"
        )
    best = int(matches.argmax())
    if matches[best] < FEW_MATCHES:
        return (
            "no other picture shows enough of the same: it needs more overlap with its neighbours"
        )
    strong = matches >= FEW_MATCHES
    if evidence.turns[view][strong].mean() > 0.8:
        return (
            "it differs from the pictures that overlap with it only by a turn on the spot, or shows "
            "one flat surface: the camera must move sideways"
        )
    friends = [int(v) for v in np.flatnonzero(strong) if v in placed]
    if placed and not friends:
        return (
            f"it overlaps only with pictures that found no place either (best: {job.names[best]}, "
            f"{matches[best]} matches): pictures that join them with the rest are missing"
        )
    if not placed:
        return (
            f"its best match ({job.names[best]}, {matches[best]} points) is not enough to start "
            "from: pictures must overlap more, from places a little further apart"
        )
    nearest = max(friends, key=lambda v: int(matches[v]))
    return (
        f"it shares {matches[nearest]} points with {job.names[nearest]}, but too few of them have a "
        "3D position: it needs pictures between it and the others"
    )
