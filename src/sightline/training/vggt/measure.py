"""How good predicted cameras and depth are, and what the mean of the training data would score.

Everything is in the units of the training: the first camera's world, in which the mean distance of
the true points is one. Nothing is aligned to the truth.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.geometry.rotation import rotation_angle
from sightline.metrics.poses import area_under_curve, relative_pose_errors
from sightline.models.pose_encoding import decode_cameras, encode_cameras
from sightline.training.vggt.data import truth_of
from sightline.training.vggt_losses import Truth, normalize_truth
from sightline.types import MultiView

THRESHOLDS = (10, 30)
"""Degrees of the area under the curve."""


class Prediction(NamedTuple):
    """What is measured of a batch; either part may be missing."""

    encoding: Float[Tensor, "b s 9"] | None
    depth: Float[Tensor, "b s h w"] | None


def measure(predictions: Sequence[Prediction], batches: Sequence[MultiView]) -> dict[str, float]:
    """Return the errors over all scenes of some batches.

    ``rotation`` is the mean angle in degrees between predicted and true turns of the other cameras
    from the first, ``translation`` the mean distance of their translations, ``auc@30`` the area
    under the curve of relative poses up to 30 degrees; ``abs_rel`` is the mean relative error of
    depth and ``delta_1.25`` the share of pixels whose depth is within a quarter.
    """
    rotation, translation, auc = [], [], {t: [] for t in THRESHOLDS}
    relative, within, pixels = 0.0, 0.0, 0
    for prediction, batch in zip(predictions, batches, strict=True):
        truth = normalize_truth(truth_of(batch))
        if prediction.encoding is not None:
            found, _ = decode_cameras(prediction.encoding.float(), batch.size)
            turned = rotation_angle(
                found[:, 1:, :, :3].double(), truth.extrinsics[:, 1:, :, :3].double()
            )
            rotation.append(torch.rad2deg(turned).flatten())
            apart = found[:, 1:, :, 3] - truth.extrinsics[:, 1:, :, 3]
            translation.append(apart.norm(dim=-1).flatten())
            for ours, theirs in zip(_square(found), _square(truth.extrinsics), strict=True):
                errors = relative_pose_errors(ours, theirs)
                for threshold, areas in auc.items():
                    areas.append(area_under_curve(*errors, threshold))
        if prediction.depth is not None:
            ours, theirs = prediction.depth[truth.masks], truth.depths[truth.masks]
            ours = ours.clamp_min(1e-6)
            relative += float(((ours - theirs).abs() / theirs).sum())
            within += float((torch.maximum(ours / theirs, theirs / ours) < 1.25).sum())
            pixels += theirs.numel()
    measures: dict[str, float] = {}
    if rotation:
        measures["rotation"] = float(torch.cat(rotation).mean())
        measures["translation"] = float(torch.cat(translation).mean())
        for threshold, areas in auc.items():
            measures[f"auc@{threshold}"] = float(torch.tensor(areas).mean())
    if pixels:
        measures |= {"abs_rel": relative / pixels, "delta_1.25": within / pixels}
    return measures


def _square(extrinsics: Float[Tensor, "b s 3 4"]) -> Float[Tensor, "b s 4 4"]:
    bottom = extrinsics.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*extrinsics.shape[:2], 1, 4)
    return torch.cat([extrinsics, bottom], -2)


def mean_prediction(batches: Sequence[MultiView]) -> Prediction:
    """Return the mean encoding and the mean depth map of some training batches.

    Views after the first are alike, so that they share one mean; the first camera is what it is by
    definition. Whatever a network knows without looking at the pictures is in here.

    Args:
        batches: Of one number and size of views.
    """
    truths = [normalize_truth(truth_of(batch)) for batch in batches]
    encodings = torch.cat(
        [
            encode_cameras(truth.extrinsics, batch.K, batch.size)
            for truth, batch in zip(truths, batches, strict=True)
        ]
    )
    means = torch.stack([encodings[:, 0].mean(0), encodings[:, 1:].flatten(0, 1).mean(0)])
    place = torch.ones(encodings.shape[1], dtype=torch.long, device=encodings.device)
    place[0] = 0
    return Prediction(encoding=means[place][None], depth=_mean_depth(truths)[None])


def _mean_depth(truths: Sequence[Truth]) -> Float[Tensor, "s h w"]:
    total = torch.stack([torch.where(t.masks, t.depths, 0.0).sum(0) for t in truths]).sum(0)
    count = torch.stack([t.masks.sum(0) for t in truths]).sum(0)
    mean = torch.where(count > 0, total / count.clamp_min(1), total.sum() / count.sum())
    rest = torch.where(count > 0, mean, 0.0)[1:].mean(0, keepdim=True)
    return torch.cat([mean[:1], rest.expand(len(mean) - 1, -1, -1)])


def constant(prediction: Prediction, batch: MultiView) -> Prediction:
    """Return a mean for every scene of a batch."""
    samples = batch.images.shape[0]
    assert prediction.encoding is not None
    assert prediction.depth is not None
    return Prediction(
        encoding=prediction.encoding.expand(samples, -1, -1),
        depth=prediction.depth.expand(samples, -1, -1, -1),
    )
