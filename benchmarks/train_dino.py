"""Self-distillation from scratch on a few labelled photos: does k-NN accuracy rise, and how surely.

    python benchmarks/train_dino.py FOLDER [--config configs/train/dino_clothing.yaml]
                                    [--seeds 0,1,2] [--threads 1] [--jobs 1] [--keep DIR]
                                    [--json FILE]

FOLDER has a subfolder of photos a class. Each seed trains in a process of its own. Accuracy is that
of a vote of the nearest neighbours among all other photos (labels are never used in training), of
the teacher's class token, before the first step (the same untrained network) and after the last.
The verdict holds when the mean gain is at least five points and at least twice the spread (the
standard deviation over seeds of the gain). Seconds are wall time, with ``--jobs`` seeds at a time.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import common


def main() -> None:
    """Train every seed, print and write what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", default="configs/train/dino_clothing.yaml")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time")
    parser.add_argument("--keep", type=Path, help="leave the runs here")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = args.keep or Path(scratch)
        seeds = [int(seed) for seed in args.seeds.split(",")]
        with ThreadPoolExecutor(args.jobs) as pool:
            runs = list(pool.map(lambda seed: measure(args, seed, root), seeds))
    gains = [100 * (run["knn_after"] - run["knn_before"]) for run in runs]
    spread = statistics.stdev(gains) if len(gains) > 1 else None
    mean = statistics.mean(gains)
    content = {
        "config": args.config,
        "threads": args.threads,
        "jobs": args.jobs,
        "seeds": runs,
        "gain_points_mean": round(mean, 2),
        "gain_points_spread": None if spread is None else round(spread, 2),
        "holds": mean >= 5 and (spread is None or mean >= 2 * spread),
    }
    print(json.dumps(content, indent=1))
    if args.json:
        common.write(args.json, content)


def measure(args: argparse.Namespace, seed: int, root: Path) -> dict[str, Any]:
    """Train one seed and read its validation log."""
    output = root / f"seed-{seed}"
    words = ["train", "dino", "--config", args.config, "--data", str(args.folder)]
    words += ["--seed", str(seed), "-o", str(output), "--overwrite", "--device", "cpu"]
    threads = {"OMP_NUM_THREADS": str(args.threads)}
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "sightline", *words], check=True, env={**os.environ, **threads}
    )
    seconds = time.perf_counter() - began
    with (output / "logs" / "validation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    first, last = rows[0], rows[-1]
    result = {
        "seed": seed,
        "steps": int(last["step"]),
        "seconds": round(seconds, 1),
    }
    for name in ("knn", "linear", "effective_rank"):
        result |= {
            f"{name}_before": round(float(first[name]), 4),
            f"{name}_after": round(float(last[name]), 4),
        }
    print(json.dumps(result), flush=True)
    return result


if __name__ == "__main__":
    main()
