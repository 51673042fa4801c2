"""The stages of a run, in order. Each reads what earlier ones wrote and leaves files of its own."""

import json
from pathlib import Path

import torch
from jaxtyping import Bool, Int64
from PIL import Image
from torch import Tensor

from sightline.errors import InputError, ReconstructionError
from sightline.io.arrays import write_npz
from sightline.io.atomic import atomic_folder, atomic_write_text
from sightline.io.scene_arrays import (
    read_reconstruction,
    write_cameras,
    write_geometry,
    write_reconstruction,
)
from sightline.options import export_names
from sightline.pipeline.work import Work, read_exposure
from sightline.protocols import GeometryEstimator
from sightline.results import Run
from sightline.splatting.config import OptimizeConfig
from sightline.types import Cameras, Lenses, Reconstruction, Views


def ingest(work: Work) -> None:
    """Copy pictures and masks into the run, upright, and list them in ``inputs.json``."""
    from sightline.io.frames import FrameOptions
    from sightline.io.ingest import IngestOptions
    from sightline.io.ingest import ingest as read_inputs

    if work.folder.finished("ingest"):
        return
    options = work.options
    with work.folder.stage("ingest") as facts:
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
    """Find the cameras of the stored pictures."""
    from sightline.io.ingested import load_ingested

    if work.folder.finished("cameras"):
        return
    with work.folder.stage("cameras") as facts:
        ingested = load_ingested(work.folder.path)
        name, estimator = _estimator(work, ingested.given)
        facts["geometry"] = name
        found = estimator.estimate(ingested.views(work.long_side))
        count = int(found.registered.sum())
        if count < 2:
            raise ReconstructionError(
                f"only {count} of {len(ingested)} views got a camera, and a scene needs 2 or "
                "more; take more overlapping photos of a textured scene"
            )
        facts["registered"] = count
        work.folder.state["rejected"] = dict(found.rejected)
        for view, reason in found.rejected:
            work.folder.warn(f"{view} was left out: {reason}")
        write_reconstruction(work.file("stages", "reconstruction.npz"), found)


def _estimator(work: Work, given: Reconstruction | None) -> tuple[str, GeometryEstimator]:
    from sightline.reconstruction import create_estimator

    if work.estimator is not None:
        return type(work.estimator).__name__, work.estimator
    name = work.options.geometry
    if name == "auto":
        name = "colmap" if given is None else "given"
    common = {
        "workspace": work.file("stages", "sfm"),
        "seed": work.options.seed,
        "progress": work.progress,
    }
    if name == "colmap":
        more = {"matching": work.options.matching, "mapper": work.options.mapper}
        return name, create_estimator("colmap", **common, **more)
    if given is None:
        raise InputError(
            "--geometry given needs cameras in the input (a COLMAP model or a transforms.json), "
            "and there are none; use --geometry colmap"
        )
    return name, create_estimator("given", reconstruction=given, **common)


def views(work: Work) -> None:
    """Make the pinhole pictures that splats are fitted to: undistorted, at model resolution."""
    from sightline.io.ingested import load_ingested

    if work.folder.finished("views"):
        return
    with work.folder.stage("views") as facts:
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
        write_geometry(work.file("geometry.npz"), made, found)
        write_cameras(
            work.file("cameras.npz"), made, found, original_size=ingested.sizes, test=test
        )
        facts["size"] = [made.cameras.width, made.cameras.height]
        work.folder.state["metrics"] = {
            "views": len(made),
            "registered": int(found.registered.sum()),
        }


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
    """Fit splats to the training views."""
    from sightline.io.ply import write_gaussian_ply
    from sightline.splatting.optimize import optimize_splats

    if work.folder.finished("splats"):
        return
    with work.folder.stage("splats") as facts:
        run = Run(work.folder.path)
        seen, known = run.views(), run.camera_file()
        train = (known.registered & ~known.test).nonzero()[:, 0].tolist()
        checkpoint = work.file("stages", "splats.safetensors")
        result = optimize_splats(
            seen,
            run.geometry_file().sparse,
            train,
            config=_config(work, len(train), seen),
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
        facts["steps"] = result.config.steps
        work.folder.state["metrics"]["splats"] = len(result.gaussians)
    # Only now is the result safe; a checkpoint left by a crash between is harmless.
    checkpoint.unlink(missing_ok=True)


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
        refine_poses=options.refine_poses,
        antialiased=options.antialiased,
    )


def evaluate(work: Work) -> None:
    """Render the held-out views and score them."""
    from sightline.io.ply import read_gaussian_ply
    from sightline.splatting.evaluate import evaluate_splats

    if work.folder.finished("evaluate"):
        return
    with work.folder.stage("evaluate"):
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
