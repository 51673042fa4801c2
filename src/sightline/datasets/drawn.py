"""Pictures of simple shapes, drawn on demand: classes to learn without any download."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from sightline.datasets.pictures import PictureEntry

_SIDE = 96
_NOWHERE = Path()
_SHIFT = 4  # fractional bits of OpenCV's drawing coordinates


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnSet:
    """A sequence of pictures like `PictureSet`; each is a pure function of seed and index.

    The class is the shape. Colours, place, size, turn and background are drawn anew, so that only
    the shape tells the class.
    """

    count: int
    seed: int
    indices: tuple[int, ...] | None = None
    """Of a subset."""

    @cached_property
    def entries(self) -> tuple[PictureEntry, ...]:
        """The pictures' names and classes."""
        names = list(SHAPES)
        kept = range(self.count) if self.indices is None else self.indices
        return tuple(
            PictureEntry(name=f"{i:06d}", file=_NOWHERE, label=names[i % len(names)]) for i in kept
        )

    def __len__(self) -> int:
        """Return the number of pictures."""
        return self.count if self.indices is None else len(self.indices)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, sorted."""
        return tuple(sorted({str(entry.label) for entry in self.entries}))

    def read(self, index: int, short_side: int = 0) -> UInt8[np.ndarray, "height width 3"]:
        """Draw one picture, 96 pixels wide or fewer."""
        number = int(self.entries[index].name)
        rng = np.random.default_rng((self.seed, number))
        picture = _background(rng)
        outline = SHAPES[str(self.entries[index].label)](rng)
        turn = rng.uniform(-0.4, 0.4)
        spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        center = rng.uniform(0.38, 0.62, 2)
        points = (outline * rng.uniform(0.22, 0.36)) @ spin.T + center
        corners = np.rint(points * _SIDE * 2**_SHIFT).astype(np.int32)
        colour = rng.integers(0, 256, 3)
        while np.abs(colour - picture.reshape(-1, 3).mean(0)).sum() < 160:  # be seen
            colour = rng.integers(0, 256, 3)
        cv2.fillPoly(picture, [corners], colour.tolist(), cv2.LINE_AA, _SHIFT)
        side = min(short_side or _SIDE, _SIDE)
        return cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)

    def subset(self, indices: "list[int] | tuple[int, ...]") -> "DrawnSet":
        """Return some of the pictures."""
        own = range(self.count) if self.indices is None else self.indices
        chosen = tuple(own[i] for i in indices)
        return DrawnSet(count=self.count, seed=self.seed, indices=chosen)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and deviation of each channel over some of the pictures."""
        some = np.stack([self.read(i) for i in range(min(len(self), 64))]).reshape(-1, 3)
        return tuple(some.mean(0).tolist()), tuple(some.std(0).tolist())


def _background(rng: np.random.Generator) -> UInt8[np.ndarray, "96 96 3"]:
    """Return soft spots of two colours and a little noise."""
    spots = cv2.resize(rng.random((5, 5)), (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC)
    first, second = rng.integers(0, 256, 3), rng.integers(0, 256, 3)
    second = (first + 0.4 * (second - first.astype(np.float64))).clip(0, 255)
    picture = first + spots[..., None] * (second - first) + rng.normal(0, 4, (_SIDE, _SIDE, 1))
    return picture.clip(0, 255).astype(np.uint8)


def _star(rng: np.random.Generator, points: int, inner: float) -> np.ndarray:
    angles = np.arange(2 * points) * np.pi / points - np.pi / 2
    radius = np.where(np.arange(2 * points) % 2, inner, 1.0)
    return _stretched(rng, np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None])


def _regular(rng: np.random.Generator, corners: int) -> np.ndarray:
    angles = (np.arange(corners) + 0.5) * 2 * np.pi / corners + np.pi / 2
    return _stretched(rng, np.stack([np.cos(angles), np.sin(angles)], 1))


def _listed(rng: np.random.Generator, corners: np.ndarray) -> np.ndarray:
    return _stretched(rng, corners)


def _stretched(rng: np.random.Generator, outline: np.ndarray) -> np.ndarray:
    return outline * rng.uniform(0.8, 1.2, 2)


_T = np.array(
    [
        (-1.0, -1.0),
        (1, -1),
        (1, -0.45),
        (0.3, -0.45),
        (0.3, 1),
        (-0.3, 1),
        (-0.3, -0.45),
        (-1, -0.45),
    ],
    np.float64,
)
_L = np.array([(-0.8, -1), (-0.2, -1), (-0.2, 0.45), (0.9, 0.45), (0.9, 1), (-0.8, 1)], np.float64)
_ARROW = np.array(
    [(0, -1), (0.9, 0), (0.35, 0), (0.35, 1), (-0.35, 1), (-0.35, 0), (-0.9, 0)], np.float64
)

SHAPES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "arrow": lambda rng: _listed(rng, _ARROW),
    "disc": lambda rng: _regular(rng, 40),
    "ell": lambda rng: _listed(rng, _L),
    "square": lambda rng: _regular(rng, 4),
    "star": lambda rng: _star(rng, 5, 0.42),
    "sun": lambda rng: _star(rng, 12, 0.72),
    "tee": lambda rng: _listed(rng, _T),
    "triangle": lambda rng: _regular(rng, 3),
}
"""Name -> outline in [-1, 1], y down."""
