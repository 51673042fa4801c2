"""One class that makes a `Backbone` of any network: fit, normalise, read in chunks, collect."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.backbones.grid import Fit, Placement, fit_pictures, place
from sightline.errors import InputError, ShapeError
from sightline.types import Features

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

CPU_PIXELS, GPU_PIXELS = 1 << 20, 1 << 23
"""How many pixels of pictures go through a network at a time."""

Triple = tuple[float, float, float]


class Tokens(NamedTuple):
    """What a reader returns for one layer.

    Attributes:
        patches: ``[B, D, h, w]``.
        cls: ``[B, D]``, or None.
        registers: ``[B, R, D]``, or None.
        normed: Whether they passed the network's final norm.
    """

    patches: Tensor
    cls: Tensor | None = None
    registers: Tensor | None = None
    normed: bool = False


Reader = Callable[[Any, Tensor, Sequence[int], bool], dict[int, Tokens]]
"""``read(network, canvas, layers, norm)``: the wanted layers of normalised pictures."""


class NetworkBackbone(nn.Module):
    """Any network as a `sightline.protocols.Backbone`; frozen, and always in evaluation mode.

    Attributes:
        patch_size: Pixels from patch to patch, on the canvas that the network sees.
        embed_dim: Channels of the last layer.
        depth: How many layers may be asked for; -1 is the last one.
        mean: Subtracted from RGB in [0, 1].
        std: Divides the difference.
        sequence: The views are looked at together, so all of them have to be given at once.
        norm: Whether every layer passes the network's final norm.
        fit: How pictures come to the network's size; see `grid.Fit`.
    """

    def __init__(
        self,
        network: nn.Module,
        read: Reader,
        *,
        patch_size: int,
        embed_dim: int,
        depth: int,
        mean: Triple = IMAGENET_MEAN,
        std: Triple = IMAGENET_STD,
        fit: Fit = "stretch",
        step: int | None = None,
        side: int = 0,
        norm: bool = True,
        sequence: bool = False,
        normalises: bool = False,
        chunk: int | None = None,
    ) -> None:
        """Wrap a network.

        Args:
            network: The network; its parameters stop asking for gradients.
            read: Reads its layers.
            patch_size: See the class.
            embed_dim: See the class.
            depth: See the class.
            mean: See the class.
            std: See the class.
            fit: See the class.
            step: What has to divide the sides of a picture; by default the patch.
            side: Of the canvas, for the fixed rules.
            norm: See the class.
            sequence: See the class.
            normalises: The network subtracts ``mean`` and divides by ``std`` itself.
            chunk: Views that are encoded at a time; by default what about a million pixels
                (eight on a GPU) hold.
        """
        super().__init__()
        self.network = network.requires_grad_(False)
        self.read = read
        self.patch_size, self.embed_dim, self.depth = patch_size, embed_dim, depth
        self.mean, self.std = mean, std
        self.fit: Fit = fit
        self.step, self.side = step or patch_size, side
        self.norm, self.sequence, self.normalises = norm, sequence, normalises
        self.chunk = chunk
        self.eval()

    def train(self, mode: bool = True) -> "NetworkBackbone":
        """Stay in evaluation mode, also inside of a network that is trained."""
        return super().train(False)

    def placement(self, height: int, width: int) -> Placement:
        """Return where the patches of a picture of this size lie."""
        return place(
            (height, width), self.fit, step=self.step, stride=self.patch_size, side=self.side
        )

    def views_at_once(self, height: int, width: int) -> int | None:
        """Return how many pictures to give to `extract` at a time; None for all of them."""
        return None if self.sequence else self._chunk(self.placement(height, width))

    def extract(
        self, images: Float[Tensor, "views 3 height width"], *, layers: Sequence[int] = (-1,)
    ) -> list[Features]:
        """Return one record a layer, in the order asked for, all from one pass.

        Args:
            images: RGB in [0, 1], on any device.
            layers: Indices of layers; negative ones count from the end.

        Returns:
            Features in the images' number type and on their device; no gradients.

        Raises:
            InputError: The network has no such layer.
            ShapeError: There is no picture.
        """
        if not len(images):
            raise ShapeError("expected one picture or more, got none; give some")
        chosen = resolve_layers(layers, self.depth)
        unique = sorted(set(chosen))
        placement = self.placement(*images.shape[-2:])
        mean, std = (ZERO, ONE) if self.normalises else (self.mean, self.std)
        device, dtype = where(self.network)
        step = len(images) if self.sequence else self._chunk(placement)
        results = {layer: _Rows(images) for layer in unique}
        for start in range(0, len(images), step):
            with torch.inference_mode():
                part = images[start : start + step].to(device)
                canvas = fit_pictures(part, placement, mean, std).to(dtype)
                found = self.read(self.network, canvas, unique, self.norm)
            # Outside of inference mode, so that what is collected may enter other networks.
            for layer in unique:
                results[layer].put(start, found[layer])
        return [results[layer].features(layer) for layer in chosen]

    def _chunk(self, placement: Placement) -> int:
        budget = CPU_PIXELS if where(self.network)[0].type == "cpu" else GPU_PIXELS
        return self.chunk or max(1, budget // (placement.canvas[0] * placement.canvas[1]))


class _Rows:
    """The features of one layer, filled chunk by chunk."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.parts: dict[str, Tensor] = {}
        self.normed = False

    def put(self, start: int, tokens: Tokens) -> None:
        self.normed = tokens.normed
        for name in ("patches", "cls", "registers"):
            value: Tensor | None = getattr(tokens, name)
            if value is None:
                continue
            if name not in self.parts:
                self.parts[name] = self.like.new_empty((len(self.like), *value.shape[1:]))
            self.parts[name][start : start + len(value)].copy_(value)

    def features(self, layer: int) -> Features:
        return Features(
            patches=self.parts["patches"],
            cls=self.parts.get("cls"),
            registers=self.parts.get("registers"),
            layer=layer,
            normed=self.normed,
        )


def fixed_size(what: str, options: dict[str, Any], fit: Fit, side: int) -> dict[str, Any]:
    """Return options of a network that takes one size only.

    Raises:
        InputError: Another rule is asked for.
    """
    if "fit" in options:
        raise InputError(
            f"{what} takes pictures of {side}x{side} pixels only, got fit={options['fit']}; leave "
            "it out"
        )
    return {**options, "fit": fit, "side": side}


def resolve_layers(layers: Sequence[int], depth: int) -> list[int]:
    """Return layer indices counted from 0, in the order given.

    Raises:
        InputError: There is no such layer, or none is asked for.
    """
    wrong = [layer for layer in layers if not -depth <= layer < depth]
    if wrong or not layers:
        got = ", ".join(map(str, wrong)) or "none"
        raise InputError(
            f"expected layers from 0 to {depth - 1}, or from -{depth} to -1 counted from the last "
            f"one, got {got}; change the layers"
        )
    return [layer % depth for layer in layers]


def where(network: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return device and number type of a network's weights."""
    for parameter in network.parameters():
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.float32


@contextmanager
def captured(blocks: nn.ModuleList, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Keep what some blocks of a network return while the body runs it."""
    found: dict[int, Tensor] = {}

    def keep(index: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            found[index] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [blocks[layer].register_forward_hook(keep(layer)) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def split_tokens(
    tokens: Float[Tensor, "b m d"],
    grid: tuple[int, int],
    *,
    special: int | None = None,
    normed: bool = False,
) -> Tokens:
    """Cut a sequence (class token, registers, patches row by row) into its parts.

    Args:
        tokens: The sequence.
        grid: Rows and columns of patches.
        special: How many tokens come before the patches, the first of which is the class token;
            by default whatever is more than the grid holds.
        normed: Passed on.

    Raises:
        ShapeError: There are too few tokens, or too many.
    """
    rows, cols = grid
    first = tokens.shape[1] - rows * cols if special is None else special
    if first < 0 or tokens.shape[1] - first != rows * cols:
        raise ShapeError(
            f"expected {rows}x{cols} patch tokens behind {max(first, 0)} others, got "
            f"{tokens.shape[1]} in all; the network's grid is not the one of its patch size"
        )
    return Tokens(
        patches=tokens[:, first:].mT.unflatten(2, grid),
        cls=tokens[:, 0] if first else None,
        registers=tokens[:, 1:first] if first > 1 else None,
        normed=normed,
    )
