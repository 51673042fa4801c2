"""The pictures of a run as they lie in its folder, and all that is known of them."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sightline.errors import FileFormatError, InputError
from sightline.io.arrays import read_npz, write_npz
from sightline.io.given import GivenPoints, GivenView, given_view
from sightline.io.intrinsics import Lens, pinhole_lens, stack_lenses
from sightline.io.manifest import Record, read_manifest
from sightline.io.undistort import pinhole_intrinsics
from sightline.io.views import load_views
from sightline.protocols import Progress
from sightline.types import Cameras, Lenses, Reconstruction, SparsePoints, Views

MANIFEST = "inputs.json"
IMAGES, MASKS = "images", "masks"
EXTRAS = Path("stages") / "ingest"
"""Where given points and depth maps are kept, relative to the run folder."""

_POINTS = "points.npz"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ingested:
    """One run's pictures on disk, upright, in view order."""

    folder: Path
    """The run folder."""
    names: tuple[str, ...]
    """Unique file names below ``images/``."""
    files: tuple[Path, ...]
    mask_files: tuple[Path | None, ...]
    sizes: Int64[Tensor, "V 2"]
    """Height and width."""
    focal_priors: Float[Tensor, " V"]
    """Pixels; NaN where neither EXIF nor the user says anything."""
    times: Float[Tensor, " V"]
    """Seconds from the start of the video; NaN for photos."""
    groups: tuple[str, ...]
    """Views of one video, or of one camera, share a name."""
    lenses: Lenses | None
    """Known lenses; None unless all are known."""
    given: Reconstruction | None
    """Known cameras and points, in the giver's world; None without a known pose."""
    depth_files: tuple[Path | None, ...] | None
    """Known z-depth, 0 for unknown; None when no view has any."""
    depth_scale: Float[Tensor, " V"]
    """World units a step of the depth pictures; NaN without one."""
    records: tuple[Record, ...]
    """As in ``inputs.json``."""
    notes: tuple[str, ...]
    """Sentences for the user."""

    def __len__(self) -> int:
        """Return the number of views."""
        return len(self.names)

    def views(
        self,
        long_side: int | None = None,
        *,
        lenses: Lenses | None = None,
        w2c: Float[Tensor, "V 4 4"] | None = None,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> Views:
        """Load the pictures at model resolution; see `views.load_views`.

        Args:
            long_side: Longest side in pixels; None keeps full size.
            lenses: Lenses found since; default: the known ones, if any.
            w2c: Poses found since; default: the given ones, if any.
            workers: Threads.
            progress: As there.
        """
        if w2c is None and self.given is not None:
            w2c = self.given.cameras.w2c
        return load_views(
            self.files,
            self.names,
            long_side=long_side,
            lenses=lenses if lenses is not None else self.lenses,
            w2c=w2c,
            mask_files=self.mask_files if any(self.mask_files) else None,
            focal_priors=self.focal_priors,
            times=self.times,
            groups=self.groups,
            workers=workers,
            progress=progress,
        )


def load_ingested(folder: Path) -> Ingested:
    """Read what `ingest.ingest` left in a run folder.

    Raises:
        InputError: If it is missing, or a picture of it is.
        FileFormatError: If ``inputs.json`` is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder} has no {MANIFEST}: its pictures were not read completely")
    records, notes = read_manifest(path)
    views = [given_view(path, record) for record in records]
    for record, view in zip(records, views, strict=True):
        for file in (view.file, view.mask, view.depth):
            if file is not None and not file.is_file():
                raise InputError(f"{file} is missing; restore it, or start again with --overwrite")
        if record.file.split("/")[0] != IMAGES:
            raise FileFormatError(f"{path.name}: expected pictures in {IMAGES}/, got {record.file}")
    lenses = [view.lens for view in views]
    known = [lens for lens in lenses if lens is not None]
    depth_files = tuple(view.depth for view in views)
    return Ingested(
        folder=folder,
        names=tuple(record.file.removeprefix(f"{IMAGES}/") for record in records),
        files=tuple(view.file for view in views),
        mask_files=tuple(view.mask for view in views),
        sizes=torch.tensor([(r.height, r.width) for r in records]),
        focal_priors=_doubles([_focal(record) for record in records]),
        times=_doubles([float((r.video or {}).get("time_s", math.nan)) for r in records]),
        groups=tuple(record.group or "all" for record in records),
        lenses=stack_lenses(known) if len(known) == len(lenses) else None,
        given=_reconstruction(folder, records, views),
        depth_files=depth_files if any(depth_files) else None,
        depth_scale=_doubles([v.depth_scale if v.depth is not None else math.nan for v in views]),
        records=records,
        notes=notes,
    )


def write_points(folder: Path, points: GivenPoints) -> None:
    """Keep given points beside the manifest."""
    arrays = {"points": points.points, "colors": points.colors, "tracks": points.tracks}
    if points.errors is not None:
        arrays["errors"] = points.errors
    write_npz(folder / _POINTS, arrays)


def _doubles(values: list[float]) -> Float[Tensor, " n"]:
    return torch.tensor(values, dtype=torch.float64)


def _focal(record: Record) -> float:
    camera = record.camera or {}
    if camera.get("source") == "guessed" or not camera.get("params"):
        return math.nan
    return float(camera["params"][0])


def _reconstruction(
    folder: Path, records: tuple[Record, ...], views: list[GivenView]
) -> Reconstruction | None:
    posed = [view.w2c is not None for view in views]
    if not any(posed):
        return None
    lenses = [view.lens or _guess(record) for record, view in zip(records, views, strict=True)]
    stacked = stack_lenses(lenses)
    unknown = np.full((4, 4), np.nan)
    w2c = np.stack([unknown if view.w2c is None else view.w2c for view in views])
    height, width = stacked.sizes.amax(0).tolist()
    return Reconstruction(
        cameras=Cameras(
            w2c=torch.from_numpy(w2c), K=pinhole_intrinsics(stacked), height=height, width=width
        ),
        registered=torch.tensor(posed),
        sparse=_sparse(folder / EXTRAS / _POINTS, len(views)),
        lenses=stacked,
        rejected=tuple(
            (record.file.removeprefix(f"{IMAGES}/"), "the input has no camera for it")
            for record, known in zip(records, posed, strict=True)
            if not known
        ),
    )


def _guess(record: Record) -> Lens:
    focal = _focal(record)
    long_side = max(record.height, record.width)
    return pinhole_lens(
        1.2 * long_side if math.isnan(focal) else focal, record.height, record.width
    )


def _sparse(path: Path, num_views: int) -> SparsePoints | None:
    if not path.is_file():
        return None
    arrays = read_npz(path)
    tracks = arrays["tracks"]
    count = len(arrays["points"])
    inside = tracks.ndim == 2 and bool(
        ((tracks >= 0) & (tracks < (count, num_views))).all() if len(tracks) else True
    )
    if not inside:
        raise FileFormatError(f"{path.name}: expected tracks of points in views, got others")
    errors = arrays.get("errors")
    return SparsePoints(
        points=torch.from_numpy(arrays["points"]),
        colors=torch.from_numpy(arrays["colors"]),
        tracks=torch.from_numpy(tracks.astype(np.int32)),
        errors=None if errors is None else torch.from_numpy(errors),
    )
