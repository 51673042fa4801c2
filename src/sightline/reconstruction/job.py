"""What the SfM worker is asked to do: plain records that travel as JSON, without torch."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sightline.io.sums import sha256

Matching = Literal["auto", "exhaustive", "sequential"]
Mapper = Literal["incremental", "global"]

JOB, RESULT, LOG = "job.json", "result.npz", "colmap.log"
"""Files of a workspace."""
FORMAT = 1
"""Raise it when the meaning of a database or result on disk changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraSpec:
    """One physical camera; pixels of the source picture, corner convention."""

    width: int
    height: int
    model: str | None = None
    """COLMAP's name with two focal lengths (PINHOLE, OPENCV, ...); None when the lens is unknown."""
    params: tuple[float, ...] = ()
    """In COLMAP's order; empty when unknown."""
    focal: float | None = None
    """Prior of an unknown lens; None when there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Numbers and choices; see ``ColmapEstimator`` for their meaning."""

    max_image_size: int
    max_features: int
    matching: Matching
    neighbors: int
    mapper: Mapper
    seed: int
    num_threads: int
    adjust: bool = False
    """Given poses are only nearly right: adjust them, and lenses of enough views, to the points."""
    free_lenses: bool = True
    """With ``adjust``: focal lengths are not known exactly either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Pictures, cameras and settings of one run of the worker."""

    names: tuple[str, ...]
    files: tuple[str, ...]
    masks: tuple[str | None, ...]
    cameras: tuple[CameraSpec, ...]
    camera_of_view: tuple[int, ...]
    sequences: tuple[tuple[int, ...], ...]
    """Views of each video in the order of time."""
    w2c: tuple[tuple[float, ...], ...] | None
    """Twelve numbers a view, row-major 3 x 4: triangulate with these poses. None finds poses."""
    settings: Settings

    def write(self, path: Path) -> None:
        """Write JSON; the caller owns the folder."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "Job":
        """Read what ``write`` wrote."""
        data: dict[str, Any] = json.loads(path.read_text())
        cameras = tuple(
            CameraSpec(**{**camera, "params": tuple(camera["params"])})
            for camera in data["cameras"]
        )
        w2c = data["w2c"]
        return cls(
            names=tuple(data["names"]),
            files=tuple(data["files"]),
            masks=tuple(data["masks"]),
            cameras=cameras,
            camera_of_view=tuple(data["camera_of_view"]),
            sequences=tuple(tuple(views) for views in data["sequences"]),
            w2c=None if w2c is None else tuple(tuple(row) for row in w2c),
            settings=Settings(**data["settings"]),
        )

    def camera(self, view: int) -> CameraSpec:
        """Return the camera of a view."""
        return self.cameras[self.camera_of_view[view]]

    def sift_size(self, view: int) -> tuple[int, int]:
        """Return width and height at which features are found."""
        camera = self.camera(view)
        scale = min(1.0, self.settings.max_image_size / max(camera.width, camera.height))
        return max(1, round(camera.width * scale)), max(1, round(camera.height * scale))


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Digests of everything that each stage's outcome depends on."""

    features: str
    matches: str
    result: str


def keys_of(job: Job, engine: str) -> Keys:
    """Return the digests; pictures and masks count by content, the number of threads does not.

    Args:
        job: What will be done.
        engine: Version of the SfM library.
    """
    content = [sha256(Path(file)) for file in job.files]
    masks = [None if mask is None else sha256(Path(mask)) for mask in job.masks]
    settings = job.settings
    cameras = [asdict(camera) for camera in job.cameras]
    features = _digest(
        FORMAT,
        engine,
        content,
        masks,
        cameras,
        job.camera_of_view,
        settings.max_image_size,
        settings.max_features,
    )
    matches = _digest(features, settings.matching, settings.neighbors, job.sequences, settings.seed)
    adjusts = [settings.adjust, settings.free_lenses] if settings.adjust else []
    result = _digest(matches, settings.mapper, job.w2c, job.names, *adjusts)
    return Keys(features=features, matches=matches, result=result)


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def chunks(count: int, size: int) -> Sequence[range]:
    """Cut ``range(count)`` into runs of at most ``size``."""
    return [range(i, min(i + size, count)) for i in range(0, count, size)]
