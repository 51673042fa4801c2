"""Which points of a scene the viewer shows."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from sightline.types import PointCloud

MOST_POINTS = 1_000_000
_NEAR_BLACK = 16  # sum of the three channels, of 765
_NEAR_WHITE = 240  # every channel above, of 255


@dataclass(frozen=True, slots=True, kw_only=True)
class PointChoice:
    """What the user chose to see."""

    hidden_percent: float = 0.0
    """Of the points, the least confident first; 0 to 100."""
    views: frozenset[int] = frozenset()
    """Only points that one of these views saw; empty means all."""
    hides_black: bool = False
    hides_white: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ViewerPoints:
    """Points made ready once, so that every choice is quick."""

    positions: Float[np.ndarray, "N 3"]
    colors: UInt8[np.ndarray, "N 3"]
    rank: Int[np.ndarray, " N"] | None
    """How many other points are as confident or less. Equals have the same, so that they are
    hidden together, and late, as exporters do it."""
    tracks: Int[np.ndarray, "T 2"] | None
    """Rows of (point, view)."""

    def select(self, choice: PointChoice) -> Bool[np.ndarray, " N"]:
        """Return which points are shown."""
        shown = np.ones(len(self.positions), bool)
        if self.rank is not None and choice.hidden_percent > 0:
            shown &= self.rank >= int(len(shown) * choice.hidden_percent / 100)
        if self.tracks is not None and choice.views:
            seen = np.zeros(len(self.positions), bool)
            seen[self.tracks[np.isin(self.tracks[:, 1], sorted(choice.views)), 0]] = True
            shown &= seen
        if choice.hides_black:
            shown &= self.colors.sum(axis=1, dtype=np.int64) >= _NEAR_BLACK
        if choice.hides_white:
            shown &= ~(self.colors > _NEAR_WHITE).all(axis=1)
        return shown


def prepare_points(
    cloud: PointCloud, tracks: Int[torch.Tensor, "T 2"] | None = None
) -> ViewerPoints:
    """Make points ready for the viewer.

    Args:
        cloud: Points that are not finite are left out; above a million they are thinned evenly.
        tracks: Rows of (point, view) that index ``cloud``.
    """
    known = torch.isfinite(cloud.points).all(dim=1).cpu().numpy()
    keep = np.flatnonzero(known)
    if len(keep) > MOST_POINTS:
        keep = keep[np.linspace(0, len(keep) - 1, MOST_POINTS).round().astype(np.int64)]
    rank = None
    if cloud.confidence is not None:
        confidence = cloud.confidence.detach().float().cpu().numpy()[keep]
        confidence = np.nan_to_num(confidence, nan=-np.inf)
        above = np.searchsorted(np.sort(confidence), confidence, side="right")
        rank = above - 1
    rows = None
    if tracks is not None:
        place = np.full(len(known), -1, np.int64)
        place[keep] = np.arange(len(keep))
        rows = tracks.cpu().numpy().astype(np.int64)
        rows = np.stack([place[rows[:, 0]], rows[:, 1]], axis=1)
        rows = rows[rows[:, 0] >= 0]
    colors = cloud.colors.detach().float().cpu().nan_to_num(0.0).clamp(0, 1).numpy()[keep]
    return ViewerPoints(
        positions=cloud.points.detach().float().cpu().numpy()[keep],
        colors=(colors * 255).round().astype(np.uint8),
        rank=rank,
        tracks=rows,
    )
