"""How well splats fit, and how soon: held-out PSNR over steps and seconds.

    python benchmarks/splat_training.py SCENE [--points FILE.npz] [--resolution 480]
                  [--steps 400,800,1600] [--seeds 0] [--threads N] [--set NAME=VALUE ...] [--json FILE]

SCENE is a ``transforms.json`` (or its folder), whose cameras are taken as they are, or
``synthetic`` for the procedural scene with exact cameras. ``--points`` names an ``.npz`` with
``xyz`` and ``rgb`` (uint8); without it, all starting points come from matched pixels. Every number
of steps is a run of its own, since schedules scale with it. Each run is scored on views 0, 8, 16,
... which it never looks at: plain PSNR, with the exposure inferred from training views, and PSNR
after the usual colour correction. CPU seconds are this process's, all threads; on a shared machine
they mean more than wall seconds. ``--set rates.shN=0.001`` changes a field of the configuration.
"""

import argparse
import dataclasses
import json
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import common
import torch

from sightline.datasets.synthetic import make_scene
from sightline.io.arrays import read_npz
from sightline.io.transforms import read_transforms
from sightline.io.views import load_views
from sightline.splatting.config import OptimizeConfig
from sightline.splatting.defaults import default_config
from sightline.splatting.evaluate import evaluate_splats
from sightline.splatting.optimize import optimize_splats
from sightline.types import PointCloud, Views


def main() -> None:
    """Fit, score, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("scene")
    parser.add_argument("--points", type=Path)
    parser.add_argument("--resolution", type=int, default=480)
    parser.add_argument("--steps", default="400,800,1600")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--test-every", type=int, default=8)
    parser.add_argument("--threads", type=int, default=common.THREADS)
    parser.add_argument("--set", nargs="*", default=[], dest="changes")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    views, cloud = _synthetic() if args.scene == "synthetic" else _photos(args)
    test = list(range(0, len(views), args.test_every))
    train = [i for i in range(len(views)) if i not in test]
    height, width = views.images.shape[2:]
    runs = []
    for steps in (int(s) for s in args.steps.split(",")):
        for seed in (int(s) for s in args.seeds.split(",")):
            config = default_config("cpu", len(train), height, width, steps=steps)
            config = _changed(config, args.changes)
            runs.append(_run(views, cloud, train, test, config, seed))
            print(json.dumps({k: v for k, v in runs[-1].items() if k != "curve"}))
    content = {
        "benchmark": "splat_training",
        "scene": args.scene if args.scene == "synthetic" else Path(args.scene).resolve().name,
        "views": {"train": len(train), "test": len(test), "height": height, "width": width},
        "points": 0 if cloud is None else len(cloud.points),
        "threads": args.threads,
        "changes": args.changes,
        "runs": runs,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    common.write(args.json or common.RESULTS / "splat_training.json", content)


def _run(
    views: Views,
    cloud: PointCloud | None,
    train: list[int],
    test: list[int],
    config: OptimizeConfig,
    seed: int,
) -> dict[str, Any]:
    curve: list[tuple[float, float, float]] = []
    wall, cpu = time.perf_counter(), time.process_time()

    def note(numbers: dict[str, float]) -> None:
        curve.append((numbers["step"], time.process_time() - cpu, numbers["psnr"]))

    result = optimize_splats(views, cloud, train, config=config, on_step=note, seed=seed)
    wall, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    scored = evaluate_splats(result.gaussians, views, test, exposure=result.exposure)
    fitted = evaluate_splats(
        result.gaussians, views, train[::4], cameras=result.cameras, exposure=result.exposure
    )
    return {
        "steps": config.steps,
        "seed": seed,
        "splats": len(result.gaussians),
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu_seconds, 1),
        "train_psnr": _mean(fitted.scores["psnr"]),
        **{name: _mean(values) for name, values in scored.scores.items()},
        "psnr_per_view": {
            name: round(value, 2)
            for name, value in zip(scored.names, scored.scores["psnr"].tolist(), strict=True)
        },
        "curve": [[step, round(s, 2), round(db, 2)] for step, s, db in curve],
    }


def _mean(values: torch.Tensor) -> float:
    return round(statistics.fmean(values.tolist()), 4)


def _photos(args: argparse.Namespace) -> tuple[Views, PointCloud | None]:
    path = Path(args.scene)
    folder = path if path.is_dir() else path.parent
    found = read_transforms(path)
    order = sorted(range(len(found.files)), key=lambda i: found.files[i])
    views = load_views(
        [folder / found.files[i] for i in order],
        [found.files[i] for i in order],
        long_side=args.resolution,
        lenses=found.lenses.map(lambda t: t[order]),
        w2c=found.w2c[order],
    )
    if args.points is None:
        return views, None
    arrays = read_npz(args.points, ("xyz", "rgb"))
    return views, PointCloud(
        points=torch.from_numpy(arrays["xyz"]).float(),
        colors=torch.from_numpy(arrays["rgb"]).float() / 255,
    )


def _synthetic() -> tuple[Views, PointCloud | None]:
    scene = make_scene()
    assert scene.ground_truth is not None
    sparse = scene.ground_truth.sparse
    if sparse is None:
        return scene.views, None
    return scene.views, PointCloud(points=sparse.points, colors=sparse.colors.float() / 255)


def _changed(config: OptimizeConfig, changes: list[str]) -> OptimizeConfig:
    """Apply ``field=value`` and ``record.field=value``, values in JSON."""
    for change in changes:
        name, value = change.split("=", 1)
        outer, _, inner = name.partition(".")
        new: Any = json.loads(value)
        if inner:
            new = dataclasses.replace(getattr(config, outer), **{inner: new})
        config = dataclasses.replace(config, **{outer: new})
    return config


if __name__ == "__main__":
    main()
