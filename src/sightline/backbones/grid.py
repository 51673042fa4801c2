"""Where the patches of a picture lie: the rule that fits a picture to a network, and its inverse.

A network wants sides that its patch divides. Each backbone states one rule (`Fit`), and a
`Placement` keeps what the rule did to a picture, so that every patch has an exact position in
pixels of the picture as it was given: the centre of the first pixel is (0.5, 0.5).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sightline.errors import ShapeError
from sightline.protocols import Backbone
from sightline.types import Features

Fit = Literal["stretch", "pad", "square", "letterbox"]
"""How a picture comes to a size that the network takes.

``stretch``: resized to the nearest multiples of the step; patches cover the picture exactly.
``pad``: kept, with zeros (after normalisation) on all sides up to the next multiples, the smaller
half at the top and left. ``square``: stretched to a fixed square. ``letterbox``: the long side
scaled to a fixed side, with zeros at the right and bottom.
"""


@dataclass(frozen=True, slots=True)
class Placement:
    """A picture on the canvas that a network sees; all sizes are (height, width) in pixels.

    Attributes:
        size: Of the picture as it was given.
        canvas: What the network sees.
        inner: The size that the picture takes on the canvas.
        offset: (top, left) of the picture on the canvas.
        grid: Rows and columns of patches.
    """

    size: tuple[int, int]
    canvas: tuple[int, int]
    inner: tuple[int, int]
    offset: tuple[int, int]
    grid: tuple[int, int]

    def positions(self, grid: tuple[int, int] | None = None) -> Float[Tensor, "h w 2"]:
        """Return the centre (x, y) of every patch in pixels of the given picture, float64.

        Args:
            grid: Of a layer whose grid is finer or coarser than ``self.grid``.
        """
        y, x = (
            ((torch.arange(count, dtype=torch.float64) + 0.5) * side / count - start) * full / inner
            for count, side, start, full, inner in zip(
                grid or self.grid, self.canvas, self.offset, self.size, self.inner, strict=True
            )
        )
        return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)

    def sample(
        self,
        maps: Float[Tensor, "V D h w"],
        pixels: Float[Tensor, "H W 2"],
        mode: Literal["bilinear", "bicubic"] = "bilinear",
    ) -> Float[Tensor, "V D H W"]:
        """Read maps on the patch grid at pixels (x, y) of the given picture.

        Beyond the outermost patch centres the map goes on with its border values. On the pixel
        centres of a stretched picture this is ``interpolate(..., align_corners=False)``.
        """
        size, inner, offset, canvas = (
            torch.tensor(pair[::-1], dtype=torch.float64, device=pixels.device)
            for pair in (self.size, self.inner, self.offset, self.canvas)
        )
        unit = (pixels.double() * inner / size + offset) / canvas
        where = (2 * unit - 1).to(maps).expand(len(maps), -1, -1, -1)
        return functional.grid_sample(maps, where, mode, "border", align_corners=False)


def place(size: tuple[int, int], fit: Fit, *, step: int, stride: int, side: int = 0) -> Placement:
    """Return where a picture lies on the canvas.

    Args:
        size: Height and width of the picture.
        fit: The rule.
        step: What has to divide the canvas.
        stride: Pixels of the canvas from patch to patch.
        side: Of the canvas, for ``square`` and ``letterbox``.
    """
    height, width = size
    inner, offset = size, (0, 0)
    if fit == "stretch":
        canvas = (_nearest(height, step), _nearest(width, step))
        inner = canvas
    elif fit == "pad":
        canvas = (-(-height // step) * step, -(-width // step) * step)
        offset = ((canvas[0] - height) // 2, (canvas[1] - width) // 2)
    else:
        canvas = inner = (side, side)
        if fit == "letterbox":
            scale = side / max(size)
            inner = (_at_least_one(height * scale), _at_least_one(width * scale))
    grid = (canvas[0] // stride, canvas[1] // stride)
    return Placement(size=size, canvas=canvas, inner=inner, offset=offset, grid=grid)


def fit_pictures(
    images: Float[Tensor, "V 3 h w"],
    placement: Placement,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Float[Tensor, "V 3 H W"]:
    """Lay pictures in [0, 1] on the canvas and normalise them; a picture that fits is not resized."""
    if placement.inner != placement.size:
        images = functional.interpolate(images, placement.inner, mode="bicubic", antialias=True)
        images = images.clamp(0, 1)
    center, spread = (images.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    images = (images - center) / spread
    if placement.inner == placement.canvas:
        return images
    top, left = placement.offset
    bottom = placement.canvas[0] - placement.inner[0] - top
    right = placement.canvas[1] - placement.inner[1] - left
    return functional.pad(images, (left, right, top, bottom))


def placement_of(backbone: Backbone, size: tuple[int, int], grid: tuple[int, int]) -> Placement:
    """Return where a backbone puts a picture of ``size``.

    Backbones of this package say so themselves (``backbone.placement(height, width)``); of any
    other one it is taken that its grid covers the picture evenly.
    """
    own = getattr(backbone, "placement", None)
    if own is not None:
        return own(*size)
    return Placement(size=size, canvas=size, inner=size, offset=(0, 0), grid=grid)


def pixel_positions(
    features: Features, size: tuple[int, int], backbone: Backbone | None = None
) -> Float[Tensor, "h w 2"]:
    """Return the centre (x, y) of every patch in pixels of the picture given to ``extract``.

    Args:
        features: Of any layer.
        size: Height and width of that picture.
        backbone: What made the features; without it the grid is taken to cover the picture evenly.

    Returns:
        Float64, corner convention: the centre of the first pixel is (0.5, 0.5). Positions in the
        padding of a padded picture lie outside of it.

    Raises:
        ShapeError: The features are not on the backbone's grid for this size.
    """
    rows, cols = features.patches.shape[-2:]
    even = Placement(size=size, canvas=size, inner=size, offset=(0, 0), grid=(rows, cols))
    placement = even if backbone is None else placement_of(backbone, size, (rows, cols))
    own_rows, own_cols = placement.grid
    # A layer may be coarser or finer than the patch grid, but only as a whole.
    if rows * own_cols != cols * own_rows:
        raise ShapeError(
            f"expected features on a grid like {own_rows}x{own_cols} for a picture of "
            f"{size[0]}x{size[1]} pixels, got {rows}x{cols}; give the size that was encoded"
        )
    return placement.positions((rows, cols))


def _nearest(length: int, step: int) -> int:
    return _at_least_one(length / step) * step


def _at_least_one(value: float) -> int:
    return max(math.floor(value + 0.5), 1)
