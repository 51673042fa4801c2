"""How Splatt3R (Smart et al. 2024) scores new views: where the two pictures can know the answer.

The published numbers come from formulas with known slips; both the numbers and the plain measures
are here, under names that say which is which.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from sightline.geometry.pose import invert_se3

DEPTH_TOLERANCE = 0.1
"""Metres by which a context view's depth may differ and still confirm a point."""

Images = Float[Tensor, "b v 3 h w"]
Mask = Bool[Tensor, "b v h w"]


def seen_mask(contexts: Sequence[Mapping[str, Tensor]], target: Mapping[str, Tensor]) -> Tensor:
    """Mark the pixels of a target view that a context view shows too.

    Args:
        contexts: Views with ``depthmap [B, H, W]`` (0 is a hole), ``camera_intrinsics [B, 3, 3]``
            or larger (pixel centres at whole numbers) and ``camera_pose [B, 4, 4]`` (camera to
            world).
        target: Such a view.

    Returns:
        ``[B, H, W]``: true where depth is known, the point falls into a context picture, and it
        agrees with a context view's depth. As in the original, these may be different views.
    """
    depth = target["depthmap"]
    height, width = depth.shape[1:]
    x = torch.arange(width, dtype=depth.dtype, device=depth.device)
    y = torch.arange(height, dtype=depth.dtype, device=depth.device)
    pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    pixels = torch.cat([pixels, torch.ones_like(pixels[..., :1])], -1)
    K = target["camera_intrinsics"][:, :3, :3]
    local = torch.einsum("bij,hwj->bhwi", torch.linalg.inv(K), pixels) * depth[..., None]
    world = _move(target["camera_pose"], local)
    inside = torch.zeros_like(depth, dtype=torch.bool)
    agrees = torch.zeros_like(inside)
    for view in contexts:
        high, wide = view["depthmap"].shape[1:]
        points = _move(invert_se3(view["camera_pose"]), world)
        shown = torch.einsum("bij,bhwj->bhwi", view["camera_intrinsics"][:, :3, :3], points)
        uv = shown[..., :2] / shown[..., 2:]
        size = torch.tensor([wide, high], dtype=uv.dtype, device=uv.device)
        inside |= ((uv > 0) & (uv < size)).all(-1)
        found = functional.grid_sample(
            view["depthmap"][:, None], uv / size * 2 - 1, align_corners=False
        )[:, 0]
        agrees |= torch.isclose(points[..., 2], found, rtol=1e-5, atol=DEPTH_TOLERANCE)
    return (depth > 1e-6) & inside & agrees


def _move(motion: Float[Tensor, "b 4 4"], points: Float[Tensor, "b h w 3"]) -> Tensor:
    turned = torch.einsum("bij,bhwj->bhwi", motion[:, :3, :3], points)
    return turned + motion[:, None, None, :3, 3]


def masked_mse(color: Images, target: Images, mask: Mask) -> Float[Tensor, ""]:
    """Return the mean squared error over the masked pixels and the three channels."""
    error = (color - target).square().mean(2)
    return torch.where(mask, error, 0.0).sum() / mask.sum()


def official_mse(color: Images, target: Images, mask: Mask) -> Float[Tensor, ""]:
    """Return the published whole-picture error: masked pixels are taken for perfect."""
    return ((color - target) * mask[:, :, None]).square().mean()


def official_mse_over_mask(color: Images, target: Images, mask: Mask) -> Float[Tensor, ""]:
    """Return the published error over the mask, with its two slips.

    After masking, the mask's view axis lies on the colour axis once more, and the sum over three
    colours is divided by the number of pixels only: PSNR from it is 4.77 dB too low. It exists for
    1 or 3 views.
    """
    if mask.shape[1] not in (1, 3):
        msg = f"the published formula exists for 1 or 3 views, got {mask.shape[1]}; use masked_mse"
        raise ValueError(msg)
    error = ((color - target) * mask[:, :, None]).square()
    return (error * mask[:, None]).sum() / mask.sum()


def photometric_loss(
    color: Images,
    target: Images,
    mask: Mask,
    perceptual: Float[Tensor, ""] | None = None,
    perceptual_weight: float = 0.25,
) -> Float[Tensor, ""]:
    """Return Splatt3R's training loss: squared error of masked pictures, and LPIPS of the same.

    Args:
        color: Rendered.
        target: Wanted.
        mask: From `seen_mask`.
        perceptual: The mean LPIPS of the masked pictures; None leaves it out.
        perceptual_weight: Its share.
    """
    loss = official_mse(color, target, mask)
    return loss if perceptual is None else loss + perceptual_weight * perceptual


def ssim_map(predicted: Float[Tensor, "n 3 h w"], target: Float[Tensor, "n 3 h w"]) -> Tensor:
    """Return structural similarity ``[N, 3, H, W]`` as scikit-image maps it.

    Gaussian window of 11 x 11 with sigma 1.5, mirrored borders, sample covariances, data range 1.
    """
    at = torch.arange(11, dtype=torch.float64, device=predicted.device) - 5
    kernel = torch.exp(-at.square() / (2 * 1.5**2))
    kernel = kernel / kernel.sum()

    def blur(x: Tensor) -> Tensor:
        flat = _mirror(x.flatten(0, 1)[:, None].double(), 5)
        # SciPy sums in double precision and keeps the input's in between.
        flat = functional.conv2d(flat, kernel[None, None, :, None]).to(x.dtype).double()
        return functional.conv2d(flat, kernel[None, None, None, :]).to(x.dtype).view_as(x)

    a, b = predicted, target
    mean_a, mean_b = blur(a), blur(b)
    unbiased = 121 / 120
    var_a = unbiased * (blur(a * a) - mean_a.square())
    var_b = unbiased * (blur(b * b) - mean_b.square())
    both = unbiased * (blur(a * b) - mean_a * mean_b)
    c1, c2 = 0.01**2, 0.03**2
    share = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    share = share / ((mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2))
    return share


def _mirror(x: Float[Tensor, "n 1 h w"], by: int) -> Float[Tensor, "n 1 _ _"]:
    """Pad by mirroring with the edge repeated."""
    x = torch.cat([x[..., :by].flip(-1), x, x[..., -by:].flip(-1)], -1)
    return torch.cat([x[..., :by, :].flip(-2), x, x[..., -by:, :].flip(-2)], -2)
