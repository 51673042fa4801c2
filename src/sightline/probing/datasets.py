"""Named data sets: where their scenes lie on disk, and what to download when they do not."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import InputError, UnknownNameError
from sightline.probing.config import ProbeConfig
from sightline.probing.scenes import SceneSource
from sightline.probing.splits import SPLIT_FILE, read_splits, stem_of

DTU_SCANS = (1, 4, 9, 23, 75, 10, 11, 12, 13, 15, 24, 29, 32, 33, 34, 48, 49, 62, 77, 110, 114, 118)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """One named data set.

    Attributes:
        scenes: The published ones; empty: all folders.
        layout: Path of a scene below the root; ``{dataset}`` and ``{scene}`` are replaced.
        download: What to get and where from.
        kind: How scenes are read; None finds out.
        score: False: inference only, without test views.
        noise: On the points, in metres.
        geometry: The method that belongs to it; None is the grid's.
    """

    scenes: tuple[str, ...] = ()
    layout: str = "{dataset}/{scene}"
    download: str
    kind: str | None = "photos"
    score: bool = True
    noise: float = 0.0
    geometry: str | None = None


_PHOTOS = "put each scene's photos into {root}/{dataset}/SCENE/images, the split file beside"

DATASETS: dict[str, Dataset] = {
    "LLFF": Dataset(
        scenes=("fortress", "horns", "orchids", "room", "trex"),
        download=f"get nerf_llff_data.zip of NeRF (bmild/nerf) and {_PHOTOS}",
    ),
    "DL3DV": Dataset(
        scenes=("Center", "Electrical", "Museum", "Supermarket2", "Temple"),
        download=f"get the DL3DV-10K sample (hashes cd9c981eeb4a, e8ce51b6abfe, dac9796dd69e, "
        f"cbd44beb04f9, ba55c875d20c; folder colmap/images_2) and {_PHOTOS}",
    ),
    "Casual": Dataset(
        scenes=("erhai", "paper2", "plushies", "stuff", "xbox"),
        download=f"get the authors' data archive (fanegg/Feat2GS) and {_PHOTOS}",
    ),
    "MipNeRF360": Dataset(
        scenes=("bicycle", "garden", "kitchen", "room", "stump"),
        download=f"get 360_v2.zip of Mip-NeRF 360 (jonbarron.info/mipnerf360) and {_PHOTOS}",
    ),
    "MVimgNet": Dataset(
        scenes=("bench", "bicycle", "car", "ladder", "suv"),
        download=f"get MVImgNet (GAP-LAB-CUHK-SZ/MVImgNet, on request) and {_PHOTOS}",
    ),
    "Tanks": Dataset(
        scenes=("Auditorium", "Caterpillar", "Family", "Ignatius", "Train"),
        download=f"get the image sets of Tanks and Temples (tanksandtemples.org) and {_PHOTOS}",
    ),
    "DTU": Dataset(
        scenes=tuple(f"scan{number}" for number in DTU_SCANS),
        download="get the authors' DTU archive (fanegg/Feat2GS), with images/, cams/STEM_cam.txt, "
        "depths/STEM.npy and binary_masks/STEM.png in {root}/DTU/SCAN",
        kind="dtu",
        noise=0.01,
        geometry="depth",
    ),
    "Infer": Dataset(
        download=f"use photos of your own: {_PHOTOS.split(',')[0]}",
        score=False,
    ),
    "ScanNetpp": Dataset(
        layout="data/{scene}/dslr",
        download="get ScanNet++ (kaldir.vc.in.tum.de/scannetpp, on request) and undistort the DSLR "
        "pictures with its toolbox, so that {root}/data/SCENE/dslr holds "
        "nerfstudio/transforms_undistorted.json and resized_undistorted_images/",
        kind=None,
    ),
    "CO3D": Dataset(
        layout="{scene}",
        download="get CO3Dv2 (facebookresearch/co3d) so that {root}/CATEGORY holds "
        "frame_annotations.jgz and {root}/CATEGORY/SEQUENCE its images/, depths/ and "
        "depth_masks/, and name scenes as CATEGORY/SEQUENCE",
        kind=None,
    ),
}
"""Feat2GS's data sets by the names of its split file, DTU, and two more."""


def expand_dataset(entry: Mapping[str, Any]) -> list[SceneSource]:
    """Return the scenes of a named data set.

    The authors' ``dataset_split.json`` at the root decides training and test views; without it our
    own rule does.

    Args:
        entry: ``name``, ``root``, and perhaps ``scenes``.

    Raises:
        UnknownNameError: If the name or a scene is unknown.
        InputError: If scenes are not where they should be; the text says what to download.
    """
    unknown = entry.keys() - {"name", "root", "scenes"}
    if unknown or "name" not in entry or "root" not in entry:
        raise InputError(
            f"a data set needs name and root, and perhaps scenes, got {sorted(entry)}; fix the grid"
        )
    name, root = str(entry["name"]), Path(entry["root"])
    if name not in DATASETS:
        raise UnknownNameError("data set", name, DATASETS)
    dataset = DATASETS[name]
    splits = {}
    if (root / SPLIT_FILE).is_file():
        splits = read_splits(root / SPLIT_FILE).get(name, {})
    scenes = entry.get("scenes") or dataset.scenes or tuple(splits) or _folders(root, name, dataset)
    sources = []
    for scene in scenes:
        path = root / dataset.layout.format(dataset=name, scene=scene)
        if not path.is_dir():
            raise InputError(
                f"{name}/{scene}: there is no folder {path}; "
                + dataset.download.format(root=root, dataset=name)
            )
        split = splits.get(scene)
        sources.append(
            SceneSource(
                id=f"{name}/{scene}",
                path=str(path),
                kind=dataset.kind,
                train=split.train if split else (),
                test=split.test if split else (),
                hash=split.hash if split else "",
                score=dataset.score,
                noise=dataset.noise,
                geometry=dataset.geometry,
            )
        )
    return sources


def _folders(root: Path, name: str, dataset: Dataset) -> tuple[str, ...]:
    parent = root / dataset.layout.format(dataset=name, scene="*").partition("*")[0]
    found = sorted(p.name for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
    if not found:
        raise InputError(
            f"{name}: there are no scenes in {parent}; "
            + dataset.download.format(root=root, dataset=name)
        )
    return tuple(found)


def list_sources(config: ProbeConfig) -> list[SceneSource]:
    """Return all scenes of a grid.

    Raises:
        InputError: If an entry is wrong, a folder is missing, or two scenes have one id.
    """
    sources = [source for entry in config.datasets for source in expand_dataset(entry)]
    for entry in config.scenes:
        sources.append(_source(entry, config))
    ids = [source.id for source in sources]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise InputError(f"two scenes are called {twice[0]}; give one of them another id")
    return sources


_OPTIONS = ("id", "path", "synthetic", "kind", "train", "test", "noise", "geometry")


def _source(entry: Any, config: ProbeConfig) -> SceneSource:  # noqa: ANN401
    if isinstance(entry, str):
        entry = {"path": entry}
    if not isinstance(entry, Mapping) or ("path" in entry) == ("synthetic" in entry):
        raise InputError(f"a scene must be a path, or have a path or synthetic, got {entry!r}")
    for key in entry:
        if key not in _OPTIONS:
            raise UnknownNameError("option of a scene", str(key), _OPTIONS)
    values = dict(entry)
    if "synthetic" in values:
        arguments = dict(values["synthetic"] or {})
        values["synthetic"] = arguments
        name = f"synthetic-{arguments.get('kind', 'tabletop')}-{arguments.get('seed', 0)}"
        values.setdefault("id", name)
    else:
        path = Path(values["path"])
        values["path"] = str(path)
        values.setdefault("id", path.parent.name if path.suffix == ".json" else path.resolve().name)
    values["id"] = str(values["id"])
    for part in ("train", "test"):
        values[part] = tuple(stem_of(str(stem)) for stem in values.get(part) or ())
    return SceneSource(**values, score=config.score)
