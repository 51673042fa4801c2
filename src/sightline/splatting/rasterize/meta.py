"""What ``rasterization`` tells besides pictures, in gsplat's words."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor


class Meta(dict[str, Any]):
    """A dictionary some of whose values are computed when they are first asked for."""

    def __init__(self, values: dict[str, Any], lazy: dict[str, Callable[[], Any]]) -> None:
        """Keep ``values`` and, under the keys of ``lazy``, functions that make the others."""
        super().__init__(values)
        self._lazy = lazy
        for key in lazy:
            super().__setitem__(key, None)

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401
        """Return a value, computing it now if need be."""
        if key in self._lazy:
            super().__setitem__(key, self._lazy.pop(key)())
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:  # noqa: ANN401
        """Set a value."""
        self._lazy.pop(key, None)
        super().__setitem__(key, value)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys; that this is ours makes ``dict(meta)`` ask for every value."""
        return super().__iter__()

    def __or__(self, other: Any) -> dict[str, Any]:  # noqa: ANN401
        """Merge into a plain dictionary."""
        return dict(self.items()) | other

    def __reduce__(self) -> tuple[type[dict], tuple[dict[str, Any]]]:
        """Pickle as a plain dictionary."""
        return dict, (dict(self.items()),)

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ANN401
        """Return a value or ``default``."""
        try:
            return self[key]
        except KeyError:
            return default

    def values(self) -> Iterator[Any]:  # type: ignore[override]
        """Iterate over all values."""
        return (self[key] for key in self)

    def items(self) -> Iterator[tuple[str, Any]]:  # type: ignore[override]
        """Iterate over all pairs."""
        return ((key, self[key]) for key in self)

    def copy(self) -> dict[str, Any]:
        """Return a plain dictionary with every value computed."""
        return dict(self.items())


class TileLists:
    """gsplat's lists of (tile, Gaussian) pairs, by bounding boxes of ``radii``.

    Our own kernels use other tiles and cull by the exact ellipse; these lists exist for callers who
    read them, and cost nothing until then.
    """

    def __init__(
        self,
        means2d: Float[Tensor, "*rows 2"],
        radii: Int32[Tensor, "*rows 2"],
        depths: Float[Tensor, "*rows"],
        rows: Int64[Tensor, " pictures"],
        grid: tuple[int, int],
        tile_size: int,
        shape: tuple[int, ...],
    ) -> None:
        """Remember what the lists are made from.

        Args:
            means2d: Centres in pixels.
            radii: Half sizes in pixels; zero when culled.
            depths: Order within a tile.
            rows: Number of rows of each picture.
            grid: Tiles down and across.
            tile_size: In pixels.
            shape: Shape of the picture axis, ``(*batch, cameras)``.
        """
        self._sources = (means2d.detach(), radii, depths.detach(), rows)
        self._grid = grid
        self._size = tile_size
        self._shape = shape
        self._made: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def _make(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self._made is None:
            means2d, radii, depths, rows = self._sources
            down, across = self._grid
            pictures = torch.arange(len(rows)).repeat_interleave(rows)
            centre = means2d.reshape(-1, 2) / self._size
            reach = radii.reshape(-1, 2) / self._size
            limit = torch.tensor([across, down])
            low = (centre - reach).floor().clamp(min=0).minimum(limit).long()
            high = (centre + reach).ceil().clamp(min=0).minimum(limit).long()
            box = torch.where((radii.reshape(-1, 2) > 0).all(-1, keepdim=True), high - low, 0)
            count = box.prod(-1)
            row = torch.repeat_interleave(count)
            start = count.cumsum(0) - count
            place = torch.arange(len(row)) - start[row]
            wide = box[row, 0]
            tile = (low[row, 1] + place // wide) * across + low[row, 0] + place % wide
            bits = (down * across).bit_length()
            depth = depths.reshape(-1).view(torch.int32).long()
            key = (((pictures[row] << bits) | tile) << 32) | depth[row]
            key, order = key.sort(stable=True)
            edges = torch.arange(len(rows))[:, None] << bits | torch.arange(down * across)
            offsets = torch.searchsorted(key, edges.reshape(-1) << 32).int()
            self._made = (
                count.int().view(radii.shape[:-1]),
                key,
                row[order].int(),
                offsets.view(*self._shape, down, across),
            )
        return self._made

    def lazy(self) -> dict[str, Callable[[], Tensor]]:
        """Return the four entries of the dictionary, not yet computed."""
        names = ("tiles_per_gauss", "isect_ids", "flatten_ids", "isect_offsets")
        return {name: lambda i=i: self._make()[i] for i, name in enumerate(names)}
