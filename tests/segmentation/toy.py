"""A tiny encoder, a proposer that knows the truth, and small pictures with known objects."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sightline.segmentation.encoder import Encoder
from sightline.segmentation.proposals import Proposals
from sightline.segmentation.references import Reference
from sightline.segmentation.segmenter import FewShotSegmenter, SegmentOptions
from sightline.segmentation.synthetic import make_picture
from sightline.types import Features

COLOURS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.8, 0.2), "blue": (0.1, 0.2, 0.9)}


class TinyBackbone:
    """Mean colour of each patch around grey, a constant, and two channels of the place only."""

    patch_size, embed_dim = 4, 6
    mean, std = (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)

    def __init__(self, place: float = 0.0) -> None:
        self.place = place
        self.calls: list[int] = []

    def extract(self, images: Tensor, *, layers: Sequence[int] = (-1,)) -> list[Features]:
        self.calls.append(len(images))
        pooled = torch.nn.functional.avg_pool2d(images - 0.5, self.patch_size)
        height, width = pooled.shape[-2:]
        y, x = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")) * self.place
        same = torch.full_like(pooled[:, :1], 0.3)
        patches = torch.cat((pooled, same, grid.expand(len(images), -1, -1, -1)), 1)
        return [Features(patches=patches * (3 + i), layer=i, normed=True) for i in layers]


def encoder(size: int = 32, **options: object) -> Encoder:
    return Encoder(TinyBackbone(), size, name="tiny", **options)  # type: ignore[arg-type]


class KnownMasks:
    """Proposes the given masks of every picture."""

    def __init__(self, masks: Tensor, quality: Tensor | None = None) -> None:
        self.masks = masks
        self.quality = torch.ones(len(masks)) if quality is None else quality

    def propose(self, image: Tensor) -> Proposals:
        return Proposals(logits=self.masks.float() * 2 - 1, quality=self.quality)


def squares(
    names: Sequence[str], size: int = 48, ground: tuple[float, float, float] = (0.5, 0.5, 0.5)
) -> tuple[Tensor, Tensor]:
    """Return a picture with one coloured square a name, and their masks."""
    image = torch.tensor(ground).view(3, 1, 1).expand(3, size, size).clone()
    masks = torch.zeros(len(names), size, size, dtype=torch.bool)
    step = size // max(len(names), 1)
    for i, name in enumerate(names):
        masks[i, 8 : size - 8, i * step + 2 : (i + 1) * step - 2] = True
        image[:, masks[i]] = torch.tensor(COLOURS[name])[:, None]
    return image, masks


def references(names: Sequence[str], shots: int = 1) -> list[Reference]:
    found = []
    for name in names:
        for shot in range(shots):
            image, masks = squares([name], 40 + 4 * shot)
            found.append(
                Reference(image=image, label=name, mask=masks[0], name=f"{name}{shot}.png#1")
            )
    return found


def fitted(
    names: Sequence[str], masks: Tensor, shots: int = 1, **options: object
) -> FewShotSegmenter:
    kind = SegmentOptions(target_size=None, **options)  # type: ignore[arg-type]
    return FewShotSegmenter(encoder(), KnownMasks(masks), options=kind).fit(
        references(names, shots)
    )


def synthetic(seed: int = 0) -> tuple[Tensor, list[tuple[str, Tensor]]]:
    pixels, objects = make_picture(np.random.default_rng(seed), 96, 128, 3)
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    return image, [(name, torch.from_numpy(mask)) for name, mask in objects]
