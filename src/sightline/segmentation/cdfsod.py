"""Folders of CD-FSOD (Fu et al. 2024), the cross-domain few-shot benchmark.

Each data set is a folder with ``annotations/test.json``, ``annotations/1_shot.json``, ``5_shot.json``
and ``10_shot.json``, which fix the references, and pictures in ``train/`` and ``test/``.
"""

from dataclasses import replace
from pathlib import Path

from sightline.errors import InputError
from sightline.segmentation.coco import CocoDataset, read_coco

SIZES = {"ArTaxOr": 7, "clipart1k": 20, "DIOR": 20, "FISH": 1, "NEU-DET": 6, "UODD": 3}
"""Data set -> number of its classes."""


def is_cdfsod(folder: Path) -> bool:
    """Say whether a folder is laid out like CD-FSOD."""
    notes = folder / "annotations"
    return (notes / "test.json").is_file() and any(notes.glob("*_shot.json"))


def read_shots(folder: Path, shots: int | None) -> CocoDataset:
    """Return the benchmark's own references; file names begin with ``train/``.

    Raises:
        InputError: There are none for this number of shots.
    """
    files = {path.name.removesuffix("_shot.json") for path in _notes(folder).glob("*_shot.json")}
    if shots is None or str(shots) not in files:
        told = ", ".join(sorted(files, key=lambda name: (len(name), name)))
        raise InputError(
            f"{folder.name} fixes references for {told} shots, got --shots {shots}; choose one"
        )
    return _placed(_notes(folder) / f"{shots}_shot.json", folder, "train")


def read_test(folder: Path) -> CocoDataset:
    """Return what is scored; file names begin with ``test/``."""
    return _placed(_notes(folder) / "test.json", folder, "test")


def _notes(folder: Path) -> Path:
    return folder / "annotations"


def _placed(file: Path, folder: Path, part: str) -> CocoDataset:
    """Read annotations, and say in which sub-folder the pictures are."""
    dataset = read_coco(file)
    wanted = next(
        (count for name, count in SIZES.items() if name.lower() == folder.name.lower()), 0
    )
    if wanted and len(dataset.categories) != wanted:
        raise InputError(
            f"expected the {wanted} classes of {folder.name} in {file.name}, got "
            f"{len(dataset.categories)}; take the benchmark's own files"
        )
    images = {
        key: replace(image, file_name=f"{part}/{image.file_name}")
        for key, image in dataset.images.items()
    }
    return replace(dataset, images=images)
