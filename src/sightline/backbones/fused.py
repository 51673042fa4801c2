"""Several backbones as one: ``fused:A+B`` puts their channels side by side on A's grid."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.backbones.base import ONE, ZERO, Triple
from sightline.backbones.grid import pixel_positions, placement_of
from sightline.backbones.request import Request
from sightline.errors import InputError
from sightline.protocols import Backbone
from sightline.types import Features


class FusedBackbone:
    """Channels of several backbones on the grid of the first one; see `protocols.Backbone`.

    The others are read bilinearly at the exact positions of the first one's patches. The same
    layers are asked of all of them, so negative ones are the useful ones; class tokens stand side
    by side where all have them.
    """

    mean: Triple = ZERO
    std: Triple = ONE

    def __init__(self, parts: Sequence[Backbone]) -> None:
        """Join backbones; each normalises for itself."""
        self.parts = tuple(parts)
        self.patch_size = parts[0].patch_size
        self.embed_dim = sum(part.embed_dim for part in parts)
        self.sequence = any(getattr(part, "sequence", False) for part in parts)
        own = getattr(parts[0], "placement", None)
        if own is not None:  # else the grid is taken to be even, as it is without others
            self.placement = own

    def views_at_once(self, height: int, width: int) -> int | None:
        """Return how many pictures to give to `extract` at a time; None for all of them."""
        asked = [getattr(part, "views_at_once", None) for part in self.parts]
        counts = [1 if ask is None else ask(height, width) for ask in asked]
        whole = [count for count in counts if count is not None]
        return min(whole) if len(whole) == len(counts) else None

    def extract(
        self, images: Float[Tensor, "views 3 height width"], *, layers: Sequence[int] = (-1,)
    ) -> list[Features]:
        """Return one record a layer; ``layer`` is the first backbone's number of it."""
        size = (images.shape[-2], images.shape[-1])
        found = [part.extract(images, layers=layers) for part in self.parts]
        return [self._join(rows, size) for rows in zip(*found, strict=True)]

    def _join(self, rows: Sequence[Features], size: tuple[int, int]) -> Features:
        first = rows[0]
        pixels = pixel_positions(first, size, self.parts[0])
        maps = [first.patches]
        for features, part in zip(rows[1:], self.parts[1:], strict=True):
            grid = (features.patches.shape[-2], features.patches.shape[-1])
            placement = placement_of(part, size, grid)
            maps.append(placement.sample(features.patches, pixels))
        tokens = [row.cls for row in rows if row.cls is not None]
        return Features(
            patches=torch.cat(maps, 1),
            cls=torch.cat(tokens, 1) if len(tokens) == len(rows) else None,
            layer=first.layer,
            normed=all(row.normed for row in rows),
        )


def fused(request: Request) -> FusedBackbone:
    """Make the backbone ``fused:A+B``, of two or more names.

    Raises:
        InputError: There is one name only, or not one checkpoint for each.
    """
    from sightline.backbones import create_backbone

    names = [name for name in request.source.split("+") if name]
    if len(names) < 2:
        raise InputError(
            f'expected two names or more joined by "+", got "{request.source}"; write fused:A+B'
        )
    given = str(request.checkpoint or "")
    files = given.split(",") if given else [""] * len(names)
    if len(files) != len(names):
        raise InputError(
            f"expected {len(names)} checkpoints separated by commas (empty where none is needed), "
            f"got {len(files)}; give one for each of {', '.join(names)}"
        )
    return FusedBackbone(
        [
            create_backbone(
                f"random:{name}" if request.random else name,
                file or None,
                request.device,
                request.dtype,
                seed=request.seed,
                **request.options,
            )
            for name, file in zip(names, files, strict=True)
        ]
    )
