"""What decides how splats are fitted, and what suits a machine."""

from dataclasses import dataclass, field
from typing import Literal

from sightline.errors import InputError
from sightline.splatting.dense import DenseOptions
from sightline.splatting.density import DefaultStrategy, Strategy
from sightline.splatting.exposure import ExposureConfig
from sightline.splatting.initialize import InitConfig
from sightline.splatting.optimizer import AdamConfig
from sightline.splatting.poses import PoseConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Learning rates. Those of the means decay over the whole run, the others after ``hold``."""

    means: float = 1.6e-4
    """In scene extents."""
    scales: float = 5e-3
    opacities: float = 5e-2
    quats: float = 1e-3
    sh0: float = 2.5e-3
    shN: float = 1.25e-4
    means_final: float = 0.01
    """Fraction of the means' rate at the last step (exponential decay)."""
    final: float = 1.0
    """Fraction of all other rates at the last step."""
    hold: float = 0.5
    """Fraction of the run before the other rates start to decay."""

    def means_decay(self, fraction: float) -> float:
        """Return the factor of the means' rate after this fraction of the run."""
        return self.means_final**fraction

    def decay(self, fraction: float) -> float:
        """Return the factor of all other rates after this fraction of the run."""
        return self.final ** max(0.0, (fraction - self.hold) / (1 - self.hold))


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizeConfig:
    """Everything that decides the splats, besides pictures, cameras, points and seed.

    Fractions are of the run, so that a shorter run does the same things earlier; only the
    strategy counts steps (its ``scaled`` converts).
    """

    steps: int = 30_000
    max_splats: int = 1_000_000
    sh_degree: int = 3
    sh_start: float = 1 / 30
    """Fraction at which the first band above the constant joins; each further one comes
    ``sh_every`` later."""
    sh_every: float = 1 / 30
    init: InitConfig = field(default_factory=InitConfig)
    dense: DenseOptions | None = field(default_factory=DenseOptions)
    """Start from matched pixels as well as from the given points; None: from those only."""
    dense_fraction: float = 0.8
    """Part of the budget that matched pixels may take."""
    random_points: int = 20_000
    """Drawn where cameras look if fewer than ``min_points`` points are known."""
    min_points: int = 200
    strategy: Strategy | None = field(default_factory=DefaultStrategy)
    rates: Rates = field(default_factory=Rates)
    adam: AdamConfig = field(default_factory=AdamConfig)
    ssim_weight: float = 0.2
    opacity_weight: float = 0.0
    """Weight of the mean opacity in the loss (MCMC's preset: 0.01)."""
    scale_weight: float = 0.0
    """Weight of the mean scale, in scene extents, in the loss (MCMC's preset: 0.01)."""
    exposure: ExposureConfig = field(default_factory=ExposureConfig)
    poses: PoseConfig | None = None
    """Refine training poses; None leaves them."""
    antialiased: bool = False
    background: Literal["black", "white", "random"] = "black"
    resolutions: tuple[tuple[float, float], ...] = ()
    """Coarse-to-fine: pairs (until this fraction, at this scale); full size afterwards."""

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            InputError: If a number is out of range.
        """
        for name, low in (("steps", 1), ("max_splats", 1), ("sh_degree", 0), ("min_points", 0)):
            if getattr(self, name) < low:
                raise InputError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if self.sh_degree > 3:
            raise InputError(f"sh_degree must be 0 to 3, got {self.sh_degree}; lower it")
        for name in ("ssim_weight", "dense_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be within [0, 1], got {getattr(self, name)}")
        if not 0 < self.init.opacity < 1:
            raise InputError(f"init.opacity must be within (0, 1), got {self.init.opacity}")
        for until, scale in self.resolutions:
            if not (0 <= until <= 1 and 0 < scale <= 1):
                raise InputError(
                    "resolutions must be pairs (fraction of the run, scale of the pictures), both "
                    f"within (0, 1], got ({until}, {scale})"
                )

    def degree_at(self, fraction: float) -> int:
        """Return the degree of the spherical harmonics in use after this fraction of the run."""
        if fraction < self.sh_start:
            return 0
        bands = 1 + int((fraction - self.sh_start) / self.sh_every) if self.sh_every else 3
        return min(self.sh_degree, bands)

    def resolution_at(self, fraction: float) -> float:
        """Return the scale of the pictures after this fraction of the run."""
        return next((scale for until, scale in self.resolutions if fraction < until), 1.0)
