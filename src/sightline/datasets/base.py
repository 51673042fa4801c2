"""What all data sets of scenes share: the split, a lazy sequence, scenes from known cameras."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sightline.errors import InputError
from sightline.io.given import GivenScene, GivenView, depth_points
from sightline.io.images import read_samples
from sightline.io.inputs import unique_names
from sightline.io.intrinsics import stack_lenses
from sightline.io.views import load_views
from sightline.protocols import Progress
from sightline.types import Reconstruction, Scene, SparsePoints, Views


def held_out(num_views: int, every: int) -> tuple[int, ...]:
    """Return the indices of test views: 0, ``every``, 2 ``every``, ...; none for 0.

    Views are in natural order of their names, so that every tool and every run holds out the same.

    Raises:
        InputError: If nothing would be left to learn from, or ``every`` is negative.
    """
    if every < 0 or every == 1:
        raise InputError(f"--test-every must be 0 (hold out none) or 2 and more, got {every}")
    return tuple(range(0, num_views, every)) if every else ()


@dataclass(frozen=True, slots=True)
class Scenes:
    """A lazy sequence of scenes: each is read from disk when it is asked for."""

    paths: tuple[Path, ...]
    read: Callable[[Path], Scene]

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Scene:
        """Read one scene."""
        return self.read(self.paths[index])


def scene_from_given(
    given: GivenScene,
    name: str,
    *,
    long_side: int | None = None,
    test_every: int = 0,
    progress: Progress | None = None,
) -> Scene:
    """Read a scene whose views all have lenses and poses.

    Args:
        given: As `given.read_given` returns it.
        name: The scene's id.
        long_side: Longest side of the views in pixels; None keeps full size.
        test_every: Hold out every K-th view; a split that comes with the data wins.
        progress: As for `load_views`.

    Returns:
        Undistorted views with cameras; ``ground_truth`` has the same cameras, given points, and
        depth (nearest pixel, 0 for unknown) where every view has a depth map and a pinhole lens.

    Raises:
        InputError: If a view lacks its lens or pose, or a picture is missing.
    """
    lenses = [view.lens for view in given.views if view.lens is not None]
    poses = [view.w2c for view in given.views if view.w2c is not None]
    if min(len(lenses), len(poses)) < len(given.views):
        raise InputError(
            f"{name}: expected a lens and a pose for each of {len(given.views)} views, got "
            f"{len(lenses)} and {len(poses)}; reconstruct it first"
        )
    files = [view.file for view in given.views]
    masks = [view.mask for view in given.views]
    names = unique_names([Path(view.name) for view in given.views], [f.suffix for f in files])
    views = load_views(
        files,
        names,
        long_side=long_side,
        lenses=stack_lenses(lenses),
        w2c=torch.from_numpy(np.stack(poses)),
        mask_files=masks if any(masks) else None,
        progress=progress,
    )
    assert views.cameras is not None
    splits = [view.split for view in given.views]
    test = tuple(i for i, split in enumerate(splits) if split == "test")
    depth, valid = _depth(given.views, views)
    return Scene(
        id=name,
        views=views,
        test=test or held_out(len(views), test_every),
        ground_truth=Reconstruction(
            cameras=views.cameras,
            registered=torch.ones(len(views), dtype=torch.bool),
            depth=depth,
            valid=valid,
            sparse=_points(given, files),
            lenses=views.lenses,
        ),
    )


def _points(given: GivenScene, files: Sequence[Path]) -> SparsePoints | None:
    points = given.points if given.points is not None else depth_points(given.views, files)
    if points is None:
        return None
    return SparsePoints(
        points=torch.from_numpy(points.points),
        colors=torch.from_numpy(points.colors),
        tracks=torch.from_numpy(points.tracks.astype(np.int32)),
        errors=None if points.errors is None else torch.from_numpy(points.errors),
    )


def _depth(
    given: Sequence[GivenView], views: Views
) -> tuple[Float[Tensor, "V H W"] | None, Bool[Tensor, "V H W"] | None]:
    """Return depth at the views' size, where all have it and none is distorted."""
    assert views.lenses is not None
    maps = [view.depth for view in given]
    if not views.lenses.is_pinhole:
        return None, None
    depth = torch.zeros(len(given), *views.images.shape[2:])
    for i, (view, file) in enumerate(zip(given, maps, strict=True)):
        if file is None:
            return None, None
        values = read_samples(file).samples[..., 0].astype(np.float32) * np.float32(
            view.depth_scale
        )
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        height, width = views.sizes[i].tolist()
        # Between two surfaces there is no depth in the middle: take the nearest, never a mean.
        rows = ((np.arange(height) + 0.5) * values.shape[0] / height).astype(np.intp)
        columns = ((np.arange(width) + 0.5) * values.shape[1] / width).astype(np.intp)
        depth[i, :height, :width] = torch.from_numpy(values[rows[:, None], columns])
    return depth, depth > 0
