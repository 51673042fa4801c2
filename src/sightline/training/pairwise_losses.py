"""What DUSt3R, MASt3R and Splatt3R are trained with.

A batch is two views. Ground truth ``gt``: ``pts3d [B, H, W, 3]`` in the world, ``valid_mask``,
``camera_pose [B, 4, 4]`` (camera to world); for MASt3R also ``sky_mask``, ``is_metric_scale [B]``,
``corres [B, N, 2]`` (x, y) and ``valid_corres [B, N]``. ``pred`` is what the networks return.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sightline.geometry.pose import invert_se3

View = Mapping[str, Tensor]
PerPixel = Float[Tensor, "b h w"]
Points = Float[Tensor, "b h w 3"]

SKY_LOSS = 2.0
"""Regression loss of a sky pixel without depth: large, so that its confidence becomes small."""


def true_points(gt1: View, gt2: View) -> tuple[Points, Points]:
    """Return the true points of both views in the camera frame of the first."""
    w2c = invert_se3(gt1["camera_pose"])[:, None, None]
    first, second = (
        (w2c[..., :3, :3] @ gt["pts3d"][..., None])[..., 0] + w2c[..., :3, 3] for gt in (gt1, gt2)
    )
    return first, second


def mean_distance(
    points1: Points, points2: Points, valid1: Bool[Tensor, "b h w"], valid2: Bool[Tensor, "b h w"]
) -> Float[Tensor, "b 1 1 1"]:
    """Return the mean distance to the origin over the valid pixels of both views."""
    total = sum(
        torch.where(valid, points.norm(dim=-1), 0.0).sum((1, 2))
        for points, valid in ((points1, valid1), (points2, valid2))
    )
    count = valid1.sum((1, 2)) + valid2.sum((1, 2))
    return (total / (count + 1e-8)).clamp(min=1e-8)[:, None, None, None]


def _predicted(pred1: View, pred2: View) -> tuple[Points, Points]:
    return pred1["pts3d"], pred2["pts3d_in_other_view"]


def regression_loss(
    gt1: View, gt2: View, pred1: View, pred2: View, *, keep_metric: bool = False
) -> tuple[PerPixel, PerPixel]:
    """Return the distance between predicted and true points for every pixel of both views.

    Both clouds are divided by their own mean distance. Invalid pixels have 0.

    Args:
        gt1: See the module.
        gt2: See the module.
        pred1: See the module.
        pred2: See the module.
        keep_metric: MASt3R: items with ``is_metric_scale`` divide the prediction by the factor of
            the truth, so that its scale is learned too.

    Wang et al., DUSt3R, 2024, equation 3.
    """
    true1, true2 = true_points(gt1, gt2)
    guess1, guess2 = _predicted(pred1, pred2)
    valid1, valid2 = gt1["valid_mask"], gt2["valid_mask"]
    unit = mean_distance(true1, true2, valid1, valid2)
    own = mean_distance(guess1, guess2, valid1, valid2)
    if keep_metric:
        own = torch.where(gt1["is_metric_scale"][:, None, None, None], unit, own)
    return (
        _distance(guess1 / own, true1 / unit, valid1),
        _distance(guess2 / own, true2 / unit, valid2),
    )


def _distance(guess: Points, true: Points, valid: Bool[Tensor, "b h w"]) -> PerPixel:
    # Cut before the norm: where the truth is NaN, so would be the gradient.
    return torch.where(valid[..., None], guess - true, 0.0).norm(dim=-1)


def confidence_loss(
    loss: PerPixel, confidence: PerPixel, counted: Bool[Tensor, "b h w"], alpha: float = 0.2
) -> Float[Tensor, ""]:
    """Return the mean of ``c * loss - alpha * log c`` over the counted pixels; 0 without any."""
    weighted = confidence * loss - alpha * confidence.log()
    total = torch.where(counted, weighted, 0.0).sum()
    return total / counted.sum().clamp(min=1)


def dust3r_loss(
    gt1: View, gt2: View, pred1: View, pred2: View, alpha: float = 0.2
) -> Float[Tensor, ""]:
    """Return DUSt3R's training loss: confidence-weighted regression, both views added."""
    losses = regression_loss(gt1, gt2, pred1, pred2)
    rows = zip(losses, (gt1, gt2), (pred1, pred2), strict=True)
    return torch.stack(
        [confidence_loss(loss, p["conf"], g["valid_mask"], alpha) for loss, g, p in rows]
    ).sum()


def mast3r_regression_loss(
    gt1: View, gt2: View, pred1: View, pred2: View, alpha: float = 0.2, sky_loss: float = SKY_LOSS
) -> Float[Tensor, ""]:
    """Return MASt3R's regression loss: metric where the data are, and sky counts with a fixed loss."""
    losses = regression_loss(gt1, gt2, pred1, pred2, keep_metric=True)
    total = []
    for loss, gt, pred in zip(losses, (gt1, gt2), (pred1, pred2), strict=True):
        sky = gt["sky_mask"] & ~gt["valid_mask"]
        loss = torch.where(sky, sky_loss, loss)
        total.append(confidence_loss(loss, pred["conf"], gt["valid_mask"] | sky, alpha))
    return torch.stack(total).sum()


def scale_shift_invariant_loss(gt1: View, gt2: View, pred1: View, pred2: View) -> Float[Tensor, ""]:
    """Return the test measure of DUSt3R: distances after matching depth shift and scale to the truth."""
    valid = gt1["valid_mask"], gt2["valid_mask"]
    true = true_points(gt1, gt2)
    guess = _predicted(pred1, pred2)
    unit = mean_distance(*guess, *valid)
    guess = (guess[0] / unit, guess[1] / unit)
    clouds = []
    for pair in (true, guess):
        known = [
            torch.where(v[..., None], points, torch.nan).flatten(1, 2)
            for points, v in zip(pair, valid, strict=True)
        ]
        joint = torch.cat(known, 1)
        shift = torch.zeros_like(joint[:, :1])
        shift[..., 2] = joint[..., 2].nanmedian(1, keepdim=True).values
        joint = joint - shift
        center = joint.nanmedian(1, keepdim=True).values
        scale = (joint - center).norm(dim=-1).nanmedian(1).values[:, None, None, None]
        shift = shift[:, None]
        clouds.append((pair[0] - shift, pair[1] - shift, scale))
    ratio = clouds[0][2] / clouds[1][2].clamp(1e-3, 1e3)
    total = torch.zeros((), device=ratio.device, dtype=ratio.dtype)
    for view in (0, 1):
        distance = _distance(clouds[1][view] * ratio, clouds[0][view], valid[view])
        total = total + distance[valid[view]].mean()
    return total


def info_nce(
    desc1: Float[Tensor, "b n d"],
    desc2: Float[Tensor, "b n d"],
    valid: Bool[Tensor, "b n"],
    temperature: float = 0.05,
) -> Float[Tensor, " m"]:
    """Return the matching loss of each valid match, both directions added.

    Every descriptor has to prefer its partner to those of all other matches, the invalid ones
    included.

    Leroy et al., MASt3R, 2024, equation 10.
    """
    # As in the original the exponentials are summed as they are: unit vectors stay below e^20.
    similar = (desc1 @ desc2.mT / temperature).exp()
    partner = similar.diagonal(dim1=-2, dim2=-1)
    shares = (partner / similar.sum(-2), partner / similar.sum(-1))
    return -sum((share.clamp(min=1e-8).log() for share in shares), torch.zeros_like(partner))[valid]


def _at(maps: Float[Tensor, "b h w *d"], corres: Tensor) -> Float[Tensor, "b n *d"]:
    batch = torch.arange(len(maps), device=maps.device)[:, None]
    return maps[batch, corres[..., 1], corres[..., 0]]


def matching_loss(
    gt1: View,
    gt2: View,
    pred1: View,
    pred2: View,
    *,
    temperature: float = 0.05,
    alpha: float | None = 10.0,
) -> Float[Tensor, ""]:
    """Return MASt3R's matching loss.

    Args:
        gt1: See the module.
        gt2: See the module.
        pred1: See the module.
        pred2: See the module.
        temperature: Of the softmax.
        alpha: Of the confidence, which is the mean of both ends; None leaves confidence out.

    Returns:
        The mean over the valid matches, 0 without any.
    """
    ends = [(gt1["corres"], pred1), (gt2["corres"], pred2)]
    desc1, desc2 = (_at(pred["desc"], xy) for xy, pred in ends)
    valid = gt1["valid_corres"]
    loss = info_nce(desc1, desc2, valid, temperature)
    if alpha is not None:
        conf1, conf2 = (_at(pred["desc_conf"], xy) for xy, pred in ends)
        confidence = (0.5 * (conf1 + conf2))[valid]
        loss = confidence * loss - alpha * confidence.log()
    return loss.sum() / max(1, len(loss))


def mast3r_loss(
    gt1: View, gt2: View, pred1: View, pred2: View, matching_weight: float = 0.075
) -> Float[Tensor, ""]:
    """Return MASt3R's training loss: regression plus a share of matching."""
    matching = matching_loss(gt1, gt2, pred1, pred2)
    return mast3r_regression_loss(gt1, gt2, pred1, pred2) + matching_weight * matching
