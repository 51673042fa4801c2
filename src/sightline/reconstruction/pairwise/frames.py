"""Pictures of views as a pair network gets them, and results carried back to the views."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sightline.io.undistort import pinhole_intrinsics
from sightline.reconstruction.learned.gauge import finish
from sightline.reconstruction.learned.maps import depth_on_view
from sightline.reconstruction.pairwise.images import Picture, load_pictures
from sightline.reconstruction.pairwise.inference import PairResult
from sightline.reconstruction.pairwise.pairs import Grid, PairMaps
from sightline.types import Reconstruction, Views


class Lens(NamedTuple):
    """How grid coordinates relate to source pixels: ``source = grid / unit``.

    Attributes:
        grid: Of the picture.
        unit: (x, y).
        focal: In the grid's pixels, where it is known.
    """

    grid: Grid
    unit: tuple[float, float]
    focal: float | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairFrames:
    """All pictures of a scene, prepared, with what is known of their cameras."""

    views: Views
    pictures: list[Picture]
    lenses: list[Lens]
    poses: Float[Tensor, "V 4 4"]
    """Known camera-to-world poses."""
    posed: Bool[Tensor, " V"]
    """Where they are known."""
    raw: bool

    @property
    def grids(self) -> list[Grid]:
        """Where the pixels are."""
        return [lens.grid for lens in self.lenses]

    @property
    def focals(self) -> list[float | None]:
        """Known focal lengths, in the grids' pixels."""
        return [lens.focal for lens in self.lenses]

    def maps(self, pair: tuple[int, int], result: PairResult) -> PairMaps:
        """Return a prediction, its masked and broken pixels without confidence."""
        points, confidence = [], []
        for image, side in zip(pair, result, strict=True):
            found, sure = side["pts3d"], side["conf"]
            good = found.isfinite().all(-1) & sure.isfinite()
            mask = self.pictures[image].mask
            if mask is not None:
                good &= torch.from_numpy(mask)
            points.append(torch.where(good[..., None], found, 0.0))
            confidence.append(torch.where(good, sure, 0.0))
        return PairMaps(points=(points[0], points[1]), confidence=(confidence[0], confidence[1]))


def make_frames(
    views: Views, size: int, *, square: bool, square_ok: bool, patch_size: int, raw: bool
) -> PairFrames:
    """Prepare views; see `images.load_pictures`.

    Args:
        views: The pictures; known lenses, cameras and poses are used.
        size: Of the network's pictures.
        square: Cut squares, as Splatt3R does.
        square_ok: Let square pictures be square.
        patch_size: Of the network.
        raw: Count pixels as the originals do, and use nothing that is known.
    """
    pictures = load_pictures(views, size, square=square, square_ok=square_ok, patch_size=patch_size)
    intrinsics = None if raw else known_intrinsics(views)
    lenses = []
    for index, picture in enumerate(pictures):
        if raw:
            scale = picture.from_source[0, 0], picture.from_source[1, 1]
            lenses.append(Lens(Grid.whole(*picture.size), (float(scale[0]), float(scale[1])), None))
        else:
            K = None if intrinsics is None else intrinsics[index]
            lenses.append(_lens(picture, K))
    poses = torch.eye(4, dtype=torch.float64).repeat(len(views), 1, 1)
    posed = torch.zeros(len(views), dtype=torch.bool)
    if views.cameras is not None and not raw:
        posed = views.cameras.w2c.isfinite().all(-1).all(-1)
        poses[posed] = views.cameras.c2w.double()[posed]
    return PairFrames(
        views=views, pictures=pictures, lenses=lenses, poses=poses, posed=posed, raw=raw
    )


def known_intrinsics(views: Views) -> Float[Tensor, "V 3 3"] | None:
    """Return K of the pictures that `load_pictures` reads, where views know it; NaN rows if not."""
    if views.lenses is not None and views.files is not None:
        return pinhole_intrinsics(views.lenses).double()
    if views.cameras is None:
        return None
    K = views.cameras.K.double()
    if views.files is not None:
        K = views.from_original.double().inverse() @ K
    return K / K[:, 2:, 2:]


def _lens(picture: Picture, K: Float[Tensor, "3 3"] | None) -> Lens:
    """Choose coordinates that undo the resizing, in which both focal lengths are one."""
    height, width = picture.source_size
    scale_x, scale_y = (float(picture.from_source[a, a]) for a in (0, 1))
    shift_x, shift_y = (float(s) for s in picture.from_source[:2, 2])
    center, ratio, focal = (width / 2, height / 2), 1.0, None
    if K is not None and bool(K.isfinite().all()):
        center = float(K[0, 2]), float(K[1, 2])
        ratio = float(K[0, 0] / K[1, 1])
        focal = float(K[0, 0]) * scale_x
    unit = scale_x, scale_x * ratio
    step = 1.0, unit[1] / scale_y
    grid = Grid(
        *picture.size,
        corner=(-shift_x * step[0], -shift_y * step[1]),
        step=step,
        center=(center[0] * unit[0], center[1] * unit[1]),
    )
    return Lens(grid, unit, focal)


def source_intrinsics(frames: PairFrames, K: Float[Tensor, "V 3 3"]) -> Float[Tensor, "V 3 3"]:
    """Carry K from grids to source pixels."""
    result = K.double().clone()
    for index, (lens, picture) in enumerate(zip(frames.lenses, frames.pictures, strict=True)):
        if frames.raw:
            back = torch.from_numpy(np.linalg.inv(picture.from_source))
            result[index] = back @ result[index]
        else:
            result[index, 0] /= lens.unit[0]
            result[index, 1] /= lens.unit[1]
    return result


def reconstruction(
    frames: PairFrames,
    *,
    K: Float[Tensor, "V 3 3"],
    poses: Float[Tensor, "V 4 4"],
    depth: list[Float[Tensor, "_ _"]],
    confidence: list[Float[Tensor, "_ _"]],
    metric: bool,
    raw: Any = None,  # noqa: ANN401 - the original's own output
) -> Reconstruction:
    """Carry a scene back to the views.

    Args:
        frames: The pictures.
        K: In the grids' pixels.
        poses: Camera to world.
        depth: At network size; not positive means none.
        confidence: 0 where depth does not count.
        metric: Whether lengths are metres.
        raw: Kept as it is.
    """
    views = frames.views
    height, width = views.images.shape[-2:]
    count = len(views)
    maps = torch.zeros(2, count, height, width)
    valid = torch.zeros(count, height, width, dtype=torch.bool)
    half_pixel = torch.zeros(count, 2, dtype=torch.float64)
    for index, picture in enumerate(frames.pictures):
        from_view = torch.from_numpy(picture.from_source)
        if views.files is not None:
            from_view = from_view @ views.from_original[index].double().inverse()
        half_pixel[index] = 0.5 / from_view.diagonal()[:2]
        counted = torch.where(confidence[index] > 0, depth[index], 0.0)
        rows, columns = views.sizes[index].tolist()
        size = picture.size
        found = depth_on_view(
            counted.float(),
            confidence[index].float(),
            from_view,
            torch.tensor([0, 0, size[1], size[0]]),
            (rows, columns),
        )
        maps[0, index, :rows, :columns], maps[1, index, :rows, :columns] = found[:2]
        valid[index, :rows, :columns] = found[2]
    if views.masks is not None:
        valid &= views.masks
    sizes = torch.tensor([picture.source_size for picture in frames.pictures])
    w2c = torch.linalg.inv(poses.double())
    return finish(
        views,
        K=source_intrinsics(frames, K),
        w2c=w2c,
        sizes=sizes,
        registered=torch.ones(count, dtype=torch.bool),
        depth=maps[0],
        confidence=maps[1],
        valid=valid,
        metric=metric,
        half_pixel=half_pixel if frames.raw else None,
        raw=raw,
    )
