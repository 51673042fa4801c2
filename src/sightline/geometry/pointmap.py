"""Depth maps and point maps: normals, edges and thinning."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sightline.errors import InputError
from sightline.geometry.camera import unproject_depth
from sightline.types import Cameras


def depth_to_normals(depth: Float[Tensor, "V H W"], cameras: Cameras) -> Float[Tensor, "V H W 3"]:
    """Estimate unit surface normals, in each camera's own OpenCV axes, turned to the camera.

    Each axis uses the neighbour on the side with the smaller depth step, so that normals beside
    a depth edge come from their own surface. Exact on planes.

    Args:
        depth: z-depth; zero, negative and not finite mean missing.
        cameras: One camera a view, at the depth map's resolution.

    Returns:
        Normals; zero where the pixel or both neighbours along an axis are missing.
    """
    world = unproject_depth(depth, cameras)
    w2c = cameras.w2c[:, None, None]
    local = (w2c[..., :3, :3] @ world[..., None])[..., 0] + w2c[..., :3, 3]
    across, down = _smaller_step(local, 2), _smaller_step(local, 1)
    normals = torch.linalg.cross(across, down)
    normals = torch.where((normals * local).sum(-1, keepdim=True) > 0, -normals, normals)
    length = torch.linalg.vector_norm(normals, dim=-1, keepdim=True)
    known = torch.isfinite(length) & (length > 0)
    return torch.where(known, normals / torch.where(known, length, 1.0), 0.0)


def _smaller_step(points: Float[Tensor, "V H W 3"], dim: int) -> Float[Tensor, "V H W 3"]:
    """Return the step to the next or from the previous pixel, whichever has less depth in it."""
    step = points.diff(dim=dim)
    gap = torch.full_like(points.narrow(dim, 0, 1), torch.nan)
    ahead, behind = torch.cat([step, gap], dim), torch.cat([gap, step], dim)
    cost_ahead = ahead[..., 2:].abs().nan_to_num(torch.inf)
    cost_behind = behind[..., 2:].abs().nan_to_num(torch.inf)
    return torch.where(cost_ahead <= cost_behind, ahead, behind)


def depth_edges(
    depth: Float[Tensor, "V H W"], relative: float = 0.05, kernel: int = 3
) -> Bool[Tensor, "V H W"]:
    """Mark pixels at depth discontinuities, where unprojected points hang in the air.

    Args:
        depth: z-depth; zero, negative and not finite mean missing.
        relative: Step, as a fraction of the pixel's depth, above which a pixel is an edge.
        kernel: Odd side of the neighbourhood searched.

    Returns:
        True where the known depths around a known pixel differ by more than that.
    """
    known = (depth > 0) & torch.isfinite(depth)

    def largest(values: Tensor) -> Tensor:
        values = torch.where(known, values, -torch.inf)[:, None]
        return torch.nn.functional.max_pool2d(values, kernel, 1, kernel // 2)[:, 0]

    step = largest(depth) + largest(-depth)
    return known & (step > relative * depth)


def voxel_thin(
    points: Float[Tensor, "N 3"],
    cell: float,
    priority: Float[Tensor, " N"] | None = None,
) -> Int64[Tensor, " M"]:
    """Keep one point in every occupied cell of a cubic grid.

    Args:
        points: World points; those not finite are dropped.
        cell: Side of a cell in scene units, above 0.
        priority: The largest in a cell is kept; without it, the first.

    Returns:
        Indices of the points kept, ascending.

    Raises:
        InputError: If ``cell`` is not positive, or so small that cells cannot be numbered.
    """
    if not cell > 0:
        msg = f"the cell's side must be above 0, got {cell}; use a length in scene units"
        raise InputError(msg)
    index = torch.isfinite(points).all(-1).nonzero()[:, 0]
    if len(index) == 0:
        return index
    if priority is not None:
        index = index[priority[index].argsort(descending=True, stable=True)]
    chosen = points.detach()[index].double()
    cells = torch.floor((chosen - chosen.amin(0)) / cell)
    if float(cells.amax()) >= 2**21:
        msg = (
            f"the points span {float(cells.amax()):.3g} cells of {cell} along an axis, at most "
            f"{2**21} can be numbered; use a larger cell or drop far outliers"
        )
        raise InputError(msg)
    x, y, z = cells.long().unbind(-1)
    ordered, order = ((x << 42) | (y << 21) | z).sort(stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return index[order[first]].sort().values
