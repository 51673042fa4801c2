"""MASt3R's sparse global alignment: cameras on a chain, depth on a coarse grid, matches only.

First only poses and sizes move, and matched points attract each other in space; then focal lengths,
principal points and depth move too, and matches are compared in the pictures (Leroy et al. 2024,
MASt3R-SfM, section 3.3).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from sightline.geometry.pose import invert_se3, rigid_matrix
from sightline.models.pose_encoding import matrix_to_quaternion, quaternion_to_matrix
from sightline.reconstruction.pairwise.anchors import SparseProblem, dense_anchors

OnStep = Callable[[int, int], None]

_FOCAL_LOW, _FOCAL_HIGH = 0.25, 10.0  # picture diagonals
_NEAREST = 1e-3  # depth below which projections are not trusted
_PIXEL_LOW, _PIXEL_HIGH = -1000.0, 2000.0


class SparseScene(NamedTuple):
    """Cameras and depth.

    Attributes:
        intrinsics: In the grids' pixels.
        poses: Camera to world.
        depth: At the blocks' centres, one after the other for every picture.
        points: World points of all anchors.
        sizes: Scale of every picture against its canonical view.
    """

    intrinsics: Float[Tensor, "n 3 3"]
    poses: Float[Tensor, "n 4 4"]
    depth: list[Float[Tensor, " _"]]
    points: Float[Tensor, "m 3"]
    sizes: Float[Tensor, " n"]


class SparseAlignment(nn.Module):
    """The parameters of a sparse alignment and its objectives.

    A camera hangs on its parent by the point of its optical axis at median depth: changing its size
    or focal length then moves the camera, not what it looks at.
    """

    def __init__(
        self,
        problem: SparseProblem,
        root: int,
        edges: Sequence[tuple[int, int]],
        *,
        shared_intrinsics: bool = False,
    ) -> None:
        """Start with all cameras at one place.

        Args:
            problem: What to align.
            root: Of the tree of cameras.
            edges: (parent, child), from the root on.
            shared_intrinsics: One focal length and (relative) principal point for all pictures.
        """
        super().__init__()
        self.problem, self.root, self.edges = problem, root, list(edges)
        n = len(problem.grids)
        quats = torch.zeros(n, 4)
        quats[:, 3] = 1
        self.quats = nn.Parameter(quats)
        self.trans = nn.Parameter(torch.zeros(n, 3))
        self.log_sizes = nn.Parameter(torch.zeros(n))
        extent = [(g.width * g.step[0], g.height * g.step[1]) for g in problem.grids]
        self.extent: Float[Tensor, "n 2"] = torch.tensor(extent)
        self.corner: Float[Tensor, "n 2"] = torch.tensor([g.corner for g in problem.grids])
        centers = (torch.tensor([g.center for g in problem.grids]) - self.corner) / self.extent
        self.base_focals: Float[Tensor, " n"] = torch.tensor([c.focal for c in problem.canonical])
        log_focals = self.base_focals.log()
        self.shared = shared_intrinsics
        if shared_intrinsics:
            share = torch.stack([c.confidence.mean() for c in problem.canonical])
            share = share / share.sum()
            centers = (share @ centers)[None]
            log_focals = (share @ self.base_focals).log()[None]
        self.centers = nn.Parameter(centers)
        self.log_focals = nn.Parameter(log_focals)
        diagonal = self.extent.norm(dim=1)
        self.focal_range = _FOCAL_LOW * diagonal, _FOCAL_HIGH * diagonal
        self.medians: Float[Tensor, " n"] = torch.stack(
            [c.core.flatten().median() for c in problem.canonical]
        )
        self.core_sizes = [c.core.numel() for c in problem.canonical]
        self.core_image: Int64[Tensor, " c"] = torch.repeat_interleave(
            torch.arange(n), torch.tensor(self.core_sizes)
        )
        core = torch.cat([c.core.flatten() for c in problem.canonical])
        self.core = nn.Parameter(core / self.medians[self.core_image])
        starts = torch.tensor([0, *self.core_sizes]).cumsum(0)[:-1]
        self.core_start: Int64[Tensor, " n"] = starts
        self.core_of_anchor = problem.anchors.block + starts[problem.anchors.image]

    @torch.no_grad()
    def start_from(self, poses: Float[Tensor, "n 4 4"], scales: Float[Tensor, " n"]) -> None:
        """Place all cameras.

        Args:
            poses: Camera to world.
            scales: Of every picture's canonical view in that world.
        """
        self.log_sizes.copy_(scales.log())
        hubs = poses.clone()
        hubs[:, :3, 3] += (poses[:, :3, :3] @ self._ahead(*self._lenses(), scales)[..., None])[
            ..., 0
        ]
        parents = {child: parent for parent, child in self.edges}
        for i in range(len(poses)):
            own = hubs[i] if i == self.root else invert_se3(hubs[parents[i]]) @ hubs[i]
            self.quats[i] = matrix_to_quaternion(own[:3, :3])
            self.trans[i] = own[:3, 3]

    def _lenses(self) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 2"]]:
        low, high = self.focal_range
        focals = self.log_focals.exp().expand(len(low))
        focals = torch.minimum(torch.maximum(focals, low), high)
        return focals, self.centers.expand(len(low), 2)

    def _ahead(
        self, focals: Float[Tensor, " n"], centers: Float[Tensor, "n 2"], sizes: Float[Tensor, " n"]
    ) -> Float[Tensor, "n 3"]:
        """Return, in camera axes, the point in the picture's middle at median depth."""
        away = sizes * self.medians * focals / self.base_focals
        across = self.extent / focals[:, None] * (0.5 - centers)
        return away[:, None] * torch.cat([across, torch.ones_like(across[:, :1])], -1)

    def cameras(
        self,
    ) -> tuple[Float[Tensor, "n 3 3"], Float[Tensor, "n 4 4"], Float[Tensor, " c"]]:
        """Return intrinsics, camera-to-world poses and depth at all blocks' centres."""
        focals, centers = self._lenses()
        n = len(focals)
        K = torch.zeros(n, 3, 3)
        K[:, 0, 0] = K[:, 1, 1] = focals
        K[:, :2, 2] = centers * self.extent + self.corner
        K[:, 2, 2] = 1
        sizes = self.log_sizes.exp()
        unit = 1 / sizes.min()  # else shrinking everything would shrink the loss
        ahead = self._ahead(focals, centers, sizes)
        relative = rigid_matrix(quaternion_to_matrix(self.quats), self.trans)
        chain: list[Tensor] = list(relative)
        for parent, child in self.edges:
            chain[child] = chain[parent] @ relative[child]
        hubs = torch.stack(chain)
        moved = hubs[:, :3, 3] - (hubs[:, :3, :3] @ ahead[..., None])[..., 0]
        poses = rigid_matrix(hubs[:, :3, :3], unit * moved)
        spread = (self.medians * sizes)[self.core_image]
        depth = unit * (ahead[self.core_image, 2] + (self.core - 1) * spread)
        return K, poses, depth

    def lift(
        self,
        K: Float[Tensor, "n 3 3"],
        poses: Float[Tensor, "n 4 4"],
        depth: Float[Tensor, " c"],
        image: Int64[Tensor, " m"],
        places: Float[Tensor, "m 2"],
        core: Int64[Tensor, " m"],
        offset: Float[Tensor, " m"],
    ) -> tuple[Float[Tensor, "m 3"], Float[Tensor, " m"]]:
        """Return world points and depth of pixels that hang on blocks.

        Depth differences inside a block shrink as the focal length grows, so that slopes stay.
        """
        focals = K[:, 0, 0]
        z = depth[core] * (1 + (offset - 1) * (self.base_focals / focals)[image])
        rays = (places - K[image, :2, 2]) / focals[image, None]
        local = torch.cat([rays, torch.ones_like(rays[:, :1])], -1) * z[:, None]
        pose = poses[image]
        return torch.baddbmm(pose[:, :3, 3:], pose[:, :3, :3], local[..., None])[..., 0], z

    def anchor_points(self, K: Tensor, poses: Tensor, depth: Tensor) -> Float[Tensor, "m 3"]:
        """Return world points of all anchors."""
        a = self.problem.anchors
        return self.lift(K, poses, depth, a.image, a.places, self.core_of_anchor, a.offset)[0]

    def loss_in_space(self, points: Float[Tensor, "m 3"], gamma: float) -> Float[Tensor, ""]:
        """Return the mean distance of matched points."""
        p = self.problem
        if len(p.first) == 0:
            return points.sum() * 0.0
        gap = points[p.first] - points[p.second]
        return p.confidence @ robust(gap, gamma) / p.confidence.sum()

    def loss_in_pictures(
        self, K: Tensor, poses: Tensor, points: Float[Tensor, "m 3"], gamma: float
    ) -> Float[Tensor, ""]:
        """Return the mean distance, in pixels, of matched points seen from each other's picture."""
        p, a = self.problem, self.problem.anchors
        if len(p.first) == 0:
            return points.sum() * 0.0
        here = torch.cat([p.first, p.second])
        there = torch.cat([p.second, p.first])
        image = a.image[here]
        w2c = invert_se3(poses)
        projection = K @ w2c[:, :3]
        seen = points[there]
        shown = torch.baddbmm(
            projection[image][:, :, 3:], projection[image][:, :, :3], seen[..., None]
        )[..., 0]
        place = shown[:, :2] / shown[:, 2:].clamp(min=_NEAREST)
        place = place.clamp(_PIXEL_LOW, _PIXEL_HIGH)
        weight = torch.cat([p.confidence, p.confidence])
        return weight @ robust(a.places[here] - place, gamma) / weight.sum()

    def loss_of_guesses(
        self, poses: Tensor, points: Float[Tensor, "m 3"], gamma: float
    ) -> Float[Tensor, ""]:
        """Return the mean distance to what the network says, for pairs that match badly."""
        p = self.problem
        if len(p.guess) == 0:
            return points.sum() * 0.0
        pose = poses[p.guess_frame]
        wanted = torch.baddbmm(pose[:, :3, 3:], pose[:, :3, :3], p.guess[..., None])[..., 0]
        gap = points[p.guess_anchor] - wanted
        return p.guess_weight @ robust(gap, gamma) / p.guess_weight.sum()

    @torch.no_grad()
    def result(self) -> SparseScene:
        """Return the scene as it is."""
        K, poses, depth = self.cameras()
        points = self.anchor_points(K, poses, depth)
        sizes = self.log_sizes.exp()
        return SparseScene(
            K, poses, list(depth.split(self.core_sizes)), points, sizes / sizes.min()
        )

    @torch.no_grad()
    def dense(self, scene: SparseScene) -> tuple[list[Tensor], list[Tensor]]:
        """Return world points [h w 3] and depth [h w] of every pixel, picture by picture."""
        depth = torch.cat(scene.depth)
        clouds, maps = [], []
        for image, grid in enumerate(self.problem.grids):
            places, block, offset = dense_anchors(self.problem, image)
            number = torch.full_like(block, image)
            core = block + self.core_start[image]
            points, z = self.lift(
                scene.intrinsics, scene.poses, depth, number, places, core, offset
            )
            clouds.append(points.view(grid.height, grid.width, 3))
            maps.append(z.view(grid.height, grid.width))
        return clouds, maps


def robust(gap: Float[Tensor, "m d"], gamma: float) -> Float[Tensor, " m"]:
    """Return ``(r + o)^gamma - o^gamma`` of the lengths r, with slope 1 at 0."""
    length = gap.norm(dim=-1)
    if gamma == 1:
        return length
    offset = (1 / gamma) ** (1 / (gamma - 1))
    return (length + offset) ** gamma - offset**gamma


def optimize_sparse(
    alignment: SparseAlignment,
    *,
    coarse: tuple[int, float, float] = (300, 0.07, 1.5),
    fine: tuple[int, float, float] = (300, 0.01, 0.5),
    guess_gamma: float = 1.1,
    guess_weight: float = 0.01,
    optimize_center: bool = True,
    optimize_depth: bool = True,
    known_focal: Bool[Tensor, " n"] | None = None,
    on_step: OnStep | None = None,
) -> tuple[SparseScene, SparseScene]:
    """Run both stages.

    Args:
        alignment: Changed in place.
        coarse: Steps, step size and gamma of the loss between points.
        fine: Steps, step size and gamma of the loss in pictures.
        guess_gamma: Of the loss for pairs that match badly.
        guess_weight: Its share.
        optimize_center: Let principal points move in the fine stage.
        optimize_depth: Let depth move in the fine stage.
        known_focal: Pictures whose focal length and principal point stay.
        on_step: Called with the steps done and their number.

    Returns:
        The scene after the coarse and after the fine stage.
    """
    a = alignment
    steps = coarse[0] + fine[0]
    keep = None if known_focal is None or a.shared else known_focal

    def run(
        stage: int, settings: tuple[int, float, float], free: list[nn.Parameter]
    ) -> SparseScene:
        count, rate, gamma = settings
        for parameter in a.parameters():
            parameter.requires_grad_(any(parameter is f for f in free))
            parameter.grad = None
        optimizer = torch.optim.Adam(free, lr=1.0, betas=(0.9, 0.9))
        scene = a.result()
        for step in range(count):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 + math.cos(math.pi * step / count)) / 2
            optimizer.zero_grad()
            K, poses, depth = a.cameras()
            points = a.anchor_points(K, poses, depth)
            if stage == 0:
                loss = a.loss_in_space(points, gamma)
            else:
                loss = a.loss_in_pictures(K, poses, points, gamma)
            loss = loss + guess_weight * a.loss_of_guesses(poses, points, guess_gamma)
            if not bool(loss.isfinite()):
                return scene
            # As in the original the result is the scene that the last step was taken from.
            if step == count - 1:
                scene = a.result()
            loss.backward()
            if keep is not None:
                for parameter in (a.log_focals, a.centers):
                    if parameter.grad is not None:
                        parameter.grad[keep] = 0
            optimizer.step()
            with torch.no_grad():
                a.quats.div_(a.quats.norm(dim=-1, keepdim=True))
            if on_step is not None:
                on_step(step + 1 + stage * coarse[0], steps)
        return scene

    pose = [a.quats, a.trans, a.log_sizes]
    after_coarse = run(0, coarse, pose)
    free = [*pose, a.log_focals]
    free += [a.centers] if optimize_center else []
    free += [a.core] if optimize_depth else []
    return after_coarse, run(1, fine, free)
