"""What a grid is made of, and where its YAML files are found."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

from sightline import options
from sightline.errors import InputError, UnknownNameError
from sightline.probing.entries import (
    DatasetEntry,
    FeatureEntry,
    GeometryEntry,
    SceneEntry,
    check_value,
)

MODE_NAMES = ("G", "T", "A", "Gft", "Tft", "Aft")
PROBES_3D = ("depth", "normals", "correspondence")
VIDEOS = (*get_args(options.PathName), "interpolated", "gallery")
"""Camera paths; ``interpolated`` is the authors' name of ``interpolate``, ``gallery`` stands for
those of their gallery."""
VIDEO_MODES = ("rgb", "depth", "normal")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig:
    """A grid of probes.

    Attributes:
        protocol: A key of `protocols.PROTOCOLS`, or ``fast``.
        changes: Fields of the protocol to change; its name then ends in ``+changes``.
        scenes: Each a path, or a mapping with ``path`` or ``synthetic``, and perhaps ``id``,
            ``kind``, ``train``, ``test``, ``noise`` and ``geometry``.
        datasets: Each a mapping with ``name`` (see `datasets.DATASETS`), ``root``, and perhaps
            ``scenes``.
        features: See `features.parse_features`.
        modes: Some of `MODE_NAMES`.
        seeds: Of heads and order, and of whatever is drawn.
        geometry: ``auto``, ``depth``, ``given``, ``colmap`` or a geometry estimator.
        geometry_options: Of estimators, by name: ``{vggt: {checkpoint: FILE}}``.
        baseline: Also fit InstantSplat.
        probes: Probe3D's probes over the same features: some of `PROBES_3D`.
        videos: Camera paths to render of every probe's first seed: some of `VIDEOS`.
        video_modes: What videos show: some of `VIDEO_MODES`.
        maps: Write the authors' four error maps of every test view of each probe's first seed.
        score: False keeps no test views (inference only).
        lpips: Files of LPIPS weights; empty looks into torch's cache, ``none`` leaves LPIPS out.
        device: ``auto``, ``cpu`` or ``cuda``.
        retries: How often a failed task is tried again.
        workers: Processes that do tasks at the same time and share the cores; 1 does one task after
            another in this process.
    """

    protocol: str = "sightline-1"
    changes: Mapping[str, Any] = field(default_factory=dict)
    scenes: Sequence[str | SceneEntry] = ()
    datasets: Sequence[DatasetEntry] = ()
    features: Sequence[str | FeatureEntry] = ()
    modes: Sequence[str] = ("G",)
    seeds: Sequence[int] = (0,)
    geometry: str = "auto"
    geometry_options: Mapping[str, GeometryEntry] = field(default_factory=dict)
    baseline: bool = False
    probes: Sequence[str] = ()
    videos: Sequence[str] = ()
    video_modes: Sequence[str] = ("rgb",)
    maps: bool = False
    score: bool = True
    lpips: Sequence[str] = ()
    device: str = "auto"
    retries: int = 1
    workers: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be planned.

        Raises:
            InputError: If something is missing, doubled or out of range.
        """
        choices = {"modes": MODE_NAMES, "probes": PROBES_3D, "videos": VIDEOS}
        for name, known in {**choices, "video_modes": VIDEO_MODES}.items():
            for value in getattr(self, name):
                if value not in known:
                    raise UnknownNameError(f"entry of {name}", str(value), known)
        if not self.scenes and not self.datasets:
            raise InputError("a grid needs scenes: name some under scenes or datasets")
        if not self.features and not self.baseline:
            raise InputError("a grid needs features: name some, such as iuvrgb")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds must be whole numbers, each once, got {list(self.seeds)}")
        if any(seed < 0 for seed in self.seeds):
            raise InputError(f"seeds must be whole numbers from 0, got {list(self.seeds)}")
        if not 0 <= self.retries <= 10:
            raise InputError(f"retries must be 0 to 10, got {self.retries}")
        if not 1 <= self.workers <= 256:
            raise InputError(f"workers must be 1 to 256, got {self.workers}")

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self)


def config_from(
    values: Mapping[str, Any], folder: Path | None = None, *, here: Collection[str] = ()
) -> ProbeConfig:
    """Build a grid from plain values.

    Args:
        values: Fields of `ProbeConfig`; what is None keeps its default.
        folder: That relative paths in them start from: the configuration file's.
        here: Fields whose paths start from where one stands, because they are not of the file.

    Raises:
        UnknownNameError: If a field is unknown.
        InputError: If a value does not fit.
    """
    hints, given = get_type_hints(ProbeConfig), {}
    for name, value in values.items():
        if name not in hints:
            raise UnknownNameError("option of a grid", name, hints)
        if value is not None:
            check_value(value, hints[name], name)
            given[name] = value
    config = ProbeConfig(**given)
    if folder is None:
        return config
    options = config.geometry_options
    moved = {
        "scenes": [_scene_from(entry, folder) for entry in config.scenes],
        "datasets": [_moved(entry, "root", folder) for entry in config.datasets],
        "features": [_feature_from(entry, folder) for entry in config.features],
        "lpips": [path if path == "none" else _from(path, folder) for path in config.lpips],
        "geometry_options": {n: _moved(one, "checkpoint", folder) for n, one in options.items()},
    }
    return dataclasses.replace(config, **{n: v for n, v in moved.items() if n not in here})


def _feature_from(entry: str | FeatureEntry, folder: Path) -> str | FeatureEntry:
    if not isinstance(entry, Mapping):
        return entry
    entry = entry.copy()
    given = entry.get("checkpoint")
    if given is not None:  # one for each part of a fused backbone, perhaps an address
        files = str(given).split(",") if "fused:" in (entry.get("backbone") or "") else [given]
        moved = [f if not f or "://" in f else _from(f, folder) for f in files]
        entry["checkpoint"] = ",".join(moved)
    parts = entry.get("parts")
    if parts is not None:
        entry["parts"] = [_feature_from(part, folder) for part in parts]
    return entry


def _scene_from(entry: str | SceneEntry, folder: Path) -> str | SceneEntry:
    return _moved(entry, "path", folder) if isinstance(entry, Mapping) else _from(entry, folder)


def _moved(entry: Any, key: str, folder: Path) -> Any:  # noqa: ANN401
    """Return a mapping whose path under ``key``, where it has one, starts from the folder."""
    return entry if entry.get(key) is None else {**entry, key: _from(entry[key], folder)}


def _from(path: str, folder: Path) -> str:
    return str(folder / Path(path).expanduser())


def find_config(name: str) -> Path:
    """Return a grid's configuration file; see `sightline.options.find_config`."""
    return options.find_config(name, "probe")
