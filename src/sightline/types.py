"""Every record that crosses a package boundary. Read this file first.

House conventions: OpenCV camera axes (x right, y down, z forward); ``w2c`` maps world points into
the camera; the centre of the first pixel is (0.5, 0.5); quaternions are ``wxyz`` and unit; images
are RGB, channels first, float32 in [0, 1] (or uint8 where memory matters); per-pixel geometry has
its channels last; ``depth`` is z, never ray length; lengths are scene units, or metres when
``metric`` is true; angles are radians.

Axis letters in shapes: V views, N points or splats, K spherical-harmonic coefficients, D channels.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int32, Int64, UInt8
from torch import Tensor

Self = TypeVar("Self", bound="TensorStruct")
"""``typing.Self`` cannot be checked by the test suite's runtime hook; a bound variable can."""

Images = Float[Tensor, "V 3 H W"] | UInt8[Tensor, "V 3 H W"]


def _apply(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:  # noqa: ANN401
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, TensorStruct):
        return value.map(fn)
    return value


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorStruct:
    """A frozen record whose tensors move together."""

    def map(self: Self, fn: Callable[[Tensor], Tensor]) -> Self:  # noqa: PYI019
        """Return a copy with ``fn`` applied to every tensor, nested records included."""
        return replace(self, **{f.name: _apply(getattr(self, f.name), fn) for f in fields(self)})

    def to(self: Self, device: torch.device | str) -> Self:  # noqa: PYI019
        """Return a copy whose tensors are on ``device``."""
        return self.map(lambda t: t.to(device))

    def pin_memory(self: Self) -> Self:  # noqa: PYI019
        """Return a copy in page-locked memory."""
        return self.map(lambda t: t.pin_memory())

    def detach(self: Self) -> Self:  # noqa: PYI019
        """Return a copy cut from the autograd graph."""
        return self.map(lambda t: t.detach())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cameras(TensorStruct):
    """Pinhole cameras of one common picture size; no skew, no distortion (undistort in ``io``).

    >>> w2c = torch.eye(4).repeat(3, 1, 1)
    >>> w2c[:, 2, 3] = 2.0  # two units before the origin
    >>> K = torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]).repeat(3, 1, 1)
    >>> cameras = Cameras(w2c=w2c, K=K, height=48, width=64)
    >>> cameras.centers[:, 2].tolist()
    [-2.0, -2.0, -2.0]
    >>> len(cameras.select([0, 2]))
    2
    """

    w2c: Float[Tensor, "V 4 4"]
    K: Float[Tensor, "V 3 3"]
    """Pixels, origin at the top-left image corner."""
    height: int
    width: int

    def __len__(self) -> int:
        """Return the number of views."""
        return self.w2c.shape[0]

    @property
    def c2w(self) -> Float[Tensor, "V 4 4"]:
        """Camera-to-world, by the closed-form inverse of a rigid motion."""
        rotation = self.w2c[:, :3, :3].mT
        c2w = torch.zeros_like(self.w2c)
        c2w[:, :3, :3] = rotation
        c2w[:, :3, 3] = -(rotation @ self.w2c[:, :3, 3:])[..., 0]
        c2w[:, 3, 3] = 1
        return c2w

    @property
    def centers(self) -> Float[Tensor, "V 3"]:
        """Camera centres in the world."""
        return self.c2w[:, :3, 3]

    def select(self, index: "Int64[Tensor, ' M'] | Bool[Tensor, ' V'] | list[int]") -> "Cameras":
        """Return the chosen views in the given order."""
        return Cameras(w2c=self.w2c[index], K=self.K[index], height=self.height, width=self.width)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lenses(TensorStruct):
    """How the pictures on disk map to pinhole pictures of the same size: OpenCV's lens models.

    ``distortion`` holds ``k1 k2 p1 p2 k3 k4 k5 k6`` (OpenCV's order) for ordinary lenses, and
    ``k1 k2 k3 k4 0 0 0 0`` of OpenCV's fisheye model where ``fisheye`` is true.
    """

    K: Float[Tensor, "V 3 3"]
    """Of the distorted picture, in its own pixels, corner convention."""
    distortion: Float[Tensor, "V 8"]
    fisheye: Bool[Tensor, " V"]
    sizes: Int64[Tensor, "V 2"]
    """Height and width of each picture."""

    @property
    def is_pinhole(self) -> bool:
        """True when no view is distorted."""
        return not bool(self.fisheye.any()) and not bool(self.distortion.any())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Views(TensorStruct):
    """Pictures of one scene, upright, at one common size.

    Pictures of unlike sizes are padded at the right and bottom; ``sizes`` gives what is real and
    ``masks`` is false in the padding.
    """

    images: Images
    names: tuple[str, ...]
    """Unique; file name of the picture below the run's ``images/``."""
    from_original: Float[Tensor, "V 3 3"]
    """Maps original pixels (upright, undistorted) to these."""
    sizes: Int64[Tensor, "V 2"]
    """Height and width of the part that is not padding."""
    cameras: Cameras | None = None
    masks: Bool[Tensor, "V H W"] | None = None
    """True where a pixel counts."""
    files: tuple[Path, ...] | None = None
    """Full-size upright pictures on disk, for methods that read them themselves."""
    mask_files: tuple[Path | None, ...] | None = None
    lenses: Lenses | None = None
    """Known lenses of ``files``; None when unknown."""
    focal_priors: Float[Tensor, " V"] | None = None
    """Focal length of ``files`` in pixels as EXIF or the user gives it; NaN where unknown."""
    times: Float[Tensor, " V"] | None = None
    """Seconds from the start of the video; NaN for photos."""
    groups: tuple[str, ...] | None = None
    """Views of one video, or of one camera, share a group name."""

    def __len__(self) -> int:
        """Return the number of views."""
        return len(self.names)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features(TensorStruct):
    """Output of one backbone layer on the patch grid."""

    patches: Float[Tensor, "V D h w"]
    cls: Float[Tensor, "V D"] | None = None
    registers: Float[Tensor, "V R D"] | None = None
    layer: int
    normed: bool
    """True when taken after the model's final norm."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PointMaps(TensorStruct):
    """One 3D point a pixel."""

    points: Float[Tensor, "V H W 3"]
    confidence: Float[Tensor, "V H W"]
    """As the model gives it (DUSt3R, VGGT: at least 1, unbounded); not a probability."""
    frame: Literal["world", "first", "own"]
    """World axes, the first view's camera, or each view's own camera."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SparsePoints(TensorStruct):
    """Triangulated points with the views that saw them."""

    points: Float[Tensor, "N 3"]
    colors: UInt8[Tensor, "N 3"]
    tracks: Int32[Tensor, "T 2"]
    """Rows of (point, view)."""
    errors: Float[Tensor, " N"] | None = None
    """Mean reprojection error in source pixels."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reconstruction(TensorStruct):
    """What every geometry estimator returns; dense maps are absent for sparse methods."""

    cameras: Cameras
    registered: Bool[Tensor, " V"]
    """False for views whose pose could not be found; their ``w2c`` is NaN."""
    metric: bool = False
    depth: Float[Tensor, "V H W"] | None = None
    points: Float[Tensor, "V H W 3"] | None = None
    confidence: Float[Tensor, "V H W"] | None = None
    valid: Bool[Tensor, "V H W"] | None = None
    sparse: SparsePoints | None = None
    lenses: Lenses | None = None
    """Lenses of the pictures on disk; ``cameras`` are the pinhole cameras after undistortion."""
    rejected: tuple[tuple[str, str], ...] = ()
    """(view name, likely reason) for each view that was not registered."""
    raw: Any = None
    """The original model's own output, bit for bit."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PointCloud(TensorStruct):
    """World points with colours in [0, 1] (sRGB)."""

    points: Float[Tensor, "N 3"]
    colors: Float[Tensor, "N 3"]
    normals: Float[Tensor, "N 3"] | None = None
    confidence: Float[Tensor, " N"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gaussians(TensorStruct):
    """Splats with *activated* values: scales > 0, opacities in [0, 1]. Files store raw ones."""

    means: Float[Tensor, "N 3"]
    quats: Float[Tensor, "N 4"]
    scales: Float[Tensor, "N 3"]
    opacities: Float[Tensor, " N"]
    sh: Float[Tensor, "N K 3"]
    """K = (degree + 1)^2; colour = max(0, 0.5 + sum of basis times coefficients)."""
    antialiased: bool = False
    """True when fitted with the antialiased (mip) rasteriser, which viewers should then use."""

    def __len__(self) -> int:
        """Return the number of splats."""
        return self.means.shape[0]

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics."""
        return round(self.sh.shape[1] ** 0.5) - 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rendering(TensorStruct):
    """Rendered pictures: a linear blend over the background."""

    rgb: Float[Tensor, "V 3 H W"]
    alpha: Float[Tensor, "V H W"]
    depth: Float[Tensor, "V H W"] | None = None
    """Expected z-depth; zero where nothing was hit."""
    features: Float[Tensor, "V D H W"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene(TensorStruct):
    """One data-set item."""

    id: str
    views: Views
    test: tuple[int, ...] = ()
    """Indices of held-out views."""
    ground_truth: Reconstruction | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MultiView(TensorStruct):
    """Some views of one scene with their ground truth, or a batch of such samples.

    One sample has no batch axes, ``datasets.multiview.collate`` adds one in front. The order of the
    views has meaning: the first one is the reference of the geometry networks, and of a pair task
    the first ``num_context`` are what a network sees.
    """

    images: Float[Tensor, "*batch S 3 H W"]
    w2c: Float[Tensor, "*batch S 4 4"]
    """In the scene's own world."""
    K: Float[Tensor, "*batch S 3 3"]
    """Pixels of ``images``."""
    depth: Float[Tensor, "*batch S H W"]
    """z-depth; 0 where it is not known."""
    valid: Bool[Tensor, "*batch S H W"]
    """Where depth is known and counts."""
    metric: Bool[Tensor, "*batch"]
    """Whether lengths are metres."""
    masks: Bool[Tensor, "*batch S H W"] | None = None
    """The object in front of its background, for object-centred sets."""
    scenes: tuple[str, ...]
    """Where the views come from; one entry a sample."""
    names: tuple[tuple[str, ...], ...]
    """Of the views; one entry a sample."""
    num_context: int = 0
    """Views that a network for pairs sees, the rest are targets; 0 where all are alike."""

    def __len__(self) -> int:
        """Return the number of views of a sample."""
        return self.images.shape[-4]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.images.shape[-2], self.images.shape[-1]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InstanceMasks(TensorStruct):
    """Instances found in one picture, at its original size."""

    masks: Bool[Tensor, "M H W"]
    boxes: Float[Tensor, "M 4"]
    """x0 y0 x1 y1 in pixels."""
    labels: Int64[Tensor, " M"]
    scores: Float[Tensor, " M"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One row of a report."""

    metric: str
    value: float
    unit: str
    higher_is_better: bool
    scene: str
    method: str
    seed: int
