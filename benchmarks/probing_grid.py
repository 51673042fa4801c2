"""The fast grid as a user runs it, unattended, and killed at random on the way.

Starts ``sightline probe run``, ends it with ``kill -9`` at random moments and starts it again, compares
the content and time of every finished file before and after each, and waits for the report. Writes
the scores with their intervals, wall time and core seconds.

    python benchmarks/probing_grid.py photos/fox photos/rgbd_chair -o out [--kills 3]
        [--config configs/probe/fast.yaml] [--json benchmarks/results/probing_fast_grid.json]
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import common

from sightline.probing.results import METRICS, collect, metrics_of
from sightline.probing.stats import differences, estimate, seed_agreement


def finished(output: Path) -> dict[str, tuple[int, str]]:
    """Return time and digest of every file of the finished tasks."""
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in (output / "store").rglob("*")
        if path.is_file() and "/." not in str(path)
    }


def run(words: list[str], output: Path, kills: int, source: random.Random) -> list[dict[str, Any]]:
    """Run to the end, with that many kills before; return what happened to each attempt.

    Raises:
        SystemExit: If a finished file was lost or changed, or the run failed.
    """
    attempts: list[dict[str, Any]] = []
    while True:
        before = finished(output)
        began = time.perf_counter()
        process = subprocess.Popen(words)
        try:
            code = process.wait(source.uniform(60, 300) if len(attempts) < kills else None)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        after = finished(output)
        lost = [path for path, state in before.items() if after.get(path) != state]
        attempts.append(
            {
                "seconds": time.perf_counter() - began,
                "killed": code < 0,
                "tasks": sum(path.endswith("task.json") for path in after),
            }
        )
        print(attempts[-1], flush=True)
        if lost:
            raise SystemExit(f"{len(lost)} finished files were lost or changed, such as {lost[0]}")
        if code > 0:
            raise SystemExit(f"the run failed with code {code}")
        if code == 0:
            return attempts


def scores_of(output: Path) -> dict[str, Any]:
    """Return means with intervals, and how far seeds agree, by mode and measure."""
    results = collect(output)
    found: dict[str, Any] = {}
    for mode in results.modes:
        for metric in metrics_of(results.rows):
            features, table = results.table(mode, metric)
            pairs = differences(table, higher=METRICS[metric][3])
            found[f"{mode} {metric}"] = {
                "features": {
                    name: {
                        "mean": e.mean,
                        "interval": [e.low, e.high],
                        "seed_spread": e.seed_spread,
                        "better_than": [
                            other
                            for other, pair in zip(features, row, strict=True)
                            if pair is not None and pair.low > 0
                        ],
                    }
                    for name, e, row in zip(features, estimate(table), pairs, strict=True)
                },
                "spearman_between_seeds": seed_agreement(table),
                "by_scene": {
                    scene: dict(zip(features, table[:, i].tolist(), strict=True))
                    for i, scene in enumerate(results.scenes)
                },
            }
    return found


def main() -> None:
    """Run, check and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", nargs="*")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--config", default="configs/probe/fast.yaml")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--json", type=Path, default=common.RESULTS / "probing_fast_grid.json")
    arguments = parser.parse_args()
    words = [sys.executable, "-m", "sightline", "probe", "run", *arguments.scenes]
    words += ["--config", arguments.config, "-o", str(arguments.output)]
    attempts = run(words, arguments.output, arguments.kills, random.Random(arguments.seed))
    tasks = [
        json.loads(path.read_text("utf-8")) for path in arguments.output.glob("store/*/*/task.json")
    ]
    core_seconds: dict[str, float] = {}
    for task in tasks:
        core_seconds[task["kind"]] = core_seconds.get(task["kind"], 0.0) + task["cpu_seconds"]
    common.write(
        arguments.json,
        {
            "config": arguments.config,
            "scenes": [Path(scene).name for scene in arguments.scenes],
            "minutes": sum(attempt["seconds"] for attempt in attempts) / 60,
            "core_minutes": sum(core_seconds.values()) / 60,
            "core_seconds_by_kind": core_seconds,
            "tasks": len(tasks),
            "attempts": attempts,
            "scores": scores_of(arguments.output),
        },
    )


if __name__ == "__main__":
    main()
