"""Cameras and sparse points from photos or video frames alone, by structure from motion."""

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sightline.errors import InputError, OutputError, ReconstructionError
from sightline.io.colmap_model import ColmapCamera, lens_from_camera
from sightline.io.undistort import pinhole_intrinsics
from sightline.protocols import Progress
from sightline.reconstruction.engine import run_worker
from sightline.reconstruction.job import CameraSpec, Job, Mapper, Matching, Settings
from sightline.reconstruction.pictures import camera_specs, picture_files, sequences
from sightline.types import Cameras, Lenses, Reconstruction, SparsePoints, Views


@dataclass(frozen=True, slots=True, kw_only=True)
class ColmapEstimator:
    """Classical structure from motion with COLMAP: no weights, no GPU.

    SIFT features, matching of promising pairs, incremental or global mapping, and a last
    adjustment that gives each unknown lens the freedom its views support. When views are left
    out, laxer settings are tried in turn; views that still find no place are named with the
    reason. The work runs in a process of its own, so it stops within a moment when ``progress``
    raises or Ctrl-C is pressed, and its log goes to ``workspace/colmap.log``.

    The world is the first registered view's camera (OpenCV axes); the unit of length is the
    median depth of the points over the views that see them. Nothing else is normalised.
    """

    workspace: Path | None = None
    """Folder of the database and log; a run that finds fitting features, matches or a finished
    result there continues from them. None works in a temporary folder."""
    matching: Matching = "auto"
    """Which pairs to match: ``exhaustive`` all; ``sequential`` neighbours in time or in the given
    order, and the likeliest returns; ``auto`` all of a few, else the most similar pictures."""
    mapper: Mapper = "incremental"
    max_image_size: int = 1600
    """Long side in pixels at which features are found."""
    max_features: int = 4096
    neighbors: int = 12
    """With ``auto``: how many similar pictures each is matched with."""
    min_registered: float = 2 / 3
    """Share of the views that must find a place."""
    seed: int = 0
    num_threads: int | None = None
    """None uses all cores."""
    progress: Progress | None = None
    """Called with the stages ``features``, ``compare``, ``matching``, ``mapping``, ``refine``."""

    def estimate(self, views: Views) -> Reconstruction:
        """Find cameras and points.

        Args:
            views: The pictures; ``files`` are read where given, else ``images`` are used. Known
                ``lenses`` are kept; focal lengths in ``focal_priors`` are a start.

        Returns:
            Pinhole cameras (float64) after undistortion in pixels of the full-size pictures, the
            lenses of the pictures, and points with colours, tracks and errors. Cameras of unlike
            sizes share the largest ``height`` and ``width``; ``lenses.sizes`` has each view's own.

        Raises:
            InputError: If there are fewer than two pictures, or one cannot be read.
            ReconstructionError: If too few views found a place; the text names them and says why.
            Cancelled: If ``progress`` raised it; the workspace is kept and can be resumed.
        """
        if len(views) == 0:
            raise InputError("expected two or more pictures, got none; give a folder of photos")
        if len(views) == 1:
            raise InputError(
                "one photo does not show depth: structure from motion needs two or more, taken "
                "from different places; a single photo needs a learned model: --geometry vggt"
            )
        with open_workspace(self.workspace) as folder:
            job = self._job(views, folder)
            arrays = run_worker(job, folder, self.progress)
        self._check(views, arrays)
        return _reconstruction(job, views.names, arrays)

    def _job(self, views: Views, folder: Path) -> Job:
        files, masks = picture_files(views, folder)
        cameras, camera_of_view = camera_specs(views)
        return Job(
            names=views.names,
            files=files,
            masks=masks,
            cameras=cameras,
            camera_of_view=camera_of_view,
            sequences=sequences(views),
            w2c=None,
            settings=Settings(
                max_image_size=self.max_image_size,
                max_features=self.max_features,
                matching=self.matching,
                neighbors=self.neighbors,
                mapper=self.mapper,
                seed=self.seed,
                num_threads=self.num_threads or os.cpu_count() or 1,
            ),
        )

    def _check(self, views: Views, arrays: dict[str, np.ndarray]) -> None:
        reasons = arrays["reasons"].tolist()
        total = len(views)
        placed = sum(text == "" for text in reasons)
        needed = 2 if total == 2 else max(3, math.ceil(self.min_registered * total - 1e-9))
        if placed >= needed:
            return
        missing: dict[str, list[str]] = {}
        for name, text in zip(views.names, reasons, strict=True):
            if text:
                missing.setdefault(text, []).append(name)
        shown = [f"{_listed(names)}: {text}" for text, names in missing.items()]
        if len(shown) > 3:
            shown = [*shown[:3], f"and {len(shown) - 3} more"]
        raise ReconstructionError(
            f"only {placed} of {total} pictures found a place in one scene, expected at least "
            f"{needed} ({'; '.join(shown)}). Take more pictures with a lot of overlap, moving sideways in "
            "small steps past things with texture that stand still; a learned model needs fewer: "
            "--geometry vggt, with weights from sightline models download vggt_1b or --checkpoint "
            "FILE"
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} others"


@contextmanager
def open_workspace(folder: Path | None) -> Iterator[Path]:
    """Yield a folder to work in: the given one, made when missing, or a temporary one."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="sightline-sfm-") as made:
            yield Path(made)
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from error
    yield Path(folder)


def _reconstruction(
    job: Job, names: tuple[str, ...], arrays: dict[str, np.ndarray]
) -> Reconstruction:
    w2c, points = _fix_gauge(arrays["w2c"], arrays["points"], arrays["tracks"])
    lenses = found_lenses(job, arrays)
    reasons = arrays["reasons"].tolist()
    return Reconstruction(
        cameras=Cameras(
            w2c=torch.from_numpy(w2c),
            K=pinhole_intrinsics(lenses),
            height=int(lenses.sizes[:, 0].max()),
            width=int(lenses.sizes[:, 1].max()),
        ),
        registered=torch.tensor([text == "" for text in reasons]),
        sparse=sparse_points(arrays | {"points": points}),
        lenses=lenses,
        rejected=tuple((n, r) for n, r in zip(names, reasons, strict=True) if r),
    )


def sparse_points(arrays: dict[str, np.ndarray]) -> SparsePoints:
    """Return the worker's points as a record."""
    return SparsePoints(
        points=torch.from_numpy(arrays["points"].astype(np.float32)),
        colors=torch.from_numpy(arrays["colors"]),
        tracks=torch.from_numpy(arrays["tracks"]),
        errors=torch.from_numpy(arrays["errors"]),
    )


def _fix_gauge(
    w2c: np.ndarray, points: np.ndarray, tracks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Move the world to the first registered view and scale it to a median depth of one."""
    first = w2c[np.flatnonzero(np.isfinite(w2c[:, 0, 0]))[0]]
    rotation, shift = first[:3, :3], first[:3, 3]
    points = points @ rotation.T + shift
    inverse = np.eye(4)
    inverse[:3, :3] = rotation.T
    inverse[:3, 3] = -rotation.T @ shift
    w2c = w2c @ inverse
    seen, by = tracks.T
    depth = (w2c[by, 2, :3] * points[seen]).sum(1) + w2c[by, 2, 3]
    unit = float(np.median(depth))
    w2c[:, :3, 3] /= unit
    return w2c, points / unit


def found_lenses(job: Job, arrays: dict[str, np.ndarray]) -> Lenses:
    """Scale cameras from SIFT's pictures to the full-size ones, per axis."""
    views = len(job.names)
    K = np.zeros((views, 3, 3))
    distortion = np.zeros((views, 8))
    fisheye = np.zeros(views, bool)
    sizes = np.zeros((views, 2), np.int64)
    for view in range(views):
        spec: CameraSpec = job.camera(view)
        width, height = arrays["sift_sizes"][view].tolist()
        camera = ColmapCamera(
            id=1,
            model=str(arrays["models"][view]),
            width=width,
            height=height,
            params=tuple(arrays["params"][view, : arrays["num_params"][view]].tolist()),
        )
        K[view], distortion[view], fisheye[view] = lens_from_camera(camera)
        K[view] = np.diag((spec.width / width, spec.height / height, 1.0)) @ K[view]
        sizes[view] = spec.height, spec.width
    return Lenses(
        K=torch.from_numpy(K),
        distortion=torch.from_numpy(distortion),
        fisheye=torch.from_numpy(fisheye),
        sizes=torch.from_numpy(sizes),
    )
