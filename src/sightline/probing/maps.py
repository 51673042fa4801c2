"""The four error maps that Feat2GS writes beside each test render."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sightline.metrics.images import ssim_picture
from sightline.metrics.lpips import Lpips

_PSNR_TOP = 40.0
_PSNR_LEAST = 1e-2
_MSE_TOP = 0.2


def error_maps(
    render: Float[Tensor, "3 H W"],
    photo: Float[Tensor, "3 H W"],
    mask: Bool[Tensor, "H W"],
    lpips: Lpips | None = None,
) -> dict[str, UInt8[np.ndarray, "..."]]:
    """Return ``psnr``, ``ssim`` (grey), ``mse`` and with a network ``lpips`` (jet) as 8-bit pictures.

    Both pictures are multiplied by the mask. PSNR is ``20 log10(1 / (0.01 + rmse)) / 40``, SSIM
    ``(x + 1) / 2``, the squared error times 5 up to 0.2, LPIPS the sum of its layers' maps, enlarged
    bilinearly, up to 1; all clamped to [0, 1] and truncated.

    Args:
        render: In [0, 1].
        photo: In [0, 1].
        mask: True where a pixel counts.
        lpips: A loaded network, which is fed [0, 1].
    """
    mine, true = render * mask, photo * mask
    squared = (mine - true).square().mean(0)
    psnr = 20 * torch.log10(1 / (_PSNR_LEAST + squared.sqrt())) / _PSNR_TOP
    similar = ssim_picture(mine[None], true[None])[0].mean(0)
    maps = {
        "psnr": _grey(psnr),
        "ssim": _grey((similar + 1) / 2),
        "mse": jet(squared.clamp(0, _MSE_TOP) * (1 / _MSE_TOP)),
    }
    if lpips is not None:
        layers = lpips.maps(mine[None], true[None], normalize=False)
        size = (mine.shape[-2], mine.shape[-1])
        grown = [
            functional.interpolate(layer, size, mode="bilinear", align_corners=False)[0, 0]
            for layer in layers
        ]
        maps["lpips"] = jet(torch.stack(grown).sum(0).clamp(0, 1))
    return maps


def _grey(values: Float[Tensor, "H W"]) -> UInt8[np.ndarray, "H W"]:
    return (values.clamp(0, 1).cpu().numpy() * 255).astype(np.uint8)


def jet(values: Float[Tensor, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Colour [0, 1] from blue over green to red, piecewise linear; 8 bits are truncated."""
    share = values.clamp(0, 1).cpu()[..., None]
    tops = torch.tensor([3.0, 2.0, 1.0])
    colors = (1.5 - (4 * share - tops).abs()).clamp(0, 1)
    return (colors.numpy() * 255).astype(np.uint8)


def write_error_maps(
    folder: Path,
    renders: UInt8[Tensor, "T 3 H W"],
    photos: UInt8[Tensor, "T 3 H W"],
    masks: Bool[Tensor, "T H W"],
    lpips: Lpips | None = None,
) -> list[str]:
    """Write ``psnr_map_00000.png`` and its companions; returns their names."""
    names = []
    for i in range(len(renders)):
        found = error_maps(renders[i] / 255, photos[i] / 255, masks[i], lpips)
        for kind, pixels in found.items():
            names.append(f"{kind}_map_{i:05d}.png")
            Image.fromarray(pixels).save(folder / names[-1])
    return names
