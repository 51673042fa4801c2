"""What exporters work from, and what a user may choose about them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from sightline.errors import InputError
from sightline.io.reading import inside
from sightline.types import Cameras, Gaussians, Lenses, PointCloud, SparsePoints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SceneResult:
    """All that exporters need to know about a finished scene."""

    names: tuple[str, ...]
    """Unique; file names below the pictures' folder."""
    cameras: Cameras
    """At model resolution; unregistered ones may be NaN."""
    from_original: Float[Tensor, "V 3 3"]
    """Maps pixels of the undistorted full-size pictures to model pixels."""
    original_sizes: Int64[Tensor, "V 2"]
    """Height and width of the full-size pictures."""
    registered: Bool[Tensor, " V"]
    metric: bool = False
    """True when the scene's unit is a metre."""
    points: PointCloud | None = None
    """Sparse or dense."""
    sparse: SparsePoints | None = None
    gaussians: Gaussians | None = None
    depth: Float[Tensor, "V H W"] | None = None
    """z-depth at model resolution; zero, negative and not finite mean missing."""
    confidence: Float[Tensor, "V H W"] | None = None
    files: tuple[Path, ...] | None = None
    """Full-size upright pictures."""
    lenses: Lenses | None = None
    """Of ``files``; None when they are pinhole pictures already."""
    images: UInt8[Tensor, "V 3 H W"] | None = None
    """At model resolution."""
    test: tuple[int, ...] = ()
    """Indices of held-out views."""
    title: str = "scene"

    @classmethod
    def bare(
        cls, *, points: PointCloud | None = None, gaussians: Gaussians | None = None
    ) -> "SceneResult":
        """Return a result without views, such as the content of a single file."""
        return cls(
            names=(),
            cameras=Cameras(w2c=torch.zeros(0, 4, 4), K=torch.zeros(0, 3, 3), height=1, width=1),
            from_original=torch.zeros(0, 3, 3),
            original_sizes=torch.zeros(0, 2, dtype=torch.int64),
            registered=torch.zeros(0, dtype=torch.bool),
            points=points,
            gaussians=gaussians,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What a user may choose.

    Raises:
        InputError: If a value is out of range.
    """

    min_confidence: float = 0.0
    """Percentage of the least certain points and depths to leave out."""
    sh_degree: int | None = None
    """Highest colour degree of splats; None writes up to 3."""
    spz_version: int = 3
    depth_scale: float | None = None
    """Scene units a step of the 16-bit depth pictures; None: 1 mm, or what covers the scene."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not 0 <= self.min_confidence <= 100:
            raise InputError(
                f"--min-confidence must be 0 to 100 percent, got {self.min_confidence}; change it"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceViews:
    """The registered views at the resolution of their full-size pictures, undistorted."""

    indices: tuple[int, ...]
    """Of these views in the result."""
    names: tuple[str, ...]
    w2c: Float[Tensor, "V 4 4"]
    """float64, as ``K``."""
    K: Float[Tensor, "V 3 3"]
    sizes: Int64[Tensor, "V 2"]
    """Height and width."""


def source_views(result: SceneResult) -> SourceViews:
    """Return the registered views with intrinsics carried back to source pixels.

    Raises:
        InputError: If no view is registered.
        FileFormatError: If a name would lead out of a folder.
    """
    indices = tuple(result.registered.nonzero()[:, 0].tolist())
    if not indices:
        raise InputError(
            "there are no registered views to export; make cameras with: sightline reconstruct "
            "--geometry colmap"
        )
    for i in indices:
        inside(Path("cameras.npz"), result.names[i])
    chosen = list(indices)
    K = result.from_original[chosen].double().inverse() @ result.cameras.K[chosen].double()
    return SourceViews(
        indices=indices,
        names=tuple(result.names[i] for i in indices),
        w2c=result.cameras.w2c[chosen].double().cpu(),
        K=(K / K[:, 2:, 2:]).cpu(),
        sizes=result.original_sizes[chosen].cpu(),
    )
