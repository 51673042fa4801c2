"""From cameras and depth in any world to a record in the world that users expect."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sightline.geometry.align import Similarity, transform_cameras
from sightline.geometry.camera import unproject_depth
from sightline.types import Cameras, Reconstruction, Views


def finish(
    views: Views,
    *,
    K: Float[Tensor, "V 3 3"],
    w2c: Float[Tensor, "V 4 4"],
    sizes: Int64[Tensor, "V 2"],
    registered: Bool[Tensor, " V"],
    depth: Float[Tensor, "V H W"],
    confidence: Float[Tensor, "V H W"],
    valid: Bool[Tensor, "V H W"],
    rejected: tuple[tuple[str, str], ...] = (),
    metric: bool = False,
    half_pixel: Float[Tensor, "V 2"] | None = None,
    raw: Any = None,  # noqa: ANN401 - the model's own output
) -> Reconstruction:
    """Fix the world, lift depth to points, and assemble the record.

    The world is that of the views' known cameras where there are any, with their scale; else the
    first registered view's camera, with the median valid depth as unit unless ``metric``.

    Args:
        views: The pictures; what is known of their cameras decides the world.
        K: In pixels of the full-size pictures.
        w2c: In any world; NaN where not registered.
        sizes: Height and width of the full-size pictures.
        registered: Views with a camera.
        depth: In the views' pixels.
        confidence: Of each depth.
        valid: Where there is depth.
        rejected: As in the record.
        metric: Lengths are metres already.
        half_pixel: Shift of the rays that points are lifted along, towards the top left.
        raw: As in the record.
    """
    valid = valid & registered[:, None, None] & (depth > 0) & depth.isfinite()
    height, width = sizes.amax(0).tolist()
    cameras = Cameras(w2c=w2c, K=K, height=height, width=width)
    known = None if views.cameras is None else views.cameras.w2c.double()
    both = registered if known is None else registered & known.isfinite().all(-1).all(-1)
    if known is not None and bool(both.any()):
        world = align_cameras(w2c[both], known[both])
    else:
        world = _first_view(cameras, registered, None if metric else depth[valid])
    result = Reconstruction(
        cameras=transform_cameras(cameras, world),
        registered=registered,
        metric=metric,
        depth=torch.where(valid, depth * float(world.scale), 0.0),
        confidence=torch.where(valid, confidence, 0.0),
        valid=valid,
        lenses=views.lenses,
        rejected=rejected,
        raw=raw,
    )
    return replace(result, points=view_points(views, result, half_pixel))


def view_points(
    views: Views, found: Reconstruction, half_pixel: Float[Tensor, "V 2"] | None = None
) -> Float[Tensor, "V H W 3"]:
    """Return the world point of every valid pixel of the views, NaN elsewhere, view by view."""
    assert found.depth is not None
    K = views.from_original.double() @ found.cameras.K
    if half_pixel is not None:
        K = K.clone()
        K[:, :2, 2] += half_pixel
    count, height, width = found.depth.shape
    points = torch.full((count, height, width, 3), torch.nan)
    for view in found.registered.nonzero()[:, 0].tolist():
        camera = Cameras(
            w2c=found.cameras.w2c[view : view + 1], K=K[view : view + 1], height=height, width=width
        )
        points[view] = unproject_depth(found.depth[view : view + 1].double(), camera)[0].float()
    return points


def align_cameras(
    estimated: Float[Tensor, "n 4 4"], reference: Float[Tensor, "n 4 4"]
) -> Similarity:
    """Find the similarity that carries estimated cameras (``w2c``) onto reference cameras.

    Turns decide the rotation, so that two views are enough, and cameras on a line are; medians
    decide scale and shift, so that a few wrong views do no harm.

    Args:
        estimated: Finite poses.
        reference: Of the same views.
    """
    # Both map a world to the same camera: R_ref R = R_est for the rotation R between the worlds.
    product = (reference[:, :3, :3].mT @ estimated[:, :3, :3]).sum(0)
    u, _, vt = torch.linalg.svd(product)
    flip = torch.ones(3, dtype=u.dtype)
    flip[2] = torch.linalg.det(u @ vt)
    rotation = (u * flip) @ vt
    centers, wanted = (-(p[:, :3, :3].mT @ p[:, :3, 3:])[..., 0] for p in (estimated, reference))
    turned = centers @ rotation.mT
    a, b = (c - c.median(0).values for c in (turned, wanted))
    lengths = a.norm(dim=-1)
    moved = lengths > 1e-9 * max(float(lengths.max()), 1e-30)
    scale = torch.ones((), dtype=u.dtype)
    if bool(moved.any()) and float(b.norm(dim=-1).max()) > 0:
        scale = (b.norm(dim=-1)[moved] / lengths[moved]).median()
    return Similarity(
        scale=scale,
        rotation=rotation,
        translation=(wanted - scale * turned).median(0).values,
    )


def _first_view(
    cameras: Cameras, registered: Bool[Tensor, " V"], depth: Float[Tensor, " n"] | None
) -> Similarity:
    """Return the map to the first registered camera, in units of the median depth if given."""
    first = cameras.w2c[int(registered.nonzero()[0, 0])]
    scale = torch.ones((), dtype=first.dtype)
    if depth is not None and len(depth):
        # A sample's median is as good a unit as that of a billion pixels.
        scale = 1 / depth[:: max(1, len(depth) // 10_000_000)].median().to(first.dtype)
    return Similarity(scale=scale, rotation=first[:3, :3].clone(), translation=scale * first[:3, 3])
