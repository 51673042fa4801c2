"""sightline: photos and video into 3D, with any visual foundation model.

Public names are imported when first used, so that ``import sightline`` stays instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightline.backbones import create_backbone
    from sightline.pipeline import reconstruct
    from sightline.results import Run, open_run

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "create_backbone", "open_run", "reconstruct"]

_HOMES = {
    "create_backbone": "sightline.backbones",
    "reconstruct": "sightline.pipeline",
    "Run": "sightline.results",
    "open_run": "sightline.results",
}


_PACKAGES = (
    "backbones",
    "datasets",
    "geometry",
    "io",
    "metrics",
    "models",
    "reconstruction",
    "splatting",
)


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import a public name or subpackage on first use (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _PACKAGES:
        return import_module(f"sightline.{name}")
    msg = f"module 'sightline' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
