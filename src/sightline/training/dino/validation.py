"""Validation of a self-distillation: what the teacher's features tell, in numbers and pictures."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from sightline.backbones.pca import pca_maps, to_colors
from sightline.datasets.drawn import DrawnSet
from sightline.datasets.pictures import PictureSet
from sightline.io.atomic import atomic_path
from sightline.training.dino.data import DinoData
from sightline.training.dino.probes import effective_rank, knn_accuracy, linear_accuracy

_BATCH = 64
_SHOWN = 8
_TILE = 128  # pixels of a picture on the sheet


def measure(network: nn.Module, data: DinoData, device: torch.device) -> dict[str, float]:
    """Return k-NN and linear accuracy, where there are classes, and the effective rank.

    With held-out pictures these are classified by the training pictures; without, each training
    picture by all the others (labels were never seen in training).
    """
    settings = data.settings
    bank = features(network, data, data.train, device)
    held_out = len(data.val) > 0
    queries = features(network, data, data.val, device) if held_out else None
    found = {"effective_rank": effective_rank(bank if queries is None else queries)}
    if not data.classes:
        return found
    bank_labels = _numbers(data, data.train)
    labels = _numbers(data, data.val) if held_out else None
    found["knn"] = knn_accuracy(bank, bank_labels, queries, labels, settings.knn)
    if settings.linear:
        found["linear"] = linear_accuracy(bank, bank_labels, queries, labels)
    return found


@torch.no_grad()
def features(
    network: nn.Module, data: DinoData, pictures: PictureSet | DrawnSet, device: torch.device
) -> Float[Tensor, "n d"]:
    """Return the class tokens of whole pictures."""
    size = data.settings.val_size or data.settings.global_size
    rows = []
    for first in range(0, len(pictures), _BATCH):
        indices = range(first, min(first + _BATCH, len(pictures)))
        batch = _whole(data, pictures, indices, size).to(device)
        (seen,) = network(batch)
        rows.append(seen["x_norm_clstoken"].float().cpu())
    return torch.cat(rows)


@torch.no_grad()
def feature_picture(
    network: nn.Module, data: DinoData, patch: int, device: torch.device, folder: Path
) -> None:
    """Leave ``features.png``: a few pictures, and below them their patches' principal components."""
    pictures = data.val if len(data.val) else data.train
    step = max(1, len(pictures) // _SHOWN)
    indices = range(0, len(pictures), step)[:_SHOWN]
    size = max(16 * patch, data.settings.val_size or data.settings.global_size)
    (seen,) = network(_whole(data, pictures, indices, size).to(device))
    side = size // patch
    maps = seen["x_norm_patchtokens"].float().cpu().mT.unflatten(2, (side, side))
    colours = functional.interpolate(pca_maps(maps), (_TILE, _TILE), mode="bilinear")
    top = [_shown(data, pictures, index) for index in indices]
    sheet = np.concatenate(
        [np.concatenate(top, 1), np.concatenate([to_colors(c).numpy() for c in colours], 1)]
    )
    with atomic_path(folder / "features.png") as tmp:
        Image.fromarray(sheet).save(tmp)


def _whole(
    data: DinoData, pictures: PictureSet | DrawnSet, indices: range, size: int
) -> Float[Tensor, "n c size size"]:
    rows = [data.recipe.whole(data.pixels(pictures, index), size) for index in indices]
    return torch.from_numpy(np.stack(rows))


def _shown(data: DinoData, pictures: PictureSet | DrawnSet, index: int) -> np.ndarray:
    """Return a picture as 8-bit colour; other channels as the first ones, two deviations wide."""
    whole = data.recipe.whole(data.pixels(pictures, index), _TILE).transpose(1, 2, 0)
    if data.recipe.colour:
        whole = whole * np.array(data.recipe.std) + np.array(data.recipe.mean)
    else:
        whole = whole / 4 + 0.5
    first = whole[..., :3] if whole.shape[-1] >= 3 else np.repeat(whole[..., :1], 3, axis=-1)
    return (first.clip(0, 1) * 255).round().astype(np.uint8)


def _numbers(data: DinoData, pictures: PictureSet | DrawnSet) -> Tensor:
    places = {name: number for number, name in enumerate(data.classes)}
    return torch.tensor([places[str(entry.label)] for entry in pictures.entries])
