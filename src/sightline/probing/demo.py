"""Photos to splats read from features, in three steps that the command line and the app share."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from sightline.errors import InputError
from sightline.io.atomic import atomic_folder, atomic_path
from sightline.io.glb import write_glb
from sightline.io.inputs import discover, unique_names
from sightline.io.ply import write_point_ply
from sightline.io.reading import read_json
from sightline.probing import files
from sightline.probing.clouds import Cloud, colored_points
from sightline.probing.config import ProbeConfig
from sightline.probing.demo_run import (
    open_demo_run,
    store_cloud,
    store_splats,
    write_demo_report,
)
from sightline.probing.graph import InProcess, run_graph
from sightline.probing.grid import Grid, plan_grid, save_grid
from sightline.probing.options import DemoOptions
from sightline.probing.protocols import find_protocol
from sightline.probing.scenes import ProbeScene
from sightline.probing.store import TASK_FILE, Store, Task
from sightline.probing.tasks import CLOUD, SCENE, TOKENS, Worker
from sightline.protocols import Progress
from sightline.run import RunFolder

_WARM_SHARE = 8
"""One step in eight is the warm start's, as in the protocol (1000 of 8000)."""


def plan_demo(inputs: Sequence[str | Path], output: Path, options: DemoOptions) -> Grid:
    """Return the tasks of the three steps; photos given one by one are copied into ``output``.

    Raises:
        InputError: If there are fewer than two photos.
    """
    sources = discover(list(inputs))
    source = sources[0]
    if len(sources) > 1 or source.kind not in ("photos", "colmap", "transforms"):
        raise InputError("the demo takes photos, one folder, or one scene with cameras")
    path = source.path
    if source.kind == "photos":
        if len(source.files) < 2:
            raise InputError(
                f"the demo needs two or more photos, got {len(source.files)}; one photo does not "
                "show depth"
            )
        path = output / "inputs"
        names = unique_names(source.files, [file.suffix for file in source.files])
        if not path.is_dir() or sorted(p.name for p in path.iterdir()) != sorted(names):
            with atomic_folder(path) as folder:
                for file, name in zip(source.files, names, strict=True):
                    shutil.copyfile(file, folder / name)
    base = find_protocol(options.protocol)
    warm = options.steps // _WARM_SHARE
    if base.name == "feat2gs-v1":  # there the warm start is as long as ever
        warm = min(base.warm_steps, options.steps - 1)
    config = ProbeConfig(
        protocol=options.protocol,
        changes={
            "warm_steps": warm,
            "steps": options.steps - warm,
            "train_views": max(base.train_views, 8),
        },
        scenes=[{"id": "photos", "path": str(path)}],
        features=[{"name": options.feature, "checkpoint": options.checkpoint}],
        modes=[options.mode],
        seeds=[options.seed],
        geometry=options.geometry,
        geometry_options=(
            {options.geometry: {"checkpoint": options.geometry_checkpoint}}
            if options.geometry_checkpoint
            else {}
        ),
        videos=[options.path],
        score=False,
        lpips=["none"],
        device=options.device,
    )
    return plan_grid(config)


def run_demo(
    inputs: Sequence[str | Path],
    output: Path,
    options: DemoOptions,
    *,
    progress: Progress | None = None,
    command: str = "",
) -> dict[str, Path]:
    """Run the three steps, or those up to ``options.until``; finished ones are kept.

    Step 1: cloud and features. Step 2: splats read from the features. Step 3: a video. The same
    call continues, and a later step may be asked for when one has seen the earlier one's result.

    ``output`` is then a run folder, which ``sightline view``, ``render`` and ``export`` open.

    Returns:
        ``cloud`` (GLB), ``points`` (PLY), ``features`` (PNG), ``splats`` (PLY) and ``video`` (mp4) in
        ``output``, as far as they were asked for, and ``report``.

    Raises:
        InputError: If the input or an option does not fit, or ``output`` holds something else; the
            text of the step that failed.
    """
    output.mkdir(parents=True, exist_ok=True)
    folder = open_demo_run(output, options)
    store = Store(output / "store")
    results: dict[str, Path] = {}
    with store.lock(), folder.working():
        grid = plan_demo(inputs, output, options)
        save_grid(grid, output)
        for name, step in (("cloud", cloud_step), ("splats", splat_step), ("video", video_step)):
            results |= step(grid, store, output, options, progress)
            if name == options.until:
                break
        scene, cloud = _scene_and_cloud(grid, store)
        folder.state.update(RunFolder.open(output).state)
        command = command or f"sightline probe demo ... -o {output}"
        results["report"] = write_demo_report(folder, scene, cloud, results, command)
    return results


def _scene_and_cloud(grid: Grid, store: Store) -> tuple[ProbeScene, Cloud]:
    probe = _probe_task(grid)
    scene = files.read_scene(store.path(probe.inputs[0]) / SCENE)
    return scene, files.read_cloud(store.path(probe.inputs[1]) / CLOUD)


def _do(
    tasks: Sequence[Task], grid: Grid, store: Store, options: DemoOptions, progress: Progress | None
) -> None:
    device = options.device
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    worker = Worker(
        device=device,
        checkpoints={f.name: [p.checkpoint for p in f.parts] for f in grid.features},
        sources={source.id: source.path for source in grid.sources},
        options=grid.config.geometry_options,
        progress=progress,
    )
    outcome = run_graph(tasks, store, InProcess(store, worker, retries=0))
    for reason in outcome.failed.values():
        raise InputError(reason)


def _seconds(store: Store, tasks: Sequence[Task]) -> float:
    """Return how long finished tasks took."""
    records = (read_json(store.path(task) / TASK_FILE) for task in tasks)
    return sum(float(record["seconds"]) for record in records)


def _probe_task(grid: Grid) -> Task:
    return next(cell.task for cell in grid.cells if cell.kind == "probe")


def cloud_step(
    grid: Grid, store: Store, output: Path, options: DemoOptions, progress: Progress | None = None
) -> dict[str, Path]:
    """Step 1: points, cameras and features."""
    probe = _probe_task(grid)
    _do(probe.inputs, grid, store, options, progress)
    scene, cloud = _scene_and_cloud(grid, store)
    tokens = files.read_tokens(store.path(probe.inputs[2]) / TOKENS)
    seconds = _seconds(store, probe.inputs)
    features = store_cloud(open_demo_run(output, options), scene, cloud, tokens, seconds)
    points = colored_points(cloud, scene)
    write_point_ply(output / "points.ply", points)
    cameras = cloud.train.map(lambda t: t.float())
    write_glb(output / "cloud.glb", points, cameras, scene.names[: scene.num_train])
    return {"cloud": output / "cloud.glb", "points": output / "points.ply", "features": features}


def splat_step(
    grid: Grid, store: Store, output: Path, options: DemoOptions, progress: Progress | None = None
) -> dict[str, Path]:
    """Step 2: splats."""
    probe = _probe_task(grid)
    _do([probe], grid, store, options, progress)
    splats = _copy(store.path(probe) / "splats.ply", output / "splats.ply")
    scene, cloud = _scene_and_cloud(grid, store)
    run, seconds = open_demo_run(output, options), _seconds(store, [probe])
    store_splats(run, scene, cloud, store.path(probe), seconds)
    return {"splats": splats}


def video_step(
    grid: Grid, store: Store, output: Path, options: DemoOptions, progress: Progress | None = None
) -> dict[str, Path]:
    """Step 3: a video along the chosen path."""
    video = next(cell.task for cell in grid.cells if cell.kind == "video")
    _do([video], grid, store, options, progress)
    name = f"{options.path}.mp4"
    return {"video": _copy(store.path(video) / name, output / name)}


def _copy(source: Path, target: Path) -> Path:
    with atomic_path(target) as tmp:
        shutil.copyfile(source, tmp)
    return target
