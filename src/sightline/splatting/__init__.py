"""Gaussian splats: drawing them and fitting them to photos.

Public names are imported when first used, so that importing the package loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightline.splatting.config import OptimizeConfig
    from sightline.splatting.defaults import default_config
    from sightline.splatting.density import DefaultStrategy, MCMCStrategy
    from sightline.splatting.evaluate import evaluate_splats
    from sightline.splatting.exposure import Exposure
    from sightline.splatting.optimize import OptimizeResult, optimize_splats
    from sightline.splatting.params import GaussianParams
    from sightline.splatting.rasterize import rasterization
    from sightline.splatting.render import render_gaussians

__all__ = [
    "DefaultStrategy",
    "Exposure",
    "GaussianParams",
    "MCMCStrategy",
    "OptimizeConfig",
    "OptimizeResult",
    "default_config",
    "evaluate_splats",
    "optimize_splats",
    "rasterization",
    "render_gaussians",
]

_HOMES = {
    "DefaultStrategy": "density",
    "Exposure": "exposure",
    "GaussianParams": "params",
    "MCMCStrategy": "density",
    "OptimizeConfig": "config",
    "OptimizeResult": "optimize",
    "default_config": "defaults",
    "evaluate_splats": "evaluate",
    "optimize_splats": "optimize",
    "rasterization": "rasterize",
    "render_gaussians": "render",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import a public name from its home on first use (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
