"""Drawing of any values that splats carry, and the transpose of drawing."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.splatting.rasterize import rasterization
from sightline.types import Cameras, Gaussians

Picture = Float[Tensor, "H W D"]


def draw_values(
    gaussians: Gaussians, camera: Cameras, values: Float[Tensor, "N D"]
) -> tuple[Float[Tensor, "H W D"], Float[Tensor, "H W"]]:
    """Blend values as colours are blended.

    Args:
        gaussians: The scene; its shapes get no gradients.
        camera: One camera.
        values: Of the splats, on their device.

    Returns:
        The picture, and its coverage.
    """
    device = gaussians.means.device
    image, alpha, _ = rasterization(
        means=gaussians.means.detach(),
        quats=gaussians.quats.detach(),
        scales=gaussians.scales.detach(),
        opacities=gaussians.opacities.detach(),
        colors=values,
        viewmats=camera.w2c.to(device, torch.float32),
        Ks=camera.K.to(device, torch.float32),
        width=camera.width,
        height=camera.height,
        rasterize_mode="antialiased" if gaussians.antialiased else "classic",
    )
    return image[0], alpha[0, ..., 0]


def draw_and_gather(
    gaussians: Gaussians,
    camera: Cameras,
    values: Float[Tensor, "N D"],
    change: Callable[[Picture], Picture],
) -> Float[Tensor, "N D"]:
    """Draw values, change the picture, and return for every splat the sum over its pixels.

    A pixel counts by the splat's weight in its blend. That is the transpose of drawing: the gradient
    of the drawn values with respect to the splats' own.

    Args:
        gaussians: The scene.
        camera: One camera.
        values: Of the splats, on their device.
        change: Gets the picture ``[H W D]`` and returns one of the same shape.
    """
    with torch.enable_grad():
        own = values.detach().clone().requires_grad_(True)
        image, _ = draw_values(gaussians, camera, own)
        (sums,) = torch.autograd.grad(image, own, change(image.detach()).contiguous())
    return sums
