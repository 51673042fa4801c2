"""Where a scene is, how large it is and from where to look at it first."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.geometry.trajectory import focus_point, mean_up
from sightline.types import Cameras


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SceneFrame:
    """What viewers need to know about a scene's place and size."""

    up: Float[Tensor, "3"]
    focus: Float[Tensor, "3"]
    """What the cameras look at."""
    radius: float
    """Typical distance of the cameras from the focus, in scene units."""
    camera_size: float
    """Depth of the drawn camera pyramids, in scene units."""
    first: int
    """Index of the most typical camera; 0 without cameras."""


def posed_views(cameras: Cameras | None) -> list[int]:
    """Return the indices of the cameras with finite poses and intrinsics."""
    if cameras is None:
        return []
    finite = cameras.w2c.isfinite().all(dim=(1, 2)) & cameras.K.isfinite().all(dim=(1, 2))
    return [int(index) for index in finite.nonzero()[:, 0]]


def frame_by_cameras(cameras: Cameras) -> SceneFrame:
    """Frame a scene by its cameras, all of which have poses."""
    cameras = cameras.to("cpu")
    centers, forward = cameras.centers.double(), cameras.c2w[:, :3, 2].double()
    focus = focus_point(cameras).double()
    radius = float((centers - focus).norm(dim=1).median()) or 1.0
    # The most typical camera: near the others and looking as they do.
    away = (centers - centers.median(dim=0).values).norm(dim=1) / radius
    first = int((away - forward @ forward.mean(dim=0)).argmin())
    size = 0.1 * radius
    if len(cameras) > 1:
        apart = torch.cdist(centers, centers).fill_diagonal_(torch.inf).min(dim=1).values
        size = min(size, max(0.6 * float(apart.median()), 0.025 * radius))
    return SceneFrame(
        up=mean_up(cameras).double(), focus=focus, radius=radius, camera_size=size, first=first
    )


def frame_by_points(points: Float[Tensor, "N 3"]) -> SceneFrame:
    """Frame a scene without cameras by its points: y is down, as in most files."""
    known = points[points.isfinite().all(dim=1)].detach().cpu().double()
    if len(known) == 0:
        known = torch.zeros(1, 3, dtype=torch.float64)
    focus = known.median(dim=0).values
    radius = 1.5 * float((known - focus).norm(dim=1).median()) or 1.0
    return SceneFrame(
        up=torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64),
        focus=focus,
        radius=radius,
        camera_size=0.07 * radius,
        first=0,
    )
