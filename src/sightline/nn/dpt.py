"""The fusion part of dense prediction transformers (Ranftl et al. 2021), in its variants here."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sightline.nn.options import Device, DType, Number
from sightline.nn.tables import TableCache

Skip = Literal["input", "relu"]


class ResidualConvUnit(nn.Module):
    """``conv2(relu(conv1(relu(x)))) + skip`` with 3x3 convolutions.

    ``skip`` is ``x`` in DUSt3R and VGGT-Omega. In VGGT it is ``relu(x)``, because the original's
    first ReLU overwrites its input; the published weights depend on it.
    """

    def __init__(
        self, features: int, skip: Skip = "input", *, device: Device = None, dtype: DType = None
    ) -> None:
        """Create both convolutions of ``features`` channels."""
        super().__init__()
        self.skip = skip
        self.conv1 = nn.Conv2d(features, features, 3, padding=1, device=device, dtype=dtype)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Add the residual."""
        active = functional.relu(x)
        added = self.conv2(functional.relu(self.conv1(active)))
        return added + (active if self.skip == "relu" else x)


class FusionBlock(nn.Module):
    """Join a coarse map with a finer one and enlarge the result.

    The 1x1 ``out_conv`` runs before the enlargement and not after it, as in the originals: both
    are linear and act on different axes, so the result is the same at a quarter of the work.
    """

    def __init__(
        self,
        features: int,
        lateral: bool = True,
        skip: Skip = "input",
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the units; without ``lateral`` there is no ``resConfUnit1``."""
        super().__init__()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.out_conv = nn.Conv2d(features, features, 1, **kind)
        if lateral:
            self.resConfUnit1 = ResidualConvUnit(features, skip, **kind)
        self.resConfUnit2 = ResidualConvUnit(features, skip, **kind)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        lateral: Float[Tensor, "b c h w"] | None = None,
        size: tuple[int, int] | None = None,
        enlarge: bool = True,
    ) -> Float[Tensor, "b c _ _"]:
        """Return the joined map.

        Args:
            x: The coarse map.
            lateral: The map of the same size that is joined.
            size: Size of the result; twice the input's by default.
            enlarge: False keeps the size of the input.
        """
        refined = None if lateral is None else self.resConfUnit1(lateral)
        return self.merge(x, refined, size, enlarge)

    def merge(
        self,
        x: Float[Tensor, "b c h w"],
        refined: Float[Tensor, "b c h w"] | None = None,
        size: tuple[int, int] | None = None,
        enlarge: bool = True,
    ) -> Float[Tensor, "b c _ _"]:
        """Do the same with a lateral map that has been through ``resConfUnit1``."""
        x = x if refined is None else x + refined
        x = self.out_conv(self.resConfUnit2(x))
        if not enlarge:
            return x
        target = size or (2 * x.shape[-2], 2 * x.shape[-1])
        return functional.interpolate(x, target, mode="bilinear", align_corners=True)


class TokenFusion(nn.Module):
    """The part that VGGT's and VGGT-Omega's dense heads share: tokens of four layers to one map.

    ``scratch`` holds the convolutions under the originals' names; heads add theirs to it.
    """

    def __init__(
        self,
        dim_in: int,
        patch_size: int,
        features: int,
        out_channels: Sequence[int],
        pos_embed: bool = True,
        skip: Skip = "input",
        norm_eps: Number = 1e-5,
        *,
        enlarge_last: bool = True,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the layers.

        Args:
            dim_in: Width of the tokens.
            patch_size: Pixels of a patch.
            features: Channels of the fused map.
            out_channels: Channels of the four maps.
            pos_embed: Add position maps.
            skip: See `ResidualConvUnit`.
            norm_eps: Epsilon of the norm of the tokens.
            enlarge_last: Give a map of eight instead of four rows for each row of patches.
            device: Where to create it.
            dtype: Its number type.
        """
        super().__init__()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.patch_size, self.pos_embed, self.enlarge_last = patch_size, pos_embed, enlarge_last
        self.norm = nn.LayerNorm(dim_in, eps=norm_eps, **kind)
        self.projects = nn.ModuleList(nn.Conv2d(dim_in, c, 1, **kind) for c in out_channels)
        c0, c1, _, c3 = out_channels
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(c0, c0, 4, stride=4, **kind),
                nn.ConvTranspose2d(c1, c1, 2, stride=2, **kind),
                nn.Identity(),
                nn.Conv2d(c3, c3, 3, stride=2, padding=1, **kind),
            ]
        )
        self.scratch: Any = nn.Module()
        for index, channels in enumerate(out_channels, 1):
            layer = nn.Conv2d(channels, features, 3, padding=1, bias=False, **kind)
            self.scratch.add_module(f"layer{index}_rn", layer)
        for index in range(1, 5):
            block = FusionBlock(features, lateral=index < 4, skip=skip, **kind)
            self.scratch.add_module(f"refinenet{index}", block)
        self._maps = TableCache[Tensor]()

    def fuse(
        self, tokens: Sequence[Float[Tensor, "f n d"]], height: int, width: int
    ) -> Float[Tensor, "f c _ _"]:
        """Return the fused map of images of ``height`` x ``width`` pixels, patch tokens only."""
        grid = (height // self.patch_size, width // self.patch_size)
        maps = []
        for index, layer in enumerate(tokens):
            project: Any = self.projects[index]  # 1x1: a matrix product on tokens as they lie
            x = functional.linear(self.norm(layer), project.weight.flatten(1), project.bias)
            x = x.transpose(1, 2).unflatten(2, grid).contiguous()
            x = self.resize_layers[index](self.add_positions(x, width / height))
            maps.append(self.scratch.get_submodule(f"layer{index + 1}_rn")(x))
        sizes = [(x.shape[-2], x.shape[-1]) for x in maps]
        x = self.scratch.refinenet4(maps[3], size=sizes[2])
        x = self.scratch.refinenet3(x, maps[2], size=sizes[1])
        x = self.scratch.refinenet2(x, maps[1], size=sizes[0])
        x = self.scratch.refinenet1(x, maps[0], enlarge=self.enlarge_last)
        return x

    def add_positions(self, x: Float[Tensor, "f c h w"], aspect: float) -> Float[Tensor, "f c h w"]:
        """Add a tenth of the position map of an image of that aspect, in place."""
        if not self.pos_embed:
            return x
        channels, height, width = x.shape[1:]
        key = (channels, height, width, aspect, x.device)
        table = self._maps.get(
            key, lambda: sincos_map(height, width, channels, aspect, x.device) * 0.1
        )
        return x.add_(table.to(x.dtype))


def frames_at_once(height: int, width: int, device: torch.device) -> int:
    """Return how many frames a dense head should work on at a time.

    One frame of 224x224 pixels keeps a CPU core busy; a GPU gets eight of 518x518.
    """
    pixels = 224 * 224 if device.type == "cpu" else 8 * 518 * 518
    return max(1, pixels // (height * width))


def by_frames(
    work: Callable[[list[Tensor]], tuple[Tensor, ...]],
    tokens: Sequence[Float[Tensor, "b s n d"]],
    step: int | None,
) -> list[Tensor]:
    """Work through frames ``step`` at a time; results are the same for any step.

    Args:
        work: Gets ``[F, N, D]`` of every layer, returns tensors ``[F, ...]``.
        tokens: Tokens of some layers.
        step: Frames of every item of the batch at a time; None for all.

    Returns:
        The joined results, ``[B, S, ...]``.
    """
    batch, frames = tokens[0].shape[:2]
    step = frames if step is None else step
    parts = [
        work([layer[:, start : start + step].flatten(0, 1) for layer in tokens])
        for start in range(0, frames, step)
    ]
    return [
        torch.cat([part.unflatten(0, (batch, -1)) for part in column], 1)
        for column in zip(*parts, strict=True)
    ]


def sincos_map(
    height: int, width: int, channels: int, aspect: float, device: Device = None
) -> Float[Tensor, "c h w"]:
    """Return VGGT's fixed position map, float32.

    Pixel centres are laid out on a rectangle of the image's ``aspect`` (width / height) whose
    diagonal has half length 1. The first half of the channels encodes x and the second y, each as
    sines and then cosines of ``position * 100^(-k / (channels / 4))``, computed in float64.
    """
    if channels % 4:
        msg = f"expected a multiple of 4 channels for a position map, got {channels}"
        raise ValueError(msg)
    diagonal = (aspect**2 + 1.0) ** 0.5
    half_x, half_y = aspect / diagonal, 1.0 / diagonal
    kind: dict[str, Any] = {"dtype": torch.float32, "device": device}
    x = torch.linspace(-half_x * (width - 1) / width, half_x * (width - 1) / width, width, **kind)
    y = torch.linspace(
        -half_y * (height - 1) / height, half_y * (height - 1) / height, height, **kind
    )
    steps = torch.arange(channels // 4, dtype=torch.float64, device=device)
    rate = 100.0 ** -(steps / (channels / 4))
    waves = []
    for position in (x, y):
        angle = rate.unsqueeze(1) * position.double()
        waves.append(torch.cat((angle.sin(), angle.cos())).float())
    columns = waves[0].unsqueeze(1).expand(-1, height, -1)
    rows = waves[1].unsqueeze(2).expand(-1, -1, width)
    return torch.cat((columns, rows))
