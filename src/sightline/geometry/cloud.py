"""Dense points of a scene from its depth maps, and what in pictures is no surface."""

import math

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from sightline.geometry.pointmap import depth_edges, voxel_thin
from sightline.types import Cameras, PointCloud

_CANDIDATES = 4
"""Candidates drawn for each point that may be kept."""
_GROWTH = 1.25
_EDGE = 0.05
"""Relative depth step that makes an edge."""
_SKY_LIGHT = 0.35
_SKY_FAR = 2.0
"""Sky lies beyond so many times the depth that a quarter of the pixels stay below."""
_SKY_UNSURE = 0.15
"""Its confidence exceeds the least possible by less than this share of what the surest tenth has."""


def dense_cloud(
    images: UInt8[Tensor, "V 3 H W"],
    depth: Float[Tensor, "V H W"],
    cameras: Cameras,
    *,
    valid: Bool[Tensor, "V H W"] | None = None,
    confidence: Float[Tensor, "V H W"] | None = None,
    views: list[int] | None = None,
    most: int = 1_000_000,
    hidden: float = 0.0,
) -> PointCloud:
    """Lift depth maps to coloured points, about one a pixel's width of surface.

    Pixels at depth steps are left out, since they hang in the air. Points are thinned on a grid of
    the median pixel's width, or wider where there are too many; the most certain of a cell stays.

    Args:
        images: Colours.
        depth: z-depth; zero, negative and not finite mean missing.
        cameras: At the maps' resolution; views without a pose are left out.
        valid: Where depth holds; everywhere when absent.
        confidence: Of each depth; the cloud carries it.
        views: Only these.
        most: Largest number of points.
        hidden: Percentage of the least certain pixels of the scene to leave out.
    """
    use = (depth > 0) & depth.isfinite()
    if valid is not None:
        use &= valid
    posed = cameras.w2c.isfinite().all(-1).all(-1)
    if views is not None:
        chosen = torch.zeros_like(posed)
        chosen[views] = True
        posed &= chosen
    use &= posed[:, None, None]
    for view in posed.nonzero()[:, 0].tolist():
        use[view] &= ~depth_edges(depth[view : view + 1], _EDGE)[0]
    if confidence is not None and hidden > 0 and bool(use.any()):
        values = confidence[use]
        values = values[:: max(1, len(values) // 1_000_000)]
        use &= confidence >= values.quantile(hidden / 100)
    stride = max(1, math.ceil(math.sqrt(int(use.sum()) / (_CANDIDATES * most))))
    points, colors, sure, widths = [], [], [], []
    for view in posed.nonzero()[:, 0].tolist():
        row, column = use[view, ::stride, ::stride].nonzero(as_tuple=True)
        row, column = row * stride, column * stride
        z = depth[view, row, column].double()
        K, w2c = cameras.K[view].double(), cameras.w2c[view].double()
        pixel = torch.stack([column, row], -1).double() + 0.5
        focal = torch.diagonal(K)[:2]
        local = torch.cat([(pixel - K[:2, 2]) / focal * z[:, None], z[:, None]], -1)
        points.append(((local - w2c[:3, 3]) @ w2c[:3, :3]).float())
        colors.append(images[view][:, row, column].T.float() / 255)
        widths.append(z / focal.mean() * stride)
        if confidence is not None:
            sure.append(confidence[view, row, column].float())
    cloud = PointCloud(
        points=torch.cat(points) if points else torch.zeros(0, 3),
        colors=torch.cat(colors) if colors else torch.zeros(0, 3),
        confidence=torch.cat(sure) if sure else None,
    )
    if not len(cloud.points):
        return cloud
    width = torch.cat(widths)
    return _thinned(cloud, float(width[:: max(1, len(width) // 1_000_000)].median()), most)


def map_cloud(
    images: UInt8[Tensor, "V 3 H W"],
    points: Float[Tensor, "V H W 3"],
    *,
    valid: Bool[Tensor, "V H W"] | None = None,
    confidence: Float[Tensor, "V H W"] | None = None,
    most: int = 1_000_000,
) -> PointCloud:
    """Gather a network's own point maps to coloured points, thinned as those of `dense_cloud`.

    Args:
        images: Colours.
        points: World points, one a pixel; not finite ones are left out.
        valid: Where they hold; everywhere when absent.
        confidence: Of each point; the cloud carries it.
        most: Largest number of points.
    """
    use = points.isfinite().all(-1)
    if valid is not None:
        use &= valid
    stride = max(1, math.ceil(math.sqrt(int(use.sum()) / (_CANDIDATES * most))))
    use = use[:, ::stride, ::stride]
    thin = points[:, ::stride, ::stride]
    apart = (thin[:, :, 1:] - thin[:, :, :-1]).norm(dim=-1)[use[:, :, 1:] & use[:, :, :-1]]
    cloud = PointCloud(
        points=thin[use].float(),
        colors=images[:, :, ::stride, ::stride].movedim(1, -1)[use].float() / 255,
        confidence=None if confidence is None else confidence[:, ::stride, ::stride][use].float(),
    )
    if not len(apart):
        return cloud
    return _thinned(cloud, _quantile(apart, 0.5), most)


def _thinned(cloud: PointCloud, cell: float, most: int) -> PointCloud:
    span = float((cloud.points.amax(0) - cloud.points.amin(0)).max())
    cell = max(cell, span / 2**20, 1e-30)  # cells must stay countable, whatever lies far out
    keep = voxel_thin(cloud.points, cell, cloud.confidence)
    while len(keep) > most:
        cell *= max(_GROWTH, math.sqrt(len(keep) / most))
        keep = voxel_thin(cloud.points, cell, cloud.confidence)
    return cloud.map(lambda values: values[keep])


def sky_mask(
    images: UInt8[Tensor, "V 3 H W"],
    depth: Float[Tensor, "V H W"],
    confidence: Float[Tensor, "V H W"] | None = None,
    valid: Bool[Tensor, "V H W"] | None = None,
) -> Bool[Tensor, "V H W"]:
    """Guess what is sky: bright, blue or colourless, smooth, joined to the top, far and uncertain.

    A heuristic for maps of models that have no sky class of their own; a white ceiling that is
    near or certain is none.

    Args:
        images: Pictures.
        depth: z-depth; zero means missing.
        confidence: Of each depth, larger is surer.
        valid: What is a picture at all; everything when absent.
    """
    import cv2
    import numpy as np

    result = torch.zeros(depth.shape, dtype=torch.bool)
    known = (depth > 0) & depth.isfinite()
    if not bool(known.any()):
        return result
    far = _SKY_FAR * _quantile(depth[known], 0.25)
    unsure = math.inf
    if confidence is not None:
        least = min(1.0, float(confidence[known].min()))
        unsure = least + _SKY_UNSURE * (_quantile(confidence[known], 0.9) - least)
    for view in range(len(depth)):
        red, green, blue = images[view].float() / 255
        light = torch.stack([red, green, blue]).mean(0)
        colour = torch.stack([red, green, blue]).amax(0) - torch.stack([red, green, blue]).amin(0)
        looks = (light > _SKY_LIGHT) & ((blue >= red) & (blue >= green - 0.02) | (colour < 0.06))
        grey = (light * 255).byte().numpy()
        step = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
        looks &= torch.from_numpy(step < 24)
        looks &= ~known[view] | (depth[view] >= far)
        if confidence is not None:
            looks &= ~known[view] | (confidence[view] < unsure)
        if valid is not None:
            looks &= valid[view]
        _, labels = cv2.connectedComponents(looks.numpy().astype(np.uint8), connectivity=4)
        top = np.unique(labels[:2])
        result[view] = torch.from_numpy(np.isin(labels, top[top > 0]))
    return result


def _quantile(values: Float[Tensor, " n"], share: float) -> float:
    return float(values[:: max(1, len(values) // 1_000_000)].quantile(share))
