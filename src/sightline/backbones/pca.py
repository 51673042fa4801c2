"""Principal components of features, exact and repeatable, and pictures of the first three.

The axes are fitted once over all views, so that one colour means one thing in every picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from sightline.errors import ShapeError
from sightline.types import TensorStruct

_ROWS = 1 << 14  # tokens that are centred at a time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pca(TensorStruct):
    """Axes of the largest variance, largest first."""

    mean: Float[Tensor, " D"]
    axes: Float[Tensor, "q D"]
    """Orthonormal rows."""
    variance: Float[Tensor, " q"]
    """Of the fitted tokens along each axis (divided by their number)."""

    def project(self, maps: Float[Tensor, "V D h w"]) -> Float[Tensor, "V q h w"]:
        """Return the coordinates of every patch on the axes; no whitening."""
        shift = self.axes @ self.mean
        return torch.einsum("vdhw,qd->vqhw", maps, self.axes) - shift.view(-1, 1, 1)


def fit_pca(tokens: Float[Tensor, "N D"], components: int) -> Pca:
    """Find the axes of the largest variance, by the exact eigenvectors of the covariance.

    Each axis points to where its entry of the largest magnitude is positive, so that the same
    tokens always give the same axes.

    Args:
        tokens: One row a token.
        components: How many axes.

    Raises:
        ShapeError: There are fewer tokens or channels than axes.
    """
    count, width = tokens.shape
    if not 0 < components <= min(count, width):
        raise ShapeError(
            f"expected at least {components} tokens and channels for {components} principal "
            f"components, got {count} tokens of {width} channels; ask for fewer components"
        )
    mean = tokens.mean(0, dtype=torch.float64).to(tokens.dtype)
    if width <= count:
        square = tokens.new_zeros(width, width, dtype=torch.float64)
        for rows in tokens.split(_ROWS):
            centred = rows - mean
            square += centred.mT @ centred
        values, vectors = torch.linalg.eigh(square)
        axes = vectors.mT
    else:  # fewer tokens than channels: the smaller matrix has the same eigenvalues
        centred = (tokens - mean).double()
        values, vectors = torch.linalg.eigh(centred @ centred.mT)
        axes = functional.normalize(vectors.mT @ centred, dim=1)
    axes, values = axes[-components:].flip(0), values[-components:].flip(0)
    peak = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    axes = torch.where(peak < 0, -axes, axes)
    return Pca(mean=mean, axes=axes.to(tokens), variance=(values.clamp(min=0) / count).to(tokens))


def pca_maps(
    maps: Float[Tensor, "V D h w"], valid: Bool[Tensor, "V h w"] | None = None
) -> Float[Tensor, "V 3 h w"]:
    """Return the first three components of all views as colours, 0 to 1 for all but outliers.

    The 1st and 99th percentile over all views become 0 and 1; values beyond go on outside, for
    the caller to clip after it has enlarged the maps. Each component is turned so that the middle
    of the pictures is brighter than their border, which gives what is photographed the warm end
    of the first component.

    Args:
        maps: Features of all views.
        valid: False where a patch is padding or masked; those have no part in the axes.
    """
    tokens = maps.permute(0, 2, 3, 1)
    if valid is None:
        valid = torch.ones(tokens.shape[:3], dtype=torch.bool, device=maps.device)
    chosen = tokens[valid].float()
    components = min(3, *chosen.shape)
    found = fit_pca(chosen, components).project(maps.float())
    low, high = _percentiles(found.permute(1, 0, 2, 3)[:, valid])
    unit = (found - low.view(-1, 1, 1)) / (high - low).clamp(min=1e-12).view(-1, 1, 1)
    center = _center(maps.shape[-2], maps.shape[-1]).to(unit)
    weight = valid * (center - (center * valid).sum() / valid.sum())
    inward = (unit * weight.unsqueeze(1)).sum((0, 2, 3)) >= 0
    unit = torch.where(inward.view(-1, 1, 1), unit, 1 - unit)
    # Features of one or two channels leave the last colours at medium.
    return functional.pad(unit, (0, 0, 0, 0, 0, 3 - components), value=0.5)


def to_colors(maps: Float[Tensor, "3 H W"]) -> UInt8[Tensor, "H W 3"]:
    """Clip colours to 0 to 1 and round them to eight bits, channels last."""
    return (maps.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu()


def _percentiles(
    values: Float[Tensor, "q N"], bounds: Sequence[float] = (0.01, 0.99)
) -> tuple[Float[Tensor, " q"], Float[Tensor, " q"]]:
    count = values.shape[1]
    ranks = [1 + round(share * (count - 1)) for share in bounds]
    low, high = (values.kthvalue(rank, dim=1).values for rank in ranks)
    return low, high


def _center(rows: int, cols: int) -> Float[Tensor, "h w"]:
    """Return a weight that falls from 1 in the middle to 0 at the border."""
    y, x = (1 - torch.linspace(-1, 1, side + 2)[1:-1].square() for side in (rows, cols))
    return y.unsqueeze(1) * x
