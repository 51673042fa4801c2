"""The camera paths of Feat2GS by its own formulas, and what its authors chose for each scene.

`sightline.geometry.trajectory` has the same paths made safe for any capture; these are for videos
that line up with the published ones. World axes and lengths are the cloud's.
"""

import dataclasses
import itertools
import math

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.errors import UnknownNameError
from sightline.geometry.pose import invert_se3, rigid_matrix
from sightline.geometry.rotation import matrix_to_quat, quat_to_matrix, so3_exp
from sightline.probing.protocols import Quirks
from sightline.types import Cameras

FRAMES = 300
Number = int | float
"""A name, because the tests' type checker takes no integer for a float."""
PATHS = ("arc", "spiral", "lemniscate", "wander", "ellipse", "interpolate")
GALLERY = "gallery"
"""Stands for the paths of the published gallery."""


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """What the authors chose for a scene; None where the table has no entry."""

    arc: Number | None = 180
    spiral: tuple[Number, Number] | None = (0.5, 1)
    """Depth waves a turn, and turns."""
    lemniscate: Number | None = 45
    wander: Number | None = 48
    up: tuple[int, int] = (-1, 1)
    """Sign and column of the average camera that point up; minus y where nothing is said."""


_DL3DV = ("Center", "Electrical", "Museum", "Supermarket2", "Temple")
_LLFF = ("fortress", "horns", "orchids", "room", "trex")
SETTINGS: dict[str, Setting] = {
    "Infer/cy": Setting(),
    "Infer/cy3": Setting(),
    "Infer/cy4": Setting(),
    "Infer/paper4": Setting(200, lemniscate=80, wander=100),
    "Infer/coffee": Setting(lemniscate=80, up=(-1, 0)),
    "Infer/plant": Setting(lemniscate=80),
    "Infer/desk": Setting(spiral=None, lemniscate=None, wander=None),
    "Infer/bread": Setting(lemniscate=80, up=(-1, 0)),
    "Infer/brunch": Setting(lemniscate=80, up=(1, 1)),
    "Infer/stuff": Setting(lemniscate=80, up=(-1, 0)),
    "Infer/xbox": Setting(lemniscate=80),
    "Infer/plushies": Setting(120, lemniscate=60),
    "Infer/erhai": Setting(spiral=None, lemniscate=80, wander=200),
    "Infer/cy_crop1": Setting(None, None, 80, 60, (-1, 0)),
    "Infer/cy_crop": Setting(None, None, 60),
    "Infer/paper": Setting(240, lemniscate=60),
    "Infer/house": Setting(240, lemniscate=60, wander=None),
    "Infer/home": Setting(90, lemniscate=80, wander=None, up=(1, 0)),
    "Infer/paper3": Setting(lemniscate=80, up=(1, 0)),
    "Infer/castle": Setting(None, (2, 2), None, None),
    "Infer/hogwarts": Setting(None, lemniscate=None, wander=100),
    "Tanks/Auditorium": Setting(lemniscate=30, wander=80),
    "Tanks/Caterpillar": Setting(240, lemniscate=60),
    "Tanks/Family": Setting(lemniscate=60),
    "Tanks/Ignatius": Setting(330, lemniscate=80),
    "Tanks/Train": Setting(lemniscate=60),
    **{f"DL3DV/{scene}": Setting(lemniscate=60) for scene in _DL3DV},
    "MipNeRF360/garden": Setting(270, lemniscate=80),
    "MipNeRF360/kitchen": Setting(lemniscate=80),
    "MipNeRF360/room": Setting(lemniscate=60),
    "MVimgNet/bench": Setting(lemniscate=80),
    "MVimgNet/car": Setting(lemniscate=60),
    "MVimgNet/suv": Setting(lemniscate=60),
    "LLFF/fortress": Setting(lemniscate=30),
    "LLFF/horns": Setting(lemniscate=60),
    "LLFF/orchids": Setting(lemniscate=30),
    "LLFF/room": Setting(lemniscate=30),
    "LLFF/trex": Setting(spiral=(1, 1), lemniscate=30),
}
"""The published table; a blank there is None here, and stands for the default."""

_PUBLISHED: dict[str, tuple[str, ...]] = {
    "interpolate": (
        *(f"DL3DV/{scene}" for scene in _DL3DV),
        *("Infer/erhai", "Infer/paper4", "MVimgNet/bench", "MVimgNet/suv", "MVimgNet/car"),
        "Tanks/Train",
    ),
    "lemniscate": (
        *("Infer/cy", "Infer/bread", "Infer/brunch", "Infer/paper4", "Infer/plushies"),
        *(f"LLFF/{scene}" for scene in _LLFF),
        *("MipNeRF360/room", "MipNeRF360/garden", "MVimgNet/bench"),
        *("Tanks/Family", "Tanks/Auditorium", "Tanks/Ignatius"),
    ),
    "spiral": (
        *("Infer/cy", "Infer/castle", "LLFF/orchids", "LLFF/trex", "LLFF/fortress"),
        "DL3DV/Center",
    ),
    "ellipse": ("Infer/bread", "Infer/brunch", "MipNeRF360/kitchen"),
    "arc": (
        *("Infer/paper", "LLFF/horns", "Tanks/Auditorium", "Tanks/Ignatius"),
        "Tanks/Caterpillar",
    ),
    "wander": ("Infer/erhai",),
}


def gallery_paths(scene: str) -> tuple[str, ...]:
    """Return the paths that the published gallery shows of a scene; else ``interpolate``."""
    if scene.startswith("DTU/"):
        return ("interpolate", "spiral")
    found = tuple(path for path, scenes in _PUBLISHED.items() if scene in scenes)
    return found or ("interpolate",)


def frame_count(num_train: int) -> int:
    """Return the published length: 300 frames shared out between the gaps of training views."""
    return max(1, int(FRAMES / num_train) * (num_train - 1))


def average_camera(c2w: Float[Tensor, "V 4 4"]) -> Float[Tensor, "4 4"]:
    """Return the camera at the mean centre that looks along the mean z axis, y as near as it goes."""
    z = torch.nn.functional.normalize(c2w[:, :3, 2].mean(0), dim=0)
    x = torch.nn.functional.normalize(torch.linalg.cross(c2w[:, :3, 1].mean(0), z), dim=0)
    y = torch.linalg.cross(z, x)
    return rigid_matrix(torch.stack([x, y, z], -1), c2w[:, :3, 3].mean(0))


def nearest_to_axes(c2w: Float[Tensor, "V 4 4"]) -> Float[Tensor, "3"]:
    """Return the point with the least squared distance to all optical axes."""
    across = torch.eye(3).to(c2w) - c2w[:, :3, 2, None] * c2w[:, None, :3, 2]
    right = (across @ c2w[:, :3, 3, None]).sum(0)[:, 0]
    return torch.linalg.lstsq(across.sum(0), right).solution


def look_at_from(
    eyes: Float[Tensor, "F 3"], target: Float[Tensor, "3"], up: Float[Tensor, "3"]
) -> Float[Tensor, "F 4 4"]:
    """Return camera-to-world: forward to the target, right = forward x up, down = forward x right."""
    forward = torch.nn.functional.normalize(target - eyes, dim=-1)
    right = torch.linalg.cross(forward, up.expand_as(forward))
    right = torch.nn.functional.normalize(right, dim=-1)
    down = torch.nn.functional.normalize(torch.linalg.cross(forward, right), dim=-1)
    return rigid_matrix(torch.stack([right, down, forward], -1), eyes)


def published_path(
    name: str, cameras: Cameras, frames: int, setting: Setting, quirks: Quirks
) -> Float[Tensor, "F 4 4"]:
    """Return world-to-camera along one of `PATHS`.

    Args:
        name: Of the path.
        cameras: Of the training views, refined; the first one's lens is the video's.
        frames: How many; ``interpolate`` shares them out between the gaps.
        setting: Of the scene.
        quirks: ``arc_about_origin`` and ``interpolate_w2c``.

    Raises:
        UnknownNameError: If there is no such path.
    """
    if name not in PATHS:
        raise UnknownNameError("published camera path", name, PATHS)
    c2w = invert_se3(cameras.w2c.double())
    if name == "interpolate":
        steps = max(1, frames // max(len(c2w) - 1, 1))
        if quirks.interpolate_w2c:
            return interpolate_matrices(cameras.w2c.double(), steps)
        return invert_se3(interpolate_cameras(c2w, steps))
    if name == "ellipse":
        return invert_se3(_ellipse(c2w, frames))
    average, target = average_camera(c2w), nearest_to_axes(c2w)
    up = setting.up[0] * average[:3, setting.up[1]]
    share = torch.arange(frames, dtype=torch.float64) / frames
    turn = 2 * math.pi * share
    center = average[:3, 3]
    if name == "wander":
        reach = (48 if setting.wander is None else setting.wander) / float(cameras.K[0, 0, 0])
        local = torch.stack([turn.sin(), torch.zeros_like(turn), turn.cos() / 2], -1) * reach
        # The offset is a translation whose inverse is applied to the average camera.
        eyes = center - local @ average[:3, :3].mT
        return invert_se3(rigid_matrix(average[:3, :3].expand(frames, 3, 3), eyes))
    if name == "arc":
        swing = math.radians(180 if setting.arc is None else setting.arc) / 2
        turned = so3_exp((swing * turn.sin())[:, None] * up)
        eyes = turned @ (center - target)
        if not quirks.arc_about_origin:
            eyes = eyes + target
        return invert_se3(look_at_from(eyes, target, up))
    if name == "spiral":
        rate, turns = setting.spiral or (0.5, 1)
        places = (c2w[:, :3, 3] - center) @ average[:3, :3]
        radii = 1.25 * (places.amax(0) - places.amin(0))
        t = turns * turn
        local = torch.stack([t.cos(), -t.sin(), -(t * rate).sin()], -1) * radii
    else:
        degrees = 45 if setting.lemniscate is None else setting.lemniscate
        size = (center - target).norm() * math.tan(degrees * math.pi / 360)
        t = turn + math.pi / 2
        x = size * t.cos() / (1 + t.sin().square())
        local = torch.stack([x, x * t.sin(), torch.zeros_like(x)], -1)
    eyes = local @ average[:3, :3].mT + center
    return invert_se3(look_at_from(eyes, target, up))


def _ellipse(c2w: Float[Tensor, "V 4 4"], frames: int) -> Float[Tensor, "F 4 4"]:
    """mip-NeRF 360's ellipse: OpenGL axes, principal axes of the centres, height of their mean."""
    poses = c2w.clone()
    poses[:, :3, 1:3] *= -1
    mean = poses[:, :3, 3].mean(0)
    shifted = poses[:, :3, 3] - mean
    _, axes = torch.linalg.eigh(shifted.mT @ shifted)
    rotation = axes.flip(-1).mT  # largest variance first
    if float(torch.linalg.det(rotation)) < 0:
        rotation = torch.diag(torch.tensor([1.0, 1, -1])).to(rotation) @ rotation
    if float((rotation @ poses[:, :3, :3])[:, 2, 1].mean()) < 0:
        rotation = torch.diag(torch.tensor([1.0, -1, -1])).to(rotation) @ rotation
    turned = rotation @ poses[:, :3, :3]
    centers = shifted @ rotation.mT
    scale = 1 / centers.abs().max()
    centers = centers * scale
    own = rigid_matrix(turned, centers)
    focus = nearest_to_axes(own)
    offset = focus * torch.tensor([1.0, 1, 0]).to(focus)
    half = (centers - offset).abs().amax(0)
    t = 2 * math.pi * torch.arange(frames, dtype=torch.float64) / frames
    eyes = torch.stack([half[0] * t.cos(), half[1] * t.sin(), torch.zeros_like(t)], -1)
    eyes = eyes + offset
    mean_up = turned[:, :, 1].mean(0)
    axis = int(mean_up.abs().argmax())
    up = torch.zeros(3).to(eyes)
    up[axis] = mean_up[axis].sign()
    back = torch.nn.functional.normalize(eyes - focus, dim=-1)
    right = torch.nn.functional.normalize(torch.linalg.cross(up.expand_as(back), back), dim=-1)
    above = torch.linalg.cross(back, right)
    turn = rotation.mT @ torch.stack([right, above, back], -1)
    turn[:, :, 1:] *= -1
    return rigid_matrix(turn, eyes / scale @ rotation + mean)


def interpolate_cameras(c2w: Float[Tensor, "V 4 4"], steps: int) -> Float[Tensor, "F 4 4"]:
    """Join cameras by straight lines and even turns, ``steps`` a gap, the end of each left out."""
    share = (torch.arange(steps) / steps).to(c2w)[:, None]
    parts = []
    for first, second in itertools.pairwise(c2w):
        a, b = matrix_to_quat(torch.stack([first[:3, :3], second[:3, :3]]))
        b = torch.where(a @ b < 0, -b, b)
        angle = torch.acos((a @ b).clamp(-1, 1))
        wave = angle.sin()
        weights = ((1 - share) * angle).sin() / wave, (share * angle).sin() / wave
        if float(wave) < 1e-9:
            weights = (1 - share, share)
        quats = torch.nn.functional.normalize(weights[0] * a + weights[1] * b, dim=-1)
        centers = (1 - share) * first[:3, 3] + share * second[:3, 3]
        parts.append(rigid_matrix(quat_to_matrix(quats), centers))
    return torch.cat(parts) if parts else c2w[:1].expand(max(steps, 1), 4, 4).clone()


def interpolate_matrices(w2c: Float[Tensor, "V 4 4"], steps: int) -> Float[Tensor, "F 4 4"]:
    """Join matrices as the reference does: position, look-at and up points move on straight lines.

    The points are those of the matrix itself (position, position - 0.1 z, position + 0.1 y); each
    is made orthonormal again; the end of each gap is left out.
    """
    position, y, z = w2c[:, :3, 3], w2c[:, :3, 1], w2c[:, :3, 2]
    points = torch.stack([position, position - 0.1 * z, position + 0.1 * y], 1)  # [V, 3, 3]
    share = (torch.arange(steps) / steps).to(w2c)[:, None, None]
    between = torch.cat(
        [(1 - share) * points[i] + share * points[i + 1] for i in range(len(points) - 1)]
    )
    at, look, up = between.unbind(1)
    back = torch.nn.functional.normalize(at - look, dim=-1)
    right = torch.nn.functional.normalize(torch.linalg.cross(up - at, back), dim=-1)
    above = torch.linalg.cross(back, right)
    return rigid_matrix(torch.stack([right, above, back], -1), at)
