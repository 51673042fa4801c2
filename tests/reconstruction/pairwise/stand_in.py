"""A network that knows the truth: exact point maps of a room, with stated noise and outliers."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.datasets.raycast.light import Stage, bake, exact_maps
from sightline.datasets.synthetic import KINDS
from sightline.geometry.align import transform_cameras
from sightline.geometry.pose import invert_se3, look_at
from sightline.reconstruction.learned.gauge import align_cameras
from sightline.reconstruction.pairwise.images import Picture, load_pictures
from sightline.types import Cameras, Views

FOCAL = 1.3  # long sides


@cache
def stage() -> Stage:
    setting = KINDS["simple"]()
    return bake(setting.surfaces, setting.lamps, texel=0.5, bounces=0, samples=1)


@dataclass(frozen=True)
class Truth:
    """Cameras of pictures of two shapes, padded to one size."""

    views: Views
    cameras: Cameras
    depth: Tensor
    """At the views' pixels, 0 in the padding."""


def make_truth(
    count: int, long_side: int = 80, short_side: int = 60, *, portraits: bool = True
) -> Truth:
    """Return pictures from an arc; every third one is upright where ``portraits``."""
    rng = torch.Generator().manual_seed(3)
    angle = torch.linspace(-0.5, 0.5, count) * min(1.6, 0.35 * (count - 1)) + 0.3
    jitter = torch.rand(count, 3, generator=rng) - 0.5
    eyes = torch.stack([2.0 * angle.cos(), 2.0 * angle.sin(), 1.0 + 0.2 * jitter[:, 0]], -1)
    target = torch.tensor([0.0, 0.0, 0.35]) + 0.2 * jitter
    c2w = look_at(eyes, target, torch.tensor([0.0, 0.0, 1.0])).double()
    upright = [portraits and i % 3 == 1 for i in range(count)]
    sizes = [(long_side, short_side) if up else (short_side, long_side) for up in upright]
    height, width = (max(s[a] for s in sizes) for a in (0, 1))
    K = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    for i, (h, w) in enumerate(sizes):
        focal = FOCAL * long_side * (1 + 0.05 * i / count)
        K[i, 0, 0] = K[i, 1, 1] = focal
        K[i, 0, 2], K[i, 1, 2] = w / 2, h / 2
    images = torch.randint(0, 256, (count, 3, height, width), generator=rng, dtype=torch.uint8)
    depth = torch.zeros(count, height, width)
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for i, (h, w) in enumerate(sizes):
        found = exact_maps(stage(), c2w[i].numpy(), K[i].numpy(), h, w)[0]
        depth[i, :h, :w] = torch.from_numpy(found)
        masks[i, :h, :w] = True
    views = Views(
        images=images,
        names=tuple(f"{i}.png" for i in range(count)),
        from_original=torch.eye(3).repeat(count, 1, 1),
        sizes=torch.tensor(sizes),
        masks=masks,
    )
    cameras = Cameras(w2c=invert_se3(c2w), K=K, height=height, width=width)
    return Truth(views, cameras, depth)


class StandIn(nn.Module):
    """Gives true points in the first camera's frame, in a unit of each pair's own.

    Args:
        truth: The scene.
        size: Long side of the network's pictures.
        square: As Splatt3R cuts them.
        noise: Standard deviation along the ray, as a share of depth.
        metric: Use metres instead of units of the pair's own.
        outliers: Pairs (in either order) that are answered with nonsense, as surely as others.
        splats: Also give Gaussians.
        descriptors: Also give descriptors, surest where the other picture shows the point too.
    """

    def __init__(
        self,
        truth: Truth,
        size: int = 64,
        *,
        square: bool = False,
        noise: float = 0.0,
        metric: bool = False,
        outliers: tuple[tuple[int, int], ...] = (),
        splats: bool = False,
        descriptors: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("mark", torch.tensor([noise]))
        self.noise, self.metric, self.outliers, self.splats = noise, metric, set(outliers), splats
        self.pictures: list[Picture] = load_pictures(truth.views, size, square=square)
        self.w2c = truth.cameras.w2c
        self.calls = 0
        self.descriptors = descriptors
        self.K: list[Tensor] = []
        points = []
        for i, picture in enumerate(self.pictures):
            K = picture.from_source @ truth.cameras.K[i].numpy()
            self.K.append(torch.from_numpy(K))
            pose = truth.cameras.c2w[i].numpy()
            points.append(torch.from_numpy(exact_maps(stage(), pose, K, *picture.size)[1]))
        self.points = points
        waves = torch.randn(3, 12, generator=torch.Generator().manual_seed(1)).double()
        self.waves = 6 * waves

    def forward(self, view1: dict[str, Any], view2: dict[str, Any]) -> tuple[Any, Any]:
        self.calls += len(view1["idx"])
        made = [self.pair(i, j) for i, j in zip(view1["idx"], view2["idx"], strict=True)]
        results = []
        for side, name in ((0, "pts3d"), (1, "pts3d_in_other_view")):
            rows = [pair[side] for pair in made]
            result = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
            result[name] = result.pop("pts")
            if "means" in result and side == 1:
                result["means_in_other_view"] = result.pop("means")
            results.append(result)
        return results[0], results[1]

    def pair(self, i: int, j: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        rng = torch.Generator().manual_seed(1000 * i + j)
        unit = 1.0 if self.metric else float(0.5 + torch.rand(1, generator=rng))
        bad = (i, j) in self.outliers or (j, i) in self.outliers
        out = []
        for image in (i, j):
            world = self.points[image]
            w2c = self.w2c[i]
            local = world @ w2c[:3, :3].T + w2c[:3, 3]
            own = world @ self.w2c[image][:3, :3].T + self.w2c[image][:3, 3]
            ray = own @ (self.w2c[i][:3, :3] @ self.w2c[image][:3, :3].T).T
            shape = local.shape[:2]
            local = local + self.noise * ray * torch.randn(*shape, 1, generator=rng).double()
            if bad and image == j:  # it looks right in itself, and stands somewhere else
                turn = torch.linalg.qr(torch.randn(3, 3, generator=rng).double())[0]
                turn = turn * torch.linalg.det(turn)
                local = (local - local.mean((0, 1))) @ turn.T + torch.tensor([0.5, 0.2, 3.0])
            conf = 4 + torch.rand(*shape, generator=rng)
            out.append({"pts": (unit * local).float(), "conf": conf})
            if self.descriptors:
                desc, sure = self.describe(world, j if image == i else i)
                if bad:  # sure matches that are all wrong
                    desc = desc.flatten(0, 1)[torch.randperm(desc[..., 0].numel(), generator=rng)]
                    desc, sure = desc.view(*shape, -1), torch.full_like(sure, 10.0)
                out[-1] |= {"desc": desc, "desc_conf": sure}
            if self.splats:
                out[-1] |= self.gaussians(out[-1]["pts"], image)
        return out[0], out[1]

    def describe(self, world: Tensor, other: int) -> tuple[Tensor, Tensor]:
        """Return unit descriptors of points, and 10 where another picture shows them, else 0.1."""
        wave = world @ self.waves
        desc = torch.cat([wave.cos(), wave.sin()], -1) / 12**0.5
        w2c, K = self.w2c[other], self.K[other]
        local = world @ w2c[:3, :3].T + w2c[:3, 3]
        place = (local @ K.T)[..., :2] / local[..., 2:]
        height, width = self.pictures[other].size
        x, y = place.floor().clamp(-1, 2 * max(height, width)).long().unbind(-1)
        inside = (local[..., 2] > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        there = self.points[other][y.clamp(0, height - 1), x.clamp(0, width - 1)]
        seen = inside & ((there - world).norm(dim=-1) < 0.06)
        return desc.float(), torch.where(seen, 10.0, 0.1)

    def gaussians(self, points: Tensor, image: int) -> dict[str, Tensor]:
        shape = points.shape[:2]
        colors = torch.from_numpy(self.pictures[image].pixels.copy()).float() / 255
        quats = torch.zeros(*shape, 4)
        quats[..., 3] = 1  # xyzw
        return {
            "means": points.clone(),
            "scales": torch.full((*shape, 3), 0.01),
            "rotations": quats,
            "sh": ((colors - 0.5) / 0.28209479177387814)[..., None],
            "opacities": torch.full((*shape, 1), 0.9),
        }


def pose_errors(found: Tensor, truth: Tensor) -> tuple[float, float]:
    """Return the worst rotation error in degrees and position error over the cameras' extent."""
    eye = torch.eye(3, dtype=torch.float64).repeat(len(found), 1, 1)
    a, b = (Cameras(w2c=w.double(), K=eye, height=1, width=1) for w in (found, truth))
    moved = transform_cameras(a, align_cameras(a.w2c, b.w2c))
    trace = (moved.w2c[:, :3, :3] * b.w2c[:, :3, :3]).sum((-2, -1))
    angle = torch.rad2deg(((trace - 1) / 2).clamp(-1, 1).acos())
    extent = (b.centers - b.centers.mean(0)).norm(dim=-1).max()
    return float(angle.max()), float((moved.centers - b.centers).norm(dim=-1).max() / extent)


def depth_error(found: Any, truth: Truth) -> float:
    """Return the median relative error of valid depth after scaling each scene as a whole."""
    valid = found.valid
    ratio = found.depth[valid] / truth.depth[valid]
    ratio = ratio / ratio.median()
    return float((ratio - 1).abs().quantile(0.9))


def some_outliers(count: int, share: float, seed: int = 0) -> tuple[tuple[int, int], ...]:
    pairs = [(i, j) for i in range(count) for j in range(i)]
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(pairs), round(share * len(pairs)), replace=False)
    return tuple(pairs[k] for k in chosen)
