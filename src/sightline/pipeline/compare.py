"""Which refinement of learned cameras helped: short fits of splats, scored on held-out views."""

import dataclasses
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.geometry.cloud import dense_cloud
from sightline.io.scene_arrays import GeometryFile, read_reconstruction
from sightline.pipeline.stages import follow
from sightline.pipeline.work import Work
from sightline.results import Run
from sightline.splatting.defaults import default_config
from sightline.splatting.evaluate import evaluate_splats
from sightline.splatting.optimize import optimize_splats
from sightline.types import Cameras, Views

_SHARE = 0.2
"""Part of the run's steps that each fit gets."""
_LEAST_STEPS = 50


def compare(work: Work) -> None:
    """Enter ``metrics.chain``: held-out PSNR for each stage of the refinement chain.

    The stages are ``learned`` (as the model said), ``adjusted`` (after bundle adjustment) and
    ``refined`` (poses also refined with the splats). Nothing is done where no view is held out, or
    where cameras were not adjusted.
    """
    if work.folder.finished("compare"):
        return
    before = work.file("stages", "unrefined.npz")
    if not before.is_file() or not work.folder.state["stages"]["cameras"].get("adjusted"):
        return
    run = Run(work.folder.path)
    known = run.camera_file()
    test = (known.registered & known.test).nonzero()[:, 0].tolist()
    if not test:
        return
    with work.folder.stage("compare") as facts:
        train = (known.registered & ~known.test).nonzero()[:, 0].tolist()
        steps = max(_LEAST_STEPS, round(_SHARE * work.folder.state["stages"]["splats"]["steps"]))
        chain = {}
        for name, views, depth, refines in _stages(work, run):
            chain[name] = _score(work, run, views, depth, train, test, steps, refines=refines)
        facts["steps"] = steps
        work.folder.state["metrics"]["chain"] = chain


def _stages(work: Work, run: Run) -> Iterator[tuple[str, Views, Float[Tensor, "V H W"], bool]]:
    """Yield name, views, depth and whether poses are refined while fitting."""
    known, geometry = run.camera_file(), run.geometry_file()
    learned = read_reconstruction(work.file("stages", "unrefined.npz"))
    views = run.views()
    assert learned.depth is not None
    assert geometry.depth is not None
    K = known.from_original @ learned.cameras.K
    cameras = dataclasses.replace(known.cameras, w2c=learned.cameras.w2c, K=K)
    yield "learned", dataclasses.replace(views, cameras=cameras), learned.depth, False
    cameras = dataclasses.replace(known.cameras, w2c=known.estimated)
    views = dataclasses.replace(views, cameras=cameras)
    yield "adjusted", views, geometry.depth, False
    if work.folder.state["stages"]["splats"].get("refined_poses"):
        yield "refined", views, geometry.depth, True


def _score(
    work: Work,
    run: Run,
    views: Views,
    depth: Float[Tensor, "V H W"],
    train: list[int],
    test: list[int],
    steps: int,
    *,
    refines: bool,
) -> float:
    geometry: GeometryFile = run.geometry_file()
    cameras = views.cameras
    assert cameras is not None
    height, width = views.images.shape[-2:]
    config = default_config(
        work.device, len(train), height, width, steps=steps, refine_poses=refines
    )
    config = dataclasses.replace(config, dense=None)
    points = dense_cloud(
        views.images,
        depth,
        cameras,
        valid=geometry.surface,
        confidence=geometry.confidence,
        views=train,
        most=config.max_splats // 2,
    )
    result = optimize_splats(
        views,
        points,
        train,
        config=config,
        progress=work.progress,
        seed=work.options.seed,
        device=work.device,
    )
    seen = _followed(cameras, result.cameras, train) if refines else cameras
    scored = evaluate_splats(
        result.gaussians.to(work.device), views, test, cameras=seen, exposure=result.exposure
    )
    return float(scored.scores["psnr"].mean())


def _followed(before: Cameras, after: Cameras, train: list[int]) -> Cameras:
    registered = torch.isfinite(before.w2c).all(-1).all(-1)
    return follow(before, after, registered, train)
