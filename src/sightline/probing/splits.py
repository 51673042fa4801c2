"""Which views are learnt from and which are scored: split files, and a rule where there is none."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sightline.errors import FileFormatError, InputError
from sightline.io.atomic import atomic_write_text
from sightline.io.inputs import PICTURE_SUFFIXES
from sightline.io.reading import read_json

SPLIT_FILE = "dataset_split.json"
_SPREAD = 3


@dataclass(frozen=True, slots=True)
class Split:
    """File names without endings, in order."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    hash: str = ""
    """Of the scene in its source, where the file has one (DL3DV)."""


def stem_of(name: str) -> str:
    """Return a picture's name without its ending; other points stay."""
    path = Path(name)
    return path.stem if path.suffix.lower() in PICTURE_SUFFIXES else path.name


def split_by_folder(scene: Path, names: Sequence[str]) -> Split | None:
    """Return the split that the authors' folders show: copies of training photos.

    ``N_views/images`` of the finished layout, or ``train`` as they chose it; all others of the
    scene are test views. None where there is no such folder, or more than one ``N_views``.

    Args:
        scene: Its folder.
        names: Of all views, without endings.
    """
    folders = [f for f in scene.glob("*_views/images") if f.parent.name[:-6].isdigit()]
    folders = folders or [f for f in (scene / "train", scene / "images" / "train") if f.is_dir()]
    if len(folders) != 1:
        return None
    chosen = {stem_of(file.name) for file in folders[0].iterdir() if file.is_file()}
    train = tuple(name for name in names if name in chosen)
    return Split(train, tuple(name for name in names if name not in chosen)) if train else None


def choose_split(names: Sequence[str], train: int, test: int | None) -> Split:
    """Split views where the data does not: our rule.

    Of the views in natural order, the middle ones are taken, three times as many as there are
    training views (so that neighbours overlap in long captures). Training views are evenly spread
    over them, ends included. Test views are evenly spread over the others of that window; at least
    one and at most a third of all views are test views.

    Args:
        names: In natural order.
        train: Training views at most.
        test: Test views at most; 0 for none, None for all others of the scene.

    Raises:
        InputError: If there are fewer than two views.
    """
    count = len(names)
    if count < 2:
        raise InputError(f"a scene to probe needs at least 2 views, got {count}; add photos")
    held = 0 if test == 0 else max(1, min(test or count, count // 3))
    learn = min(train, count - held)
    window = min(count, max(_SPREAD * learn, learn + held)) if test is not None else count
    start = (count - window) // 2
    chosen = _spread(start, window, learn)
    others = [i for i in range(start, start + window) if i not in set(chosen)]
    scored = others if test is None else [others[i] for i in _spread(0, len(others), held)]
    return Split(tuple(names[i] for i in chosen), tuple(names[i] for i in scored))


def _spread(start: int, length: int, count: int) -> list[int]:
    """Return ``count`` different positions, evenly spread, ends included (one: the middle)."""
    if count == 0 or length == 0:
        return []
    if count == 1:
        return [start + length // 2]
    return [start + round(i * (length - 1) / (count - 1)) for i in range(count)]


def read_splits(path: Path) -> dict[str, dict[str, Split]]:
    """Read Feat2GS's ``dataset_split.json``: ``{data set: {scene: {train, test, hash?}}}``.

    Raises:
        InputError: If the file is missing.
        FileFormatError: If it is not of that form.
    """
    data = read_json(path)
    if not isinstance(data, dict):
        raise _wrong(path, "an object of data sets", data)
    splits: dict[str, dict[str, Split]] = {}
    for name, scenes in data.items():
        if not isinstance(scenes, dict):
            raise _wrong(path, f"an object of scenes in {name}", scenes)
        splits[name] = {}
        for scene, entry in scenes.items():
            lists = [entry.get(key, []) if isinstance(entry, dict) else None for key in _KEYS]
            if any(
                not isinstance(part, list) or any(not isinstance(stem, str) for stem in part)
                for part in lists
            ):
                raise _wrong(path, f'lists of names "train" and "test" in {name}/{scene}', entry)
            train, test = (tuple(part or ()) for part in lists)
            if not train or set(train) & set(test):
                raise _wrong(
                    path, f"training views that are no test views in {name}/{scene}", entry
                )
            mark = entry.get("hash", "")
            splits[name][scene] = Split(train, test, mark if isinstance(mark, str) else "")
    return splits


_KEYS = ("train", "test")


def write_splits(path: Path, splits: Mapping[str, Mapping[str, Split]]) -> None:
    """Write splits in the authors' layout: stems sorted, hashes kept."""
    data = {
        name: {
            scene: {
                "train": sorted(split.train),
                "test": sorted(split.test),
                **({"hash": split.hash} if split.hash else {}),
            }
            for scene, split in scenes.items()
        }
        for name, scenes in splits.items()
    }
    atomic_write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def _wrong(path: Path, expected: str, got: object) -> FileFormatError:
    shown = json.dumps(got, ensure_ascii=False)[:60]
    return FileFormatError(f"{path}: expected {expected}, got {shown}; fix the split file")
