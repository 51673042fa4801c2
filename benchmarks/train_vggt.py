"""Does VGGT, trained from scratch on generated rooms, beat the mean of its training data?

Each seed trains ``configs/train/vggt_synthetic.yaml`` in its own process and is judged on rooms that
no training sees. The mean predictor says the mean pose and the mean depth map of the training rooms
whatever it is shown; half of its errors is the mark.

    python benchmarks/train_vggt.py --seeds 0 --json benchmarks/results/train_vggt_synthetic.json
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, cpu_seconds, write

ROOT = Path(__file__).parents[1]
MARK = 0.5
MEASURES = ("rotation", "translation", "abs_rel")


def train(seed: int, config: Path, folder: Path, options: list[str]) -> dict[str, Any]:
    """Train one seed and return its curves and errors."""
    began, used = time.perf_counter(), cpu_seconds()
    words = ["train", "vggt", "--config", str(config), "-o", str(folder), "--seed", str(seed)]
    subprocess.run([sys.executable, "-m", "sightline", *words, *options], check=True)
    seconds = time.perf_counter() - began
    with (folder / "logs" / "validation.csv").open(encoding="utf-8") as file:
        curve = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    last = curve[-1]
    state = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "core_seconds": round(cpu_seconds() - used, 1),
        "errors": {name: last[name] for name in MEASURES},
        "mean predictor": {name: last[f"mean {name}"] for name in MEASURES},
        "ratios": {name: round(last[name] / last[f"mean {name}"], 4) for name in MEASURES},
        "reached": all(last[name] <= MARK * last[f"mean {name}"] for name in MEASURES),
        "curve": curve,
        "facts": state["facts"],
        "config": state["config"],
    }


def main() -> None:
    """Train the seeds and write what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--config", type=Path, default=ROOT / "configs/train/vggt_synthetic.yaml")
    parser.add_argument(
        "--json", "--output", type=Path, default=RESULTS / "train_vggt_synthetic.json"
    )
    parser.add_argument(
        "--keep", type=Path, help="folder for the runs; by default they are dropped"
    )
    arguments, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = arguments.keep or Path(scratch)
        seeds = [
            train(seed, arguments.config, home / f"seed_{seed}", options)
            for seed in arguments.seeds
        ]
    for result in seeds:
        print(result["seed"], f"{result['seconds']:.0f} s", result["ratios"], result["reached"])
    write(
        arguments.json,
        {
            "what": "held-out errors of VGGT (small, DINOv3-style encoder) on generated rooms",
            "mark": f"each error at most {MARK} of the mean predictor's",
            "units": {
                "rotation": "degrees, mean over relative poses to the first view",
                "translation": "mean distance, unit: the mean distance of the true points",
                "abs_rel": "mean of |depth - true depth| / true depth, not aligned",
            },
            "seeds": seeds,
        },
    )


if __name__ == "__main__":
    main()
