"""The pictures of a self-distillation, and the batches made of them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sightline.datasets.drawn import DrawnSet
from sightline.datasets.pictures import PictureSet, Pixels, read_picture_set
from sightline.errors import InputError
from sightline.training.dino.settings import DinoSettings
from sightline.training.dino.views import Recipe, block_mask, mask_counts
from sightline.training.draws import Draw, generator, shuffled

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GENERATED = "generated:"


class DinoData:
    """Training and validation pictures, kept in memory as far as they fit.

    Attributes:
        train: What is learned from.
        val: Held-out pictures; empty when validation takes the training pictures one by one.
        classes: Names, where the pictures have some.
        recipe: How crops are made.
    """

    def __init__(self, settings: DinoSettings) -> None:
        """List the pictures.

        Raises:
            InputError: If there are none.
        """
        self.settings = settings
        everything = _open(settings.data, settings, "--data")
        if settings.val_data is not None:
            self.train = everything
            self.val = _open(settings.val_data, settings, "--val-data")
        else:
            kept, out = _split(everything, settings)
            self.train, self.val = everything.subset(kept), everything.subset(out)
        self.classes = self._classes()
        mean, std = (IMAGENET_MEAN, IMAGENET_STD)
        if settings.channels != 3:
            mean, std = self.train.statistics()
        self.recipe = Recipe(
            mean=mean,
            std=std,
            global_size=settings.global_size,
            local_size=settings.local_size,
            local_crops=settings.local_crops,
            gram_size=settings.gram_size if settings.gram_weight else 0,
            global_scale=settings.global_scale,
            local_scale=settings.local_scale,
            jitter=settings.jitter,
            blur=settings.blur,
        )
        self._kept: dict[tuple[str, int], Pixels] = {}
        self._room = settings.cache_mb * 1_000_000 // max(1, settings.num_workers)

    def _classes(self) -> tuple[str, ...]:
        known = self.train.labels
        if known and len(self.val) and not {e.label for e in self.val.entries} <= set(known):
            return ()
        return known

    def check(self) -> None:
        """Read the first and the last picture."""
        for pictures in (self.train, self.val):
            for index in {0, len(pictures) - 1} if len(pictures) else ():
                pictures.read(index)
        smallest = 2 * self.settings.batch_size
        if self.settings.koleo_weight and self.settings.batch_size < 2:
            raise InputError(
                f"the KoLeo loss compares pictures: raise --batch-size to 2 or more (now "
                f"{smallest // 2}), or set --koleo-weight 0"
            )

    def pixels(self, pictures: PictureSet | DrawnSet, index: int) -> Pixels:
        """Return a picture, from memory if it was kept."""
        key = (pictures.entries[index].name, id(pictures))
        found = self._kept.get(key)
        if found is None:
            side = self.settings.short_side or 2 * self.settings.global_size
            found = pictures.read(index, side)
            if found.nbytes <= self._room:
                self._room -= found.nbytes
                self._kept[key] = found
        return found

    def batch(self, draw: Draw, patch: int) -> dict[str, Tensor]:
        """Return crops ``[crops, pictures, channels, size, size]`` and masks of a share of a step."""
        settings = self.settings
        side = settings.global_size // patch
        counts = mask_counts(
            draw.of_step("masks"),
            2 * draw.size * draw.parts,
            side * side,
            settings.mask_share,
            settings.mask_ratio,
        )
        rows: dict[str, list[np.ndarray]] = {}
        for place, index in enumerate(draw.items):
            item = shuffled(index, len(self.train), draw.seed)
            crops = self.recipe.crops(self.pixels(self.train, item), draw.of_item(index, "crops"))
            first = 2 * (draw.part * draw.size + place)
            rng = draw.of_item(index, "masks")
            masks = [block_mask(rng, side, side, counts[first + crop]).ravel() for crop in (0, 1)]
            for name, value in (*crops.items(), ("masks", np.stack(masks))):
                rows.setdefault(name, []).append(value)
        return {name: torch.from_numpy(np.stack(value, 1)) for name, value in rows.items()}


def _open(data: str | None, settings: DinoSettings, flag: str) -> PictureSet | DrawnSet:
    if data is None:
        raise InputError(f"give a folder of pictures with {flag} (or --dataset-dir)")
    if data.startswith(GENERATED):
        count = data.removeprefix(GENERATED)
        if not count.isdecimal() or not 2 <= int(count) <= 1_000_000:
            raise InputError(f"{flag}: expected generated:N with N from 2, got {data}")
        if settings.channels != 3:
            raise InputError("generated pictures have 3 channels; leave --channels out")
        return DrawnSet(count=int(count), seed=settings.seed)
    return read_picture_set(Path(data), channels=settings.channels, label=settings.label)


def _split(pictures: PictureSet | DrawnSet, settings: DinoSettings) -> tuple[list[int], list[int]]:
    """Return training and validation pictures: as prepared, or a share drawn from every class."""
    splits = [entry.split for entry in pictures.entries]
    if any(split in ("val", "test") for split in splits) and not settings.holdout:
        out = [i for i, split in enumerate(splits) if split in ("val", "test")]
        return [i for i in range(len(splits)) if i not in set(out)], out
    groups: dict[str | None, list[int]] = {}
    for index, entry in enumerate(pictures.entries):
        groups.setdefault(entry.label, []).append(index)
    out = []
    for name, members in sorted(groups.items(), key=lambda pair: str(pair[0])):
        order = generator(settings.seed, "holdout", str(name)).permutation(len(members))
        out += [members[i] for i in order[: round(settings.holdout * len(members))]]
    kept = [i for i in range(len(pictures)) if i not in set(out)]
    if not kept:
        raise InputError("--holdout leaves no picture to learn from; lower it")
    return kept, sorted(out)
