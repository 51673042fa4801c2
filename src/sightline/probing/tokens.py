"""Features on the token grid, and where each pixel reads them: bilinear, one matrix an axis."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sightline.backbones.grid import Placement
from sightline.backbones.pca import fit_pca
from sightline.errors import InputError, ShapeError
from sightline.probing.frames import PATCH, Size
from sightline.probing.protocols import Protocol
from sightline.types import TensorStruct


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenMaps(TensorStruct):
    """Raw features of a network and where they lie."""

    maps: Float[Tensor, "V D h w"]
    placement: Placement
    is_pixels: bool = False
    """One token a pixel; such features are not reduced."""

    def at_cells(self, grid: Size) -> Float[Tensor, "V D rows cols"]:
        """Read the maps at the centres of an even grid over the picture."""
        height, width = self.placement.size
        rows, cols = grid
        y = (torch.arange(rows, dtype=torch.float64, device=self.maps.device) + 0.5) * height / rows
        x = (torch.arange(cols, dtype=torch.float64, device=self.maps.device) + 0.5) * width / cols
        return self.placement.sample(
            self.maps, torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenGrid(TensorStruct):
    """Features of the training views, ready to be read out.

    Pixel (row, column) of a view has the features
    ``sum_ij down[row, i] across[column, j] grid[view, i, j]``.
    """

    grid: Float[Tensor, "V h w C"]
    down: Float[Tensor, "H h"]
    across: Float[Tensor, "W w"]
    is_pixels: bool = False
    """The grid is the pixels', and both matrices are the identity."""

    @property
    def width(self) -> int:
        """Channels."""
        return self.grid.shape[-1]

    def at_pixels(self) -> Float[Tensor, "V H W C"]:
        """Return the features of every pixel."""
        if self.is_pixels:
            return self.grid
        rows = torch.einsum("Hh,vhwc->vHwc", self.down, self.grid)
        return torch.einsum("Ww,vHwc->vHWc", self.across, rows)


def axis_weights(placement: Placement, axis: int, count: int) -> Float[Tensor, "size count"]:
    """Return bilinear weights from ``count`` patches to the pixels of one axis, clamped at borders.

    On an evenly covered axis they are those of ``interpolate(align_corners=False)``.
    """
    size, inner = placement.size[axis], placement.inner[axis]
    canvas, offset = placement.canvas[axis], placement.offset[axis]
    pixels = torch.arange(size, dtype=torch.float64) + 0.5
    at = ((pixels * inner / size + offset) * count / canvas - 0.5).clamp(0, count - 1)
    left = at.floor().long().clamp(max=max(count - 2, 0))
    share = at - left
    weights = torch.zeros(size, count, dtype=torch.float64)
    weights.scatter_add_(1, left[:, None], 1 - share[:, None])
    weights.scatter_add_(1, (left + 1).clamp(max=count - 1)[:, None], share[:, None])
    return weights.float()


def even_placement(size: Size, grid: Size) -> Placement:
    """Return the placement of a grid that covers a picture evenly."""
    return Placement(size=size, canvas=size, inner=size, offset=(0, 0), grid=grid)


def make_grid(
    maps: Float[Tensor, "V C h w"], placement: Placement, *, is_pixels: bool = False
) -> TokenGrid:
    """Lay maps out for reading."""
    device = maps.device
    rows, cols = maps.shape[-2:]
    return TokenGrid(
        grid=maps.permute(0, 2, 3, 1).contiguous().float(),
        down=axis_weights(placement, 0, rows).to(device),
        across=axis_weights(placement, 1, cols).to(device),
        is_pixels=is_pixels,
    )


def reduce_tokens(found: TokenMaps, protocol: Protocol, seed: int) -> TokenGrid:
    """Reduce a network's features by PCA over all tokens of all views, as the protocol says.

    No whitening and no scaling. Features of pixels (``iuv``, ``iuvrgb``) stay as they are.

    Raises:
        InputError: If the protocol wants PCA and there are too few channels or tokens.
    """
    if found.is_pixels:
        return make_grid(found.maps, found.placement, is_pixels=True)
    return make_grid(principal_components(found.maps, protocol, seed), found.placement)


def principal_components(
    maps: Float[Tensor, "V D h w"], protocol: Protocol, seed: int
) -> Float[Tensor, "V C h w"]:
    """Return the first components of all views together; see `reduce_tokens`."""
    wanted = protocol.components
    if wanted is None:
        if protocol.quirks.needs_pca:
            raise InputError("features without PCA are refused by the quirk needs_pca")
        return maps
    tokens = maps.permute(0, 2, 3, 1).flatten(0, 2).float()
    possible = min(*tokens.shape)
    if protocol.all_components and possible < wanted:
        raise InputError(
            f"{protocol.name} needs {wanted} principal components, got {tokens.shape[0]} tokens "
            f"of {tokens.shape[1]} channels; probe larger pictures or take sightline-1"
        )
    count = min(wanted, possible)
    if not protocol.quirks.randomised_pca:
        return fit_pca(tokens, count).project(maps.float())
    centred = tokens - tokens.mean(0)
    with torch.random.fork_rng(devices=[tokens.device] if tokens.is_cuda else []):
        torch.manual_seed(seed)
        _, _, axes = torch.pca_lowrank(centred, q=count, center=False, niter=50)
    views, _, rows, cols = maps.shape
    return (centred @ axes).view(views, rows, cols, count).permute(0, 3, 1, 2)


def concatenate(parts: Sequence[TokenMaps], protocol: Protocol, seed: int) -> TokenGrid:
    """Join several features: PCA, [0, 1], a common grid of 16 pixels, side by side, PCA again.

    Features of pixels join at full resolution, scaled to [0, 1], and a third PCA follows there.

    Raises:
        ShapeError: If nothing is given.
    """
    if not parts:
        raise ShapeError("expected at least one feature to concatenate, got none")
    size = parts[0].placement.size
    cells = (size[0] // PATCH, size[1] // PATCH)
    networks = []
    for part in parts:
        if part.is_pixels:
            continue
        reduced = TokenMaps(
            maps=_unit(principal_components(part.maps, protocol, seed)), placement=part.placement
        )
        networks.append(reduced.at_cells(cells))
    pixels = [_unit(part.maps.float()) for part in parts if part.is_pixels]
    even = even_placement(size, cells)
    if not networks:
        return make_grid(torch.cat(pixels, 1), parts[0].placement, is_pixels=True)
    joined = principal_components(torch.cat(networks, 1), protocol, seed)
    if not pixels:
        return make_grid(joined, even)
    full = functional.interpolate(joined, size, mode="bilinear", align_corners=False)
    full = principal_components(torch.cat([full, *pixels], 1), protocol, seed)
    return make_grid(full, even_placement(size, size), is_pixels=True)


def _unit(maps: Tensor) -> Tensor:
    """Scale to [0, 1] by one minimum and maximum over all."""
    low, high = maps.min(), maps.max()
    return (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)
