"""What a grid is made of, and where its YAML files are found."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from sightline import options
from sightline.errors import InputError, UnknownNameError

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
    scenes: Sequence[Any] = ()
    datasets: Sequence[Mapping[str, Any]] = ()
    features: Sequence[Any] = ()
    modes: Sequence[str] = ("G",)
    seeds: Sequence[int] = (0,)
    geometry: str = "auto"
    geometry_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
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
        if any(not isinstance(seed, int) or seed < 0 for seed in self.seeds):
            raise InputError(f"seeds must be whole numbers from 0, got {list(self.seeds)}")
        if not 0 <= self.retries <= 10:
            raise InputError(f"retries must be 0 to 10, got {self.retries}")
        if not 1 <= self.workers <= 256:
            raise InputError(f"workers must be 1 to 256, got {self.workers}")

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self)


def config_from(values: Mapping[str, Any], folder: Path | None = None) -> ProbeConfig:
    """Build a grid from plain values.

    Args:
        values: Fields of `ProbeConfig`.
        folder: That relative paths in them start from: the configuration file's.

    Raises:
        UnknownNameError: If a field is unknown.
        InputError: If a value does not fit.
    """
    known = {item.name for item in dataclasses.fields(ProbeConfig)}
    for name in values:
        if name not in known:
            raise UnknownNameError("option of a grid", name, known)
    if folder is None:
        return ProbeConfig(**dict(values))
    moved = dict(values)
    moved["scenes"] = [_scene_from(entry, folder) for entry in values.get("scenes") or ()]
    moved["datasets"] = [
        {**entry, "root": _from(entry.get("root"), folder)}
        for entry in values.get("datasets") or ()
    ]
    moved["features"] = [_feature_from(entry, folder) for entry in values.get("features") or ()]
    moved["lpips"] = [
        path if path == "none" else _from(path, folder) for path in values.get("lpips") or ()
    ]
    moved["geometry_options"] = {
        name: {
            key: _from(value, folder) if key == "checkpoint" else value
            for key, value in chosen.items()
        }
        for name, chosen in (values.get("geometry_options") or {}).items()
    }
    return ProbeConfig(**moved)


def _feature_from(entry: Any, folder: Path) -> Any:  # noqa: ANN401
    if not isinstance(entry, Mapping):
        return entry
    entry = dict(entry)
    given = entry.get("checkpoint")
    if isinstance(given, str):  # one for each part of a fused backbone, perhaps an address
        files = given.split(",") if "fused:" in str(entry.get("backbone", "")) else [given]
        moved = [f if not f or "://" in f else _from(f, folder) for f in files]
        entry["checkpoint"] = ",".join(moved)
    if isinstance(entry.get("parts"), Sequence):
        entry["parts"] = [_feature_from(part, folder) for part in entry["parts"]]
    return entry


def _scene_from(entry: Any, folder: Path) -> Any:  # noqa: ANN401
    if isinstance(entry, str):
        return _from(entry, folder)
    if isinstance(entry, Mapping) and "path" in entry:
        return {**entry, "path": _from(entry["path"], folder)}
    return entry


def _from(path: Any, folder: Path) -> str:  # noqa: ANN401
    if not isinstance(path, str):
        raise InputError(f"expected a path in the grid, got {path!r}")
    return str(folder / Path(path).expanduser())


def find_config(name: str) -> Path:
    """Return a grid's configuration file; see `sightline.options.find_config`."""
    return options.find_config(name, "probe")
