"""One pass of some views through a network, as cameras and depth in our conventions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from sightline.errors import ShapeError
from sightline.geometry.camera import project_points
from sightline.geometry.pose import rigid_matrix
from sightline.models.pose_encoding import decode_cameras
from sightline.types import Cameras, TensorStruct

Head = Literal["depth", "points"]

_FOV = (0.03, 2.9)
"""Radians; a field of view outside of this is no camera's."""
_SAME_DEPTH = 0.05
"""Relative."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pass(TensorStruct):
    """What a network says of some frames, on the CPU; the world is the pass's own."""

    w2c: Float[Tensor, "n 4 4"]
    K: Float[Tensor, "n 3 3"]
    """Pixels of the frames, corner convention."""
    has_focal: Bool[Tensor, " n"]
    """False where the field of view is unusable; ``K`` then has a focal length of 1."""
    depth: Float[Tensor, "n h w"]
    confidence: Float[Tensor, "n h w"]
    usable: Bool[Tensor, " n"]
    """False where a pose or most of a depth map is not finite."""
    raw: Any = None


@torch.inference_mode()
def run_pass(
    model: nn.Module,
    frames: Float[Tensor, "n 3 h w"],
    *,
    reference: int,
    head: Head,
    device: torch.device,
    keep_raw: bool = False,
) -> Pass:
    """Run frames through a network that has VGGT's outputs.

    Args:
        model: Called with ``[1, n, 3, h, w]`` in [0, 1]; returns ``pose_enc``, ``depth`` and
            ``depth_conf``, or ``world_points`` and ``world_points_conf``.
        frames: In the order of the views.
        reference: Which of them the network gets first; results stay in order.
        head: Where depth comes from: the depth maps, or the point maps as seen by the cameras.
        device: Where the network is.
        keep_raw: Keep its output as it came, the reference first.

    Raises:
        ShapeError: If an output is missing or of another shape.
    """
    count, _, height, width = frames.shape
    order = [reference, *(i for i in range(count) if i != reference)]
    back = torch.tensor(order).argsort()
    with autocast(device):
        out: Mapping[str, Any] = model(frames[order].to(device)[None])
    encoding = _output(out, "pose_enc", (1, count, 9))[0, back].double()
    extrinsics, K = decode_cameras(encoding, (height, width))
    fov = encoding[:, 7:]
    has_focal = ((fov > _FOV[0]) & (fov < _FOV[1])).all(-1)
    K[:, 0, 0] = torch.where(has_focal, K[:, 0, 0], 1.0)
    K[:, 1, 1] = torch.where(has_focal, K[:, 1, 1], 1.0)
    w2c = rigid_matrix(extrinsics[..., :3], extrinsics[..., 3])
    if head == "depth":
        depth = _output(out, "depth", (1, count, height, width, 1))[0, back, ..., 0]
        confidence = _output(out, "depth_conf", (1, count, height, width))[0, back]
    else:
        points = _output(out, "world_points", (1, count, height, width, 3))[0, back]
        confidence = _output(out, "world_points_conf", (1, count, height, width))[0, back]
        row = w2c[:, None, None, 2].float()
        depth = (points * row[..., :3]).sum(-1) + row[..., 3]
    known = (depth > 0) & depth.isfinite() & confidence.isfinite()
    share = known.float().mean((1, 2))
    return Pass(
        w2c=w2c,
        K=K,
        has_focal=has_focal,
        depth=torch.where(known, depth, 0.0),
        confidence=torch.where(known, confidence, 0.0),
        usable=w2c.isfinite().all(-1).all(-1) & (share > 0),
        raw=dict(out) if keep_raw else None,
    )


def autocast(device: torch.device) -> torch.autocast:
    """Return the context in which VGGT's own scripts run it: bfloat16 on a GPU that has it."""
    if device.type != "cuda":
        return torch.autocast(device.type, enabled=False)
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.autocast("cuda", dtype=dtype)


def _output(out: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Tensor:
    value = out.get(name)
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        got = "nothing" if value is None else str(list(getattr(value, "shape", [type(value)])))
        raise ShapeError(
            f"the network must return {name} {list(shape)}, got {got}; give a module with VGGT's "
            "outputs, or another head"
        )
    return value.float().cpu()


def lift(
    depth: Float[Tensor, "*batch"], pixels: Float[Tensor, "*batch 2"], K: Tensor, w2c: Tensor
) -> Float[Tensor, "*batch 3"]:
    """Return the world points at given pixels of one frame, float64."""
    z = depth.double()[..., None]
    focal = torch.diagonal(K)[:2]
    local = torch.cat([(pixels - K[:2, 2]) / focal * z, z], -1)
    return (local - w2c[:3, 3]) @ w2c[:3, :3]


def sample_pixels(
    content: Int64[Tensor, "4"], side: int
) -> tuple[Float[Tensor, "s 2"], tuple[Tensor, Tensor]]:
    """Return ``side`` x ``side`` pixel centres spread over a frame's picture, and their indices."""
    left, top, right, bottom = content.tolist()
    share = (torch.arange(side) + 0.5) / side
    columns = (left + share * (right - left)).floor().long()
    rows = (top + share * (bottom - top)).floor().long()
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    row, column = row.flatten(), column.flatten()
    return torch.stack([column, row], -1).double() + 0.5, (row, column)


def confirmed_share(
    found: Pass, points: Float[Tensor, "n s 3"], source: list[int], target: list[int]
) -> float:
    """Return the share of some frames' points that other frames see where they are.

    Args:
        found: A pass.
        points: Of all its frames, in its world; NaN is left out.
        source: Rows whose points are asked for.
        target: Rows that must see one of them at the depth it has.
    """
    asked = points[source].flatten(0, 1)
    asked = asked[asked.isfinite().all(-1)]
    if not len(asked):
        return 0.0
    height, width = found.depth.shape[1:]
    seen = torch.zeros(len(asked), dtype=torch.bool)
    cameras = Cameras(w2c=found.w2c[target], K=found.K[target], height=height, width=width)
    pixels, depth = project_points(asked, cameras)
    size = torch.tensor([width, height])
    for row, at, z in zip(target, pixels, depth, strict=True):
        inside = ((at >= 0) & (at < size)).all(-1)  # false for NaN, which is behind the camera
        column, line = at[inside].floor().long().unbind(-1)
        there = found.depth[row][line, column]
        seen[inside] |= (there - z[inside]).abs() < _SAME_DEPTH * z[inside]
    return float(seen.float().mean())
