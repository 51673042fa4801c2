"""What a network says about pairs of pictures, and where the pixels of a picture are."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.reconstruction.pairwise.graph import Pair


class Grid(NamedTuple):
    """Where the pixels of a picture are, in coordinates in which its camera has one focal length.

    Pixel (column, row) is at ``corner + (column + half, row + half) * step``. The originals count
    whole pixels from 0 and take half the size for the centre (`Grid.whole`); with half a pixel
    added, and steps that undo the resizing, results are exact.

    Attributes:
        height: Rows.
        width: Columns.
        corner: (x, y) of the picture's corner.
        step: (x, y) between pixels.
        center: Principal point (x, y).
        half: Where in its step a pixel is.
    """

    height: int
    width: int
    corner: tuple[float, float]
    step: tuple[float, float]
    center: tuple[float, float]
    half: float = 0.5

    @classmethod
    def whole(cls, height: int, width: int) -> "Grid":
        """Return the grid of DUSt3R and MASt3R."""
        return cls(height, width, (0.0, 0.0), (1.0, 1.0), (width / 2, height / 2), 0.0)

    @property
    def origin(self) -> tuple[float, float]:
        """Where the first pixel is."""
        (x, y), (across, down) = self.corner, self.step
        return x + self.half * across, y + self.half * down

    @property
    def long_side(self) -> float:
        """Return the longer side."""
        return max(self.width * self.step[0], self.height * self.step[1])

    def pixels(self) -> Float[Tensor, "h w 2"]:
        """Return (x, y) of every pixel."""
        x = torch.arange(self.width) * self.step[0] + self.origin[0]
        y = torch.arange(self.height) * self.step[1] + self.origin[1]
        return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)

    def thin(self, stride: int) -> "Grid":
        """Return the grid of every ``stride``-th pixel, from ``stride // 2`` on."""
        if stride == 1:
            return self
        start = stride // 2
        return self._replace(
            height=len(range(start, self.height, stride)),
            width=len(range(start, self.width, stride)),
            step=(self.step[0] * stride, self.step[1] * stride),
            half=(start + self.half) / stride,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairMaps:
    """Point maps of both pictures of a pair, in the camera frame of the first."""

    points: tuple[Float[Tensor, "_ _ 3"], Float[Tensor, "_ _ 3"]]
    confidence: tuple[Float[Tensor, "_ _"], Float[Tensor, "_ _"]]
    """At least 1; 0 where a pixel must not count."""

    @property
    def score(self) -> float:
        """Product of the mean confidences."""
        return float(self.confidence[0].mean() * self.confidence[1].mean())

    def thin(self, stride: int) -> "PairMaps":
        """Return every ``stride``-th pixel, from ``stride // 2`` on."""
        if stride == 1:
            return self
        some = slice(stride // 2, None, stride)
        points, confidence = self.points, self.confidence
        return replace(
            self,
            points=(points[0][some, some], points[1][some, some]),
            confidence=(confidence[0][some, some], confidence[1][some, some]),
        )


Predictions = dict[Pair, PairMaps]
"""By (first, second) picture; the order is that of the graph."""
