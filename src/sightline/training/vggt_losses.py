"""What VGGT is trained with: ground truth in its own units, and the losses of its heads.

Axes: b scenes, s frames, iterations of the camera head. Depth and points are channels last.

Wang et al. 2025 (arXiv:2503.11651), with the settings of the training code published later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sightline.geometry.pose import invert_se3
from sightline.models.pose_encoding import encode_cameras

GradientTerm = Literal["none", "grad", "grad_conf", "normal", "normal_conf"]
Losses = dict[str, Tensor]

_MAX_ERROR = 100.0
"""Errors are cut here, so that a few broken depths do not rule a batch."""
_MIN_PIXELS = 100
"""Fewer valid pixels teach nothing."""
_MIN_KEPT = 1000
"""A share of the largest errors is left out only where more values than this are left."""
_MIN_NORMALS = 10
_CONFIDENCE_ALPHA = 0.2


class Truth(NamedTuple):
    """Ground truth of a batch; the world is the first camera after `normalize_truth`."""

    extrinsics: Float[Tensor, "b s 3 4"]
    """OpenCV, camera from world."""
    world_points: Float[Tensor, "b s h w 3"]
    cam_points: Float[Tensor, "b s h w 3"]
    depths: Float[Tensor, "b s h w"]
    masks: Bool[Tensor, "b s h w"]
    """Pixels whose depth is known."""


def normalize_truth(truth: Truth) -> Truth:
    """Move the world to the first camera, and make the mean distance of valid points one."""
    bottom = truth.extrinsics.new_tensor([0.0, 0.0, 0.0, 1.0])
    square = torch.cat([truth.extrinsics, bottom.expand(*truth.extrinsics.shape[:2], 1, 4)], dim=-2)
    first = square[:, :1]
    extrinsics = (square @ invert_se3(first))[..., :3, :]
    rotation, shift = first[:, :, None, None, :3, :3], first[:, :, None, None, :3, 3]
    points = (rotation @ truth.world_points[..., None])[..., 0] + shift
    distance = torch.where(truth.masks, points.norm(dim=-1), 0.0).sum((1, 2, 3))
    unit = (distance / (truth.masks.sum((1, 2, 3)) + 1e-3)).view(-1, 1, 1, 1)
    return Truth(
        extrinsics=torch.cat([extrinsics[..., :3], extrinsics[..., 3:] / unit], -1),
        world_points=points / unit[..., None],
        cam_points=truth.cam_points / unit[..., None],
        depths=truth.depths / unit,
        masks=truth.masks,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraTerm:
    """The camera loss: every iteration counts, the last the most."""

    weight: float = 5.0
    kind: Literal["l1", "l2"] = "l1"
    """Absolute difference of each number, or Euclidean of each part."""
    decay: float = 0.6
    field_of_view: float = 0.5
    """Weight of the field of view beside translation and rotation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseTerm:
    """The loss of a head that draws maps: confidence-weighted error, plain error, and shape."""

    weight: float = 1.0
    gradient: GradientTerm = "none"
    valid_range: float = 0.98
    """Share of the smallest errors that counts; not positive for all."""


def camera_loss(
    encodings: Sequence[Float[Tensor, "b s 9"]],
    extrinsics: Float[Tensor, "b s 3 4"],
    intrinsics: Float[Tensor, "b s 3 3"],
    masks: Bool[Tensor, "b s h w"],
    term: CameraTerm,
) -> Losses:
    """Return ``loss_camera`` and its parts ``loss_T``, ``loss_R`` and ``loss_FL``.

    Args:
        encodings: What the camera head gave after each iteration.
        extrinsics: True ones, normalised.
        intrinsics: In pixels of the masks.
        masks: Scenes whose first frame has too few valid pixels do not count.
        term: Settings.
    """
    usable = masks[:, 0].sum((1, 2)) > _MIN_PIXELS
    height, width = masks.shape[-2:]
    truth = encode_cameras(extrinsics, intrinsics, (height, width))[usable]
    parts = {"loss_T": slice(0, 3), "loss_R": slice(3, 7), "loss_FL": slice(7, 9)}
    losses = {name: encodings[0].new_zeros(()) for name in parts}
    for index, encoding in enumerate(encodings):
        weight = term.decay ** (len(encodings) - 1 - index) / len(encodings)
        for name, channels in parts.items():
            if not bool(usable.any()):
                losses[name] = losses[name] + 0.0 * encoding.sum()
                continue
            error = encoding[usable][..., channels] - truth[..., channels]
            error = error.abs() if term.kind == "l1" else error.norm(dim=-1)
            if name == "loss_T":
                error = error.clamp(max=_MAX_ERROR)
            losses[name] = losses[name] + weight * error.mean()
    total = losses["loss_T"] + losses["loss_R"] + term.field_of_view * losses["loss_FL"]
    return {"loss_camera": total, **losses}


def dense_loss(
    predicted: Float[Tensor, "b s h w c"],
    confidence: Float[Tensor, "b s h w"],
    truth: Float[Tensor, "b s h w c"],
    masks: Bool[Tensor, "b s h w"],
    term: DenseTerm,
) -> Losses:
    """Return ``conf``, ``reg`` and ``grad``: the three parts of a map's loss."""
    if int(masks.sum()) < _MIN_PIXELS:
        nothing = 0.0 * predicted.sum()
        return dict.fromkeys(("conf", "reg", "grad"), nothing)
    error = (predicted[masks] - truth[masks]).norm(dim=-1)
    weighted = _weigh(error, confidence[masks])
    return {
        "conf": _trimmed(weighted, term.valid_range).mean(),
        "reg": _trimmed(error, term.valid_range).mean(),
        "grad": _shape_loss(
            predicted.flatten(0, 1),
            truth.flatten(0, 1),
            masks.flatten(0, 1),
            confidence.flatten(0, 1),
            term.gradient,
        ),
    }


def track_loss(
    tracks: Sequence[Float[Tensor, "b s n 2"]],
    visible: Float[Tensor, "b s n"],
    confidence: Float[Tensor, "b s n"],
    truth: Float[Tensor, "b s n 2"],
    seen: Bool[Tensor, "b s n"],
    decay: float = 0.8,
    near: float = 12.0,
) -> Losses:
    """Return ``loss_track`` and its parts ``loss_places``, ``loss_seen`` and ``loss_sure``.

    The published training code leaves this loss out; it is the paper's, as CoTracker has it (Karaev
    et al. 2024): the absolute error in pixels of what is seen, later refinements counting more, and
    the cross entropies of visibility and of confidence, which is whether the last place is near.

    Args:
        tracks: After each refinement, in pixels.
        visible: Predicted probability of being seen.
        confidence: Predicted probability of being near the true place.
        truth: True places.
        seen: Where a point is seen; others have no place that a picture could tell.
        decay: Factor from each refinement to the one before it.
        near: Pixels that count as near.
    """
    weights = seen[..., None] / (2 * seen.sum().clamp(min=1))
    places = truth.new_zeros(())
    for index, places_now in enumerate(tracks):
        error = (places_now - truth).abs().clamp(max=_MAX_ERROR)
        factor = decay ** (len(tracks) - 1 - index) / len(tracks)
        # Where a point is behind a camera its true place may be infinite: leave it out first.
        error = torch.where(seen[..., None], error, 0.0)
        places = places + factor * (error * weights).sum()
    close = ((tracks[-1].detach() - truth).norm(dim=-1) < near) & seen
    known, sure = (
        torch.nn.functional.binary_cross_entropy(p.float().clamp(1e-6, 1 - 1e-6), q.float())
        for p, q in ((visible, seen), (confidence, close))
    )
    return {
        "loss_track": places + known + sure,
        "loss_places": places,
        "loss_seen": known,
        "loss_sure": sure,
    }


def vggt_loss(
    predictions: Mapping[str, Tensor | Sequence[Tensor]],
    truth: Truth,
    intrinsics: Float[Tensor, "b s 3 3"],
    *,
    camera: CameraTerm | None,
    depth: DenseTerm | None,
    point: DenseTerm | None,
) -> Losses:
    """Return the training objective and all its parts by name.

    Args:
        predictions: VGGT's dictionary: ``pose_enc_list``, ``depth``, ``depth_conf``,
            ``world_points``, ``world_points_conf``; only what the terms need.
        truth: Normalised.
        intrinsics: In pixels.
        camera: Settings; None leaves the term out, as for the next two.
        depth: See ``camera``.
        point: See ``camera``.
    """
    losses: Losses = {}
    total = truth.depths.new_zeros(())
    if camera is not None:
        encodings = predictions["pose_enc_list"]
        assert not isinstance(encodings, Tensor)
        losses |= camera_loss(encodings, truth.extrinsics, intrinsics, truth.masks, camera)
        total = total + camera.weight * losses["loss_camera"]
    maps = {
        "depth": (depth, "depth", truth.depths[..., None]),
        "point": (point, "world_points", truth.world_points),
    }
    for name, (term, key, wanted) in maps.items():
        if term is None:
            continue
        predicted, confidence = predictions[key], predictions[f"{key}_conf"]
        assert isinstance(predicted, Tensor)
        assert isinstance(confidence, Tensor)
        parts = dense_loss(predicted, confidence, wanted, truth.masks, term)
        losses |= {f"loss_{part}_{name}": value for part, value in parts.items()}
        total = total + term.weight * torch.stack(list(parts.values())).sum()
    return {"objective": total, **losses}


def _weigh(error: Tensor, confidence: Tensor) -> Tensor:
    return error * confidence - _CONFIDENCE_ALPHA * confidence.log()


def _trimmed(values: Float[Tensor, " n"], share: float) -> Float[Tensor, " m"]:
    """Leave out the largest values of many."""
    if share <= 0 or len(values) <= _MIN_KEPT:
        return values
    values = values.clamp(max=_MAX_ERROR)
    rank = round(share * (len(values) - 1)) + 1
    kept = values[values < values.detach().kthvalue(rank).values]
    return kept if len(kept) > _MIN_KEPT else values


def _shape_loss(
    predicted: Float[Tensor, "n h w c"],
    truth: Float[Tensor, "n h w c"],
    masks: Bool[Tensor, "n h w"],
    confidence: Float[Tensor, "n h w"],
    kind: GradientTerm,
) -> Float[Tensor, ""]:
    """Return the mean over scales of how the maps' slopes or normals differ."""
    if kind == "none":
        return 0.0 * predicted.sum()
    loss, scales = (_slope_loss, 4) if kind.startswith("grad") else (_normal_loss, 3)
    total = predicted.new_zeros(())
    for scale in range(scales):
        step = 2**scale
        maps = (m[:, ::step, ::step] for m in (predicted, truth, masks, confidence))
        total = total + loss(*maps, weighted=kind.endswith("_conf"))
    return total / scales


def _slope_loss(
    predicted: Tensor, truth: Tensor, masks: Tensor, confidence: Tensor, *, weighted: bool
) -> Tensor:
    count = masks.sum() * predicted.shape[-1]
    if count == 0:
        return 0.0 * predicted.sum()
    residual = torch.where(masks[..., None], predicted - truth, 0.0)
    total = predicted.new_zeros(())
    for axis in (1, 2):
        size = masks.shape[axis] - 1
        both = masks.narrow(axis, 1, size) & masks.narrow(axis, 0, size)
        slope = residual.diff(dim=axis).abs() * both[..., None]
        slope = slope.clamp(max=_MAX_ERROR)
        if weighted:
            # Of the right or lower pixel; as published, the logarithm counts in the holes too.
            slope = _weigh(slope, confidence.narrow(axis, 1, size)[..., None])
        total = total + slope.sum()
    return total / count


def _normal_loss(
    predicted: Tensor, truth: Tensor, masks: Tensor, confidence: Tensor, *, weighted: bool
) -> Tensor:
    ours, known = _normals(predicted, masks)
    theirs, _ = _normals(truth, masks)
    if int(known.sum()) < _MIN_NORMALS:
        return 0.0 * predicted.sum()
    cosine = (ours * theirs).sum(-1)[known].clamp(-1 + 1e-8, 1 - 1e-8)
    error = 1 - cosine
    if weighted:
        error = _weigh(error, confidence.expand(known.shape)[known])
    return error.mean()


def _normals(points: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the four normals [4 n h w 3] that neighbours span at each pixel, and which are known."""
    padded = torch.nn.functional.pad(points, (0, 0, 1, 1, 1, 1))
    mask = torch.nn.functional.pad(masks, (1, 1, 1, 1))
    windows = {"up": (0, 1), "left": (1, 0), "down": (2, 1), "right": (1, 2)}
    height, width = masks.shape[1:]
    steps, known = [], []
    for row, column in windows.values():
        steps.append(padded[:, row : row + height, column : column + width] - points)
        known.append(mask[:, row : row + height, column : column + width] & masks)
    around = torch.stack(steps)
    normals = torch.linalg.cross(around, around.roll(-1, 0), dim=-1)
    valid = torch.stack(known)
    return torch.nn.functional.normalize(normals, dim=-1), valid & valid.roll(-1, 0)
