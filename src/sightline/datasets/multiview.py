"""What networks of many views train on: samples of views with cameras and depth, and batches.

A source is anything with ``draw(rng, ...)``: it returns one `MultiView`, and all that is random in
it comes from ``rng``. With `sample_rng` a sample is therefore a pure function of seed and place in
the training, so that a training that goes on after a kill sees what it would have seen.
"""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sightline.errors import ShapeError
from sightline.geometry.pose import invert_se3
from sightline.types import MultiView

Split = Literal["train", "val", "test"]
"""Parts of a source without common scenes."""
_SPLITS: dict[str, int] = {"train": 0, "val": 1, "test": 2}


@runtime_checkable
class MultiViewSource(Protocol):
    """Where samples come from."""

    def draw(self, rng: np.random.Generator, num_views: int, height: int, width: int) -> MultiView:
        """Return one sample without batch axes."""
        ...


def sample_rng(seed: int, split: Split, *place: int) -> np.random.Generator:
    """Return the random numbers of one sample.

    Args:
        seed: Of the training.
        split: Streams of different splits never meet.
        place: Where in the training the sample is, such as step, rank and row of the batch.
    """
    return np.random.default_rng([_SPLITS[split], seed, *place])


def collate(samples: Sequence[MultiView]) -> MultiView:
    """Join samples of the same number and size of views into a batch.

    Raises:
        ShapeError: If they differ in size, in what they know, or if there is none.
    """
    shapes = {(*s.images.shape, s.masks is None, s.num_context) for s in samples}
    if len(shapes) != 1:
        given = ", ".join(f"{len(s)} views of {s.size[0]} x {s.size[1]}" for s in samples)
        msg = f"expected samples with as many views of one size and one kind, got {given or 'none'}"
        raise ShapeError(msg)
    stacked = {
        name: torch.stack([getattr(s, name) for s in samples])
        for name in ("images", "w2c", "K", "depth", "valid", "metric")
    }
    masks = [s.masks for s in samples if s.masks is not None]
    return MultiView(
        **stacked,
        masks=torch.stack(masks) if masks else None,
        scenes=tuple(scene for s in samples for scene in s.scenes),
        names=tuple(names for s in samples for names in s.names),
        num_context=samples[0].num_context,
    )


def camera_points(sample: MultiView) -> Float[Tensor, "*batch S H W 3"]:
    """Return each view's points in its own camera axes; 0 where depth is not known.

    The ray of a pixel goes through its centre.
    """
    height, width = sample.size
    kind = {"device": sample.depth.device, "dtype": sample.depth.dtype}
    x = torch.arange(width, **kind) + 0.5
    y = (torch.arange(height, **kind) + 0.5).unsqueeze(-1)
    fx, fy, cx, cy = (sample.K[..., r, c, None, None] for r, c in ((0, 0), (1, 1), (0, 2), (1, 2)))
    z = sample.depth
    return torch.stack(((x - cx) / fx * z, (y - cy) / fy * z, z), -1)


def world_points(sample: MultiView) -> Float[Tensor, "*batch S H W 3"]:
    """Return each view's points in the world; the camera's centre where depth is not known."""
    c2w = invert_se3(sample.w2c)[..., None, None, :, :]
    points = camera_points(sample)[..., None]
    return (c2w[..., :3, :3] @ points)[..., 0] + c2w[..., :3, 3]
