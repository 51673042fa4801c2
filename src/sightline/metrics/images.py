"""How near a picture is to its target: PSNR, SSIM in two variants, colour-corrected PSNR.

Pictures are RGB in [0, 1]; values outside are scored as they are, so clamp renderings first. With a
mask, only pixels where it is true count, and what is under the others has no influence; a view
without any such pixel scores NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from sightline.errors import ShapeError

Images = Float[Tensor, "V 3 H W"]
Mask = Bool[Tensor, "V H W"]


def _masked_mean(values: Float[Tensor, "V C H W"], mask: Mask | None) -> Float[Tensor, " V"]:
    if mask is None:
        return values.mean((1, 2, 3))
    # Where, not times: NaN under the mask must not come through.
    total = torch.where(mask[:, None], values, 0.0).sum((1, 2, 3))
    return total / (mask.sum((1, 2)) * values.shape[1])


def psnr(predicted: Images, target: Images, mask: Mask | None = None) -> Float[Tensor, " V"]:
    """Return the peak signal-to-noise ratio in dB, from the mean over pixels and channels.

    Identical pictures score infinity.

    >>> photo = torch.rand(2, 3, 8, 8)
    >>> [round(value, 2) for value in psnr(photo + 0.1, photo).tolist()]
    [20.0, 20.0]
    """
    return -10 * torch.log10(_masked_mean((predicted - target).square(), mask))


def _gaussian(size: int, sigma: float, like: Tensor) -> Float[Tensor, " size"]:
    at = torch.arange(size, dtype=like.dtype, device=like.device) - (size - 1) / 2
    kernel = torch.exp(-at.square() / (2 * sigma**2))
    return kernel / kernel.sum()


def _blur(
    images: Float[Tensor, "B C H W"], kernel: Float[Tensor, " size"], padding: int
) -> Float[Tensor, "B C h w"]:
    """Filter by a separable kernel, zeros outside."""
    flat = images.flatten(0, 1)[:, None]
    flat = functional.conv2d(flat, kernel[None, None, :, None], padding=(padding, 0))
    flat = functional.conv2d(flat, kernel[None, None, None, :], padding=(0, padding))
    return flat[:, 0].unflatten(0, images.shape[:2])


def _ssim_map(
    predicted: Images,
    target: Images,
    mask: Mask | None,
    kernel: Float[Tensor, " size"],
    padding: int,
    unbiased: float = 1.0,
) -> Float[Tensor, "V 3 h w"]:
    """Return SSIM at every window; windows take their statistics from unmasked pixels only."""
    share: Tensor | float = 1.0
    if mask is not None:
        predicted = torch.where(mask[:, None], predicted, 0.0)
        target = torch.where(mask[:, None], target, 0.0)
        # Zero padding counts as black pixels, as without a mask: only masked ones are left out.
        missing = _blur((~mask)[:, None].to(predicted.dtype), kernel, padding)
        share = (1 - missing).clamp_min(1e-6)
    stacked = torch.cat(
        [predicted, target, predicted.square(), target.square(), predicted * target], 1
    )
    means = (_blur(stacked, kernel, padding) / share).chunk(5, 1)
    mean_p, mean_t, square_p, square_t, product = means
    var_p = unbiased * (square_p - mean_p.square())
    var_t = unbiased * (square_t - mean_t.square())
    covariance = unbiased * (product - mean_p * mean_t)
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mean_p * mean_t + c1) * (2 * covariance + c2)) / (
        (mean_p.square() + mean_t.square() + c1) * (var_p + var_t + c2)
    )


def ssim(predicted: Images, target: Images, mask: Mask | None = None) -> Float[Tensor, " V"]:
    """Return structural similarity as 3D Gaussian splatting reports it. Differentiable.

    Gaussian window 11 x 11 with sigma 1.5, zero padding (which darkens borders), per channel,
    biased variances, data range 1, mean over every pixel.
    """
    kernel = _gaussian(11, 1.5, predicted)
    return _masked_mean(_ssim_map(predicted, target, mask, kernel, padding=5), mask)


def ssim_picture(predicted: Images, target: Images) -> Float[Tensor, "V 3 H W"]:
    """Return `ssim` at every pixel and channel."""
    return _ssim_map(predicted, target, None, _gaussian(11, 1.5, predicted), padding=5)


def ssim_skimage(
    predicted: Images,
    target: Images,
    mask: Mask | None = None,
    *,
    window: Literal["gaussian", "uniform"] = "gaussian",
) -> Float[Tensor, " V"]:
    """Return structural similarity as scikit-image does, over whole windows only.

    Args:
        predicted: In [0, 1].
        target: In [0, 1].
        mask: True where a pixel counts.
        window: ``gaussian`` is Wang et al. 2004 (11 x 11, sigma 1.5, biased variances: scikit-image
            with ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False``); ``uniform`` is
            scikit-image's default (7 x 7, sample variances). Both with ``data_range=1``.

    Raises:
        ShapeError: If the pictures are smaller than the window.
    """
    size = 11 if window == "gaussian" else 7
    if min(predicted.shape[-2:]) < size:
        msg = (
            f"pictures must be at least {size} x {size} for the {window} window, got "
            f"{predicted.shape[-2]} x {predicted.shape[-1]}; use ssim, which pads"
        )
        raise ShapeError(msg)
    if window == "gaussian":
        kernel, unbiased = _gaussian(size, 1.5, predicted), 1.0
    else:
        kernel, unbiased = torch.full_like(_gaussian(size, 1.5, predicted), 1 / size), 49 / 48
    values = _ssim_map(predicted, target, mask, kernel, padding=0, unbiased=unbiased)
    edge = size // 2
    inner = None if mask is None else mask[:, edge:-edge, edge:-edge]
    return _masked_mean(values, inner)


def _fit(
    basis: Float[Tensor, "V n B"], wanted: Float[Tensor, "V n C"], weights: Float[Tensor, "V n C"]
) -> Float[Tensor, "V B C"]:
    """Solve weighted least squares per view and channel, with the least norm if undetermined."""
    normal = torch.einsum("vnb,vnc,vnd->vcbd", basis, weights, basis)
    right = torch.einsum("vnb,vnc,vnc->vcb", basis, weights, wanted)
    return (torch.linalg.pinv(normal, hermitian=True) @ right[..., None])[..., 0].mT


def _unclipped(values: Tensor) -> Tensor:
    return (values >= 0.5 / 255) & (values <= 1 - 0.5 / 255)


def correct_colors(
    predicted: Images,
    target: Images,
    mask: Mask | None = None,
    *,
    method: Literal["affine", "gains", "quadratic"] = "affine",
) -> Images:
    """Map each prediction's colours to its target's, to take exposure and white balance out.

    Args:
        predicted: In [0, 1].
        target: In [0, 1].
        mask: True where a pixel counts in the fit.
        method: ``affine``: the 3 x 4 matrix with the least squared error. ``gains``: gain and
            offset per channel, fitted from target to prediction and inverted, as gsplat's
            evaluation does. ``quadratic``: all products, linear terms and a constant, refitted
            five times without saturated pixels, as multinerf does.

    Returns:
        Corrected pictures, clamped to [0, 1]; masked pixels are mapped too.
    """
    height, width = predicted.shape[-2:]
    colors = predicted.flatten(2).mT.double()  # [V, H*W, 3]
    wanted = target.flatten(2).mT.double()
    counts = torch.ones_like(colors)
    if mask is not None:
        counted = mask.flatten(1)[..., None]
        counts = counts * counted
        wanted = torch.where(counted, wanted, 0.0)
    one = torch.ones_like(colors[..., :1])

    def known(values: Tensor) -> Tensor:
        return values if mask is None else torch.where(counts > 0, values, 0.0)

    if method == "gains":
        size = counts.sum(1, keepdim=True)
        x, y = known(colors), wanted
        mean_x, mean_y = x.sum(1, keepdim=True) / size, y.sum(1, keepdim=True) / size
        product = (x * y).sum(1, keepdim=True) / size - mean_x * mean_y
        variance = (y * y).sum(1, keepdim=True) / size - mean_y.square()
        gain = product / variance.clamp_min(1e-8)
        gain = torch.where(gain.abs() < 1e-8, 1.0, gain)
        colors = ((colors - mean_x) / gain + mean_y).clamp(0, 1)
    elif method == "affine":
        warp = _fit(torch.cat([known(colors), one], -1), wanted, counts)
        colors = (torch.cat([colors, one], -1) @ warp).clamp(0, 1)
    else:
        usable = counts * _unclipped(colors) * _unclipped(wanted)
        for _ in range(5):
            products = [colors[..., i : i + 1] * colors[..., i:] for i in range(3)]
            basis = torch.cat([*products, colors, one], -1)
            fitted = basis if mask is None else torch.where(counts[..., :1] > 0, basis, 0.0)
            warp = _fit(fitted, wanted, usable * _unclipped(colors))
            colors = (basis @ warp).clamp(0, 1)
    return colors.mT.unflatten(-1, (height, width)).to(predicted.dtype)


def color_corrected_psnr(
    predicted: Images,
    target: Images,
    mask: Mask | None = None,
    *,
    method: Literal["affine", "gains", "quadratic"] = "affine",
) -> Float[Tensor, " V"]:
    """Return PSNR in dB after ``correct_colors``: what is left once exposure is forgiven.

    It looks at the target, so it flatters; report it beside plain PSNR, never instead.
    """
    return psnr(correct_colors(predicted, target, mask, method=method), target, mask)


@dataclass(frozen=True, slots=True)
class ImageMetric:
    """A named measure of pictures; satisfies ``protocols.Metric``."""

    name: str
    unit: str
    higher_is_better: bool
    function: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def __call__(
        self, predicted: Images, target: Images, mask: Mask | None = None
    ) -> Float[Tensor, " V"]:
        """Return one value a view."""
        return self.function(predicted, target, mask)


METRICS: dict[str, ImageMetric] = {
    "psnr": ImageMetric("psnr", "dB", True, psnr),
    "ssim": ImageMetric("ssim", "", True, ssim),
    "ssim_skimage": ImageMetric("ssim_skimage", "", True, ssim_skimage),
    "cc_psnr": ImageMetric("cc_psnr", "dB", True, color_corrected_psnr),
}
"""Measures that need no weights; ``lpips`` has its own module."""
