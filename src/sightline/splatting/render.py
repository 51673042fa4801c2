"""Drawing splats with records in and out."""

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.errors import InputError
from sightline.splatting.rasterize import rasterization
from sightline.types import Cameras, Gaussians, Rendering


@torch.no_grad()
def render_gaussians(
    gaussians: Gaussians,
    cameras: Cameras,
    *,
    background: Float[Tensor, "3"] | None = None,
    with_depth: bool = True,
    chunk: int = 8,
) -> Rendering:
    """Draw every camera, without gradients.

    Args:
        gaussians: The scene; drawn antialiased if it was fitted so.
        cameras: On the same device.
        background: Colour behind everything, in [0, 1]; black by default.
        with_depth: Also return the expected z-depth, zero where nothing was hit.
        chunk: Cameras drawn in one call, which bounds memory.

    Returns:
        Colours in [0, 1], coverage, and depth.

    Raises:
        InputError: If ``chunk`` is not positive or a camera's pose is not finite.
    """
    if chunk < 1:
        raise InputError(f"chunk must be at least 1 camera, got {chunk}")
    if not bool(torch.isfinite(cameras.w2c).all()):
        raise InputError(
            "every camera must have a pose to render from, got some that are not finite; select "
            "the registered views first"
        )
    gaussians = gaussians.map(lambda t: t.float())
    parts = [
        _render_some(
            gaussians,
            cameras.select(list(range(first, min(first + chunk, len(cameras))))),
            background,
            with_depth,
        )
        for first in range(0, len(cameras), chunk)
    ]
    shape = (0, cameras.height, cameras.width)
    if not parts:
        empty = gaussians.means.new_zeros(shape)
        depth = empty if with_depth else None
        return Rendering(rgb=empty[:, None].expand(-1, 3, -1, -1), alpha=empty, depth=depth)
    return Rendering(
        rgb=torch.cat([p.rgb for p in parts]),
        alpha=torch.cat([p.alpha for p in parts]),
        depth=torch.cat([p.depth for p in parts if p.depth is not None]) if with_depth else None,
    )


def _render_some(
    gaussians: Gaussians, cameras: Cameras, background: Tensor | None, with_depth: bool
) -> Rendering:
    device = gaussians.means.device
    backgrounds = None
    if background is not None:
        backgrounds = background.to(device, torch.float32).expand(len(cameras), 3).contiguous()
    image, alpha, _ = rasterization(
        means=gaussians.means,
        quats=gaussians.quats,
        scales=gaussians.scales,
        opacities=gaussians.opacities,
        colors=gaussians.sh,
        viewmats=cameras.w2c.to(device, torch.float32),
        Ks=cameras.K.to(device, torch.float32),
        width=cameras.width,
        height=cameras.height,
        sh_degree=gaussians.sh_degree,
        backgrounds=backgrounds,
        render_mode="RGB+ED" if with_depth else "RGB",
        rasterize_mode="antialiased" if gaussians.antialiased else "classic",
    )
    return Rendering(
        rgb=image[..., :3].permute(0, 3, 1, 2).clamp(0, 1),
        alpha=alpha[..., 0],
        depth=image[..., 3] if with_depth else None,
    )
