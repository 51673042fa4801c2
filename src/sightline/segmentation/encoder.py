"""One `encode(images) -> [B, C, h, w]` over any backbone: sizes, layers, debiasing, a control."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, normalize

from sightline.backbones import create_backbone
from sightline.errors import InputError
from sightline.protocols import Backbone
from sightline.segmentation.pooling import resize_square
from sightline.types import Features

GRID = 37
"""Cells a side of the published setting: 518 pixels with patches of 14, 592 with 16."""

COLOUR = "colour"
"""Name of the built-in control without weights."""


class Encoder:
    """Square pictures to features on a square grid.

    Attributes:
        size: Side of the square in pixels.
        channels: Of the result.
        signature: What a bank remembers, so that it is only used with features made alike.
    """

    def __init__(
        self,
        backbone: Backbone,
        size: int | None = None,
        *,
        layers: Sequence[int] = (-1,),
        debias: int = 0,
        name: str = "",
        norm: bool = True,
    ) -> None:
        """Wrap a backbone.

        Args:
            backbone: Any; its ``extract`` normalises.
            size: Side in pixels, cut to whole patches; by default 37 patches.
            layers: Joined along the channels; several are made unit length each before that.
            debias: Remove so many directions that features have by position alone, as they show on
                an image without content (INSID3's recipe for DINOv3: 500 of 1024); 0 is off.
            name: Of the backbone, for the signature.
            norm: Whether the backbone was made with its final norm, for the signature.

        Raises:
            InputError: The size holds no patch, or the directions are more than the channels.
        """
        patch = backbone.patch_size
        self.size = GRID * patch if size is None else size // patch * patch
        if self.size < patch:
            raise InputError(f"expected images of at least one patch ({patch} pixels), got {size}")
        if not layers:
            raise InputError("expected at least one layer, got none")
        if debias < 0:
            raise InputError(f"debias must be 0 or more directions, got {debias}")
        self.backbone, self.layers, self.debias = backbone, tuple(layers), debias
        self.signature: dict[str, Any] = {
            "name": name or type(backbone).__name__,
            "size": self.size,
            "layers": list(self.layers),
            "debias": debias,
            "norm": norm,
            "weights": fingerprint(backbone),
        }
        self._basis: Tensor | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Cells of the grid."""
        side = self.size // self.backbone.patch_size
        return side, side

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c a a2"]:
        """Return features of pictures in [0, 1], stretched to the square (bicubic)."""
        square = torch.stack([resize_square(image, self.size, self.size) for image in images])
        features = self._join(self.backbone.extract(square, layers=self.layers))
        if not self.debias:
            return features
        basis = self._positional_basis(features)
        unit = normalize(features, dim=1)
        seen = torch.einsum("cr,bchw->brhw", basis, unit)
        return normalize(unit - torch.einsum("cr,brhw->bchw", basis, seen), dim=1)

    def _join(self, found: Sequence[Features]) -> Tensor:
        if len(found) == 1:
            return found[0].patches.float()
        return torch.cat([normalize(f.patches.float(), dim=1) for f in found], 1)

    def _positional_basis(self, like: Tensor) -> Tensor:
        """Return the directions ``[C, r]`` that features of an empty image lie in."""
        basis = self._basis
        if basis is None:
            blank = like.new_zeros(1, 3, self.size, self.size)
            features = self._join(self.backbone.extract(blank, layers=self.layers))
            tokens = normalize(features[0].flatten(1), dim=0)  # [C, N]
            tokens = tokens - tokens.mean(1, keepdim=True)
            left = torch.linalg.svd(tokens.double(), full_matrices=False)[0]
            if self.debias > left.shape[1]:
                raise InputError(
                    f"debias must be at most {left.shape[1]} directions here, got {self.debias}"
                )
            basis = self._basis = left[:, : self.debias].to(like.dtype)
        return basis.to(like.device)


class ColourTexture:
    """A backbone without weights: histograms of colour and of edge directions in each patch.

    A control for learned features, and enough where classes differ by colour. Values are square
    roots of soft histograms (each block sums to one before), so the cosine of two patches is the
    Bhattacharyya coefficient of their histograms.
    """

    def __init__(self, patch_size: int = 8) -> None:
        """Describe patches of ``patch_size`` pixels and their surroundings."""
        self.patch_size = patch_size
        self.mean, self.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        self._bins = ((8, 0.0, 100.0), (12, -60.0, 60.0), (12, -60.0, 60.0))
        self.embed_dim = 2 * sum(b for b, _, _ in self._bins) + 9

    def extract(
        self, images: Float[Tensor, "views 3 height width"], *, layers: Sequence[int] = (-1,)
    ) -> list[Features]:
        """Return the same features for every layer asked for."""
        patches = torch.stack([self._describe(image) for image in images])
        return [Features(patches=patches.to(images), layer=layer, normed=True) for layer in layers]

    def _describe(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "d a b"]:
        array = np.ascontiguousarray(image.clamp(0, 1).float().permute(1, 2, 0).cpu().numpy())
        lab = torch.from_numpy(cv2.cvtColor(array, cv2.COLOR_RGB2LAB)).permute(2, 0, 1)
        maps = []
        for channel, (count, low, high) in zip(lab, self._bins, strict=True):
            place = ((channel.clamp(low, high) - low) / (high - low) * (count - 1))[None]
            at = torch.arange(count).view(-1, 1, 1)
            maps.append((1 - (place - at).abs()).clamp(min=0))
        patch = self.patch_size
        colour = avg_pool2d(torch.cat(maps)[None], patch)
        near = avg_pool2d(colour, 3, stride=1, padding=1, count_include_pad=False)
        light = lab[0].numpy()
        dx, dy = cv2.Sobel(light, cv2.CV_32F, 1, 0), cv2.Sobel(light, cv2.CV_32F, 0, 1)
        strength = torch.from_numpy(np.hypot(dx, dy)) / 100
        angle = torch.from_numpy(np.arctan2(dy, dx) % np.pi) / np.pi * 8
        at = torch.arange(8).view(-1, 1, 1)
        away = (angle - at).abs()
        edges = (1 - torch.minimum(away, 8 - away)).clamp(min=0) * strength
        edges = torch.cat((edges, torch.full_like(strength[None], 0.3)))  # the flat bin
        edges = avg_pool2d(edges[None], patch)
        edges = edges / edges.sum(1, keepdim=True)
        return torch.cat((colour, near, edges), 1).sqrt()[0]


def fingerprint(backbone: object) -> str:
    """Return a short hash that tells weights apart; empty for a backbone without any.

    It covers the name, shape and first values of every tensor, so it costs next to nothing.
    """
    if not isinstance(backbone, nn.Module):
        return ""
    digest = hashlib.sha256()
    for name, value in sorted(backbone.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def create_encoder(
    name: str,
    checkpoint: str | Path | None = None,
    *,
    size: int | None = None,
    layers: Sequence[int] = (-1,),
    debias: int = 0,
    norm: bool = True,
    device: str = "auto",
    seed: int = 0,
) -> Encoder:
    """Return an encoder by the backbone's name; ``colour`` is the control without weights.

    ``norm`` applies the network's final norm, as the default matching model expects; the AMG model
    was published without.

    Raises:
        UnknownNameError: There is no such backbone.
        CheckpointError: Weights are missing or do not fit.
    """
    if name == COLOUR:
        backbone: Backbone = ColourTexture()
    else:
        backbone = create_backbone(name, checkpoint, device, seed=seed, norm=norm)
    return Encoder(backbone, size, layers=layers, debias=debias, name=name, norm=norm)
