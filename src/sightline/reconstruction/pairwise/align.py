"""DUSt3R's global alignment: one world in which the point maps of all pairs agree.

Every pair gets a similarity, every picture a camera and a depth map; the distance between the
pictures' points and the pairs' transformed predictions is minimised (Wang et al. 2024, section
3.4). Parameters are stored as in the original, so that the step sizes mean the same.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sightline.errors import InputError
from sightline.geometry.pose import rigid_matrix
from sightline.models.pose_encoding import matrix_to_quaternion, quaternion_to_matrix
from sightline.reconstruction.pairwise.pairs import Grid, Predictions

Distance = Literal["l1", "l2"]
Weighting = Literal["log", "sqrt", "m1", "id"]
Schedule = Literal["cosine", "linear"]

_FOCAL_BREAK = 20.0
_PAIR_BREAK = 20.0
_CENTER_BREAK = 10.0
_LOW_RATE = 1e-6
WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "log": torch.log,
    "sqrt": torch.sqrt,
    "m1": lambda c: c - 1,
    "id": lambda c: c,
}
"""How confidence becomes a weight."""


class Alignment(nn.Module):
    """The parameters and the objective of a global alignment.

    Attributes:
        pw_poses: [E 8] quaternion xyzw, translation (over scale) as sign * log1p, log scale.
        pw_adaptors: [E 2] stretch of a pair's points across and along the optical axis.
        im_depthmaps: [N A] log depth, row by row, padded.
        im_poses: [N 7] camera to world, as pw_poses.
        im_focals: [N 1] or [N 2], 20 log(focal).
        im_pp: [N 2] principal points, a tenth of the way from the grid's.
    """

    def __init__(
        self,
        predictions: Predictions,
        grids: Sequence[Grid],
        *,
        distance: Distance = "l1",
        weighting: Weighting = "log",
        per_edge: bool = False,
        base_scale: float = 0.5,
        min_confidence: float = 3.0,
        optimize_center: bool = False,
        optimize_adaptors: bool = False,
        fx_and_fy: bool = False,
    ) -> None:
        """Prepare the objective.

        Args:
            predictions: Of pairs of pictures; every picture is in one.
            grids: Of the pictures.
            distance: ``l1`` is the Euclidean distance, ``l2`` its square.
            weighting: What a confidence weighs.
            per_edge: Average every pair by itself (the original's modular class) instead of all
                pixels at once.
            base_scale: Geometric mean of the pairs' scales; it keeps the world from shrinking.
            min_confidence: Above it, a pixel is used to find poses.
            optimize_center: Let principal points move.
            optimize_adaptors: Let pairs be stretched.
            fx_and_fy: Two focal lengths a picture.
        """
        super().__init__()
        self.edges = list(predictions)
        self.predictions = predictions
        self.grids = list(grids)
        self.distance: Distance = distance
        self.base_scale = base_scale
        self.min_confidence = min_confidence
        self.norm_scale = True
        images, count = [i for i, _ in self.edges] + [j for _, j in self.edges], len(self.edges)
        if sorted(set(images)) != list(range(len(grids))):
            msg = f"expected every one of {len(grids)} pictures in a pair, got {self.edges}"
            raise InputError(msg)
        areas = [grid.height * grid.width for grid in grids]
        size = max(areas)
        sides = [(edge, 0) for edge in self.edges] + [(edge, 1) for edge in self.edges]
        some = next(iter(predictions.values())).points[0]
        target = some.new_zeros(2 * count, size, 3)
        weight = some.new_zeros(2 * count, size)
        confidence = some.new_zeros(len(grids), size)
        total = [float(sum(areas[i] for i in images[:count])), 0.0]
        total[1] = float(sum(areas[j] for j in images[count:]))
        for row, (edge, side) in enumerate(sides):
            maps, area = predictions[edge], areas[images[row]]
            target[row, :area] = maps.points[side].flatten(0, 1)
            sure = maps.confidence[side].flatten()
            share = count * area if per_edge else total[side]
            weight[row, :area] = torch.where(sure > 0, WEIGHTINGS[weighting](sure), 0.0) / share
            best = confidence[images[row], :area]
            torch.maximum(best, sure, out=best)
        self.target: Tensor
        self.weight: Tensor
        self.confidence: Tensor
        self.register_buffer("target", target, persistent=False)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("confidence", confidence, persistent=False)
        self.image_of: Tensor
        self.register_buffer("image_of", torch.tensor(images), persistent=False)
        pixels = some.new_zeros(len(grids), size, 2)
        for row, (grid, area) in enumerate(zip(grids, areas, strict=True)):
            pixels[row, :area] = grid.pixels().flatten(0, 1)
        self.pixels: Tensor
        self.register_buffer("pixels", pixels, persistent=False)
        self.center: Tensor
        self.register_buffer("center", some.new_tensor([g.center for g in grids]), persistent=False)
        n = len(grids)
        self.pw_poses = nn.Parameter(_unit_poses(some, count, 8))
        self.pw_adaptors = nn.Parameter(some.new_zeros(count, 2), optimize_adaptors)
        self.im_depthmaps = nn.Parameter(some.new_zeros(n, size))
        self.im_poses = nn.Parameter(_unit_poses(some, n, 7))
        start = [math.log(g.long_side) for g in grids]
        focals = _FOCAL_BREAK * some.new_tensor(start)[:, None]
        self.im_focals = nn.Parameter(focals.repeat(1, 2 if fx_and_fy else 1))
        self.im_pp = nn.Parameter(some.new_zeros(n, 2), optimize_center)
        self.known_pose: Bool[Tensor, " N"] = torch.zeros(n, dtype=torch.bool)
        self.known_focal: Bool[Tensor, " N"] = torch.zeros(n, dtype=torch.bool)

    def preset_poses(self, poses: Float[Tensor, "N 4 4"], known: Bool[Tensor, " N"]) -> None:
        """Fix camera-to-world poses. From two on they fix the scale of the world too."""
        for index in known.nonzero()[:, 0].tolist():
            self.set_pose(index, poses[index])
        self.known_pose = known.clone()
        self.norm_scale = int(known.sum()) <= 1

    def preset_focals(self, focals: Float[Tensor, " N"], known: Bool[Tensor, " N"]) -> None:
        """Fix focal lengths, in the grids' pixels."""
        for index in known.nonzero()[:, 0].tolist():
            self.set_focal(index, float(focals[index]))
        self.known_focal = known.clone()

    @torch.no_grad()
    def set_pose(self, index: int, pose: Float[Tensor, "4 4"]) -> None:
        """Start a picture's pose, unless it is known."""
        if not self.known_pose[index]:
            self.im_poses[index] = _encode(pose[:3, :3], pose[:3, 3]).to(self.im_poses)

    @torch.no_grad()
    def set_pair(
        self, edge: int, scale: Tensor, rotation: Float[Tensor, "3 3"], shift: Float[Tensor, "3"]
    ) -> None:
        """Start a pair's similarity ``x -> scale rotation x + shift``."""
        pose = _encode(rotation, shift / scale)
        self.pw_poses[edge] = torch.cat([pose, scale.reshape(1).log().to(pose)]).to(self.pw_poses)

    @torch.no_grad()
    def set_focal(self, index: int, focal: float) -> None:
        """Start a picture's focal length, unless it is known."""
        if not self.known_focal[index]:
            self.im_focals[index] = _FOCAL_BREAK * math.log(focal)

    @torch.no_grad()
    def set_depth(self, index: int, depth: Float[Tensor, "h w"]) -> None:
        """Start a picture's depth map; what is not positive starts at 1."""
        start = torch.where(depth > 0, depth, 1.0).log().flatten()
        self.im_depthmaps[index, : len(start)] = start

    def scale_factor(self) -> Tensor:
        """Return what normalises the pairs' scales."""
        if not self.norm_scale:
            return torch.ones((), device=self.pw_poses.device)
        return (math.log(self.base_scale) - self.pw_poses[:, -1].mean()).exp()

    def pair_scales(self) -> Float[Tensor, " E"]:
        """Return the scale of every pair."""
        return self.pw_poses[:, 7].exp() * self.scale_factor()

    def pair_transforms(self) -> Float[Tensor, "E 4 4"]:
        """Return the similarity of every pair, its rotation scaled."""
        rotation, shift = _decode(self.pw_poses)
        scale = self.pair_scales()
        return rigid_matrix(rotation * scale[:, None, None], shift * scale[:, None])

    def poses(self) -> Float[Tensor, "N 4 4"]:
        """Return camera-to-world poses."""
        free = self.im_poses
        fixed = self.known_pose.to(free.device)[:, None]
        return rigid_matrix(*_decode(torch.where(fixed, free.detach(), free)))

    def focals(self) -> Float[Tensor, "N _"]:
        """Return focal lengths, in the grids' pixels."""
        free = self.im_focals
        fixed = self.known_focal.to(free.device)[:, None]
        return (torch.where(fixed, free.detach(), free) / _FOCAL_BREAK).exp()

    def centers(self) -> Float[Tensor, "N 2"]:
        """Return principal points."""
        return self.center + _CENTER_BREAK * self.im_pp

    def intrinsics(self) -> Float[Tensor, "N 3 3"]:
        """Return K of the grids' pixels."""
        focals = self.focals()
        K = torch.zeros(len(focals), 3, 3, dtype=focals.dtype, device=focals.device)
        K[:, 0, 0], K[:, 1, 1], K[:, 2, 2] = focals[:, 0], focals[:, -1], 1
        K[:, :2, 2] = self.centers()
        return K

    def world_points(self) -> Float[Tensor, "N A 3"]:
        """Return the pictures' points in the world, padding included."""
        depth = self.im_depthmaps.exp()[..., None]
        across = (self.pixels - self.centers()[:, None]) / self.focals()[:, None]
        pose = self.poses()
        local = torch.cat([depth * across, depth], -1)
        return torch.baddbmm(pose[:, None, :3, 3], local, pose[:, :3, :3].mT)

    def forward(self) -> Float[Tensor, ""]:
        """Return the objective."""
        transforms = self.pair_transforms()
        adapt = torch.cat([self.pw_adaptors[:, :1], self.pw_adaptors], -1)
        if self.norm_scale:
            adapt = adapt - adapt.mean(1, keepdim=True)
        stretched = transforms[:, :3, :3] * (adapt / _PAIR_BREAK).exp()[:, None]
        turn, shift = (torch.cat([t, t]) for t in (stretched, transforms[:, None, :3, 3]))
        moved = torch.baddbmm(shift, self.target, turn.mT)
        gap = self.world_points()[self.image_of] - moved
        if self.distance == "l1":
            return (self.weight * gap.norm(dim=-1)).sum()
        return (self.weight * gap.square().sum(-1)).sum()

    @torch.no_grad()
    def depth_maps(self) -> list[Float[Tensor, "_ _"]]:
        """Return depth of every picture."""
        return [
            row[: g.height * g.width].view(g.height, g.width)
            for row, g in zip(self.im_depthmaps.exp(), self.grids, strict=True)
        ]

    def confidence_maps(self) -> list[Float[Tensor, "_ _"]]:
        """Return for every pixel its largest confidence in any pair."""
        return [
            row[: g.height * g.width].view(g.height, g.width)
            for row, g in zip(self.confidence, self.grids, strict=True)
        ]


def optimize(
    alignment: Alignment,
    *,
    iterations: int = 300,
    rate: float = 0.01,
    schedule: Schedule = "cosine",
    on_step: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Run Adam on an alignment that has been initialised.

    Args:
        alignment: Changed in place.
        iterations: Steps.
        rate: Step size at the start; it falls to 1e-6.
        schedule: How it falls.
        on_step: Called with the steps done and their number.

    Returns:
        The objective before each step.
    """
    free = [p for p in alignment.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(free, lr=rate, betas=(0.9, 0.9))
    losses = []
    for step in range(iterations):
        t = step / iterations
        part = (1 + math.cos(math.pi * t)) / 2 if schedule == "cosine" else 1 - t
        for group in optimizer.param_groups:
            group["lr"] = _LOW_RATE + (rate - _LOW_RATE) * part
        optimizer.zero_grad()
        loss = alignment()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if on_step is not None:
            on_step(step + 1, iterations)
    return losses


def _unit_poses(like: Tensor, count: int, width: int) -> Tensor:
    poses = like.new_zeros(count, width)
    poses[:, 3] = 1
    return poses


def _encode(rotation: Float[Tensor, "3 3"], shift: Float[Tensor, "3"]) -> Float[Tensor, "7"]:
    return torch.cat([matrix_to_quaternion(rotation), shift.sign() * shift.abs().log1p()])


def _decode(poses: Tensor) -> tuple[Float[Tensor, "n 3 3"], Float[Tensor, "n 3"]]:
    shift = poses[:, 4:7]
    return quaternion_to_matrix(poses[:, :4]), shift.sign() * shift.abs().expm1()
