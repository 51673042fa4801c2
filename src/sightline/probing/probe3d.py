"""Probe3D's probes over cached features: depth, surface normals, correspondence.

El Banani et al. 2024 (arXiv:2404.08636, github.com/mbanani/probe3d). There, heads are trained on
thousands of pictures (NYUv2, NAVI); here the same losses and scores run within a scene that has
depth: a readout is trained on all training views but the last, and scored on that one. Matching
needs no training.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from sightline.errors import InputError
from sightline.geometry.camera import project_points, unproject_depth
from sightline.geometry.pointmap import depth_to_normals
from sightline.geometry.rotation import rotation_angle
from sightline.io.arrays import write_npz
from sightline.probing.scenes import ProbeScene
from sightline.probing.tokens import TokenGrid

STEPS = 300
RATE = 5e-4 * 4  # full batches of one scene instead of eight pictures of thousands
BINS = 256
NEAREST_DEPTH = 0.001
TOP_MATCHES = 1000
PIXEL_ERRORS = (5, 25, 50)
METRIC_ERRORS = (0.01, 0.02, 0.05)
ANGLES = (0, 30, 60, 90, 120)


def run_probe3d(
    probe: str, scene: ProbeScene, tokens: TokenGrid, *, seed: int, out: Path
) -> dict[str, Any]:
    """Run one probe; returns its scores as floats.

    Raises:
        InputError: If the scene has no depth, or fewer than two training views.
    """
    count = scene.num_train
    if scene.depth is None or scene.cameras is None:
        raise InputError(f"{scene.id} has no measured depth, which Probe3D's probes need")
    if count < 2:
        raise InputError(f"{scene.id}: Probe3D's probes need two training views, got {count}")
    depth = scene.depth[:count].float()
    features = tokens.at_pixels()
    if probe == "correspondence":
        return correspondence_scores(features, depth, scene)
    if probe == "depth":
        predicted = fit_depth(features, depth, seed=seed)
        write_npz(out / "depth.npz", {"depth": predicted.numpy()})
        return depth_scores(predicted, depth[-1])
    cameras = scene.cameras.select(list(range(count))).map(lambda t: t.float())
    normals = scene.normals
    truth = depth_to_normals(depth, cameras) if normals is None else normals[:count].float()
    predicted = fit_normals(features, truth, seed=seed)
    write_npz(out / "normals.npz", {"normals": predicted.numpy()})
    return normal_scores(predicted, truth[-1])


class _Head(nn.Module):
    """Two layers a pixel, and three 3 x 3 convolutions to look around."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, 64, 1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, outputs, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features.permute(0, 3, 1, 2))


def _trained(
    features: Tensor,
    outputs: int,
    seed: int,
    loss_of: Any,  # noqa: ANN401
) -> Tensor:
    """Train a head on all views but the last; return its output for the last."""
    spread = features[:-1].std().clamp(min=1e-6)
    features = (features - features[:-1].mean()) / spread
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = _Head(features.shape[-1], outputs)
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * warm_cosine(step / STEPS)
        optimizer.zero_grad()
        loss_of(head(features[:-1])).backward()
        optimizer.step()
    with torch.no_grad():
        return head(features[-1:])


def warm_cosine(share: float, warm: float = 0.15, last: float = 0.01) -> float:
    """Return the factor of the rate: linear up over ``warm``, then a quarter cosine to ``last``."""
    if share < warm:
        return share / warm
    return last + (1 - last) * math.cos(math.pi / 2 * (share - warm) / (1 - warm))


def depth_from_bins(raw: Float[Tensor, "V bins H W"], farthest: float) -> Float[Tensor, "V H W"]:
    """Return expected depth over even bins, with weights ``relu(x) + 0.1`` made to sum to 1."""
    weights = raw.relu() + 0.1
    weights = weights / weights.sum(1, keepdim=True)
    centers = torch.linspace(NEAREST_DEPTH, farthest, raw.shape[1], device=raw.device)
    return torch.einsum("vbhw,b->vhw", weights, centers)


def sig_loss(
    predicted: Float[Tensor, "V H W"], depth: Float[Tensor, "V H W"], weight: float = 0.85
) -> Float[Tensor, ""]:
    """Return the scale-invariant loss in logarithms: ``sqrt(var + (1 - weight) mean^2)``."""
    known = depth > 0
    gap = predicted[known].clamp(min=1e-3).log() - depth[known].log()
    return (gap.var() + (1 - weight) * gap.mean().square()).clamp(min=1e-12).sqrt()


def gradient_loss(
    predicted: Float[Tensor, "V H W"], depth: Float[Tensor, "V H W"], scales: int = 4
) -> Float[Tensor, ""]:
    """Return the mean absolute gradient of the difference of logarithms, over four scales."""
    total = predicted.new_zeros(())
    for scale in range(scales):
        step = 2**scale
        mine, truth = predicted[:, ::step, ::step], depth[:, ::step, ::step]
        known = truth > 0
        gap = torch.where(known, mine.clamp(min=1e-3).log() - truth.clamp(min=1e-3).log(), 0.0)
        for axis in (1, 2):
            both = known.narrow(axis, 1, known.shape[axis] - 1) & known.narrow(
                axis, 0, known.shape[axis] - 1
            )
            total = total + (gap.diff(dim=axis).abs() * both).sum() / both.sum().clamp(min=1)
    return total / scales


def fit_depth(
    features: Float[Tensor, "V H W C"], depth: Float[Tensor, "V H W"], *, seed: int
) -> Float[Tensor, "H W"]:
    """Train on all views but the last; return the last one's depth."""
    farthest = float(depth[:-1].max()) * 1.1

    def loss_of(raw: Tensor) -> Tensor:
        predicted = depth_from_bins(raw, farthest)
        return 10 * sig_loss(predicted, depth[:-1]) + 0.5 * gradient_loss(predicted, depth[:-1])

    return depth_from_bins(_trained(features, BINS, seed, loss_of), farthest)[0]


def depth_scores(predicted: Float[Tensor, "H W"], depth: Float[Tensor, "H W"]) -> dict[str, float]:
    """Return delta < 1.25, 1.25^2, 1.25^3 and RMSE, as predicted and after scale and shift."""
    known = depth > 0
    mine, truth = predicted[known].double(), depth[known].double()
    basis = torch.stack([mine, torch.ones_like(mine)], 1)
    fitted = basis @ torch.linalg.lstsq(basis, truth[:, None]).solution[:, 0]
    scores: dict[str, float] = {}
    for name, values in (("", mine), ("_fitted", fitted.clamp(min=NEAREST_DEPTH))):
        ratio = torch.maximum(values / truth, truth / values.clamp(min=1e-9))
        for power in (1, 2, 3):
            scores[f"d{power}{name}"] = float((ratio < 1.25**power).double().mean())
        scores[f"rmse{name}"] = float((values - truth).square().mean().sqrt())
    return scores


def angular_loss(
    raw: Float[Tensor, "V 4 H W"], normals: Float[Tensor, "V H W 3"]
) -> Float[Tensor, ""]:
    """Return the uncertainty-weighted angular loss of Bae et al. 2021, kappa = elu + 1.01."""
    known = normals.square().sum(-1) > 0.25
    mine = functional.normalize(raw[:, :3].permute(0, 2, 3, 1)[known], dim=-1)
    kappa = functional.elu(raw[:, 3][known]) + 1.01
    cosine = (mine * normals[known]).sum(-1).clamp(-1 + 1e-6, 1 - 1e-6)
    angle = torch.acos(cosine)
    log = (kappa.square() + 1).log()
    return (-log + kappa * angle + torch.log1p(torch.exp(-kappa * math.pi))).mean()


def fit_normals(
    features: Float[Tensor, "V H W C"], normals: Float[Tensor, "V H W 3"], *, seed: int
) -> Float[Tensor, "H W 3"]:
    """Train on all views but the last; return the last one's unit normals."""
    raw = _trained(features, 4, seed, lambda out: angular_loss(out, normals[:-1]))
    return functional.normalize(raw[0, :3].permute(1, 2, 0), dim=-1)


def normal_scores(
    predicted: Float[Tensor, "H W 3"], normals: Float[Tensor, "H W 3"]
) -> dict[str, float]:
    """Return the share of pixels below 11.25, 22.5 and 30 degrees, and the angular RMSE."""
    known = normals.square().sum(-1) > 0.25
    cosine = (predicted[known] * normals[known]).sum(-1).clamp(-1, 1)
    degrees = torch.rad2deg(torch.acos(cosine))
    shares = {
        f"below_{limit:g}": float((degrees < limit).float().mean()) for limit in (11.25, 22.5, 30)
    }
    return {**shares, "angular_rmse": float(degrees.square().mean().sqrt())}


def correspondence_scores(
    features: Float[Tensor, "V H W C"], depth: Float[Tensor, "V H W"], scene: ProbeScene
) -> dict[str, Any]:
    """Match every pair of training views and score the best matches.

    Features are read at a quarter of the size; nearest neighbours by cosine, weighed by the ratio
    to the second nearest, best 1000. Recall is the share of matches whose 2D reprojection, or whose
    3D points, lie within a limit; pairs are also grouped by how much the camera turned.
    """
    assert scene.cameras is not None
    cameras = scene.cameras.select(list(range(scene.num_train))).map(lambda t: t.float())
    points = unproject_depth(depth, cameras)
    rows = slice(2, None, 4)
    small, known = features[:, rows, rows], (depth > 0)[:, rows, rows]
    places = points[:, rows, rows]
    totals: dict[str, list[float]] = {}
    for i in range(len(depth)):
        for j in range(len(depth)):
            if i == j:
                continue
            pair = _match(small[i], small[j], known[i], known[j])
            if pair is None:
                continue
            first, second = places[i][known[i]][pair[0]], places[j][known[j]][pair[1]]
            moved, _ = project_points(first, cameras.select([j]))
            there, _ = project_points(second, cameras.select([j]))
            pixels = (moved[0] - there[0]).norm(dim=-1).nan_to_num(torch.inf)
            metres = (first - second).norm(dim=-1)
            turn = math.degrees(
                float(rotation_angle(cameras.w2c[i, :3, :3], cameras.w2c[j, :3, :3]))
            )
            found = {
                f"recall_{limit}px": float((pixels < limit).float().mean())
                for limit in PIXEL_ERRORS
            }
            found |= {
                f"recall_{100 * limit:g}cm": float((metres < limit).float().mean())
                for limit in METRIC_ERRORS
            }
            bin_ = next((k for k in range(4) if turn < ANGLES[k + 1]), None)
            if bin_ is not None:
                found[f"recall_2cm_{ANGLES[bin_]}_{ANGLES[bin_ + 1]}deg"] = found["recall_2cm"]
            for name, value in found.items():
                totals.setdefault(name, []).append(value)
    if not totals:
        raise InputError(f"{scene.id} has no pair of views with depth to match")
    return {name: math.fsum(values) / len(values) for name, values in totals.items()}


def _match(
    first: Float[Tensor, "h w C"],
    second: Float[Tensor, "h w C"],
    known_first: Bool[Tensor, "h w"],
    known_second: Bool[Tensor, "h w"],
) -> tuple[Tensor, Tensor] | None:
    """Return indices, among the known pixels, of the best matches."""
    a = functional.normalize(first[known_first], dim=-1)
    b = functional.normalize(second[known_second], dim=-1)
    if len(a) < 1 or len(b) < 2:
        return None
    similar = a @ b.mT
    best, index = similar.topk(2, dim=1)
    distance = (1 - best).clamp(min=0)
    ratio = 1 - distance[:, 0] / distance[:, 1].clamp(min=1e-9)
    chosen = ratio.topk(min(TOP_MATCHES, len(ratio))).indices
    return chosen, index[chosen, 0]


def mean_scores(scores: list[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each score over those that have it."""
    names = dict.fromkeys(name for entry in scores for name in entry)
    return {
        name: math.fsum(values) / len(values)
        for name in names
        if (values := [entry[name] for entry in scores if name in entry])
    }
