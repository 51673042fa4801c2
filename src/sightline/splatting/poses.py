"""Small corrections to training poses, learnt together with the splats."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.geometry.pose import invert_se3, rigid_matrix
from sightline.geometry.rotation import rotation_6d_to_matrix
from sightline.splatting.optimizer import AdamConfig, RowAdam
from sightline.types import Cameras


@dataclass(frozen=True, slots=True, kw_only=True)
class PoseConfig:
    """Rates of pose refinement (gsplat's example trainer)."""

    rate: float = 1e-5
    weight_decay: float = 1e-6
    start: float = 0.1
    """Fraction of the run before the first change: splats must fit roughly first."""


class PoseRefinement:
    """One 9-vector a view: a translation and a 6D rotation offset, zero at the start.

    It acts on the right of camera-to-world, that is, in the camera's own axes; the translation
    counts in scene extents. Rotation: Zhou et al. 2019 (arXiv:1812.07035), as the offset from the
    identity's six numbers.
    """

    def __init__(self, config: PoseConfig, cameras: Cameras, extent: float) -> None:
        """Start from ``cameras``."""
        self.config = config
        self.extent = extent
        self.w2c = cameras.w2c.float()
        self.deltas = torch.zeros(len(cameras), 9, device=self.w2c.device)
        adam = AdamConfig(visible_only=True)
        self.optimizer = RowAdam({"poses": self.deltas}, adam)

    def leaf(self, index: int) -> Float[Tensor, "9"]:
        """Return a view's vector as a leaf of the graph."""
        return self.deltas[index].clone().requires_grad_()

    def corrected(
        self, w2c: Float[Tensor, "*batch 4 4"], delta: Float[Tensor, "*batch 9"]
    ) -> Float[Tensor, "*batch 4 4"]:
        """Return world-to-camera after the correction ``delta``."""
        identity = delta.new_tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
        rotation = rotation_6d_to_matrix(delta[..., 3:] + identity)
        motion = rigid_matrix(rotation, self.extent * delta[..., :3])
        return invert_se3(motion) @ w2c

    @torch.no_grad()
    def step(self, index: int, grad: Float[Tensor, "9"], decay: float) -> None:
        """Update one view's vector; ``decay`` scales the rate."""
        rate = self.config.rate * decay
        self.deltas[index] *= 1 - rate * self.config.weight_decay
        grads = torch.zeros_like(self.deltas)
        grads[index] = grad
        visible = torch.zeros(len(self.deltas), dtype=torch.bool, device=grads.device)
        visible[index] = True
        self.optimizer.step({"poses": grads}, {"poses": rate}, visible)

    @torch.no_grad()
    def cameras(self, cameras: Cameras) -> Cameras:
        """Return the cameras with all corrections applied."""
        w2c = self.corrected(self.w2c, self.deltas).to(cameras.w2c.dtype)
        return Cameras(w2c=w2c, K=cameras.K, height=cameras.height, width=cameras.width)
