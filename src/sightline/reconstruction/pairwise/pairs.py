"""What a network says about pairs of pictures, and where the pixels of a picture are."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.reconstruction.pairwise.graph import Pair


class Grid(NamedTuple):
    """Where the pixels of a picture are, in coordinates in which its camera has one focal length.

    Pixel (column, row) is at ``origin + (column, row) * step``. The originals use whole numbers
    from 0 and the centre at half the size (`Grid.whole`); with half a pixel added and steps that
    undo the resizing, results are exact.

    Attributes:
        height: Rows.
        width: Columns.
        origin: (x, y) of the first pixel.
        step: (x, y) between pixels.
        center: Principal point (x, y).
    """

    height: int
    width: int
    origin: tuple[float, float]
    step: tuple[float, float]
    center: tuple[float, float]

    @classmethod
    def whole(cls, height: int, width: int) -> "Grid":
        """Return the grid of DUSt3R and MASt3R."""
        return cls(height, width, (0.0, 0.0), (1.0, 1.0), (width / 2, height / 2))

    def pixels(self, stride: int = 1) -> Float[Tensor, "h w 2"]:
        """Return (x, y) of every pixel, or of every ``stride``-th, from ``stride // 2`` on."""
        start = stride // 2
        x = torch.arange(start, self.width, stride) * self.step[0] + self.origin[0]
        y = torch.arange(start, self.height, stride) * self.step[1] + self.origin[1]
        return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)

    def thin(self, stride: int) -> "Grid":
        """Return the grid of every ``stride``-th pixel, from ``stride // 2`` on."""
        if stride == 1:
            return self
        start = stride // 2
        return Grid(
            len(range(start, self.height, stride)),
            len(range(start, self.width, stride)),
            (self.origin[0] + start * self.step[0], self.origin[1] + start * self.step[1]),
            (self.step[0] * stride, self.step[1] * stride),
            self.center,
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
