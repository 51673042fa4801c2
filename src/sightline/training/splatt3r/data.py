"""The data of a training: which source, and its pairs."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from sightline.datasets.augment import ColorJitter
from sightline.datasets.co3d import CATEGORIES, Co3d, open_co3d
from sightline.datasets.multiview import MultiViewSource, collate, sample_rng
from sightline.datasets.posed import PosedScenes, is_pseudo, open_posed, split_scenes
from sightline.datasets.rooms import Rooms
from sightline.datasets.scannetpp import ScanNetPP, open_scannetpp
from sightline.errors import InputError
from sightline.training.splatt3r.settings import Splatt3rSettings
from sightline.types import MultiView

Split = Literal["train", "val"]
ADVICE = (
    "CO3D v2 (https://github.com/facebookresearch/co3d, download_dataset.py; its "
    "--single_sequence_subset is 8.9 GB, for set_lists manyview_dev): the folder that holds the "
    "categories; ScanNet++ (https://kaldir.vc.in.tum.de/scannetpp, on request): the folder with raw/, "
    "processed/ and coverage/; scenes with poses and depth, or runs of sightline reconstruct; or leave "
    "data out for synthetic rooms"
)
"""What to do where there is no data."""


def open_source(settings: Splatt3rSettings, split: Split) -> MultiViewSource:
    """Return where a split's samples come from, with two context views in front.

    Raises:
        InputError: There is no such data; the text says what to download.
    """
    if settings.data is None:
        low = min(0.1, settings.baseline / 2)
        return Rooms(num_context=2, baseline=(low, settings.baseline))
    root = Path(settings.data)
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; get {ADVICE}")
    kind = settings.data_format
    kind = _format_of(root) if kind == "auto" else kind
    if kind == "co3d":
        masked = {"yes": True, "no": False}.get(settings.mask_background, "random")
        sequences = open_co3d(
            root,
            categories=settings.categories,
            split=split if split == "train" else settings.held_out,
            set_lists=settings.set_lists,
        )
        return Co3d(
            root=root,
            sequences=sequences,
            mask_background="random" if masked == "random" else bool(masked),
            num_context=2,
        )
    if kind == "scannetpp":
        band = (settings.overlap, settings.overlap)
        return ScanNetPP(scenes=open_scannetpp(root, split=split), band=band)
    train, held = split_scenes(open_posed(root))
    # Of a single scene validation draws other pairs.
    return PosedScenes(scenes=train if split == "train" else held or train, num_context=2)


def estimated(source: MultiViewSource) -> bool:
    """Return whether the source's cameras and depth are estimates: pseudo ground truth."""
    return isinstance(source, PosedScenes) and is_pseudo(source.scenes)


def _format_of(root: Path) -> str:
    if any((root / name / "frame_annotations.jgz").is_file() for name in CATEGORIES):
        return "co3d"
    return "scannetpp" if (root / "raw" / "splits").is_dir() else "posed"


def draw_sample(
    source: MultiViewSource, rng: np.random.Generator, settings: Splatt3rSettings
) -> MultiView:
    """Return one pair with its targets."""
    side = settings.resolution
    return source.draw(rng, 2 + settings.targets, side, side)


def training_batch(
    source: MultiViewSource, rngs: list[np.random.Generator], settings: Splatt3rSettings
) -> MultiView:
    """Return pairs of the training, a generator each."""
    samples = []
    for rng in rngs:
        sample = draw_sample(source, rng, settings)
        if settings.jitter:  # all views alike, for the targets show the contexts' colours
            sample = ColorJitter(joint=1.0)(sample, rng)
        samples.append(sample)
    return collate(samples)


def held_out(
    source: MultiViewSource, settings: Splatt3rSettings, first: int, count: int
) -> MultiView:
    """Return held-out pairs; they are the same whatever the seed of the training."""
    rngs = [sample_rng(0, "val", first + row) for row in range(count)]
    batch = collate([draw_sample(source, rng, settings) for rng in rngs])
    if settings.data is None:
        names = tuple(f"room {first + row}" for row in range(count))
        batch = dataclasses.replace(batch, scenes=names)
    return batch
