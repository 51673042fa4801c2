"""Splatt3R's loss: masked pictures, their look, and MASt3R's loss on the points."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from sightline.metrics.lpips import Lpips
from sightline.metrics.splatt3r import official_mse
from sightline.training.pairwise_losses import mast3r_regression_loss, matching_loss
from sightline.training.splatt3r.batch import PairBatch
from sightline.training.splatt3r.settings import Splatt3rSettings

SUBSTITUTE = (
    "gradients and structural similarity at three scales stand in for LPIPS, whose weights were "
    "not given"
)
"""What a run without LPIPS's weights says of itself."""

_LARGEST = 0.1
"""Share of a point's distance that a Gaussian's scale or offset may have for nothing."""
_WINDOW = 7
_C1, _C2 = 0.01**2, 0.03**2

Images = Float[Tensor, "b v 3 h w"]
Matches = tuple[Int64[Tensor, "b n 2"], Int64[Tensor, "b n 2"], Bool[Tensor, "b n"]]


class Losses(NamedTuple):
    """The parts of the loss, already weighted, and their sum."""

    loss: Tensor
    mse: Tensor
    perceptual: Tensor
    points: Tensor
    bounds: Tensor


def splatt3r_loss(
    drawn: Images,
    batch: PairBatch,
    results: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    settings: Splatt3rSettings,
    lpips: Lpips | None = None,
    matches: Matches | None = None,
) -> Losses:
    """Return the loss of a batch.

    Args:
        drawn: The target views as the Gaussians show them.
        batch: What was wanted.
        results: What the network said of both context views.
        settings: Weights of the parts.
        lpips: LPIPS with its weights; None takes `structure_loss`.
        matches: Matching pixels of the context views, for ``settings.matching``.

    Smart et al., Splatt3R, 2024, equations 7 and 8: squared error and LPIPS of masked pictures.
    """
    zero = drawn.new_zeros(())
    mse = settings.mse * official_mse(drawn, batch.targets, batch.masks)
    look = zero
    if settings.perceptual:
        if lpips is None:
            look = structure_loss(drawn, batch.targets, batch.masks)
        else:
            shown = batch.masks[:, :, None]
            pair = (drawn * shown).flatten(0, 1), (batch.targets * shown).flatten(0, 1)
            look = lpips(*pair).mean()
    points = zero
    if settings.points:
        truth = batch.truth()
        points = mast3r_regression_loss(*truth, *results)
        if settings.matching and matches is not None:
            for view, corres in zip(truth, matches[:2], strict=True):
                view["corres"], view["valid_corres"] = corres, matches[2]
            points = points + settings.matching * matching_loss(*truth, *results)
    look, points = settings.perceptual * look, settings.points * points
    bounds = settings.bounds * bounds_loss(*results) if settings.bounds else zero
    return Losses(mse + look + points + bounds, mse, look, points, bounds)


def bounds_loss(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Return how far Gaussians are larger, or further off their points, than they ever should be.

    Scales and offsets are exponentials without a bound, and a Gaussian that has left all views has
    no gradient that would bring it back. Nothing is lost up to a tenth of the point's distance;
    beyond, the squared logarithm of the excess, as a mean over pixels.
    """
    total = torch.zeros_like(first["scales"][0, 0, 0, 0])
    for result, suffix in ((first, ""), (second, "_in_other_view")):
        points = result[f"pts3d{suffix}"].detach()
        most = _LARGEST * points.norm(dim=-1, keepdim=True).clamp(min=1e-3)
        offsets = (result[f"means{suffix}"] - points).abs()
        for sizes in (result["scales"], offsets):
            total = total + (sizes / most).clamp(min=1.0).log().square().mean()
    return total


def structure_loss(
    drawn: Images, target: Images, masks: Bool[Tensor, "b v h w"], scales: int = 3
) -> Float[Tensor, ""]:
    """Return how unlike masked pictures look: the substitute for LPIPS, between 0 and about 2.

    At each of the scales 1, 1/2, 1/4, ...: the mean difference of neighbouring pixels' differences,
    plus half of one minus structural similarity in windows of 7 x 7, both over masked pixels.
    """
    mask = masks.flatten(0, 1)[:, None].to(drawn.dtype)
    a, b = drawn.flatten(0, 1) * mask, target.flatten(0, 1) * mask
    total = drawn.new_zeros(())
    for scale in range(scales):
        if scale:
            a, b, mask = (functional.avg_pool2d(x, 2, ceil_mode=True) for x in (a, b, mask))
        count = mask.sum().clamp(min=1e-6)
        gap = a - b
        slope = (gap[..., 1:] - gap[..., :-1]).abs().mul(mask[..., 1:] * mask[..., :-1]).sum()
        slope = (
            slope
            + (
                (gap[..., 1:, :] - gap[..., :-1, :]).abs().mul(mask[..., 1:, :] * mask[..., :-1, :])
            ).sum()
        )
        unlike = ((1 - _similarity(a, b)) / 2 * mask).sum()
        total = total + (slope + unlike) / (3 * count)
    return total / scales


def _similarity(a: Tensor, b: Tensor) -> Tensor:
    def blur(x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, _WINDOW, 1, _WINDOW // 2, count_include_pad=False)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    both = blur(a * b) - mean_a * mean_b
    share = (2 * mean_a * mean_b + _C1) * (2 * both + _C2)
    return share / ((mean_a**2 + mean_b**2 + _C1) * (var_a + var_b + _C2))
