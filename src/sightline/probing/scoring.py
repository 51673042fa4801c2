"""Scores of test renders: PSNR, SSIM and LPIPS, masked as the protocol says."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sightline.metrics.images import psnr, ssim
from sightline.metrics.lpips import Lpips
from sightline.probing.protocols import Protocol
from sightline.splatting.losses import ssim_map

Images = Float[Tensor, "T 3 H W"]


def score_renders(
    renders: Images,
    photos: Images,
    masks: Bool[Tensor, "T H W"],
    protocol: Protocol,
    lpips: Lpips | None = None,
) -> dict[str, Float[Tensor, " T"]]:
    """Score test views.

    Renders are clamped (and with the quirk ``eight_bit`` rounded) first. Measures are means over
    what the mask shows; with the quirk ``masked_are_perfect`` both pictures are multiplied by the
    mask and the mean goes over everything.

    Args:
        renders: In [0, 1] or beyond.
        photos: In [0, 1].
        masks: True where a pixel counts.
        protocol: Its quirks.
        lpips: A loaded network; without it there is no LPIPS.

    Returns:
        ``psnr`` in dB, ``ssim``, perhaps ``lpips`` (and ``lpips_unit`` where the protocol feeds
        [-1, 1]: the other range, for comparison with published numbers), and ``mask``, the share
        of pixels that count. A view whose mask is empty scores NaN.
    """
    renders = renders.clamp(0, 1)
    if protocol.quirks.eight_bit:
        renders, photos = (renders * 255).round() / 255, (photos * 255).round() / 255
    mask: Tensor | None = masks
    if protocol.quirks.masked_are_perfect:
        renders, photos, mask = renders * masks[:, None], photos * masks[:, None], None
    scores = {"psnr": psnr(renders, photos, mask)}
    if protocol.quirks.zero_padded_ssim:
        scores["ssim"] = ssim(renders, photos, mask)
    else:
        scores["ssim"] = _inner_ssim(renders, photos, masks if mask is not None else None)
    if lpips is not None:
        ranges = {"lpips": not protocol.quirks.lpips_unit_range}
        if not protocol.quirks.lpips_unit_range:
            ranges["lpips_unit"] = False
        for name, normalize in ranges.items():
            values = [
                lpips(
                    renders[i : i + 1],
                    photos[i : i + 1],
                    None if mask is None else mask[i : i + 1],
                    normalize=normalize,
                )
                for i in range(len(renders))
            ]
            scores[name] = torch.cat(values) if values else renders.new_zeros(0)
    scores["mask"] = masks.float().mean((1, 2))
    empty = ~masks.flatten(1).any(1)
    return {
        name: values if name == "mask" else torch.where(empty, torch.nan, values)
        for name, values in scores.items()
    }


def _inner_ssim(renders: Images, photos: Images, mask: Tensor | None) -> Float[Tensor, " T"]:
    """SSIM whose windows see only pixels that exist and count."""
    values = []
    for i in range(len(renders)):
        weight = torch.ones_like(renders[i, :1]) if mask is None else mask[i][None].to(renders)
        similar = ssim_map(renders[i] * weight, photos[i] * weight, weight)
        values.append((similar * weight).sum() / (3 * weight.sum()).clamp(min=1))
    return torch.stack(values) if values else renders.new_zeros(0)
