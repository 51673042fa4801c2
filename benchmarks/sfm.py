"""Structure from motion on sets of photos and videos: what is registered, how well, how fast.

    python benchmarks/sfm.py NAME=PATH... [--every 8] [--matching auto] [--mapper incremental]
                             [--threads N] [--json FILE]

PATH is whatever ``sightline reconstruct`` takes: a folder of photos, a video. A
``transforms.json`` in PATH or beside it gives reference cameras, which are used for scoring only;
cameras are compared after a similarity alignment of their centres. Each set runs in a process of
its own. Seconds are wall time of the estimator without reading the inputs, CPU seconds are those
of all its threads (other programs disturb them least), memory is the largest resident set of the
SfM process. A set that cannot be reconstructed is reported with the error's text.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import torch

from sightline.errors import SightlineError
from sightline.io.frames import FrameOptions
from sightline.io.ingest import IngestOptions, ingest
from sightline.io.transforms import read_transforms
from sightline.metrics.poses import compare_poses, relative_pose_errors
from sightline.reconstruction.colmap import ColmapEstimator
from sightline.types import Reconstruction


def main() -> None:
    """Run every set, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sets", nargs="+", metavar="NAME=PATH")
    parser.add_argument("--every", type=int, default=8, help="videos: every K-th frame")
    parser.add_argument("--matching", default="auto")
    parser.add_argument("--mapper", default="incremental")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        print(json.dumps(measure(Path(args.sets[0]), args)))
        return
    results = {}
    for item in args.sets:
        name, _, path = item.partition("=")
        options = [f"--{o}={getattr(args, o)}" for o in ("every", "matching", "mapper", "threads")]
        command = [sys.executable, __file__, path, *options, "--inside"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results[name] = json.loads(done.stdout)
        print(name, json.dumps(results[name]))
    if args.json:
        chosen = {o: getattr(args, o) for o in ("every", "matching", "mapper", "threads")}
        common.write(args.json, {"what": "sfm", "options": chosen, "sets": results})


def measure(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Reconstruct one set."""
    with tempfile.TemporaryDirectory() as folder:
        frames = FrameOptions(every=args.every)
        video = path.suffix.lower() in (".mp4", ".mov")
        options = IngestOptions(frames=frames) if video else IngestOptions()
        ingested = ingest([path], Path(folder), options)
        views = ingested.views(256)
        estimator = ColmapEstimator(
            workspace=Path(folder) / "sfm",
            matching=args.matching,
            mapper=args.mapper,
            num_threads=args.threads,
        )
        start = time.perf_counter()
        try:
            found = estimator.estimate(views)
        except SightlineError as error:
            found, text = None, f"{type(error).__name__}: {error}"
        else:
            text = ""
        seconds = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        result: dict[str, Any] = {
            "views": len(views),
            "registered": 0 if found is None else int(found.registered.sum()),
            "seconds": round(seconds, 1),
            "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
            "peak_memory_mb": round(used.ru_maxrss / 1000),
        }
        if found is None:
            return result | {"error": text}
        return result | _describe(found) | _compare(found, views.names, path)


def _describe(found: Reconstruction) -> dict[str, Any]:
    assert found.sparse is not None
    assert found.sparse.errors is not None
    assert found.lenses is not None
    return {
        "points": len(found.sparse.points),
        "views_a_point": round(len(found.sparse.tracks) / len(found.sparse.points), 2),
        "reprojection_error_px": round(float(found.sparse.errors.mean()), 3),
        "focal_px": round(float(found.lenses.K[0, 0, 0]), 1),
        "rejected": dict(found.rejected),
    }


def _compare(found: Reconstruction, names: tuple[str, ...], path: Path) -> dict[str, Any]:
    for reference in (path / "transforms.json", path.parent / "transforms.json"):
        if reference.is_file():
            break
    else:
        return {}
    given = read_transforms(reference)
    known = {Path(f).stem: w2c for f, w2c in zip(given.files, given.w2c, strict=True)}
    rows = [i for i, name in enumerate(names) if Path(name).stem in known]
    truth = torch.stack([known[Path(names[i]).stem] for i in rows])
    errors = compare_poses(found.cameras.w2c[rows], truth)
    turned, _ = relative_pose_errors(found.cameras.w2c[rows], truth)
    return {
        "mean_relative_rotation_error_degrees": round(float(turned[turned.isfinite()].mean()), 4),
        "mean_rotation_error_degrees": round(errors.rotation_degrees, 4),
        "mean_center_error_percent_of_extent": round(100 * errors.center_error, 4),
    }


if __name__ == "__main__":
    main()
