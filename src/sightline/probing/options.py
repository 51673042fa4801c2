"""The options of ``probe demo``: one torch-free record for the command line and the app."""

from dataclasses import dataclass
from typing import Literal

from sightline.errors import InputError
from sightline.options import PathName, option

MIN_STEPS, MAX_STEPS = 1000, 8000
"""What the published page allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the demo asks for.

    Raises:
        InputError: If a value is out of range.
    """

    feature: str = option("dust3r", "what is read out")
    checkpoint: str | None = option(None, "weights of the feature")
    geometry: str = option(
        "dust3r", "where points come from: auto, given, depth, colmap or a geometry estimator"
    )
    geometry_checkpoint: str | None = option(None, "weights of the geometry")
    mode: Literal["G", "T", "A", "Gft", "Tft", "Aft"] = option(
        "Gft", "what is read from features: geometry, texture or all; ft: the features move too"
    )
    steps: int = option(2000, "training iterations, warm start too")
    path: PathName = option("ellipse", "camera path of the video")
    until: Literal["cloud", "splats", "video"] = option(
        "video", "the last step: cloud and features, splats, or video"
    )
    protocol: str = option("sightline-1", "sizes and rates")
    seed: int = option(0, "seed of heads and order")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where the heavy work runs")

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not 16 <= self.steps <= 100 * MAX_STEPS:
            raise InputError(f"steps must be 16 or more, got {self.steps}; raise it")
