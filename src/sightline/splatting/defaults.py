"""What suits a machine: steps, budget, rates and strategy by device and by amount of pictures."""

from sightline.errors import InputError, UnknownNameError
from sightline.splatting.config import OptimizeConfig, Rates
from sightline.splatting.dense import DenseOptions
from sightline.splatting.density import DefaultStrategy, MCMCStrategy, Strategy
from sightline.splatting.exposure import ExposureConfig, ExposureKind
from sightline.splatting.initialize import InitConfig
from sightline.splatting.poses import PoseConfig

STRATEGIES = ("default", "mcmc")
EXPOSURES = ("none", "affine", "bilateral")

_SPEC_STEPS = 30_000
"""Length of the run that published schedules are written for."""
_CPU_STEPS = 2000
_CPU_VIEWS = 50
_CPU_MAX_STEPS = 8000
_CPU_SPLATS_PER_PIXEL = 0.6
_CPU_MIN_SPLATS = 20_000
_CPU_MAX_SPLATS = 200_000
_CPU_POSE_RATE = 3e-4
_CUDA_STEPS = 15_000
_CUDA_SPLATS = 1_000_000


def default_config(
    device: str,
    num_views: int,
    height: int,
    width: int,
    steps: int | None = None,
    *,
    max_splats: int | None = None,
    strategy: str | None = None,
    sh_degree: int = 2,
    exposure: ExposureKind = "affine",
    refine_poses: bool = False,
    antialiased: bool = False,
) -> OptimizeConfig:
    """Return the configuration for a scene and a machine.

    Args:
        device: ``cpu`` or ``cuda``.
        num_views: Training views.
        height: Of the pictures, in pixels.
        width: Of the pictures, in pixels.
        steps: Length of the run; schedules scale with it.
        max_splats: Budget of splats.
        strategy: ``default`` or ``mcmc``; None is what suits the device.
        sh_degree: Highest degree of view-dependent colour, 0 to 3.
        exposure: Per-photo colour correction: ``none``, ``affine`` or ``bilateral``.
        refine_poses: Whether to correct training poses on the way.
        antialiased: Whether to fit with the antialiased rasteriser.

    Raises:
        InputError: If a number is out of range or a name unknown.

    A CPU has time for about 2,000 pictures, not 30,000. There matched pixels fill part of the
    budget at once and gradients decide where the rest goes, early and often; all rates are several
    times the published ones, and come down to a tenth over the second half.
    """
    if num_views < 1 or height < 1 or width < 1:
        raise InputError(
            f"a configuration needs at least one view of one pixel, got {num_views} views of "
            f"{height} x {width}; check the pictures"
        )
    if exposure not in EXPOSURES:
        raise UnknownNameError("exposure model", exposure, EXPOSURES)
    if strategy is not None and strategy not in STRATEGIES:
        raise UnknownNameError("density strategy", strategy, STRATEGIES)
    on_cpu = device == "cpu"
    if steps is None:
        steps = _cpu_steps(num_views) if on_cpu else _CUDA_STEPS
    if max_splats is None:
        max_splats = _cpu_splats(height * width) if on_cpu else _CUDA_SPLATS
    common = {
        "steps": steps,
        "max_splats": max_splats,
        "sh_degree": sh_degree,
        "exposure": ExposureConfig(kind=exposure),
        "poses": _poses(on_cpu=on_cpu) if refine_poses else None,
        "antialiased": antialiased,
    }
    if on_cpu:
        return OptimizeConfig(
            **common,
            sh_start=0.2,
            sh_every=0.15,
            init=InitConfig(opacity=0.15, scale=0.7),
            dense=DenseOptions(neighbors=6, ideal_angle=5.0),
            dense_fraction=0.4,
            strategy=_cpu_strategy(strategy or "default", steps),
            rates=Rates(
                means=5e-4, scales=2e-2, opacities=5e-2, sh0=1e-2, shN=3e-3, final=0.1, hold=0.5
            ),
        )
    strategy = strategy or "mcmc"
    weight = 0.01 if strategy == "mcmc" else 0.0
    return OptimizeConfig(
        **common,
        strategy=_strategy(strategy, steps),
        opacity_weight=weight,
        scale_weight=weight,
    )


def _poses(*, on_cpu: bool) -> PoseConfig:
    """A few dozen looks at each view must do what hundreds do on a GPU."""
    return PoseConfig(rate=_CPU_POSE_RATE) if on_cpu else PoseConfig()


def _cpu_steps(num_views: int) -> int:
    """More views take more steps, but not in proportion: they share surfaces."""
    steps = round(_CPU_STEPS * max(1.0, num_views / _CPU_VIEWS) ** 0.7)
    return min(_CPU_MAX_STEPS, steps)


def _cpu_splats(pixels: int) -> int:
    return min(_CPU_MAX_SPLATS, max(_CPU_MIN_SPLATS, round(_CPU_SPLATS_PER_PIXEL * pixels)))


def _cpu_strategy(name: str, steps: int) -> Strategy:
    """Grow from 7 to 70 % of the run in some twenty rounds, and never cut opacities back."""
    start, stop, every = (max(1, round(steps * part)) for part in (0.07, 0.7, 1 / 32))
    if name == "default":
        return DefaultStrategy(
            refine_start_iter=start,
            refine_stop_iter=stop,
            refine_every=every,
            reset_every=0,
            revised_opacity=True,
        )
    return MCMCStrategy(
        refine_start_iter=start,
        refine_stop_iter=stop,
        refine_every=every,
        growth=0.1,
        noise_lr=0.0,
    )


def _strategy(name: str, steps: int) -> Strategy:
    factor = steps / _SPEC_STEPS
    if name == "default":
        return DefaultStrategy().scaled(factor)
    return MCMCStrategy().scaled(factor)
