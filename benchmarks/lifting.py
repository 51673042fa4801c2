"""Masks of a few views lifted into a scene, scored in views that nothing was fitted to.

    python benchmarks/lifting.py [RUN] [--seeds 3] [--steps N] [--json FILE]

Takes the run folder of ``sightline demo`` (seed 0), or makes it, lifts the exact masks of four of its
views, then with 30 % of the masks missing or damaged, and those of all views as a bound, draws them
in the held-out views, and writes the IoU of each object over these views, and their mean without and
with the room behind the objects.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor

from sightline.datasets.synthetic import SyntheticTruth, make_scene
from sightline.results import Run, open_run
from sightline.segmentation.scene_objects import lift_objects, render_objects
from sightline.types import InstanceMasks

FOUR = ([3, 9, 15, 21], [2, 9, 14, 20])
TWELVE = [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23]
SHARE = 0.3


def damage(views: list[dict[int, Tensor]], seed: int, kinds: tuple[str, ...]) -> None:
    """Spoil a share of the masks in place: missing, shifted, half, or a spot anywhere."""
    source = random.Random(seed)
    keys = [(view, thing) for view, masks in enumerate(views) for thing in masks]
    for view, thing in source.sample(keys, round(SHARE * len(keys))):
        mask, kind = views[view][thing], source.choice(kinds)
        rows, columns = mask.nonzero().unbind(1)
        height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
        spoiled = torch.zeros_like(mask)
        if kind == "missing":
            del views[view][thing]
            continue
        if kind == "shifted":
            down = source.choice([-1, 1]) * max(6, height // 2)
            right = source.choice([-1, 1]) * max(6, width // 2)
            rows, columns = rows + down, columns + right
            inside = (rows >= 0) & (rows < mask.shape[0]) & (columns >= 0)
            inside &= columns < mask.shape[1]
            spoiled[rows[inside], columns[inside]] = True
        elif kind == "half":
            kept = columns > columns.float().mean()
            if source.random() < 0.5:
                kept = rows < rows.float().mean()
            spoiled[rows[kept], columns[kept]] = True
        else:
            y = torch.arange(mask.shape[0])[:, None] - source.randrange(mask.shape[0])
            x = torch.arange(mask.shape[1])[None] - source.randrange(mask.shape[1])
            spoiled = (y / (height / 2 + 3)) ** 2 + (x / (width / 2 + 3)) ** 2 < 1
        views[view][thing] = spoiled


def record(masks: dict[int, Tensor], size: tuple[int, int]) -> InstanceMasks:
    """Return a view's masks, labelled by object."""
    things = sorted(masks)
    stacked = [masks[n] for n in things]
    return InstanceMasks(
        masks=torch.stack(stacked) if stacked else torch.zeros(0, *size, dtype=torch.bool),
        boxes=torch.zeros(len(things), 4),
        labels=torch.tensor(things, dtype=torch.int64),
        scores=torch.ones(len(things)),
    )


def measure(
    run: Run, truth: SyntheticTruth, views: list[int], seed: int | None, kinds: tuple[str, ...]
) -> dict[str, Any]:
    """Lift the masks of some views, and score what is drawn in the held-out ones."""
    count = len(truth.objects) - 1
    labels = truth.labels - 1  # the room is none
    given = [
        {n: labels[v] == n for n in range(count) if bool((labels[v] == n).any())} for v in views
    ]
    if seed is not None:
        damage(given, seed, kinds)
    splats, file = run.splats(), run.camera_file()
    assert splats is not None
    cameras = file.cameras.map(lambda t: t.float())
    records = [record(masks, (file.cameras.height, file.cameras.width)) for masks in given]
    began = time.perf_counter()
    objects = lift_objects(
        splats, cameras.select(views), records, known=[r.labels for r in records]
    )
    seconds = time.perf_counter() - began
    held_out = [v for v in range(len(labels)) if v % 8 == 0]
    drawn = render_objects(splats, objects, cameras.select(held_out))
    wanted = labels[held_out]
    names = {-1: "room", **{int(n): truth.objects[int(n) + 1] for n in objects.labels}}
    # Objects are numbered by the masks; one without any mask left has none.
    numbers = {int(n): at for at, n in enumerate(objects.labels)} | {-1: -1}
    ious = {}
    for n in range(-1, count):
        found, true = drawn == numbers.get(n, -2), wanted == n
        ious[names.get(n, truth.objects[n + 1])] = float(
            (found & true).sum() / (found | true).sum()
        )
    things = [value for name, value in ious.items() if name != "room"]
    return {
        "views": views,
        "seed": seed,
        "miou": sum(things) / len(things),
        "miou_with_room": sum(ious.values()) / len(ious),
        "iou": ious,
        "seconds": seconds,
    }


def main() -> None:
    """Measure all settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", help="run folder of sightline demo")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of the demo, when it is made here")
    parser.add_argument("--json", type=Path, default=common.RESULTS / "lifting.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.run or Path(scratch) / "demo"
        if arguments.run is None:
            words = [sys.executable, "-m", "sightline", "demo", "-o", str(folder)]
            words += ["--steps", str(arguments.steps)] if arguments.steps else []
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        score(open_run(folder), arguments)


def score(run: Run, arguments: argparse.Namespace) -> None:
    """Lift under all settings and write the scores."""
    ground = make_scene(seed=0).ground_truth
    assert ground is not None
    truth = ground.raw
    assert isinstance(truth, SyntheticTruth)
    seeds = range(arguments.seeds)
    everything = [v for v in range(len(truth.labels)) if v % 8]
    damaged = ("missing", "shifted", "half", "spot")
    settings: dict[str, list[tuple[list[int], int | None, tuple[str, ...]]]] = {
        "exact_4": [(views, None, ()) for views in FOUR],
        "missing_4": [(FOUR[0], seed, ("missing",)) for seed in seeds],
        "damaged_4": [(FOUR[0], seed, damaged) for seed in seeds],
        "damaged_12": [(TWELVE, seed, damaged) for seed in seeds],
        "exact_21": [(everything, None, ())],
    }
    results: dict[str, Any] = {}
    for name, cases in settings.items():
        rows = [measure(run, truth, *case) for case in cases]
        results[name] = rows
        print(
            name, *(f"{row['miou']:.3f} ({row['miou_with_room']:.3f})" for row in rows), flush=True
        )
    splats = run.splats()
    common.write(
        arguments.json,
        {
            "threads": torch.get_num_threads(),
            "splats": 0 if splats is None else len(splats),
            "damaged_share": SHARE,
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
