"""Scores of a network on held-out pairs."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.metrics.lpips import Lpips
from sightline.metrics.splatt3r import ssim_map
from sightline.training.splatt3r.batch import PairBatch, in_unit, unit_of
from sightline.training.splatt3r.render import draw_pair

_SMALLEST = 31
"""Side of the smallest pictures that LPIPS takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairScore:
    """How well a network knows one pair; means over its targets, masked as in training."""

    scene: str
    psnr: float
    """Over masked pixels and channels, in dB."""
    ssim: float
    lpips: float
    """NaN without weights."""
    coverage: float
    """Share of the targets' pixels that the mask keeps."""
    points: float
    """Median error of the points over their distance, both context views; NaN without depth."""


@torch.no_grad()
def score_pairs(
    network: nn.Module, batches: Iterable[PairBatch], lpips: Lpips | None = None
) -> list[PairScore]:
    """Score a network on batches of pairs; it is left in the mode that it came in."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        found = [score for batch in batches for score in _score_batch(network, batch, lpips)]
    finally:
        for module in training:
            module.training = True
    return found


def _score_batch(network: nn.Module, batch: PairBatch, lpips: Lpips | None) -> list[PairScore]:
    first, second = network(*batch.views())
    unit = unit_of(batch, first, second)
    cameras = in_unit(batch.w2c, unit)
    drawn = draw_pair(first, second, cameras, batch.K, batch.size).clamp(0, 1)
    psnr, ssim = masked_scores(drawn, batch.targets, batch.masks)
    look = torch.full_like(psnr, math.nan)
    if lpips is not None and min(batch.size) >= _SMALLEST:
        flat = (drawn.flatten(0, 1), batch.targets.flatten(0, 1), batch.masks.flatten(0, 1))
        look = lpips(*flat).view_as(psnr)
    guess = torch.stack([first["pts3d"], second["pts3d_in_other_view"]], 1)
    guess = guess / unit[:, None, None, None, None]
    error = (guess - batch.points).norm(dim=-1) / batch.points.norm(dim=-1).clamp(min=1e-6)
    error = torch.where(batch.valid, error, math.nan).flatten(1).nanmedian(1).values
    share = batch.masks.float().mean((1, 2, 3))
    rows = zip(batch.scenes, psnr, ssim, look, share, error, strict=True)
    return [
        PairScore(
            scene=scene,
            psnr=float(p.nanmean()),
            ssim=float(s.nanmean()),
            lpips=float(look.nanmean()),
            coverage=float(c),
            points=float(e),
        )
        for scene, p, s, look, c, e in rows
    ]


def masked_scores(
    drawn: Float[Tensor, "b v 3 h w"], target: Float[Tensor, "b v 3 h w"], masks: Tensor
) -> tuple[Float[Tensor, "b v"], Float[Tensor, "b v"]]:
    """Return PSNR in dB and SSIM of every view over its masked pixels; NaN where there is none."""
    weight = masks.to(drawn.dtype)
    count = weight.sum((-1, -2))
    error = ((drawn - target).square().mean(2) * weight).sum((-1, -2)) / count
    shown = masks[:, :, None]
    pair = ((drawn * shown).flatten(0, 1), (target * shown).flatten(0, 1))
    alike = ssim_map(*pair).mean(1).view_as(weight)
    return -10 * error.clamp(min=1e-10).log10(), (alike * weight).sum((-1, -2)) / count


def means(scores: Sequence[PairScore]) -> dict[str, float]:
    """Return the mean of each measure over pairs, without what is not known."""
    names = ("psnr", "ssim", "lpips", "coverage", "points")
    table = torch.tensor([[getattr(score, name) for name in names] for score in scores])
    return dict(zip(names, table.nanmean(0).tolist(), strict=True))
