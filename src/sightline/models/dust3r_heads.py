"""The heads of the 3R networks: decoder tokens to points and confidence of every pixel."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sightline.nn.dpt import FusionBlock
from sightline.nn.options import Device, DType

Result = dict[str, Tensor]
Start = tuple[Tensor, ...]
"""What a head computes from one image alone, for any number of pairs; see `dust3r.PairDecoder`."""
Mode = Sequence[str | float | int]


class DPTSizes(NamedTuple):
    """Widths of a DPT head.

    Attributes:
        feature_dim: Channels of the fusion blocks.
        last_dim: Channels before the last convolution.
        layer_dims: Channels of the four maps that are fused.
        hooks: Which entries of the decoder's list they come from; by default 0, 1/2, 3/4 and the
            last.
    """

    feature_dim: int = 256
    last_dim: int = 128
    layer_dims: tuple[int, ...] = (96, 192, 384, 768)
    hooks: tuple[int, ...] | None = None


class DPTAdapter(nn.Module):
    """The convolutional part of a DPT head (``dpt.*`` in the files).

    The state lists the four 3x3 convolutions twice, as ``scratch.layer1_rn`` to ``layer4_rn`` and
    as ``scratch.layer_rn.0`` to ``3``; both are the same modules.
    """

    def __init__(
        self,
        token_dims: Sequence[int],
        num_channels: int,
        patch_size: int = 16,
        sizes: DPTSizes | None = None,
        *,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        """Create the head for tokens of the four widths ``token_dims``."""
        super().__init__()
        sizes = sizes or DPTSizes()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.patch_size = patch_size
        dims, features = sizes.layer_dims, sizes.feature_dim
        self.scratch = nn.Module()
        for index, dim in enumerate(dims, 1):
            layer = nn.Conv2d(dim, features, 3, padding=1, bias=False, **kind)
            self.scratch.add_module(f"layer{index}_rn", layer)
        rows = [self.scratch.get_submodule(f"layer{index}_rn") for index in range(1, 5)]
        self.scratch.add_module("layer_rn", nn.ModuleList(rows))
        for index in range(1, 5):
            self.scratch.add_module(f"refinenet{index}", FusionBlock(features, **kind))
        last = sizes.last_dim
        self.head = nn.Sequential(
            nn.Conv2d(features, features // 2, 3, padding=1, **kind),
            Enlarge(),
            nn.Conv2d(features // 2, last, 3, padding=1, **kind),
            nn.ReLU(),
            nn.Conv2d(last, num_channels, 1, **kind),
        )
        inputs = [nn.Conv2d(t, d, 1, **kind) for t, d in zip(token_dims, dims, strict=True)]
        resize = [
            [nn.ConvTranspose2d(dims[0], dims[0], 4, stride=4, **kind)],
            [nn.ConvTranspose2d(dims[1], dims[1], 2, stride=2, **kind)],
            [],
            [nn.Conv2d(dims[3], dims[3], 3, stride=2, padding=1, **kind)],
        ]
        self.act_postprocess = nn.ModuleList(
            nn.Sequential(first, *rest) for first, rest in zip(inputs, resize, strict=True)
        )

    def forward(
        self,
        tokens: Sequence[Float[Tensor, "b n _"]],
        height: int,
        width: int,
        start: Start = (),
    ) -> Float[Tensor, "b c h w"]:
        """Return the map of an image of ``height`` x ``width`` pixels.

        ``start`` is what `start` gave for ``tokens[0]``; without it, it is computed here.
        """
        first = start or self.start(tokens[0], height, width)
        fine2, fine3, coarse = (
            self._map(index, tokens[index], height, width) for index in range(1, 4)
        )
        blocks: list[Any] = [self.scratch.get_submodule(f"refinenet{i}") for i in range(1, 5)]
        # Twice the stride-32 map is larger than the stride-16 map where the grid is odd.
        path = blocks[3](coarse)[..., : fine3.shape[-2], : fine3.shape[-1]]
        path = blocks[2].merge(path, blocks[2].resConfUnit1(fine3))
        path = blocks[1].merge(path, blocks[1].resConfUnit1(fine2))
        return self.head(blocks[0].merge(path, first[0]))

    def start(self, tokens: Float[Tensor, "b n d"], height: int, width: int) -> Start:
        """Return the finest map, which depends on the first of the four entries only."""
        finest: Any = self.scratch.get_submodule("refinenet1")
        return (finest.resConfUnit1(self._map(0, tokens, height, width)),)

    def _map(self, index: int, tokens: Tensor, height: int, width: int) -> Tensor:
        grid = (height // self.patch_size, width // self.patch_size)
        project, *resize = self.act_postprocess.get_submodule(str(index)).children()
        weight, bias = project.get_parameter("weight"), project.get_parameter("bias")
        # 1x1: a matrix product on tokens as they lie.
        maps = functional.linear(tokens, weight.flatten(1), bias).transpose(1, 2)
        maps = maps.unflatten(2, grid).contiguous()
        for layer in resize:
            maps = layer(maps)
        return self.scratch.get_submodule(f"layer{index + 1}_rn")(maps)


class Enlarge(nn.Module):
    """Twice the size, bilinear, corners aligned."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c _ _"]:
        """Enlarge a map."""
        size = (2 * x.shape[-2], 2 * x.shape[-1])
        return functional.interpolate(x, size, mode="bilinear", align_corners=True)


class HeadOptions(NamedTuple):
    """What a head needs to know about the network that it belongs to."""

    enc_embed_dim: int
    dec_embed_dim: int
    dec_depth: int
    patch_size: int
    depth_mode: Mode
    conf_mode: Mode
    dpt: DPTSizes


def dpt_adapter(options: HeadOptions, channels: int, **kind: Any) -> DPTAdapter:
    """Create a DPT head for the entries of the decoder's list that ``options`` choose."""
    return DPTAdapter(
        [options.enc_embed_dim if h == 0 else options.dec_embed_dim for h in hooks(options)],
        channels,
        options.patch_size,
        options.dpt,
        **kind,
    )


def hooks(options: HeadOptions) -> tuple[int, ...]:
    """Return which entries of the decoder's list a DPT head reads."""
    depth = options.dec_depth
    return options.dpt.hooks or (0, depth // 2, depth * 3 // 4, depth)


class LinearHead(nn.Module):
    """One linear layer from the last decoder tokens to points and confidence of every pixel."""

    def __init__(self, options: HeadOptions, **kind: Any) -> None:
        """Create the projection."""
        super().__init__()
        self.options = options
        self.proj = nn.Linear(options.dec_embed_dim, 4 * options.patch_size**2, **kind)

    def start(self, tokens: Float[Tensor, "b n d"], height: int, width: int) -> Start:
        """Return nothing: this head does not read the encoder."""
        return ()

    def forward(
        self,
        tokens: Sequence[Float[Tensor, "b n _"]],
        height: int,
        width: int,
        start: Start = (),
    ) -> Result:
        """Return ``pts3d [B, H, W, 3]`` and ``conf [B, H, W]``."""
        patch = self.options.patch_size
        grid = (height // patch, width // patch)
        maps = self.proj(tokens[-1]).transpose(1, 2).unflatten(2, grid)
        return activate(functional.pixel_shuffle(maps, patch), self.options)


class DPTHead(nn.Module):
    """Points and confidence through a DPT."""

    def __init__(self, options: HeadOptions, **kind: Any) -> None:
        """Create the DPT with 4 output channels."""
        super().__init__()
        self.options = options
        self.dpt = dpt_adapter(options, 4, **kind)

    def start(self, tokens: Float[Tensor, "b n d"], height: int, width: int) -> Start:
        """Return what the DPT computes from the encoder's tokens of an image."""
        return self.dpt.start(tokens, height, width) if hooks(self.options)[0] == 0 else ()

    def forward(
        self,
        tokens: Sequence[Float[Tensor, "b n _"]],
        height: int,
        width: int,
        start: Start = (),
    ) -> Result:
        """Return ``pts3d [B, H, W, 3]`` and ``conf [B, H, W]``."""
        chosen = [tokens[hook] for hook in hooks(self.options)]
        return activate(self.dpt(chosen, height, width, start), self.options)


HEADS: dict[str, Callable[..., nn.Module]] = {"linear": LinearHead, "dpt": DPTHead}


def activate(maps: Float[Tensor, "b c h w"], options: HeadOptions) -> Result:
    """Turn four raw channels into points and confidence."""
    raw = maps.permute(0, 2, 3, 1)
    return {
        "pts3d": activate_points(raw[..., :3], options.depth_mode),
        "conf": activate_confidence(raw[..., 3], options.conf_mode),
    }


def activate_points(
    xyz: Float[Tensor, "b h w 3"], mode: Mode = ("exp", float("-inf"), float("inf"))
) -> Float[Tensor, "b h w 3"]:
    """Return points: the direction of ``xyz`` times ``expm1(d)`` ("exp") or ``d^2`` ("square").

    ``mode`` is a name and two bounds; "linear" gives the raw values. Only unbounded modes exist.
    """
    name, low, high = _mode(mode)
    if (low, high) != (float("-inf"), float("inf")):
        msg = f"expected an unbounded depth_mode, got {tuple(mode)}"
        raise ValueError(msg)
    if name == "linear":
        return xyz
    distance = xyz.norm(dim=-1, keepdim=True)
    direction = xyz / distance.clamp(min=1e-8)
    if name == "square":
        return direction * distance.square()
    if name == "exp":
        return direction * distance.expm1()
    msg = f'expected depth_mode "exp", "square" or "linear", got "{name}"'
    raise ValueError(msg)


def activate_confidence(x: Float[Tensor, "b h w"], mode: Mode) -> Float[Tensor, "b h w"]:
    """Return ``low + min(exp(x), high - low)`` ("exp") or a sigmoid between the bounds."""
    name, low, high = _mode(mode)
    if name == "exp":
        return low + x.exp().clamp(max=high - low)
    if name == "sigmoid":
        return (high - low) * x.sigmoid() + low
    msg = f'expected conf_mode "exp" or "sigmoid", got "{name}"'
    raise ValueError(msg)


def _mode(mode: Mode) -> tuple[str, float, float]:
    name, low, high = mode
    return str(name), float(low), float(high)
