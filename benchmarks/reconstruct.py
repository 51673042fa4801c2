"""The main job as its user runs it: photos in, scene out, timed and scored.

    python benchmarks/reconstruct.py PHOTOS [--reference transforms.json] [--resolution 480]
                                     [--test-every 8] [--geometry auto] [--json FILE]

PHOTOS is whatever ``sightline reconstruct`` takes, or ``synthetic``: the 24 pictures of the
procedural scene, as files without cameras, and their exact cameras for reference. With
``--reference`` (nerfstudio form) the cameras are compared with it after a similarity alignment of
their centres. The command runs as a
process of its own; seconds are wall time from its start to its end, memory is its peak resident
set, children included one by one.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
import torch

import sightline
from sightline.datasets.synthetic import make_scene, write_scene
from sightline.io.transforms import read_transforms
from sightline.metrics.poses import compare_poses


def main() -> None:
    """Run, score, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--resolution", type=int, default=480)
    parser.add_argument("--test-every", type=int, default=8)
    parser.add_argument("--geometry", default="auto")
    parser.add_argument("--keep", type=Path, help="keep the run folder here")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = [Path(p).name for p in args.photos]
        if args.photos == ["synthetic"]:
            args.reference = write_scene(make_scene(), Path(folder) / "synthetic")
            # Without transforms.json beside them: the run may not know the cameras.
            shutil.move(args.reference.parent / "images", Path(folder) / "photos")
            args.photos = [str(Path(folder) / "photos")]
        output = args.keep or Path(folder) / "scene"
        command = [
            *(sys.executable, "-m", "sightline", "reconstruct", *args.photos, "-o", str(output)),
            *("--resolution", str(args.resolution), "--test-every", str(args.test_every)),
            *("--geometry", args.geometry),
        ]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
        run = sightline.open_run(output)
        state = run.state
        result = {
            "what": (
                f"reconstruct --geometry {args.geometry} --resolution {args.resolution} "
                f"--test-every {args.test_every}"
            ),
            "inputs": names,
            "seconds": round(seconds, 1),
            "stages": {name: entry["seconds"] for name, entry in state["stages"].items()},
            "peak_memory_mb": state["peak_memory_mb"],
            "metrics": state["metrics"],
            "warnings": state["warnings"],
        }
        if args.reference:
            result["poses"] = _compare(run, args.reference)
    shown = {k: result[k] for k in ("seconds", "stages", "peak_memory_mb")}
    print(json.dumps({**shown, "poses": result.get("poses")}, indent=1))
    if "test" in state["metrics"]:
        print({k: round(v["mean"], 3) for k, v in state["metrics"]["test"].items()})
    if args.json:
        common.write(args.json, result)


def _compare(run: sightline.Run, reference: Path) -> dict[str, float]:
    given = read_transforms(reference)
    stems = [Path(name).stem for name in given.files]
    known = dict(zip(stems, given.w2c, strict=True))
    file = run.camera_file()
    pairs = [
        (w2c, known[Path(name).stem])
        for name, w2c in zip(file.names, file.cameras.w2c, strict=True)
        if Path(name).stem in known
    ]
    estimated, truth = (torch.stack([p[i].double() for p in pairs]) for i in (0, 1))
    errors = compare_poses(estimated, truth)
    return {
        "compared": len(pairs),
        "found": errors.found,
        "mean_rotation_error_degrees": errors.rotation_degrees,
        "mean_center_error_percent_of_extent": 100 * errors.center_error,
    }


if __name__ == "__main__":
    main()
