"""Images to patch tokens."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.errors import ShapeError
from sightline.nn.options import Device, DType, Pair, as_pair


class PatchEmbed(nn.Module):
    """One linear projection of every patch (key ``proj``), row by row.

    ``strict`` refuses sizes that the patch does not divide, as DINOv2 and VGGT do; otherwise the
    last rows and columns are dropped, as DINOv3 does.
    """

    def __init__(
        self,
        img_size: Pair = 224,
        patch_size: Pair = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        norm_layer: Callable[[int], nn.Module] | None = None,
        flatten_embedding: bool = True,
        *,
        strict: bool = True,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the projection; ``img_size`` only tells the nominal patch grid."""
        super().__init__()
        self.patch_size = as_pair(patch_size)
        self.img_size = as_pair(img_size)
        self.patches_resolution = (
            self.img_size[0] // self.patch_size[0],
            self.img_size[1] // self.patch_size[1],
        )
        self.num_patches = self.patches_resolution[0] * self.patches_resolution[1]
        self.in_chans = in_chans
        self.embed_dim = embed_dim
        self.flatten_embedding = flatten_embedding
        self.strict = strict
        self.proj = nn.Conv2d(
            in_chans, embed_dim, self.patch_size, self.patch_size, device=device, dtype=dtype
        )
        self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the patch grid of an image size.

        Raises:
            ShapeError: The size is smaller than a patch, or ``strict`` and not a multiple of it.
        """
        rows, cols = self.patch_size
        small = height < rows or width < cols
        if small or (self.strict and (height % rows or width % cols)):
            near = (max(round(height / rows), 1) * rows, max(round(width / cols), 1) * cols)
            msg = (
                f"expected image sides that are multiples of the patch {rows}x{cols}, got "
                f"{height}x{width}; resize to {near[0]}x{near[1]}"
            )
            raise ShapeError(msg)
        return height // rows, width // cols

    def forward(
        self, x: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b n d"] | Float[Tensor, "b gh gw d"]:
        """Return tokens ``[B, N, D]``, or ``[B, gh, gw, D]`` unless ``flatten_embedding``."""
        self.grid(*x.shape[-2:])
        tokens = self.proj(x).permute(0, 2, 3, 1)
        tokens = tokens.flatten(1, 2) if self.flatten_embedding else tokens
        return self.norm(tokens)


def widen_projection(
    weight: Float[Tensor, "dim 3 rows cols"], channels: int
) -> Float[Tensor, "dim channels rows cols"]:
    """Return an RGB patch projection for pictures of any number of channels.

    With three and more, the first three keep their kernels and each further one gets a copy of
    their mean; where its normalised values are zero, the tokens are the old ones. With fewer, each
    gets the mean, scaled so that their sum stays: one channel gives exactly what repeating it three
    times gave.

    Args:
        weight: ``proj.weight`` of a network for red, green and blue, in this order.
        channels: Of the new pictures, shown ones first, as `sightline prepare` stores them.

    Raises:
        ShapeError: If there are no channels.
    """
    if channels < 1:
        raise ShapeError(f"channels must be 1 or more, got {channels}; give the number of bands")
    mean = weight.mean(1, keepdim=True)
    if channels < 3:
        return (mean * (3 / channels)).expand(-1, channels, -1, -1).contiguous()
    return torch.cat([weight, mean.expand(-1, channels - 3, -1, -1)], 1)
