"""DUSt3R (Wang et al. 2024): two images to two point maps in the frame of the first.

Names follow ``naver/dust3r``. Points are in the camera frame of view 1 (x right, y down, z
forward); confidences are at least 1. Images are ``(x - 0.5) / 0.5`` of RGB in [0, 1].
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sightline.errors import ShapeError
from sightline.models.croco import CroCoBackbone, Encoded
from sightline.models.dust3r_heads import (
    HEADS,
    DPTSizes,
    HeadOptions,
    Mode,
    Result,
    Start,
)
from sightline.models.published import pick_options
from sightline.nn.options import Device, DType
from sightline.nn.rope import grid_positions

View = Mapping[str, Any]
Shapes = Int[Tensor, "b 2"]


LARGE: dict[str, Any] = {
    "pos_embed": "RoPE100",
    "enc_embed_dim": 1024,
    "enc_depth": 24,
    "enc_num_heads": 16,
    "dec_embed_dim": 768,
    "dec_depth": 12,
    "dec_num_heads": 12,
}
"""Sizes of all published 3R networks."""


class PairNetwork(CroCoBackbone):
    """CroCo's encoder, and one decoder and one head for each of the two views.

    Two layouts of a batch are understood. By default every image of a batch has the same size.
    With ``landscape_only`` (training) all images are stored with width >= height; those whose true
    shape is portrait are stored transposed, and results come back in that storage layout.
    """

    def __init__(
        self,
        make_head: Callable[..., nn.Module],
        depth_mode: Mode = ("exp", float("-inf"), float("inf")),
        conf_mode: Mode = ("exp", 1, float("inf")),
        landscape_only: bool = False,
        dpt: Mapping[str, Any] | None = None,
        *,
        device: Device = None,
        dtype: DType = None,
        **croco: Any,
    ) -> None:
        """Create the network.

        Args:
            make_head: Called twice, with `HeadOptions`, ``device`` and ``dtype``.
            depth_mode: See `activate_points`.
            conf_mode: See `activate_confidence`.
            landscape_only: The layout of a batch.
            dpt: Widths of the DPT heads, see `DPTSizes`.
            device: Where to create it.
            dtype: Its number type.
            croco: Options of `CroCoBackbone` that replace the published sizes.
        """
        super().__init__(**(LARGE | croco), device=device, dtype=dtype)
        self.landscape_only = landscape_only
        self.dec_blocks2 = copy.deepcopy(self.dec_blocks)
        sizes: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in (dpt or {}).items()
        }
        options = HeadOptions(
            self.enc_embed_dim,
            self.dec_embed_dim,
            self.dec_depth,
            self.patch_size,
            depth_mode,
            conf_mode,
            DPTSizes(**sizes),
        )
        self.downstream_head1 = make_head(options, device=device, dtype=dtype)
        self.downstream_head2 = make_head(options, device=device, dtype=dtype)

    def encode_views(
        self, image: Float[Tensor, "b 3 h w"], true_shape: Shapes | None = None
    ) -> Encoded:
        """Encode images; every image needs this once, however many pairs it is in.

        Args:
            image: Images in storage layout.
            true_shape: (height, width) of every image, needed for portrait items only.
        """
        if not self.landscape_only or true_shape is None:
            return self.encode(image)
        portrait = true_shape[:, 1] < true_shape[:, 0]
        if not portrait.any():
            return self.encode(image)
        if image.shape[-1] < image.shape[-2]:
            msg = f"expected images stored with width >= height, got {tuple(image.shape)}"
            raise ShapeError(msg)
        rows, cols = self.patch_embed.grid(*image.shape[-2:])
        upright = image[portrait].transpose(-1, -2)
        tokens = self.patch_embed(image).index_copy(
            0, portrait.nonzero().flatten(), self.patch_embed(upright)
        )
        wide, tall = (
            grid_positions(*grid, device=image.device) for grid in ((rows, cols), (cols, rows))
        )
        positions = torch.where(portrait.view(-1, 1, 1), tall, wide)
        return self.encode_tokens(tokens, positions, None)

    def decode_pair(
        self, first: Encoded, second: Encoded
    ) -> tuple[list[Float[Tensor, "b n _"]], list[Float[Tensor, "b m _"]]]:
        """Decode both views of a batch of pairs at once.

        Returns:
            For each view ``dec_depth + 1`` tensors: the encoder's tokens, then the output of every
            block, the last one after the norm.
        """
        lists = [[first.tokens], [second.tokens]]
        x, y = self.decoder_embed(first.tokens), self.decoder_embed(second.tokens)
        tables = [self.rotary(view.positions, self.dec_head_dim, None) for view in (first, second)]
        for block1, block2 in zip(self.dec_blocks, self.dec_blocks2, strict=True):
            x, y = block1(x, y, *tables), block2(y, x, *reversed(tables))
            lists[0].append(x)
            lists[1].append(y)
        for tokens in lists:
            tokens[-1] = self.dec_norm(tokens[-1])
        return lists[0], lists[1]

    def start(
        self,
        view: int,
        encoded: Encoded,
        size: tuple[int, int],
        true_shape: Shapes | None = None,
    ) -> Start:
        """Return what the head of view 1 or 2 computes from images alone, for `read_out`.

        It is empty where the head does not read the encoder, and in a batch of portrait items.
        """
        shapes = true_shape if self.landscape_only else None
        if shapes is not None and bool((shapes[:, 1] < shapes[:, 0]).any()):
            return ()
        head: Any = self.downstream_head1 if view == 1 else self.downstream_head2
        with torch.autocast(encoded.tokens.device.type, enabled=False):
            return head.start(encoded.tokens.float(), *size)

    def read_out(
        self,
        view: int,
        tokens: Sequence[Float[Tensor, "b n _"]],
        size: tuple[int, int],
        true_shape: Shapes | None = None,
        start: Start = (),
    ) -> Result:
        """Run the head of view 1 or 2, in float32.

        Args:
            view: 1 or 2.
            tokens: The view's list from `decode_pair`.
            size: Height and width of the images in storage layout.
            true_shape: (height, width) of every image, needed for portrait items only.
            start: What `start` gave for these images, where none of them is portrait.

        Returns:
            Maps in storage layout.
        """
        head = self.downstream_head1 if view == 1 else self.downstream_head2
        wide = [t.float() for t in tokens]
        with torch.autocast(wide[0].device.type, enabled=False):
            if start or not self.landscape_only or true_shape is None:
                return head(wide, *size, start)
            portrait = true_shape[:, 1] < true_shape[:, 0]
            if not portrait.any():
                return head(wide, *size)
            tall = head([t[portrait] for t in wide], size[1], size[0])
            tall = {name: value.transpose(1, 2) for name, value in tall.items()}
            if portrait.all():
                return tall
            flat = head([t[~portrait] for t in wide], *size)
            out = {}
            for name, value in flat.items():
                out[name] = value.new_empty(len(portrait), *value.shape[1:])
                out[name][~portrait] = value
                out[name][portrait] = tall[name]
            return out

    def forward(self, view1: View, view2: View) -> tuple[Result, Result]:
        """Predict points of both views in the camera frame of the first.

        Args:
            view1: ``img [B, 3, H, W]`` and optionally ``true_shape [B, 2]`` and ``instance``, a
                list of names: where every odd item is the even one with its views swapped, only
                even items are encoded.
            view2: The same for the second view.

        Returns:
            ``pts3d`` (``pts3d_in_other_view`` for view 2) ``[B, H, W, 3]`` and ``conf``
            ``[B, H, W]``, in storage layout.
        """
        return predict_pairs(self, view1, view2)


@runtime_checkable
class Stages(Protocol):
    """The stages of a pair network; see the methods of `PairNetwork`."""

    def encode_views(self, image: Tensor, true_shape: Shapes | None = None) -> Encoded:
        """Encode images."""
        ...

    def decode_pair(self, first: Encoded, second: Encoded) -> tuple[list[Tensor], list[Tensor]]:
        """Decode both views of a batch of pairs."""
        ...

    def read_out(
        self,
        view: int,
        tokens: Sequence[Tensor],
        size: tuple[int, int],
        true_shape: Shapes | None = None,
    ) -> Result:
        """Run the head of one view."""
        ...


def predict_pairs(network: Stages, view1: View, view2: View) -> tuple[Result, Result]:
    """Run all stages of a pair network; see `PairNetwork.forward`."""
    first, second = encode_pairs(network, view1, view2)
    lists = network.decode_pair(first, second)
    results = []
    for number, (view, tokens) in enumerate(zip((view1, view2), lists, strict=True), 1):
        height, width = view["img"].shape[-2:]
        results.append(network.read_out(number, tokens, (height, width), view.get("true_shape")))
    return results[0], {_other_view(name): value for name, value in results[1].items()}


def encode_pairs(network: Stages, view1: View, view2: View) -> tuple[Encoded, Encoded]:
    """Encode both views of a batch of pairs, in one batch where their sizes are equal."""
    images = [view["img"] for view in (view1, view2)]
    shapes = [view.get("true_shape") for view in (view1, view2)]
    if is_symmetrized(view1.get("instance", ()), view2.get("instance", ())):
        halves = [
            {"img": image[::2], "true_shape": None if shape is None else shape[::2]}
            for image, shape in zip(images, shapes, strict=True)
        ]
        first, second = encode_pairs(network, *halves)
        return _interleave(first, second), _interleave(second, first)
    if images[0].shape[-2:] != images[1].shape[-2:]:
        first, second = (network.encode_views(i, s) for i, s in zip(images, shapes, strict=True))
        return first, second
    joint = None
    if shapes[0] is not None and shapes[1] is not None:
        joint = torch.cat((shapes[0], shapes[1]))
    both = network.encode_views(torch.cat(images), joint)
    count = len(images[0])
    return both.map(lambda x: x[:count]), both.map(lambda x: x[count:])


class PairDecoder:
    """Decodes pairs among images of one size; what depends on one image is computed once.

    ``PairDecoder(network, encoded, size)`` gets the tokens of all images in one batch, as
    `Stages.encode_views` gives them; ``decode([(0, 1), (1, 0)])`` decodes both directions of a pair
    in one batch. Beyond the encoder this saves the first level of a DPT head, the most expensive
    one, for every further pair that an image is in.
    """

    def __init__(
        self,
        network: Stages,
        encoded: Encoded,
        size: tuple[int, int],
        true_shape: Shapes | None = None,
    ) -> None:
        """Keep the encoded images; ``size`` is their height and width in storage layout."""
        self.network, self.encoded = network, encoded
        self.size, self.true_shape = size, true_shape
        self._starts: dict[int, Start] = {}

    def decode(self, pairs: Sequence[tuple[int, int]]) -> tuple[Result, Result]:
        """Decode ordered pairs of image numbers in one batch.

        Returns:
            The results of view 1 and of view 2, an item for each pair, with the same names in both;
            all points are in the camera frame of view 1.
        """
        rows = torch.tensor(pairs, device=self.encoded.tokens.device).unbind(1)
        lists = self.network.decode_pair(*(self._pick(row) for row in rows))
        results = []
        for view, (row, tokens) in enumerate(zip(rows, lists, strict=True), 1):
            shape = None if self.true_shape is None else self.true_shape[row]
            start = tuple(part[row] for part in self._start(view))
            more = {"start": start} if start else {}
            results.append(self.network.read_out(view, tokens, self.size, shape, **more))
        return results[0], results[1]

    def _pick(self, row: Tensor) -> Encoded:
        return self.encoded.map(lambda t: t[row])

    def _start(self, view: int) -> Start:
        if isinstance(self.network, PairNetwork) and view not in self._starts:
            args = (self.encoded, self.size, self.true_shape)
            self._starts[view] = self.network.start(view, *args)
        return self._starts.get(view, ())


class AsymmetricCroCo3DStereo(PairNetwork):
    """DUSt3R, with a linear or a DPT head."""

    def __init__(
        self, output_mode: str = "pts3d", head_type: str = "linear", **options: Any
    ) -> None:
        """Create the network; ``options`` are those of `PairNetwork`."""
        if head_type not in HEADS or output_mode != "pts3d":
            msg = (
                f"expected head_type {' or '.join(HEADS)} and output_mode pts3d, got {head_type} "
                f"and {output_mode}"
            )
            raise ValueError(msg)
        super().__init__(HEADS[head_type], **options)


def is_symmetrized(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Return whether item ``2k + 1`` of a batch is item ``2k`` with its views swapped."""
    if len(first) != len(second) or len(first) < 2 or len(first) % 2:
        return False
    evens = range(0, len(first), 2)
    return all(first[i] == second[i + 1] and first[i + 1] == second[i] for i in evens)


def restore_second_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a CroCo or early DUSt3R state with ``dec_blocks2`` copied from ``dec_blocks``."""
    state = dict(state)
    if not any(name.startswith("dec_blocks2.") for name in state):
        for name in [n for n in state if n.startswith("dec_blocks.")]:
            state[name.replace("dec_blocks.", "dec_blocks2.", 1)] = state[name]
    return state


def from_config(config: dict[str, Any]) -> AsymmetricCroCo3DStereo:
    """Build a network from a description that uses the constructors' names."""
    return AsymmetricCroCo3DStereo(**pick_pair_options(config, AsymmetricCroCo3DStereo))


def pick_pair_options(
    config: Mapping[str, Any], network: Callable[..., nn.Module]
) -> dict[str, Any]:
    """Return the entries of a description that a pair network takes."""
    options = {"norm_eps": config.get("norm_layer_eps", 1e-6)} | dict(config)
    return pick_options(options, network, PairNetwork, CroCoBackbone)


PUBLISHED: dict[str, dict[str, Any]] = {
    "DUSt3R_ViTLarge_BaseDecoder_224_linear": {"img_size": (224, 224)},
    "DUSt3R_ViTLarge_BaseDecoder_512_linear": {"img_size": (512, 512)},
    "DUSt3R_ViTLarge_BaseDecoder_512_dpt": {"img_size": (512, 512), "head_type": "dpt"},
}
"""The published checkpoints and their constructor options."""


def _interleave(even: Encoded, odd: Encoded) -> Encoded:
    def mix(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack((a, b), 1).flatten(0, 1)

    positions = even.positions
    if positions.ndim == 3:
        positions = mix(positions, odd.positions)
    extra = None
    if even.extra is not None and odd.extra is not None:
        extra = mix(even.extra, odd.extra)
    return Encoded(mix(even.tokens, odd.tokens), positions, extra)


def _other_view(name: str) -> str:
    return f"{name}_in_other_view" if name in {"pts3d", "means"} else name
