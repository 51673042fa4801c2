"""A batch of pairs as Splatt3R sees it: everything in the first view's camera axes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sightline.datasets.multiview import world_points
from sightline.datasets.overlap import shown_in, target_masks
from sightline.errors import ShapeError
from sightline.geometry.pose import invert_se3
from sightline.training.pairwise_losses import mean_distance
from sightline.types import MultiView, TensorStruct

_NO_MATCHES = 16
"""Fewest matches of a pair that are worth a loss."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairBatch(TensorStruct):
    """Two context views and some targets, B times."""

    images: Float[Tensor, "B 2 3 H W"]
    targets: Float[Tensor, "B T 3 H W"]
    w2c: Float[Tensor, "B T 4 4"]
    """Of the targets, from the camera axes of the first context view."""
    K: Float[Tensor, "B T 3 3"]
    masks: Bool[Tensor, "B T H W"]
    """Where a target shows what a context view shows too."""
    points: Float[Tensor, "B 2 H W 3"]
    """Of the context views, in the camera axes of the first."""
    valid: Bool[Tensor, "B 2 H W"]
    metric: Bool[Tensor, " B"]
    scenes: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.images.shape[-2], self.images.shape[-1]

    def views(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return both context views as the network takes them."""
        first, second = (
            {"img": picture * 2 - 1, "original_img": picture} for picture in self.images.unbind(1)
        )
        return first, second

    def truth(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return both context views as the losses on points take them."""
        still = torch.eye(4, device=self.points.device).expand(len(self.points), 4, 4)
        first, second = (
            {
                "pts3d": self.points[:, view],
                "valid_mask": self.valid[:, view],
                "sky_mask": torch.zeros_like(self.valid[:, view]),
                "camera_pose": still,
                "is_metric_scale": self.metric,
            }
            for view in (0, 1)
        )
        return first, second


def pair_batch(batch: MultiView) -> PairBatch:
    """Return a batch of samples, two context views in front, as pairs with targets.

    Raises:
        ShapeError: If there are not two context views and a target.
    """
    if batch.images.ndim != 5 or batch.num_context != 2 or len(batch) < 3:
        msg = (
            f"expected a batch with 2 context views and 1 target or more, got {len(batch)} views "
            f"of which {batch.num_context} are context; draw with num_context=2"
        )
        raise ShapeError(msg)
    first = invert_se3(batch.w2c[:, :1])
    moved = batch.w2c @ first
    local = world_points(replace(batch, w2c=moved))
    return PairBatch(
        images=batch.images[:, :2],
        targets=batch.images[:, 2:],
        w2c=moved[:, 2:],
        K=batch.K[:, 2:],
        masks=target_masks(batch),
        points=local[:, :2],
        valid=batch.valid[:, :2],
        metric=batch.metric,
        scenes=batch.scenes,
    )


def unit_of(
    batch: PairBatch, first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> Float[Tensor, " B"]:
    """Return the length that predictions give to the data's unit; 1 where the data are in metres.

    Metric data keep their scale, for the network has to learn it. Where the unit is arbitrary, as in
    CO3D, the mean distances of the points tell; no gradient flows through that.
    """
    guess = first["pts3d"].detach(), second["pts3d_in_other_view"].detach()
    valid = batch.valid.unbind(1)
    found = mean_distance(*guess, *valid) / mean_distance(*batch.points.unbind(1), *valid)
    return torch.where(batch.metric, torch.ones_like(batch.w2c[:, 0, 0, 0]), found.flatten())


def in_unit(w2c: Float[Tensor, "B T 4 4"], unit: Float[Tensor, " B"]) -> Float[Tensor, "B T 4 4"]:
    """Return cameras of a world that is ``unit`` times as large."""
    scaled = w2c.clone()
    scaled[..., :3, 3] *= unit[:, None, None]
    return scaled


def correspondences(
    batch: MultiView, count: int = 256
) -> tuple[Int64[Tensor, "B n 2"], Int64[Tensor, "B n 2"], Bool[Tensor, "B n"]]:
    """Return matching pixels (x, y) of both context views, evenly spread over what both show.

    Items with too few matches have invalid ones only.
    """
    rows = []
    for item in range(len(batch.images)):
        sample = batch.map(lambda t, i=item: t[i])
        pixels, seen = shown_in(sample, 0, 1)
        places = seen.nonzero()
        total = len(places)
        pick = torch.linspace(0, max(total - 1, 0), count, device=seen.device).round().long()
        known = total >= _NO_MATCHES
        if not known:
            zero = torch.zeros(count, 2, dtype=torch.long, device=seen.device)
            rows.append((zero, zero, torch.zeros(count, dtype=torch.bool, device=seen.device)))
            continue
        chosen = places[pick]
        other = pixels[chosen[:, 0], chosen[:, 1]].floor().long()
        # The same pixel taken twice would have to be told from itself.
        fresh = torch.ones(count, dtype=torch.bool, device=seen.device)
        fresh[1:] = pick[1:] != pick[:-1]
        rows.append((chosen.flip(-1), other, fresh))
    first, second, valid = (torch.stack(part) for part in zip(*rows, strict=True))
    return first, second, valid
