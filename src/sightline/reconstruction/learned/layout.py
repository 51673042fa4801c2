"""How pictures of any size become the frames of a network, and the exact way back.

Every step is an affine map between continuous pixel coordinates (origin at the image corner), so
that a crop, a stretch to whole patches and a margin are undone by one inverse. Rules and rounding
are those of ``facebookresearch/vggt`` (``crop``, ``pad``) and ``vggt-omega`` (``balanced``,
``max_size``).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from sightline.errors import ShapeError
from sightline.io.images import read_image
from sightline.reconstruction.pictures import as_bytes, source_sizes
from sightline.types import TensorStruct, Views

Fit = Literal["crop", "pad", "balanced", "max_size"]

_WHITE = 255
_WIDEST = 2.0
"""VGGT-Omega cuts pictures whose sides differ by more than this factor."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layout(TensorStruct):
    """Where each picture lies in the frames, all of which have one size."""

    height: int
    width: int
    sizes: Int64[Tensor, "V 2"]
    """Height and width of the source pictures."""
    source: Int64[Tensor, "V 4"]
    """Part of the source picture that is used: left, top, right, bottom."""
    resized: Int64[Tensor, "V 2"]
    """Height and width that this part is resized to."""
    cut: Int64[Tensor, "V 2"]
    """Rows and columns that are then cut off at the top and left, and about as many at the end."""
    content: Int64[Tensor, "V 4"]
    """What is left, in the frame: left, top, right, bottom; everything else is a white margin."""

    @property
    def grid_from_source(self) -> Float[Tensor, "V 3 3"]:
        """Maps continuous pixels of the source pictures to those of the frames."""
        scale = self.resized.flip(-1) / (self.source[:, 2:] - self.source[:, :2]).double()
        shift = self.content[:, :2] - self.cut.flip(-1) - scale * self.source[:, :2]
        matrix = torch.eye(3, dtype=torch.float64).repeat(len(scale), 1, 1)
        matrix[:, 0, 0], matrix[:, 1, 1] = scale[:, 0], scale[:, 1]
        matrix[:, :2, 2] = shift
        return matrix


def plan_layout(sizes: Int64[Tensor, "V 2"], *, fit: Fit, side: int, patch: int) -> Layout:
    """Place pictures of these heights and widths.

    Args:
        sizes: Height and width of each picture.
        fit: ``crop``: width ``side``, what is higher than ``side`` is cut off at both ends.
            ``pad``: long side ``side``, on a square. ``balanced``: as many patches as a square of
            ``side`` has, whatever the shape. ``max_size``: long side ``side``.
        side: In pixels, a multiple of ``patch``.
        patch: Side of a patch; all sides become multiples of it.

    Pictures of unlike shapes are centred on a frame that holds them all.
    """
    rows = [_place(height, width, fit, side, patch) for height, width in sizes.tolist()]
    source, resized, kept = (torch.tensor(part) for part in zip(*rows, strict=True))
    cut = (resized - kept) // 2
    height, width = (side, side) if fit == "pad" else kept.amax(0).tolist()
    start = (torch.tensor([height, width]) - kept) // 2
    content = torch.cat([start.flip(-1), (start + kept).flip(-1)], -1)
    return Layout(
        height=height,
        width=width,
        sizes=sizes,
        source=source,
        resized=resized,
        cut=cut,
        content=content,
    )


def _place(
    height: int, width: int, fit: Fit, side: int, patch: int
) -> tuple[tuple[int, int, int, int], tuple[int, int], tuple[int, int]]:
    """Return the part used, its new height and width, and what is kept of them."""

    def whole(pixels: float) -> int:
        return max(1, round(pixels / patch)) * patch

    everything = (0, 0, width, height)
    if fit == "crop":
        rows = whole(height * side / width)
        return everything, (rows, side), (min(rows, side), side)
    if fit in ("pad", "max_size"):
        long = max(width, height)
        scaled = (whole(height * side / long), whole(width * side / long))
        return everything, scaled, scaled
    used_height = min(height, round(width * _WIDEST))
    used_width = min(width, round(height * _WIDEST))
    left, top = (width - used_width) // 2, (height - used_height) // 2
    used = (left, top, left + used_width, top + used_height)
    shape = math.sqrt(used_height / used_width)
    scaled = (whole(side * shape), whole(side / shape))
    return used, scaled, scaled


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frames:
    """The pictures of some views, ready to be read as frames."""

    views: Views
    layout: Layout
    from_files: bool
    """Frames are made from the full-size pictures on disk, as the original models do it."""

    @property
    def grid_from_view(self) -> Float[Tensor, "V 3 3"]:
        """Maps continuous pixels of the views to those of the frames."""
        matrix = self.layout.grid_from_source
        if self.from_files:
            matrix = matrix @ torch.linalg.inv(self.views.from_original.double())
        return matrix

    @property
    def original_from_grid(self) -> Float[Tensor, "V 3 3"]:
        """Maps continuous pixels of the frames to those of the full-size pictures."""
        return torch.linalg.inv(self.grid_from_view @ self.views.from_original.double())

    def read(self, index: list[int]) -> Float[Tensor, "n 3 h w"]:
        """Return the frames of some views in [0, 1], white where there is no picture."""
        size = (len(index), self.layout.height, self.layout.width, 3)
        pixels = np.full(size, _WHITE, np.uint8)
        for row, view in enumerate(index):
            left, top, right, bottom = self.layout.content[view].tolist()
            pixels[row, top:bottom, left:right] = self._content(view)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255

    def _content(self, view: int) -> UInt8[np.ndarray, "h w 3"]:
        picture = Image.fromarray(self._source(view))
        height, width = self.layout.resized[view].tolist()
        used = tuple(self.layout.source[view].tolist())
        if used != (0, 0, *picture.size):
            picture = picture.crop(used)
        resized = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
        top, left = self.layout.cut[view].tolist()
        x0, y0, x1, y1 = self.layout.content[view].tolist()
        return resized[top : top + y1 - y0, left : left + x1 - x0]

    def _source(self, view: int) -> UInt8[np.ndarray, "h w 3"]:
        if not self.from_files:
            height, width = self.views.sizes[view].tolist()
            return as_bytes(self.views.images[view : view + 1])[0, :height, :width]
        assert self.views.files is not None
        path = Path(self.views.files[view])
        wanted = tuple(self.layout.sizes[view].tolist())
        photo = read_image(path)
        if photo.size != wanted and photo.orientation != 1:
            photo = read_image(path, upright=False)  # its camera belongs to the stored pixels
        if photo.size != wanted:
            raise ShapeError(
                f"{path.name} is {photo.size[1]} x {photo.size[0]} pixels, but its view was made "
                f"from {wanted[1]} x {wanted[0]}; restore the picture or make the views again"
            )
        return photo.pixels


def plan_frames(views: Views, *, fit: Fit, side: int, patch: int) -> Frames:
    """Choose where frames are read from, and place them.

    The full-size pictures serve where views are nothing but smaller copies of them; views that
    were undistorted or cut out of their pictures serve themselves.
    """
    from_files = _are_copies(views)
    sizes = torch.tensor(source_sizes(views)) if from_files else views.sizes
    return Frames(
        views=views,
        layout=plan_layout(sizes, fit=fit, side=side, patch=patch),
        from_files=from_files,
    )


def _are_copies(views: Views) -> bool:
    if views.files is None or (views.lenses is not None and not views.lenses.is_pinhole):
        return False
    matrix = views.from_original.double()
    scale = torch.diag_embed(torch.diagonal(matrix, dim1=-2, dim2=-1))
    return bool((matrix - scale).abs().max() < 1e-9)
