"""The interfaces between packages. Every function takes the protocol, never a registered name.

``runtime_checkable`` lets the test suite's runtime type checker accept them as annotations.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from sightline.types import Cameras, Features, Gaussians, Reconstruction, Rendering, Scene, Views

Progress = Callable[[str, float, float], None]
"""Called as ``progress(stage, done, total)``; raises ``errors.Cancelled`` to stop the work."""


@runtime_checkable
class Backbone(Protocol):
    """An image encoder."""

    patch_size: int
    embed_dim: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def extract(
        self, images: Float[Tensor, "views 3 height width"], *, layers: Sequence[int]
    ) -> list[Features]:
        """Return one record a layer; normalisation by ``mean`` and ``std`` happens inside."""
        ...


@runtime_checkable
class GeometryEstimator(Protocol):
    """Anything that finds cameras (and perhaps depth and points) for pictures."""

    def estimate(self, views: Views) -> Reconstruction:
        """Return one camera a view, in view order."""
        ...


@runtime_checkable
class SplatEstimator(Protocol):
    """An estimator that also sees splats in the pictures, in one pass."""

    def splats(self, views: Views) -> tuple[Reconstruction, Gaussians]:
        """Return one camera a view, and splats in the same world."""
        ...


@runtime_checkable
class Rasterizer(Protocol):
    """Anything that draws splats."""

    def render(
        self,
        gaussians: Gaussians,
        cameras: Cameras,
        *,
        background: Float[Tensor, "3"] | None = None,
    ) -> Rendering:
        """Draw every camera."""
        ...


@runtime_checkable
class Readout(Protocol):
    """A differentiable map from features to splats."""

    def __call__(self, features: Float[Tensor, "n dim"]) -> Gaussians:
        """Return one splat a row."""
        ...


@runtime_checkable
class Metric(Protocol):
    """A measure of pictures."""

    name: str
    unit: str
    higher_is_better: bool

    def __call__(
        self,
        predicted: Float[Tensor, "views 3 height width"],
        target: Float[Tensor, "views 3 height width"],
        mask: Bool[Tensor, "views height width"] | None = None,
    ) -> Float[Tensor, " views"]:
        """Return one value a view, over the pixels where ``mask`` is true."""
        ...


@runtime_checkable
class SceneDataset(Protocol):
    """A sequence of scenes."""

    def __len__(self) -> int:
        """Return the number of scenes."""
        ...

    def __getitem__(self, index: int) -> Scene:
        """Return one scene."""
        ...
