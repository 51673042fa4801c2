"""What every stage of a run needs: the folder, the options, the device, whom to tell."""

import dataclasses
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from sightline.errors import CheckpointError, InputError
from sightline.io.arrays import read_npz
from sightline.options import ReconstructOptions
from sightline.protocols import Backbone, GeometryEstimator, Progress
from sightline.run import RunFolder
from sightline.splatting.exposure import Exposure

LiveNumbers = Callable[[dict[str, float]], None]
"""Called now and then during splat optimisation with ``step, loss, psnr, splats``."""

Loaded = dict[tuple[str, str, str], Any]
"""(name, checkpoint, device) -> estimator or backbone."""

CPU_RESOLUTION, GPU_RESOLUTION = 480, 1600
"""Long side of the fitted pictures when ``--resolution`` is not given."""


@dataclasses.dataclass(frozen=True)
class Work:
    """One run in the making."""

    folder: RunFolder
    options: ReconstructOptions
    device: str
    """``cpu`` or ``cuda``."""
    estimator: GeometryEstimator | None = None
    progress: Progress | None = None
    on_step: LiveNumbers | None = None
    loaded: Loaded = dataclasses.field(default_factory=dict)
    """Estimators of learned methods, shared by runs so that a network is loaded once."""

    @property
    def geometry_device(self) -> str:
        """Where networks run; unlike splats they need no more than torch."""
        if self.options.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        return self.device

    @property
    def long_side(self) -> int:
        """Long side of the fitted pictures in pixels."""
        default = GPU_RESOLUTION if self.device == "cuda" else CPU_RESOLUTION
        return self.options.resolution or default

    def file(self, *parts: str) -> Path:
        """Return a path inside the run folder."""
        return self.folder.file(*parts)


def choose_device(name: str) -> str:
    """Turn ``auto`` into ``cuda`` where a CUDA device and gsplat are there, else ``cpu``.

    Raises:
        InputError: If ``cuda`` is asked for and there is none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() and find_spec("gsplat") else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda: torch finds no CUDA device on this machine; use --device cpu"
        )
    return name


def read_exposure(work: Work) -> Exposure | None:
    """Return the colour corrections that were fitted with the splats, if any were."""
    file = work.file("stages", "exposure.npz")
    if not file.is_file():
        return None
    stored = read_npz(file, ("values", "fitted"))
    return Exposure(
        values=torch.from_numpy(stored["values"]), fitted=torch.from_numpy(stored["fitted"])
    )


def load_backbone(options: ReconstructOptions, device: str, loaded: Loaded) -> Backbone:
    """Return the backbone of ``--features``; it stays in ``loaded``."""
    from sightline.backbones import create_backbone

    assert options.features is not None
    key = (f"features {options.features}", options.features_checkpoint or "", device)
    if key not in loaded:
        try:
            loaded[key] = create_backbone(
                options.features, options.features_checkpoint, device, seed=options.seed
            )
        except CheckpointError as error:  # --checkpoint is the geometry model's here
            text = str(error).replace("--checkpoint (checkpoint=)", "--features-checkpoint")
            raise CheckpointError(text) from error
    return loaded[key]
