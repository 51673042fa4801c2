"""What a run report shows; everything is computed before the page is written."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Bool, Float
from torch import Tensor

from sightline.report.charts import Curve
from sightline.report.figures import Picture
from sightline.report.plan import CameraPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One finished stage of a run."""

    name: str
    seconds: float
    peak_memory: int | None = None
    """Bytes; None when it was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InputPhoto:
    """One picture that was given."""

    name: str
    picture: Picture | None = None
    """None when it could not be read."""
    registered: bool = True
    reason: str = ""
    """Why it was rejected."""
    held_out: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """One view: what was rendered and what the camera saw."""

    name: str
    render: Picture
    photo: Picture
    held_out: bool = True
    """False for a view that the splats were fitted to."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DepthPicture:
    """Depth of one view."""

    name: str
    depth: Float[Tensor, "H W"]
    """Scene units along the optical axis; not finite or not positive where unknown."""
    valid: Bool[Tensor, "H W"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NamedPicture:
    """A picture that stands for itself."""

    name: str
    picture: Picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A file that the run wrote beside the report."""

    path: str
    """Relative to the report, with ``/``."""
    what: str = ""
    size: int | None = None
    """Bytes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReportData:
    """Everything on the page. Only the title and the command are needed; empty parts are left out.

    Pictures may be given at any size and count: the page keeps them small enough.
    """

    title: str
    command: str
    """What makes the page again, as it would be typed."""
    kind: str = "run report"
    facts: tuple[tuple[str, str], ...] = ()
    """(what, value): device, versions, seed, geometry method, checkpoint, licence, ..."""
    stages: tuple[Stage, ...] = ()
    warnings: tuple[str, ...] = ()
    photos: tuple[InputPhoto, ...] = ()
    plan: CameraPlan | None = None
    comparisons: tuple[Comparison, ...] = ()
    """Pictures of held-out views, or of training views where none was held out; a choice of them
    will do, `scores` has them all."""
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Metric (``psnr``, ``ssim``, ``cc_psnr``, ``lpips``) to view name to value."""
    depths: tuple[DepthPicture, ...] = ()
    features: tuple[NamedPicture, ...] = ()
    """Feature PCA with axes fixed over the scene."""
    curves: tuple[Curve, ...] = ()
    num_splats: int | None = None
    exports: tuple[Export, ...] = ()
    metric: bool = False
    """True when scene units are metres."""
