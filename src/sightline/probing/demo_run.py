"""What the demo leaves: a run folder like any other, so that view, render and export open it."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from sightline.io.arrays import read_npz
from sightline.io.atomic import atomic_folder, atomic_path
from sightline.io.ply import read_gaussian_ply
from sightline.io.scene_arrays import write_cameras, write_geometry
from sightline.probing.clouds import Cloud
from sightline.probing.options import DemoOptions
from sightline.probing.scenes import ProbeScene
from sightline.probing.tokens import TokenGrid
from sightline.report.data import Comparison, DepthPicture, Export, InputPhoto, NamedPicture, Stage
from sightline.report.data import ReportData as Page
from sightline.report.html import write_report
from sightline.report.plan import CameraPlan
from sightline.run import RunFolder, is_run
from sightline.splatting import render_gaussians
from sightline.types import Cameras, Reconstruction, SparsePoints, Views

FEATURES = "features.png"
_BESIDE = ("store", "inputs", "grid.json", "dataset_split.json")
"""Of the demo itself, and no part of a run."""
_MOST_POINTS = 100_000
_CHANNELS = 9
_SHOWN = 4


def open_demo_run(output: Path, options: DemoOptions) -> RunFolder:
    """Return the demo's run folder; a new one where there is none yet.

    Raises:
        InputError: If the folder holds something else.
    """
    if is_run(output):
        folder = RunFolder.open(output)
    else:
        config = {"command": "probe demo", **dataclasses.asdict(options)}
        folder = RunFolder.create(output, config, beside=_BESIDE)
    folder.state["device"] = options.device
    return folder


def enter_seconds(folder: RunFolder, stage: str, seconds: float) -> None:
    """Enter how long the tasks of a stage took, when they were done."""
    state = folder.state
    state["stages"][stage]["seconds"] = round(seconds, 3)
    state["seconds"] = round(sum(entry["seconds"] for entry in state["stages"].values()), 3)
    folder.save()


def store_cloud(
    folder: RunFolder, scene: ProbeScene, cloud: Cloud, tokens: TokenGrid, seconds: float
) -> Path:
    """Enter pictures, cameras and points; returns the picture of the features."""
    with folder.stage("cameras") as facts:
        count = scene.num_train
        names = picture_names(scene)
        with atomic_folder(folder.file("images")) as images:
            for name, pixels in zip(names, scene.targets[:count], strict=True):
                Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(images / name)
        views, found = _views(scene, cloud.train), _reconstruction(scene, cloud)
        write_geometry(folder.file("geometry.npz"), views, found)
        _write_cameras(folder, views, found)
        facts["geometry"] = geometry_name(folder, cloud)
        folder.state["metrics"] = {"views": count, "registered": count}
    enter_seconds(folder, "cameras", seconds)
    picture = feature_picture(tokens, scene.working[:count])
    with atomic_path(folder.file(FEATURES)) as tmp:
        Image.fromarray(picture).save(tmp, "PNG")
    return folder.file(FEATURES)


def store_splats(
    folder: RunFolder, scene: ProbeScene, cloud: Cloud, probe: Path, seconds: float
) -> None:
    """Enter the refined cameras of a finished probe; ``splats.ply`` is in place already."""
    with folder.stage("splats"):
        w2c = torch.from_numpy(read_npz(probe / "poses.npz", ["train_w2c"])["train_w2c"]).double()
        refined = dataclasses.replace(cloud.train, w2c=w2c)
        views, found = _views(scene, refined), _reconstruction(scene, cloud)
        _write_cameras(folder, views, found, estimated=cloud.train.w2c)
        splats = read_gaussian_ply(folder.file("splats.ply"))
        folder.state["metrics"]["splats"] = len(splats)
    enter_seconds(folder, "splats", seconds)


def geometry_name(folder: RunFolder, cloud: Cloud) -> str:
    """Return where the points came from; after structure from motion cameras are given ones."""
    asked = str(folder.state["config"]["geometry"])
    return asked if asked == "colmap" else cloud.method


def picture_names(scene: ProbeScene) -> tuple[str, ...]:
    """Return the names under which training pictures are stored."""
    return tuple(Path(name).with_suffix(".png").name for name in scene.names[: scene.num_train])


def feature_picture(
    tokens: TokenGrid, photos: UInt8[Tensor, "V 3 h w"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw the first nine channels as three coloured maps beside each photo, one row a view.

    Channels are scaled to [0, 1] by their own range over all views and pixels (Feat2GS's picture of
    features); where there are fewer than nine the rest is white.
    """
    maps = tokens.at_pixels().cpu()[..., :_CHANNELS]
    low, high = maps.amin((0, 1, 2)), maps.amax((0, 1, 2))
    maps = (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)
    filled = torch.ones(*maps.shape[:3], _CHANNELS)
    filled[..., : maps.shape[-1]] = maps
    parts = [photos.permute(0, 2, 3, 1).float() / 255, *filled.split(3, -1)]
    rows = torch.cat(parts, 2).flatten(0, 1)
    return (rows.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def write_demo_report(
    folder: RunFolder, scene: ProbeScene, cloud: Cloud, results: Mapping[str, Path], command: str
) -> Path:
    """Write ``report.html`` of what there is so far."""
    began = time.perf_counter()
    count, names = scene.num_train, picture_names(scene)
    state = folder.state
    comparisons: list[Comparison] = []
    depths: list[DepthPicture] = []
    cameras, metrics = cloud.train, state["metrics"]
    if "splats" in results:
        arrays = read_npz(folder.file("cameras.npz"), ["w2c"])
        cameras = dataclasses.replace(cameras, w2c=torch.from_numpy(arrays["w2c"]))
        splats = read_gaussian_ply(results["splats"])
        shown = [round(i * (count - 1) / max(_SHOWN - 1, 1)) for i in range(_SHOWN)]
        for view in sorted(set(shown)):
            seen = render_gaussians(splats, cameras.select([view]).map(lambda t: t.float()))
            assert seen.depth is not None
            photo = scene.targets[view]
            comparisons.append(
                Comparison(name=names[view], render=seen.rgb[0], photo=photo, held_out=False)
            )
            depths.append(
                DepthPicture(name=names[view], depth=seen.depth[0], valid=seen.alpha[0] > 0.5)
            )
    with Image.open(folder.file(FEATURES)) as picture:
        features = torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).movedim(-1, 0)
    height = scene.frame.working[0]
    data = Page(
        title=folder.path.resolve().name or "demo",
        command=command,
        kind="probe demo",
        facts=(
            ("Feature", str(state["config"]["feature"])),
            ("Mode", str(state["config"]["mode"])),
            ("Geometry", geometry_name(folder, cloud)),
            ("Steps", str(state["config"]["steps"])),
            ("Seed", str(state["seed"])),
            *((name, number) for name, number in state["versions"].items()),
        ),
        stages=tuple(
            Stage(name=name, seconds=entry["seconds"]) for name, entry in state["stages"].items()
        ),
        photos=tuple(
            InputPhoto(name=name, picture=pixels)
            for name, pixels in zip(names, scene.targets[:count], strict=True)
        ),
        plan=CameraPlan(
            cameras=cameras,
            names=names,
            registered=torch.ones(count, dtype=torch.bool),
            test=(),
            points=_sparse(scene, cloud).points,
        ),
        comparisons=tuple(comparisons),
        depths=tuple(depths),
        features=tuple(
            NamedPicture(
                name=f"{names[i]}, channels 0 to 8", picture=features[:, i * height :][:, :height]
            )
            for i in range(min(count, _SHOWN))
        ),
        num_splats=metrics.get("splats"),
        exports=tuple(
            Export(
                path=path.relative_to(folder.path).as_posix(), what=name, size=path.stat().st_size
            )
            for name, path in results.items()
            if path.is_file()
        ),
    )
    path = write_report(data, folder.file("report.html"))
    folder.state["stages"]["report"] = {"seconds": round(time.perf_counter() - began, 3)}
    folder.save()
    return path


def _views(scene: ProbeScene, cameras: Cameras) -> Views:
    count = scene.num_train
    height, width = scene.frame.target
    return Views(
        images=scene.targets[:count],
        names=picture_names(scene),
        from_original=torch.eye(3).expand(count, 3, 3).clone(),
        sizes=torch.tensor([[height, width]]).expand(count, 2).clone(),
        cameras=cameras,
    )


def _write_cameras(
    folder: RunFolder,
    views: Views,
    found: Reconstruction,
    estimated: Float[Tensor, "V 4 4"] | None = None,
) -> None:
    write_cameras(
        folder.file("cameras.npz"),
        views,
        found,
        original_size=views.sizes,
        test=torch.zeros(len(views), dtype=torch.bool),
        estimated=estimated,
    )


def _reconstruction(scene: ProbeScene, cloud: Cloud) -> Reconstruction:
    return Reconstruction(
        cameras=cloud.train,
        registered=torch.ones(len(cloud.train), dtype=torch.bool),
        sparse=_sparse(scene, cloud),
    )


def _sparse(scene: ProbeScene, cloud: Cloud) -> SparsePoints:
    """Return the cloud, thinned, each point with a track of its own view."""
    views, rows, columns = cloud.valid.nonzero(as_tuple=True)
    step = max(1, -(-len(views) // _MOST_POINTS))
    views, rows, columns = views[::step], rows[::step], columns[::step]
    order: Any = torch.arange(len(views))
    return SparsePoints(
        points=cloud.points[views, rows, columns],
        colors=scene.working[views, :, rows, columns],
        tracks=torch.stack([order, views], -1).int(),
    )
