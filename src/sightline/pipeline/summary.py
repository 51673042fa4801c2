"""Gather what a run left in its folder into its report page."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.io.images import read_image
from sightline.io.reading import read_json
from sightline.io.scene_arrays import CameraFile, GeometryFile
from sightline.pipeline.work import Work, read_exposure
from sightline.report.charts import Curve
from sightline.report.data import (
    Comparison,
    DepthPicture,
    Export,
    InputPhoto,
    NamedPicture,
    ReportData,
    Stage,
)
from sightline.report.html import write_report
from sightline.report.plan import CameraPlan
from sightline.report.scores import spread
from sightline.results import Run
from sightline.splatting.render import render_gaussians

_EXPORT_TEXT = {
    "scene.ply": "point cloud",
    "gaussians.ply": "Gaussian splats, 3DGS PLY",
    "scene.splat": "Gaussian splats, .splat",
    "scene.spz": "Gaussian splats, .spz",
    "scene.glb": "points and cameras, glTF",
    "sparse": "COLMAP model",
    "images": "undistorted pictures of the COLMAP model",
    "transforms.json": "cameras, nerfstudio",
    "depth": "depth maps",
    "scene.html": "self-contained viewer",
}
_DEPTHS = 6
_PAIRS = 6


def write_summary(work: Work) -> Path:
    """Write ``report.html`` from what the run folder holds; always anew, it is quick."""
    with work.folder.stage("report"):
        data = _gather(work)
        return write_report(data, work.file("report.html"))


def _gather(work: Work) -> ReportData:
    run, state = Run(work.folder.path), work.folder.state
    cameras = run.camera_file()
    geometry = GeometryFile(work.file("geometry.npz"), cameras)
    test = [int(i) for i in (cameras.test & cameras.registered).nonzero()[:, 0]]
    metrics = state["metrics"]
    return ReportData(
        title=work.folder.path.resolve().name or "scene",
        command=state["command"],
        facts=_facts(state),
        stages=tuple(
            Stage(
                name=name,
                seconds=entry["seconds"],
                peak_memory=round(entry["peak_memory_mb"] * 1e6),
            )
            for name, entry in state["stages"].items()
            if name != "report"
        ),
        warnings=tuple(state["warnings"]),
        photos=_photos(run, cameras, geometry),
        plan=CameraPlan(
            cameras=cameras.cameras,
            names=cameras.names,
            registered=cameras.registered,
            test=tuple(test),
            points=_points(run, geometry),
            metric=cameras.metric,
        ),
        comparisons=_comparisons(work, cameras, geometry),
        scores={metric: values["per_view"] for metric, values in metrics.get("test", {}).items()},
        depths=_depths(run, cameras, geometry),
        features=_features(run, cameras),
        curves=_curves(work),
        num_splats=metrics.get("splats"),
        exports=_exports(work),
        metric=cameras.metric,
    )


def _points(run: Run, geometry: GeometryFile) -> Tensor | None:
    if geometry.depth is None:
        return None if geometry.sparse is None else geometry.sparse.points
    cloud = run.points()
    return None if cloud is None else cloud.points


def _facts(state: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    config = state["config"]
    machine = state["machine"]
    facts = [
        ("Geometry", str(state["stages"].get("cameras", {}).get("geometry", config["geometry"]))),
        ("Device", f"{state['device']}, {machine['cpus']} CPU cores"),
        *_weights(state),
        *_chain(state),
        ("Seed", str(state["seed"])),
        ("System", machine["system"]),
        *((name, number) for name, number in state["versions"].items()),
    ]
    return tuple(facts)


def _weights(state: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("Weights", f"{entry['file']}, SHA-256 {entry['sha256'][:12]}, licence {entry['licence']}")
        for entry in state["checkpoints"]
    ]


def _chain(state: dict[str, Any]) -> list[tuple[str, str]]:
    """Say which refinement helped, by held-out PSNR of short fits."""
    chain = state["metrics"].get("chain")
    if not chain:
        return []
    steps = state["stages"]["compare"]["steps"]
    shown = ", ".join(f"{name} {value:.2f} dB" for name, value in chain.items())
    return [(f"Held-out PSNR after {steps} steps", shown)]


def _photos(run: Run, cameras: CameraFile, geometry: GeometryFile) -> tuple[InputPhoto, ...]:
    reasons = run.state.get("rejected", {})
    return tuple(
        InputPhoto(
            name=name,
            picture=geometry.images[i],
            registered=bool(cameras.registered[i]),
            reason=reasons.get(name, ""),
            held_out=bool(cameras.test[i]),
        )
        for i, name in enumerate(cameras.names)
    )


def _comparisons(work: Work, cameras: CameraFile, geometry: GeometryFile) -> tuple[Comparison, ...]:
    """Return held-out views as they were scored or, where there are none, a few training views."""
    renders = dict(_stored_renders(work, cameras))
    held_out = bool(renders)
    if not renders:
        renders = dict(_training_renders(work, cameras))
    rows = []
    for index, render in renders.items():
        height, width = (int(v) for v in cameras.sizes[index])
        rows.append(
            Comparison(
                name=cameras.names[index],
                render=render[:, :height, :width],
                photo=geometry.images[index, :, :height, :width],
                held_out=held_out,
            )
        )
    return tuple(rows)


def _stored_renders(work: Work, cameras: CameraFile) -> Iterator[tuple[int, Tensor]]:
    for index in cameras.test.nonzero()[:, 0].tolist():
        file = work.file("renders", "test", f"{Path(cameras.names[index]).with_suffix('')}.png")
        if file.is_file():
            yield index, torch.from_numpy(read_image(file).pixels).movedim(-1, 0)


def _training_renders(work: Work, cameras: CameraFile) -> Iterator[tuple[int, Tensor]]:
    splats = Run(work.folder.path).splats()
    known = (cameras.registered & ~cameras.test).nonzero()[:, 0].tolist()
    if splats is None or not known:
        return
    exposure = read_exposure(work)
    for place in spread(len(known), _PAIRS):
        view = cameras.cameras.select([known[place]]).map(lambda t: t.float())
        picture = render_gaussians(splats, view, with_depth=False).rgb
        if exposure is not None:
            picture = exposure.apply(picture, [known[place]])
        yield known[place], picture[0]


def _depths(run: Run, cameras: CameraFile, geometry: GeometryFile) -> tuple[DepthPicture, ...]:
    splats = run.splats()
    known = cameras.registered.nonzero()[:, 0].tolist()
    chosen = [known[place] for place in spread(len(known), _DEPTHS)]
    if splats is None:
        depth = geometry.depth
        if depth is None:
            return ()
        valid = depth > 0 if geometry.geometry_valid is None else geometry.geometry_valid
        return tuple(
            DepthPicture(name=cameras.names[view], depth=depth[view], valid=valid[view])
            for view in chosen
        )
    some = cameras.cameras.select(chosen).map(lambda t: t.float())
    rendering = render_gaussians(splats, some)
    assert rendering.depth is not None
    return tuple(
        DepthPicture(
            name=cameras.names[view],
            depth=rendering.depth[i],
            valid=rendering.alpha[i] > 0.5,
        )
        for i, view in enumerate(chosen)
    )


def _features(run: Run, cameras: CameraFile) -> tuple[NamedPicture, ...]:
    """Draw the splats in the colours of their features."""
    found = run.features()
    painted = None if found is None else found.paint_splats(run.splats())
    if painted is None:
        return ()
    known = cameras.registered.nonzero()[:, 0].tolist()
    chosen = [known[place] for place in spread(len(known), _DEPTHS)]
    some = cameras.cameras.select(chosen).map(lambda t: t.float())
    pictures = render_gaussians(painted, some, with_depth=False).rgb
    return tuple(
        NamedPicture(name=cameras.names[view], picture=picture)
        for view, picture in zip(chosen, pictures, strict=True)
    )


def _curves(work: Work) -> tuple[Curve, ...]:
    file = work.file("stages", "training.json")
    if not file.is_file():
        return ()
    history = read_json(file)
    steps = tuple(float(step) for step in history["step"])
    shown = (
        ("loss", "Loss", "", 4, True),
        ("psnr", "PSNR of training views", "dB", 2, False),
        ("splats", "Splats", "", 0, False),
    )
    return tuple(
        Curve(
            name=name,
            unit=unit,
            steps=steps,
            values=tuple(float(v) for v in history[key]),
            digits=digits,
            logarithmic=logarithmic,
        )
        for key, name, unit, digits, logarithmic in shown
        if key in history
    )


def _exports(work: Work) -> tuple[Export, ...]:
    rows = []
    splats = work.file("splats.ply")
    if splats.is_file():
        rows.append(
            Export(path="splats.ply", what="Gaussian splats, 3DGS PLY", size=splats.stat().st_size)
        )
    root = work.file("exports")
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        rows.append(
            Export(
                path=f"exports/{path.name}",
                what=_EXPORT_TEXT.get(path.name, ""),
                size=sum(p.stat().st_size for p in files),
            )
        )
    return tuple(rows)
