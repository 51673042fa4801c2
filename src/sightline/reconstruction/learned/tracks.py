"""Sparse points with tracks, from a network that follows pixels through frames."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.errors import InputError
from sightline.reconstruction.learned.layout import Frames
from sightline.reconstruction.learned.passes import autocast
from sightline.reconstruction.pictures import as_bytes
from sightline.types import Reconstruction, SparsePoints

_LEAST_SEEN = 0.2
"""A track is trusted in a frame when visibility times confidence is at least this."""
_APART = 4
"""Pixels between corners."""


def corners(frame: Float[Tensor, "3 h w"], box: list[int], count: int) -> Float[Tensor, "n 2"]:
    """Return at most ``count`` pixels (x, y) of a frame that are easy to follow.

    Args:
        frame: In [0, 1].
        box: Part that shows the picture: left, top, right, bottom.
        count: Most of them.
    """
    left, top, right, bottom = box
    grey = as_bytes(frame[None])[0].mean(-1).astype(np.float32)
    found = cv2.goodFeaturesToTrack(grey[top:bottom, left:right], count, 1e-3, _APART)
    if found is None:
        return torch.zeros(0, 2)
    return torch.from_numpy(found[:, 0] + np.array([left, top], np.float32))


@torch.inference_mode()
def track_points(
    model: nn.Module,
    frames: Frames,
    index: Sequence[int],
    reference: int,
    count: int,
    found: Reconstruction,
    device: torch.device,
) -> SparsePoints | None:
    """Follow corners of one view through others, and place them by its depth.

    Args:
        model: Also takes ``query_points`` and returns ``track``, ``vis`` and ``conf``.
        frames: The pictures.
        index: Views of the pass.
        reference: The one whose corners are followed.
        count: Most points.
        found: Cameras, and points at the views' pixels.
        device: Where the network is.

    Returns:
        Points with two views or more; None when there is none.

    Raises:
        InputError: If the network follows no points.
    """
    assert found.points is not None
    order = [reference, *(view for view in index if view != reference)]
    pictures = frames.read(order)
    queries = corners(pictures[0], frames.layout.content[reference].tolist(), count)
    if not len(queries):
        return None
    with autocast(device):
        run: Any = model
        out = run(pictures.to(device)[None], queries.to(device)[None])
    if "vis" not in out:
        raise InputError(
            f"{type(model).__name__} follows no points; use tracks=0, or a network with a tracker"
        )
    seen = (out["vis"] * out["conf"])[0].float().cpu() >= _LEAST_SEEN  # [n views, points]
    seen[0] = True
    place = torch.linalg.inv(frames.grid_from_view[reference])
    # The network's pixels have their centres at integers.
    at = (queries.double() + 0.5) * torch.diagonal(place)[:2] + place[:2, 2]
    height, width = found.points.shape[1:3]
    column = at[:, 0].floor().long().clamp(0, width - 1)
    row = at[:, 1].floor().long().clamp(0, height - 1)
    points = found.points[reference, row, column]
    keep = points.isfinite().all(-1) & (seen.sum(0) >= 2)
    if not bool(keep.any()):
        return None
    rows, views = seen[:, keep].T.nonzero(as_tuple=True)
    tracks = torch.stack([rows, torch.tensor(order)[views]], -1)
    tracks = tracks[found.registered[tracks[:, 1]]]
    image = torch.from_numpy(as_bytes(frames.views.images[reference : reference + 1]))[0]
    return SparsePoints(
        points=points[keep], colors=image[row, column][keep], tracks=tracks.to(torch.int32)
    )
