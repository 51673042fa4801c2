"""A grid of probes: planned as tasks, run, and remembered for the report."""

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sightline.errors import InputError
from sightline.io.atomic import atomic_write_text
from sightline.io.reading import read_json
from sightline.metrics.lpips import find_lpips
from sightline.probing.config import ProbeConfig
from sightline.probing.datasets import list_sources
from sightline.probing.features import Feature, identify, parse_features
from sightline.probing.graph import Event, Executor, InProcess, OnEvent, Outcome, run_graph
from sightline.probing.paths import GALLERY, gallery_paths
from sightline.probing.protocols import Protocol, Quirks, find_protocol
from sightline.probing.scenes import SceneSource, fingerprint, split_of
from sightline.probing.splits import SPLIT_FILE, write_splits
from sightline.probing.store import Store, Task
from sightline.probing.tasks import Worker
from sightline.probing.workers import WorkerPool
from sightline.protocols import Backbone, Progress
from sightline.run import versions

GRID_FILE = "grid.json"
BASELINE = "InstantSplat"
_SCENE = ("long_side", "render_width", "stretched_pictures")
_CLOUD = (
    *_SCENE,
    *("shared_focal", "unit_world", "depth_steps", "mask_tolerance"),
    *("one_focal_ratio", "mast3r_without_depth", "scaled_registration", "jpeg_masks"),
    *("needs_one_focal", "absolute_tolerance"),
)
_FEATURES = (
    *("components", "all_components", "layer_norm"),
    *("imagenet_for_all", "mae_block_11", "stretched_padding", "randomised_pca", "needs_pca"),
    "iuv_needs_two_views",
)
"""What scenes, clouds and features depend on: only these enter their keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One probe of a grid, or one of its companions."""

    kind: str
    """``probe``, ``video``, ``maps`` or ``probe3d``."""
    scene: str
    feature: str
    mode: str
    seed: int
    task: Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A planned grid."""

    config: ProbeConfig
    protocol: Protocol
    sources: tuple[SceneSource, ...]
    features: tuple[Feature, ...]
    cells: tuple[Cell, ...]
    lpips_note: str
    """Why there is no LPIPS; empty where there is."""

    @property
    def tasks(self) -> list[Task]:
        """The tasks of all cells."""
        return [cell.task for cell in self.cells]


def plan_grid(config: ProbeConfig, own: Mapping[str, Backbone] | None = None) -> Grid:
    """Turn a configuration into tasks, by the content of every file that they read.

    Args:
        config: The grid.
        own: Backbones that are objects: features of these names use them.

    Raises:
        InputError: If anything named is missing or wrong.
    """
    own = own or {}
    protocol = find_protocol(config.protocol, config.changes)
    sources = list_sources(config)
    features = parse_features([*config.features])
    identities = {
        feature.name: [identify(part, own) for part in feature.parts] for feature in features
    }
    has_lpips, note = _find_lpips(config, protocol)
    cells: list[Cell] = []
    for source in sources:
        scene = _scene_task(source, config, protocol)
        shared = _cloud_task(source, scene, config, protocol)
        rows: list[tuple[str, Feature | None, Sequence[str]]] = [
            (feature.name, feature, config.modes) for feature in features
        ]
        if config.baseline:
            rows.append((BASELINE, None, ("free",)))
        for name, feature, modes in rows:
            cloud = shared
            if not protocol.quirks.shared_test_poses:
                cloud = _cloud_task(source, scene, config, protocol, owner=name)
            for seed in config.seeds:
                tokens = None
                if feature is not None:
                    needed = (scene, cloud) if feature.needs_cloud else (scene,)
                    tokens = _features_task(feature, identities[name], needed, protocol, seed, own)
                for mode in modes:
                    inputs = (scene, cloud) if tokens is None else (scene, cloud, tokens)
                    probe = Task(
                        kind="probe",
                        params={
                            "mode": mode,
                            "seed": seed,
                            "protocol": protocol.as_dict(),
                            "lpips": has_lpips,
                            "penalise_scales": feature is not None and feature.is_pixels,
                        },
                        inputs=inputs,
                        label=f"{source.id} {name} {mode} seed {seed}",
                    )
                    cells.append(_cell("probe", source, name, mode, seed, probe))
                    if seed == config.seeds[0]:
                        cells += _videos(config, protocol, source, name, mode, cloud, probe)
                        if config.maps:
                            maps = _maps_task(scene, cloud, probe, has_lpips=has_lpips)
                            cells.append(_cell("maps", source, name, mode, seed, maps))
                if tokens is not None:
                    cells += _companions(config, source, name, seed, scene, tokens)
    return Grid(
        config=config,
        protocol=protocol,
        sources=tuple(sources),
        features=tuple(features),
        cells=tuple(cells),
        lpips_note=note,
    )


def _cell(kind: str, source: SceneSource, feature: str, mode: str, seed: int, task: Task) -> Cell:
    return Cell(kind=kind, scene=source.id, feature=feature, mode=mode, seed=seed, task=task)


def _find_lpips(config: ProbeConfig, protocol: Protocol) -> tuple[bool, str]:
    if list(config.lpips) == ["none"]:
        return False, "LPIPS was switched off"
    if config.lpips:
        return True, ""
    found, reason = find_lpips("vgg" if protocol.lpips == "vgg" else "alex")
    return found is not None, reason


def _restricted(protocol: Protocol, names: Sequence[str]) -> dict[str, Any]:
    """Return a protocol with the named fields and quirks, all others at their defaults."""
    fields = {name: getattr(protocol, name) for name in names if hasattr(protocol, name)}
    quirks = {n: getattr(protocol.quirks, n) for n in names if hasattr(protocol.quirks, n)}
    return Protocol(name="restricted", **fields, quirks=Quirks(**quirks)).as_dict()


def _scene_task(source: SceneSource, config: ProbeConfig, protocol: Protocol) -> Task:
    method = source.geometry or config.geometry
    split = split_of(source, protocol)
    # The path is no part of the key, the content is; train and test are those of the split.
    plain = dataclasses.replace(
        source, path="", train=split.train, test=split.test, geometry=None, hash=""
    )
    return Task(
        kind="scene",
        params={
            "source": dataclasses.asdict(plain),
            "content": fingerprint(source, protocol),
            "protocol": _restricted(protocol, _SCENE),
            "sfm": method == "colmap",
        },
        label=source.id,
    )


def _cloud_task(
    source: SceneSource,
    scene: Task,
    config: ProbeConfig,
    protocol: Protocol,
    owner: str = "",
) -> Task:
    method = source.geometry or config.geometry
    options = config.geometry_options.get(method, {})
    params = {
        "method": "given" if method == "colmap" else method,
        "noise": source.noise,
        "protocol": _restricted(protocol, _CLOUD),
        "options": {key: str(value) for key, value in sorted(options.items())},
        "owner": owner,
    }
    return Task(kind="cloud", params=params, inputs=(scene,), label=f"{source.id} {method} {owner}")


def _features_task(
    feature: Feature,
    identities: Sequence[str],
    needed: tuple[Task, ...],
    protocol: Protocol,
    seed: int,
    own: Mapping[str, Backbone],
) -> Task:
    follows = feature.is_drawn or protocol.quirks.randomised_pca
    plain = dataclasses.asdict(feature)
    for part in plain["parts"]:
        part["checkpoint"] = None  # the identity stands for it
    return Task(
        kind="features",
        params={
            "feature": {**plain, "name": feature.name},
            "identities": list(identities),
            "own": sorted(part.backbone for part in feature.parts if part.backbone in own),
            "protocol": _restricted(protocol, _FEATURES),
            "seed": seed if follows else 0,
        },
        inputs=needed,
        label=f"{needed[0].label} {feature.name}" + (f" seed {seed}" if follows else ""),
    )


def _videos(
    config: ProbeConfig,
    protocol: Protocol,
    source: SceneSource,
    name: str,
    mode: str,
    cloud: Task,
    probe: Task,
) -> list[Cell]:
    return [
        _cell(
            "video",
            source,
            name,
            mode,
            config.seeds[0],
            Task(
                kind="video",
                params={
                    "path": path,
                    "modes": list(config.video_modes),
                    "scene": source.id,
                    "protocol": protocol.as_dict(),
                },
                inputs=(cloud, probe),
                label=f"{source.id} {name} {mode} {path}",
            ),
        )
        for path in _paths(config.videos, source.id)
    ]


def _maps_task(scene: Task, cloud: Task, probe: Task, *, has_lpips: bool) -> Task:
    params = {"protocol": probe.params["protocol"], "lpips": has_lpips}
    return Task(kind="maps", params=params, inputs=(scene, cloud, probe), label=probe.label)


def _paths(videos: Sequence[str], scene: str) -> list[str]:
    """Return the paths that names stand for, each once."""
    found: list[str] = []
    for name in videos:
        found += gallery_paths(scene) if name == GALLERY else (name.removesuffix("d"),)
    return list(dict.fromkeys(found))


def _companions(
    config: ProbeConfig, source: SceneSource, name: str, seed: int, scene: Task, tokens: Task
) -> list[Cell]:
    return [
        _cell(
            "probe3d",
            source,
            name,
            probe,
            seed,
            Task(
                kind="probe3d",
                params={"probe": probe, "seed": seed},
                inputs=(scene, tokens),
                label=f"{source.id} {name} {probe} seed {seed}",
            ),
        )
        for probe in config.probes
    ]


def run_grid(
    config: ProbeConfig,
    output: Path,
    *,
    own: Mapping[str, Backbone] | None = None,
    on_event: OnEvent | None = None,
    progress: Progress | None = None,
    cluster: str | None = None,
) -> Outcome:
    """Run a grid; what is finished in ``output`` is kept, and nothing finished is ever redone.

    Args:
        config: The grid.
        output: Folder of results; interrupted and extended grids go into the same one.
        own: Backbones that are objects, by the name that features use.
        on_event: Told what happens to each task.
        progress: Of the task at work, where there is one at a time.
        cluster: Run on Ray: ``auto`` or an address; None runs here.

    Returns:
        What was done, kept and failed.

    Raises:
        InputError: If anything named is missing or wrong, or another run works in ``output``.
        MissingExtraError: If Ray is asked for and not installed.
    """
    _check_output(output)
    grid = plan_grid(config, own)
    store = Store(output / "store")
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    worker = Worker(
        device=device,
        own=own or {},
        checkpoints={f.name: [p.checkpoint for p in f.parts] for f in grid.features},
        sources={source.id: source.path for source in grid.sources},
        options=config.geometry_options,
        lpips=tuple(config.lpips),
        progress=progress if cluster is None and config.workers == 1 else None,
    )
    with store.lock():
        save_grid(grid, output)
        failures = output / "failed"
        shutil.rmtree(failures, ignore_errors=True)

        def retried(task: Task, reason: str) -> None:
            if on_event is not None:
                on_event(Event(task=task, state="retried", note=reason))

        executor: Executor
        if cluster is not None:
            from sightline.probing.cluster import RayExecutor

            executor = RayExecutor(store, worker, cluster, config.retries, failures)
        elif config.workers == 1:
            executor = InProcess(store, worker, config.retries, failures, retried)
        else:
            pool = WorkerPool(store, worker, config.workers, config.retries, failures, retried)
            with pool:
                return run_graph(grid.tasks, store, pool, on_event)
        return run_graph(grid.tasks, store, executor, on_event)


def _check_output(output: Path) -> None:
    """Refuse a folder that holds something else."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; choose a folder with -o")
    if output.is_dir() and any(output.iterdir()) and not (output / GRID_FILE).is_file():
        known = {"store", "failed"}
        if not {entry.name for entry in output.iterdir()} <= known:
            raise InputError(
                f"{output} holds something that is no grid; choose a new folder with -o"
            )


def save_grid(grid: Grid, output: Path) -> None:
    """Write ``grid.json`` for the report, and the split in the authors' layout."""
    cells = [
        {
            "kind": cell.kind,
            "scene": cell.scene,
            "feature": cell.feature,
            "mode": cell.mode,
            "seed": cell.seed,
            "task": [cell.task.kind, cell.task.key],
            "inputs": [[needed.kind, needed.key] for needed in cell.task.inputs],
        }
        for cell in grid.cells
    ]
    data = {
        "version": 1,
        "protocol": grid.protocol.as_dict(),
        "config": grid.config.as_dict(),
        "features": [feature.name for feature in grid.features],
        "scenes": [source.id for source in grid.sources],
        "lpips_note": grid.lpips_note,
        "versions": versions(),
        "cells": cells,
    }
    atomic_write_text(output / GRID_FILE, json.dumps(data, indent=1, default=str) + "\n")
    splits: dict[str, dict[str, Any]] = {}
    for source in grid.sources:
        name = source.id.rpartition("/")[2]
        splits.setdefault(source.dataset, {})[name] = split_of(source, grid.protocol)
    write_splits(output / SPLIT_FILE, splits)


def read_grid(output: Path) -> dict[str, Any]:
    """Read ``grid.json``.

    Raises:
        InputError: If there is none.
    """
    path = output / GRID_FILE
    if not path.is_file():
        raise InputError(f"{output} holds no grid; make one with sightline probe run -o {output}")
    data = read_json(path)
    if not isinstance(data, dict) or data.get("version") != 1:
        raise InputError(f"{path} is of another version of sightline; run the grid again")
    return data
