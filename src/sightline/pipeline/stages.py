"""The stages of a run, in order. Each reads what earlier ones wrote and leaves files of its own."""

import dataclasses
import json
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from PIL import Image
from torch import Tensor

from sightline.errors import InputError, ReconstructionError
from sightline.geometry.align import transform_cameras
from sightline.geometry.cloud import dense_cloud, sky_mask
from sightline.io.arrays import write_npz
from sightline.io.atomic import atomic_folder, atomic_write_text
from sightline.io.scene_arrays import (
    read_reconstruction,
    write_cameras,
    write_geometry,
    write_reconstruction,
)
from sightline.options import export_names
from sightline.pipeline.geometry import Choice
from sightline.pipeline.work import Work, load_backbone, read_exposure
from sightline.protocols import SplatEstimator
from sightline.results import Run
from sightline.splatting.config import OptimizeConfig
from sightline.types import (
    Cameras,
    Gaussians,
    Lenses,
    PointCloud,
    Reconstruction,
    SparsePoints,
    Views,
)

_INGESTED = ("inputs.json", "images", "masks", "stages/ingest")
_ESTIMATED = ("stages/reconstruction.npz", "stages/unrefined.npz", "stages/feedforward.ply")
_FITTED = ("cameras.npz", "splats.ply", "stages/training.json", "stages/exposure.npz")
"""What the stages leave for good; `splats` may still write the cameras that `views` made."""

_FILLED = 0.5
"""Part of the budget of splats that may start from depth maps."""
_UNCERTAIN = 20.0
"""Percentage of their pixels, the least certain, where no splat starts."""


def ingest(work: Work) -> None:
    """Copy pictures and masks into the run, upright, and list them in ``inputs.json``."""
    from sightline.io.frames import FrameOptions
    from sightline.io.ingest import IngestOptions
    from sightline.io.ingest import ingest as read_inputs

    if work.folder.finished("ingest"):
        return
    options = work.options
    with work.folder.stage("ingest", leaves=_INGESTED) as facts:
        ingested = read_inputs(
            work.folder.state["config"]["inputs"],
            work.folder.path,
            IngestOptions(
                frames=FrameOptions(
                    fps=options.fps,
                    num_frames=options.num_frames,
                    every=options.every,
                    max_frames=options.max_frames,
                    start=options.start,
                    end=options.end,
                    select=options.select,
                ),
                alpha=options.alpha,
                masks=None if options.masks is None else Path(options.masks),
                invert_masks=options.invert_masks,
                intrinsics=options.intrinsics,
                keep_going=options.keep_going,
            ),
            progress=work.progress,
        )
        for note in ingested.notes:
            work.folder.warn(note)
        facts["views"] = len(ingested)


def cameras(work: Work) -> None:
    """Find the cameras of the stored pictures, and with learned methods their depth."""
    from sightline.io.ingested import load_ingested
    from sightline.io.ply import write_gaussian_ply
    from sightline.pipeline import geometry

    if work.folder.finished("cameras"):
        return
    with work.folder.stage("cameras", leaves=_ESTIMATED) as facts:
        ingested = load_ingested(work.folder.path)
        seen = ingested.views(work.long_side)
        choice = geometry.choose(work, ingested)
        try:
            found, gaussians = _estimate(work, choice, seen)
        except ReconstructionError as error:
            instead = geometry.stand_in(work, str(error)) if choice.name == "colmap" else None
            if instead is None:
                raise
            choice = instead
            found, gaussians = _estimate(work, choice, seen)
        facts["geometry"], facts["dense"] = choice.name, found.depth is not None
        if choice.why:
            work.folder.warn(choice.why)
        if choice.checkpoint is not None:
            work.folder.state["checkpoints"] = [choice.facts()]
        count = int(found.registered.sum())
        least = 1 if found.depth is not None else 2
        if count < least:
            raise ReconstructionError(
                f"only {count} of {len(ingested)} views got a camera, and a scene needs {least} or "
                "more; take more overlapping photos of a textured scene"
            )
        facts["registered"] = count
        if work.options.refine == "ba":
            found, facts["adjusted"] = geometry.adjusted(work, seen, found)
        work.folder.state["rejected"] = dict(found.rejected)
        for view, reason in found.rejected:
            work.folder.warn(f"{view} was left out: {reason}")
        write_reconstruction(work.file("stages", "reconstruction.npz"), found)
        if gaussians is not None:
            write_gaussian_ply(work.file("stages", "feedforward.ply"), gaussians)


def _estimate(work: Work, choice: Choice, seen: Views) -> tuple[Reconstruction, Gaussians | None]:
    if work.options.splats != "feedforward":
        return choice.estimator.estimate(seen), None
    if not isinstance(choice.estimator, SplatEstimator):
        raise InputError(
            f"--splats feedforward needs a model that sees splats, and {choice.name} does not; use "
            "--geometry splatt3r, or --splats optimize"
        )
    return choice.estimator.splats(seen)


def views(work: Work) -> None:
    """Make the pinhole pictures that splats are fitted to: undistorted, at model resolution."""
    from sightline.io.ingested import load_ingested

    if work.folder.finished("views"):
        return
    with work.folder.stage("views", leaves=("geometry.npz",)) as facts:
        ingested = load_ingested(work.folder.path)
        found = read_reconstruction(work.file("stages", "reconstruction.npz"))
        made = ingested.views(
            work.long_side,
            lenses=found.lenses or _pinhole_lenses(found.cameras, ingested.sizes),
            w2c=found.cameras.w2c,
            progress=work.progress,
        )
        assert made.cameras is not None
        test = held_out(len(made), work.options.test_every)
        if not bool((found.registered & ~test).any()):
            raise ReconstructionError(
                f"--test-every {work.options.test_every} leaves no registered view to learn from; "
                "hold out fewer views"
            )
        sky = None
        if found.depth is not None:
            found, depth = _on_grid(found, made)
            sky = sky_mask(made.images, depth, found.confidence, made.masks)
        write_geometry(work.file("geometry.npz"), made, found, sky=sky)
        write_cameras(
            work.file("cameras.npz"), made, found, original_size=ingested.sizes, test=test
        )
        facts["size"] = [made.cameras.width, made.cameras.height]
        work.folder.state["metrics"] = {
            "views": len(made),
            "registered": int(found.registered.sum()),
        }


def _on_grid(found: Reconstruction, made: Views) -> tuple[Reconstruction, Float[Tensor, "V H W"]]:
    """Fit depth maps to the views' pixels, of which they may have fewer or more.

    Estimators of our own work on these very pixels; others may return maps of any size.
    """
    depth = found.depth
    assert depth is not None
    height, width = made.images.shape[-2:]
    valid = found.valid if found.valid is not None else depth > 0
    if depth.shape[-2:] != (height, width):
        rows = (torch.arange(height) + 0.5) * depth.shape[-2] / height
        columns = (torch.arange(width) + 0.5) * depth.shape[-1] / width
        at = (..., rows.long()[:, None], columns.long())
        confidence = None if found.confidence is None else found.confidence[at]
        depth, valid = depth[at], valid[at]
        found = dataclasses.replace(
            found, depth=depth, confidence=confidence, points=None, valid=None
        )
    if made.masks is not None:
        valid = valid & made.masks
    return dataclasses.replace(found, valid=valid), depth


def held_out(count: int, every: int) -> Bool[Tensor, " count"]:
    """Return a mask of the held-out views: sorted indices 0, ``every``, 2 ``every``, ..."""
    test = torch.zeros(count, dtype=torch.bool)
    if every:
        test[::every] = True
    return test


def _pinhole_lenses(cameras: Cameras, sizes: Int64[Tensor, "V 2"]) -> Lenses:
    count = len(cameras)
    return Lenses(
        K=cameras.K,
        distortion=torch.zeros(count, 8, dtype=cameras.K.dtype),
        fisheye=torch.zeros(count, dtype=torch.bool),
        sizes=sizes,
    )


def splats(work: Work) -> None:
    """Fit splats to the training views, and keep the poses that were refined with them.

    Refined poses take the place of the estimated ones in ``cameras.npz``, which keeps those as
    ``w2c_estimated``; they are where this stage starts from, however often it is repeated.
    """
    from sightline.io.ply import write_gaussian_ply
    from sightline.splatting.optimize import optimize_splats

    if work.folder.finished("splats"):
        return
    with work.folder.stage("splats", leaves=_FITTED) as facts:
        run = Run(work.folder.path)
        known = run.camera_file()
        seen = run.views()
        estimated = dataclasses.replace(known.cameras, w2c=known.estimated)
        seen = dataclasses.replace(seen, cameras=estimated)
        train = (known.registered & ~known.test).nonzero()[:, 0].tolist()
        checkpoint = work.file("stages", "splats.safetensors")
        config = _config(work, len(train), seen)
        points = _start(run, seen, train, config)
        if isinstance(points, PointCloud) and len(points.points) >= _FILLED * config.max_splats:
            config = dataclasses.replace(config, dense=None)  # matching would add little
        result = optimize_splats(
            seen,
            points,
            train,
            config=config,
            checkpoint=checkpoint,
            progress=work.progress,
            on_step=work.on_step,
            seed=work.options.seed,
            device=work.device,
        )
        history = json.dumps(result.history)
        atomic_write_text(work.file("stages", "training.json"), history + "\n")
        if result.exposure is not None:
            write_npz(
                work.file("stages", "exposure.npz"),
                {"values": result.exposure.values, "fitted": result.exposure.fitted},
            )
        write_gaussian_ply(work.file("splats.ply"), result.gaussians)
        if config.poses is not None:
            refined = follow(estimated, result.cameras, known.registered, train)
            refined_views = dataclasses.replace(seen, cameras=refined)
            write_cameras(
                work.file("cameras.npz"),
                refined_views,
                Reconstruction(
                    cameras=refined,
                    registered=known.registered,
                    metric=known.metric,
                    lenses=known.lenses,
                ),
                original_size=known.original_size,
                test=known.test,
                estimated=known.estimated,
            )
            facts["refined_poses"] = True
        facts["steps"] = result.config.steps
        work.folder.state["metrics"]["splats"] = len(result.gaussians)
    # Only now is the result safe; a checkpoint left by a crash between is harmless.
    checkpoint.unlink(missing_ok=True)


def follow(
    before: Cameras, after: Cameras, registered: Bool[Tensor, " V"], train: list[int]
) -> Cameras:
    """Carry the views that were not trained on along with those whose poses were refined.

    The rigid motion that takes the old training cameras to the new ones, by their medians, moves
    the others too: no pixel of theirs is looked at.

    Args:
        before: As estimated.
        after: Training views refined, the others as before.
        registered: Views with a pose.
        train: Training views.
    """
    from sightline.reconstruction.learned.gauge import align_cameras

    others = [view for view in registered.nonzero()[:, 0].tolist() if view not in set(train)]
    if not others:
        return after
    world = align_cameras(before.w2c[train], after.w2c[train])
    world = dataclasses.replace(world, scale=torch.ones_like(world.scale))
    w2c = after.w2c.clone()
    w2c[others] = transform_cameras(before.select(others), world).w2c
    return dataclasses.replace(after, w2c=w2c)


def _start(
    run: Run, seen: Views, train: list[int], config: OptimizeConfig
) -> SparsePoints | PointCloud | None:
    """Return the points that splats start from: sparse ones, else those of the depth maps."""
    geometry = run.geometry_file()
    if geometry.depth is None:
        return geometry.sparse
    assert seen.cameras is not None
    return dense_cloud(
        seen.images,
        geometry.depth,
        seen.cameras,
        valid=geometry.surface,
        confidence=geometry.confidence,
        views=train,
        most=max(1, round(_FILLED * config.max_splats)),
        hidden=_UNCERTAIN,
    )


def feedforward(work: Work) -> None:
    """Take over the splats that the model saw in the pictures."""
    from sightline.io.ply import read_gaussian_ply, write_gaussian_ply

    if work.folder.finished("splats"):
        return
    with work.folder.stage("splats", leaves=_FITTED):
        gaussians = read_gaussian_ply(work.file("stages", "feedforward.ply"))
        write_gaussian_ply(work.file("splats.ply"), gaussians)
        work.folder.state["metrics"]["splats"] = len(gaussians)


def _config(work: Work, count: int, seen: Views) -> OptimizeConfig:
    """Return what suits the machine, with the user's choices in it."""
    from sightline.splatting.defaults import default_config

    options = work.options
    return default_config(
        work.device,
        count,
        seen.images.shape[2],
        seen.images.shape[3],
        steps=options.steps,
        max_splats=options.max_splats,
        strategy=options.strategy,
        sh_degree=options.sh_degree,
        exposure=options.exposure,
        refine_poses=_refines(work),
        antialiased=options.antialiased,
    )


def _refines(work: Work) -> bool:
    """Tell whether poses are refined: as asked, else where a learned model guessed them."""
    if work.options.refine_poses is not None:
        return work.options.refine_poses
    return bool(work.folder.state["stages"]["cameras"].get("dense"))


def evaluate(work: Work) -> None:
    """Render the held-out views and score them."""
    from sightline.io.ply import read_gaussian_ply
    from sightline.splatting.evaluate import evaluate_splats

    if work.folder.finished("evaluate"):
        return
    with work.folder.stage("evaluate", leaves=("renders",)):
        run = Run(work.folder.path)
        known = run.camera_file()
        test = (known.registered & known.test).nonzero()[:, 0].tolist()
        if not test:
            return
        gaussians = read_gaussian_ply(work.file("splats.ply")).to(work.device)
        scored = evaluate_splats(
            gaussians, run.views(), test, exposure=read_exposure(work), progress=work.progress
        )
        with atomic_folder(work.file("renders", "test")) as folder:
            for name, picture in zip(scored.names, scored.renders, strict=True):
                file = folder / f"{Path(name).with_suffix('')}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels = (picture * 255).round().to(torch.uint8).movedim(0, -1)
                Image.fromarray(pixels.contiguous().numpy()).save(file)
        work.folder.state["metrics"]["test"] = scored.metrics()


def features(work: Work) -> None:
    """Encode the pictures and carry what is found on the scene's splats and points."""
    from sightline.splatting.scene_features import carry_features, write_scene_features

    if work.folder.finished("features"):
        return
    name = work.options.features
    assert name is not None
    with work.folder.stage("features", leaves=("features.npz",)):
        run = Run(work.folder.path)
        gaussians, cloud = run.splats(), run.points()
        found = carry_features(
            load_backbone(work.options, work.device, work.loaded),
            name,
            run.views(),
            gaussians=None if gaussians is None else gaussians.to(work.device),
            points=None if cloud is None else cloud.points,
            depth=run.geometry_file().depth,
            progress=work.progress,
        )
        write_scene_features(work.file("features.npz"), found)


def export(work: Work) -> None:
    """Write the formats that were asked for."""
    names = export_names(work.options.export)
    done = work.folder.state["stages"].get("export", {}).get("formats", [])
    missing = [name for name in names if name not in done]
    if not missing:
        return
    with work.folder.stage("export") as facts:
        Run(work.folder.path).export(missing)
        facts["formats"] = [*done, *missing]
