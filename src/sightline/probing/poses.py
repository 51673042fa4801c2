"""Poses as seven numbers (quaternion ``wxyz`` and translation of world-to-camera), and their search."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.geometry.pose import rigid_matrix
from sightline.geometry.rotation import matrix_to_quat, quat_to_matrix
from sightline.probing.protocols import Protocol
from sightline.splatting.rasterize import rasterization
from sightline.types import Cameras, TensorStruct

_PIXELS = 1 << 21
"""Of all test views that are drawn in one call."""


def pose_vectors(w2c: Float[Tensor, "V 4 4"]) -> Float[Tensor, "V 7"]:
    """Return world-to-camera as quaternion and translation."""
    return torch.cat([matrix_to_quat(w2c[:, :3, :3]), w2c[:, :3, 3]], -1)


def pose_matrices(vectors: Float[Tensor, "V 7"]) -> Float[Tensor, "V 4 4"]:
    """Return world-to-camera; the quaternion may have any length, the translation is as it is."""
    quats = nn.functional.normalize(vectors[:, :4], dim=-1)
    return rigid_matrix(quat_to_matrix(quats), vectors[:, 4:])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RefinedPoses(TensorStruct):
    """Test poses that fit their photos best."""

    w2c: Float[Tensor, "T 4 4"]
    loss: Float[Tensor, " T"]
    """Of the poses that were chosen by it."""


def refine_test_poses(
    gaussians: Mapping[str, Tensor],
    cameras: Cameras,
    photos: Float[Tensor, "T 3 H W"],
    masks: Float[Tensor, "T H W"],
    protocol: Protocol,
) -> RefinedPoses:
    """Search each test pose with the Gaussians fixed; the views do not influence each other.

    The loss is the mean absolute difference over all pixels, masked ones zero. Of all iterations
    the pose with the lowest loss is kept; with the quirk ``pose_after_step`` the pose one step
    later.

    Args:
        gaussians: As `readout.gaussians_from` names them.
        cameras: Where the search starts.
        photos: In [0, 1].
        masks: 1 where a pixel counts, 0 where not, between where it was resized.
        protocol: Steps and rates.
    """
    frozen = {name: value.detach() for name, value in gaussians.items()}
    step = max(1, _PIXELS // (cameras.height * cameras.width))
    parts = [
        _refine_some(
            frozen,
            cameras.select(list(range(start, min(start + step, len(cameras))))),
            photos[start : start + step],
            masks[start : start + step],
            protocol,
        )
        for start in range(0, len(cameras), step)
    ]
    return RefinedPoses(
        w2c=torch.cat([part.w2c for part in parts]), loss=torch.cat([part.loss for part in parts])
    )


def _refine_some(
    gaussians: dict[str, Tensor],
    cameras: Cameras,
    photos: Tensor,
    masks: Tensor,
    protocol: Protocol,
) -> RefinedPoses:
    start = pose_vectors(cameras.w2c.float())
    quats = start[:, :4].clone().requires_grad_()
    shifts = start[:, 4:].clone().requires_grad_()
    optimizer = torch.optim.Adam(
        [
            {"params": [quats], "lr": protocol.pose_rotation},
            {"params": [shifts], "lr": protocol.pose_translation},
        ]
    )
    target = (photos * masks[:, None]).permute(0, 2, 3, 1)
    weight = masks[..., None]
    best, lowest = start.clone(), torch.full((len(start),), torch.inf, device=start.device)

    def losses() -> Tensor:
        image = draw(gaussians, pose_matrices(torch.cat([quats, shifts], -1)), cameras)
        return (target - image * weight).abs().mean((1, 2, 3))

    def keep(loss: Tensor, pose: Tensor) -> None:
        nonlocal best, lowest
        better = loss < lowest
        best = torch.where(better[:, None], pose, best)
        lowest = torch.where(better, loss, lowest)

    for _ in range(protocol.pose_steps):
        loss = losses()
        before = torch.cat([quats, shifts], -1).detach().clone()
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        after = torch.cat([quats, shifts], -1).detach().clone()
        keep(loss.detach(), after if protocol.quirks.pose_after_step else before)
    if not protocol.quirks.pose_after_step:
        with torch.no_grad():
            keep(losses(), torch.cat([quats, shifts], -1).detach())
    return RefinedPoses(w2c=pose_matrices(best), loss=lowest)


def draw(
    gaussians: Mapping[str, Tensor],
    w2c: Float[Tensor, "V 4 4"],
    cameras: Cameras,
    *,
    background: Float[Tensor, "3"] | None = None,
) -> Float[Tensor, "V H W 3"]:
    """Render as the protocols do: degree 3, classic, black unless told otherwise; not clamped."""
    image, _, _ = rasterization(
        means=gaussians["means"],
        quats=gaussians["quats"],
        scales=gaussians["scales"],
        opacities=gaussians["opacities"],
        colors=gaussians["colors"],
        viewmats=w2c,
        Ks=cameras.K.float(),
        width=cameras.width,
        height=cameras.height,
        sh_degree=3,
        packed=False,
        backgrounds=None if background is None else background.expand(len(w2c), 3).contiguous(),
    )
    return image
