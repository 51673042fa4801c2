"""Values of splats whose drawing comes nearest to given maps, in the least-squares sense.

The mean of the pixels that a splat is seen in (`lift.lift_to_gaussians`) blurs edges: splats overlap,
and those on an edge see both sides. Drawing is linear in the values, so the values that explain the
maps best are the solution of a linear system, found by conjugate gradients; each step draws every
view once and gathers once. Neighbouring splats of alike colour are drawn together, which settles
what no view shows. A second round counts pixels less where the maps do not fit at all (Tukey's
biweight).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn.functional import avg_pool2d

from sightline.errors import InputError, ShapeError
from sightline.protocols import Progress
from sightline.splatting.channels import draw_and_gather, draw_values
from sightline.types import Cameras, Gaussians, TensorStruct

_CHANNELS = 64
"""Solved for at once: bounds memory."""
_SPOT = 9
"""Side in pixels of the neighbourhood over which misfits are averaged."""
_FLOOR = 1e-4
"""Pixels by which a splat that nothing else settles is drawn to zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """How values are fitted."""

    smoothness: float = 0.3
    """What likeness to a neighbour counts, in pixels."""
    neighbors: int = 16
    color: float = 1.0
    """Difference of colour, in spherical-harmonic units, beyond which neighbours are strangers."""
    steps: int = 10
    """Of conjugate gradients, in the first round."""
    robust_steps: int = 5
    """In the second round; 0 leaves it out."""

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        if self.smoothness < 0 or self.color <= 0 or self.neighbors < 1:
            raise InputError(
                "a fit needs smoothness >= 0, colour > 0 and at least 1 neighbour, got "
                f"{self.smoothness}, {self.color} and {self.neighbors}; correct them"
            )
        if self.steps < 1 or self.robust_steps < 0:
            raise InputError(
                f"a fit needs at least 1 step, got {self.steps} and {self.robust_steps}; use 10 and 5"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ViewMaps(TensorStruct):
    """What one view says about some of the channels."""

    channels: Int64[Tensor, " C"]
    """Which; each at most once."""
    maps: Bool[Tensor, "C H W"] | Float[Tensor, "C H W"]
    trust: Float[Tensor, " C"]
    """What each map counts."""


@torch.no_grad()
def fit_to_gaussians(
    gaussians: Gaussians,
    cameras: Cameras,
    views: Sequence[ViewMaps],
    start: Float[Tensor, "N D"],
    *,
    options: FitOptions | None = None,
    progress: Progress | None = None,
) -> Float[Tensor, "N D"]:
    """Return values whose drawing is nearest to the maps of all views.

    Args:
        gaussians: The scene.
        cameras: Of the views, at the maps' size.
        views: One a camera. Channels that a view does not name may be anything there.
        start: Where the search begins; it decides where nothing else does.
        options: Numbers.
        progress: Called as ``progress("fit values", done, total)``.

    Raises:
        ShapeError: Views and cameras do not agree.
    """
    options = options or FitOptions()
    _check(cameras, views, start)
    device = gaussians.means.device
    links = neighbor_links(gaussians, options)
    found = []
    chunks = range(0, start.shape[1], _CHANNELS)
    total = (options.steps + options.robust_steps) * len(chunks)

    def tell(done: int) -> None:
        if progress is not None:
            progress("fit values", float(done), float(total))

    for number, first in enumerate(chunks):
        last = min(first + _CHANNELS, start.shape[1])
        told = [_within(view, first, last).map(lambda t: t.to(device)) for view in views]
        system = _System(gaussians, cameras, told, links)
        values = start[:, first:last].to(device, torch.float32)
        before = number * (options.steps + options.robust_steps)
        values = system.solve(values, options.steps, lambda i, at=before: tell(at + i))
        if options.robust_steps:
            system.reweigh(values)
            before += options.steps
            values = system.solve(values, options.robust_steps, lambda i, at=before: tell(at + i))
        found.append(values)
    return torch.cat(found, 1) if found else start.to(device, torch.float32)


def neighbor_links(gaussians: Gaussians, options: FitOptions) -> Tensor:
    """Return the sparse ``[N N]`` matrix of what neighbours have to do with each other.

    Times values it gives the gradient of half the squared differences along all links (a graph
    Laplacian): near splats of alike colour are linked strongly.
    """
    count = len(gaussians)
    means = gaussians.means.detach().cpu().double().numpy()
    colors = gaussians.sh[:, 0].detach().cpu().double().numpy()
    number = min(options.neighbors, count - 1)
    rows, columns, weights = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    if number > 0:
        found = KDTree(means).query(means, number + 1)
        distance, near = (np.asarray(each)[:, 1:] for each in found)
        reach = np.maximum(distance[:, -1:], 1e-12)
        alike = ((colors[near] - colors[:, None]) ** 2).sum(-1) / options.color**2
        weights = (0.5 * options.smoothness * np.exp(-((distance / reach) ** 2) - alike)).ravel()
        rows, columns = np.repeat(np.arange(count), number), near.ravel()
    degree = np.bincount(rows, weights, count) + np.bincount(columns, weights, count)
    own = np.arange(count)
    index = np.stack([np.concatenate([rows, columns, own]), np.concatenate([columns, rows, own])])
    entries = np.concatenate([-weights, -weights, degree])
    matrix = torch.sparse_coo_tensor(
        torch.from_numpy(index),
        torch.from_numpy(entries).float(),
        (count, count),
        check_invariants=False,
    )
    return matrix.coalesce().to(gaussians.means.device)


class _System:
    """The normal equations: pixels that fit, and neighbours that agree."""

    def __init__(
        self, gaussians: Gaussians, cameras: Cameras, views: Sequence[ViewMaps], links: Tensor
    ) -> None:
        self.gaussians, self.views, self.links = gaussians, views, links
        self.cameras = [cameras.select([view]) for view in range(len(views))]
        self.weights: list[Tensor] = [view.trust for view in views]
        self.degree = links_diagonal(links)

    def gathered(self, values: Tensor, change: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Return the sum over views of what is gathered of changed pictures."""
        total = torch.zeros_like(values)
        for number, view in enumerate(self.views):
            if len(view.channels):
                total[:, view.channels] += draw_and_gather(
                    self.gaussians,
                    self.cameras[number],
                    values[:, view.channels],
                    lambda picture, at=number: change(at, picture) * self.weights[at],
                )
        return total

    def times(self, values: Tensor) -> Tensor:
        """Return the matrix times values."""
        drawn = self.gathered(values, lambda _, picture: picture)
        return drawn + torch.sparse.mm(self.links, values) + _FLOOR * values

    def solve(self, values: Tensor, steps: int, tell: Callable[[int], None]) -> Tensor:
        """Do some steps of conjugate gradients, each channel on its own, from ``values``."""
        ones = torch.ones_like(values)
        scale = self.gathered(ones, lambda _, picture: picture) + self.degree[:, None] + _FLOOR
        wanted = self.gathered(values, lambda at, _: self.views[at].maps.float().permute(1, 2, 0))
        rest = wanted - self.times(values)
        eased = rest / scale
        along = eased.clone()
        size = (rest * eased).sum(0)
        for step in range(steps):
            image = self.times(along)
            length = size / (along * image).sum(0).clamp(min=1e-20)
            values = values + length * along
            rest = rest - length * image
            eased = rest / scale
            new = (rest * eased).sum(0)
            along = eased + new / size.clamp(min=1e-20) * along
            size = new
            tell(step + 1)
        return values

    def reweigh(self, values: Tensor) -> None:
        """Count pixels by how well they fit: fully at no error, nothing at an error of 1."""
        for number, view in enumerate(self.views):
            if len(view.channels):
                picture, _ = draw_values(
                    self.gaussians, self.cameras[number], values[:, view.channels]
                )
                error = (picture.permute(2, 0, 1) - view.maps.float()).square()
                # Over a neighbourhood: an edge that is a pixel off must not cost its pixels.
                side = _SPOT
                error = avg_pool2d(error[None], side, 1, side // 2, count_include_pad=False)[0]
                fit = (1 - error.permute(1, 2, 0)).clamp(min=0).square()
                self.weights[number] = (fit * view.trust).half()


def links_diagonal(links: Tensor) -> Float[Tensor, " N"]:
    """Return the diagonal of a coalesced sparse matrix."""
    row, column = links.indices()
    own = row == column
    found = links.values().new_zeros(links.shape[0])
    found[row[own]] = links.values()[own]
    return found


def _within(view: ViewMaps, first: int, last: int) -> ViewMaps:
    inside = (view.channels >= first) & (view.channels < last)
    return ViewMaps(
        channels=view.channels[inside] - first, maps=view.maps[inside], trust=view.trust[inside]
    )


def _check(cameras: Cameras, views: Sequence[ViewMaps], start: Tensor) -> None:
    if len(views) != len(cameras):
        raise ShapeError(f"expected maps for each of {len(cameras)} cameras, got {len(views)}")
    size = (cameras.height, cameras.width)
    for number, view in enumerate(views):
        if tuple(view.maps.shape[1:]) != size:
            raise ShapeError(
                f"expected maps of the cameras' {size[0]} x {size[1]} pixels, got "
                f"{list(view.maps.shape[1:])} in view {number}; resize the cameras"
            )
        named = view.channels
        if len(named) and not 0 <= int(named.min()) <= int(named.max()) < start.shape[1]:
            raise ShapeError(
                f"expected channels from 0 to {start.shape[1] - 1}, got {named.tolist()} in view "
                f"{number}; start has a column for each"
            )
