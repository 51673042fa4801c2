"""Controls without a network: what features have to beat to be worth anything.

``iuv`` and ``iuvrgb`` are those of Feat2GS (``iuv``: view index, u, v). ``random`` is noise that
knows nothing but identity: equal patches at equal places have equal features, all else differs.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sightline.backbones.base import ONE, ZERO, Triple, resolve_layers
from sightline.backbones.grid import Fit, Placement, fit_pictures, place
from sightline.backbones.request import Request
from sightline.types import Features


class CoordinateBackbone:
    """View index, pixel position and perhaps colour of every pixel; see `protocols.Backbone`.

    Channel 0 is the view's index over the last index (0 for a single view); channels 1 and 2 are u
    over the width and v over the height, 0 to 1 inclusive; with colour, channels 3 to 5 are RGB in
    [-1, 1]. The grid is that of the pixels.
    """

    patch_size = 1
    depth = 1
    mean: Triple = ZERO
    std: Triple = ONE
    sequence = True

    def __init__(self, *, rgb: bool) -> None:
        """Choose whether there is colour."""
        self.rgb = rgb
        self.embed_dim = 6 if rgb else 3

    def placement(self, height: int, width: int) -> Placement:
        """Return the pixel grid."""
        return place((height, width), "stretch", step=1, stride=1)

    def views_at_once(self, height: int, width: int) -> int | None:
        """Return None: the views are numbered, so all have to be given at once."""
        return None

    def extract(
        self, images: Float[Tensor, "views 3 height width"], *, layers: Sequence[int] = (-1,)
    ) -> list[Features]:
        """Return the channels of every pixel; there is one layer."""
        chosen = resolve_layers(layers, self.depth)
        count, _, height, width = images.shape
        index = torch.arange(count).to(images) / max(count - 1, 1)
        u, v = (torch.linspace(0, 1, side).to(images) for side in (width, height))
        size = (count, height, width)
        channels = [
            index.view(-1, 1, 1).expand(size),
            u.view(1, 1, -1).expand(size),
            v.view(1, -1, 1).expand(size),
        ]
        patches = torch.stack(channels, 1)
        if self.rgb:
            patches = torch.cat((patches, images * 2 - 1), 1)
        return [Features(patches=patches, layer=layer, normed=False) for layer in chosen]


class NoiseBackbone:
    """Standard normal features drawn from a seed, the patch's place and its 8-bit content.

    They are the same on every machine, in every chunk and for every order of views.
    """

    patch_size = 16
    depth = 1
    mean: Triple = ZERO
    std: Triple = ONE

    def __init__(self, *, embed_dim: int = 256, seed: int = 0, fit: Fit = "stretch") -> None:
        """Choose the number of channels (even), the seed, and how pictures come to whole patches."""
        self.embed_dim, self.seed = embed_dim, seed
        self.fit: Fit = fit

    def placement(self, height: int, width: int) -> Placement:
        """Return where patches lie."""
        return place((height, width), self.fit, step=self.patch_size, stride=self.patch_size)

    def extract(
        self, images: Float[Tensor, "views 3 height width"], *, layers: Sequence[int] = (-1,)
    ) -> list[Features]:
        """Return the noise; there is one layer."""
        chosen = resolve_layers(layers, self.depth)
        placement = self.placement(*images.shape[-2:])
        canvas = fit_pictures(images.float().cpu(), placement, self.mean, self.std)
        pixels = (canvas * 255).round().to(torch.int64)
        rows, cols = placement.grid
        tiles = pixels.unflatten(3, (cols, -1)).unflatten(2, (rows, -1))
        content = tiles.permute(0, 2, 4, 1, 3, 5).flatten(3)  # view, row, column, value
        key = _digest(content) ^ _mix(
            torch.arange(rows * cols).view(rows, cols) + _mix(torch.tensor(self.seed))
        )
        patches = _normal(key, self.embed_dim).permute(0, 3, 1, 2).to(images)
        return [Features(patches=patches, layer=layer, normed=False) for layer in chosen]


def iuv(request: Request) -> CoordinateBackbone:
    """Make the control of view index and position."""
    return CoordinateBackbone(rgb=False)


def iuvrgb(request: Request) -> CoordinateBackbone:
    """Make the control of view index, position and colour."""
    return CoordinateBackbone(rgb=True)


def random(request: Request) -> NoiseBackbone:
    """Make the control of noise."""
    return NoiseBackbone(seed=request.seed, fit=request.options.get("fit", "stretch"))


_GOLDEN = -7046029254386353131  # 2^64 over the golden ratio, as a signed number
_MIX1, _MIX2 = -4658895280553007687, -7723592293110705685


def _mix(x: Int64[Tensor, "*s"]) -> Int64[Tensor, "*s"]:
    """Return well-mixed 64-bit numbers (SplitMix64; Steele et al. 2014); products wrap around."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def _shift(x: Int64[Tensor, "*s"], bits: int) -> Int64[Tensor, "*s"]:
    """Shift right without carrying the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _digest(values: Int64[Tensor, "*s n"]) -> Int64[Tensor, "*s"]:
    """Return one number for a row of numbers."""
    weights = _mix(torch.arange(values.shape[-1])) | 1
    return _mix((values * weights).sum(-1))


def _normal(key: Int64[Tensor, "*s"], count: int) -> Float[Tensor, "*s n"]:
    """Return ``count`` normal numbers a key (Box and Muller 1958)."""
    bits = _mix(key.unsqueeze(-1) + _mix(torch.arange(count)))
    unit = (_shift(bits, 11).double() + 0.5) * 2.0**-53
    first, second = unit.chunk(2, -1)
    radius, angle = (-2 * first.log()).sqrt(), 2 * math.pi * second
    return torch.cat((radius * angle.cos(), radius * angle.sin()), -1).float()
