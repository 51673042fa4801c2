"""Geometry from pictures: one class a method, each with ``estimate(views) -> Reconstruction``."""

import importlib
from typing import TYPE_CHECKING, Any

from sightline.errors import UnknownNameError

if TYPE_CHECKING:
    from sightline.protocols import GeometryEstimator

ESTIMATORS = {
    "colmap": "sightline.reconstruction.colmap:ColmapEstimator",
    "given": "sightline.reconstruction.given:GivenEstimator",
    "dust3r": "sightline.reconstruction.pairwise.estimators:Dust3rEstimator",
    "mast3r": "sightline.reconstruction.pairwise.estimators:Mast3rEstimator",
    "splatt3r": "sightline.reconstruction.pairwise.estimators:Splatt3rEstimator",
    "vggt": "sightline.reconstruction.learned:VggtEstimator",
    "vggt-omega": "sightline.reconstruction.learned:VggtOmegaEstimator",
}
"""Name on the command line -> ``module:class``, imported when it is asked for."""


def create_estimator(name: str, **options: Any) -> "GeometryEstimator":  # noqa: ANN401
    """Build the geometry estimator of that name.

    Args:
        name: A key of `ESTIMATORS`.
        options: The fields of its class.

    Raises:
        UnknownNameError: If there is no such estimator.
    """
    if name not in ESTIMATORS:
        raise UnknownNameError("geometry estimator", name, ESTIMATORS)
    module, _, attribute = ESTIMATORS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)(**options)
