"""A network that knows the answer: true cameras and depth of a scene, with stated noise."""

from typing import Any

import torch
from torch import Tensor

from sightline.geometry.camera import pixel_grid
from sightline.geometry.rotation import so3_exp
from sightline.models.pose_encoding import encode_cameras
from sightline.reconstruction.learned.layout import Frames
from sightline.types import Reconstruction, Views

THUMB = 24


class Oracle(torch.nn.Module):
    """Returns what VGGT would if it were right, in a world and scale of each pass's own.

    It knows pictures by their looks, so it must be prepared with the same views and options. Noise
    is relative for depth, in degrees for turns, and relative to the scene for positions.
    """

    patch_size = 14

    def __init__(
        self,
        truth: Reconstruction,
        *,
        depth_noise: float = 0.0,
        turn_noise: float = 0.0,
        shift_noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.truth = truth
        self.noise = (depth_noise, turn_noise, shift_noise)
        self.generator = torch.Generator().manual_seed(seed)
        self.passes: list[list[int]] = []
        self.frames: Frames | None = None

    def prepare(self, frames: Frames) -> None:
        """Learn the looks of the frames, and how they lie on the views."""
        self.frames = frames
        self.known = self._looks(frames.read(list(range(len(frames.views)))))

    @staticmethod
    def _looks(images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, THUMB).flatten(1)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def forward(self, images: Tensor, query_points: Tensor | None = None) -> dict[str, Any]:
        assert self.frames is not None
        index = torch.cdist(self._looks(images[0]), self.known).argmin(-1).tolist()
        self.passes.append(index)
        count, height, width = len(index), *images.shape[-2:]
        scale = 0.4 + 2 * torch.rand((), generator=self.generator).item()
        depth_noise, turn_noise, shift_noise = self.noise
        truth = self.truth.cameras
        w2c = truth.w2c[index].double()
        w2c = w2c @ torch.linalg.inv(w2c[0])
        w2c[:, :3, 3] *= scale
        w2c[:, :3, :3] = (
            so3_exp(torch.deg2rad(turn_noise * self._random(count, 3))) @ w2c[:, :3, :3]
        )
        w2c[:, :3, 3] += scale * shift_noise * self._random(count, 3)
        K = self.frames.grid_from_view[index] @ truth.K[index].double()
        depth = torch.stack([self._depth(i, height, width) for i in index]).double() * scale
        depth *= 1 + depth_noise * self._random(count, 1, 1)
        confidence = torch.where(depth > 0, 5.0, 1.0)[None].float()
        depth = torch.where(depth > 0, depth, 1.0)
        local = torch.cat([self._rays(K, height, width) * depth[..., None], depth[..., None]], -1)
        points = (local - w2c[:, None, None, :3, 3]) @ w2c[:, None, :3, :3]
        result = {
            "pose_enc": encode_cameras(w2c[:, :3], K, (height, width))[None].float(),
            "depth": depth[None, ..., None].float(),
            "depth_conf": confidence,
            "world_points": points[None].float(),
            "world_points_conf": confidence,
        }
        if query_points is not None:
            result |= self._follow(query_points[0].double(), w2c, K, points)
        return result

    @staticmethod
    def _rays(K: Tensor, height: int, width: int) -> Tensor:
        grid = pixel_grid(height, width, dtype=torch.float64)
        focal = torch.diagonal(K, dim1=-2, dim2=-1)[:, None, None, :2]
        return (grid - K[:, None, None, :2, 2]) / focal

    def _depth(self, view: int, height: int, width: int) -> Tensor:
        assert self.frames is not None
        assert self.truth.depth is not None
        back = torch.linalg.inv(self.frames.grid_from_view[view])
        at = pixel_grid(height, width, dtype=torch.float64) * torch.diagonal(back)[:2] + back[:2, 2]
        rows, columns = self.frames.views.sizes[view].tolist()
        column, row = at[..., 0].floor().long(), at[..., 1].floor().long()
        inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        seen = self.truth.depth[view][row.clamp(0, rows - 1), column.clamp(0, columns - 1)]
        return torch.where(inside, seen, 0.0)

    @staticmethod
    def _follow(queries: Tensor, w2c: Tensor, K: Tensor, points: Tensor) -> dict[str, Tensor]:
        column, row = queries.round().long().unbind(-1)
        at = points[0][row, column]
        local = at @ w2c[:, :3, :3].mT + w2c[:, None, :3, 3]
        pixels = local[..., :2] / local[..., 2:] @ K[:, :2, :2].mT + K[:, None, :2, 2] - 0.5
        height, width = points.shape[1:3]
        size = torch.tensor([width, height])
        seen = (local[..., 2] > 0) & (pixels >= 0).all(-1) & (pixels < size).all(-1)
        return {
            "track": pixels[None].float(),
            "vis": seen[None].float(),
            "conf": seen[None].float(),
        }


def without_cameras(views: Views) -> Views:
    from dataclasses import replace

    return replace(views, cameras=None)
