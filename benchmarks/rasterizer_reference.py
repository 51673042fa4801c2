"""Is the fast rasteriser right, and what does it gain: our CPU kernels beside the definition.

    python benchmarks/rasterizer_reference.py [--splats 250,500,1000] [--size 64x80]
                                              [--rounds 3] [--threads 2] [--json FILE]

The definition is ``sightline.splatting.rasterize.reference``: every pixel against every splat, plain
torch in float64. Compared are pictures and the gradients of all inputs; differences are relative to
the largest value of each. Pixels where a rounding decides whether a splat counts at all (about one
in ten thousand) are compared too, so the mean is given beside the largest. Both sides take turns in
one process; the reference is also timed in float32, the kernels' own precision.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch
from rasterizer import TRAINED, draw_scene
from torch import Tensor

from sightline.splatting.rasterize import rasterization, reference

Drawn = tuple[Tensor, dict[str, Tensor]]


def draw(function: Callable[..., Any], scene: dict[str, Any], dtype: torch.dtype) -> Drawn:
    """Return the picture and the gradients of a fixed sum over it."""
    inputs = {
        name: value.to(dtype) if isinstance(value, Tensor) else value
        for name, value in scene.items()
    }
    for name in TRAINED:
        inputs[name] = inputs[name].clone().requires_grad_()
    picture, alpha, _ = function(**inputs)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(picture.shape, generator=generator).to(dtype)
    torch.autograd.backward([picture, alpha], [weights, weights[..., :1]])
    return picture.detach(), {name: inputs[name].grad for name in TRAINED}


def compare(ours: Drawn, exact: Drawn) -> dict[str, Any]:
    """Return the largest and the mean difference of picture and gradients."""
    pairs = {"picture": (ours[0], exact[0])}
    pairs |= {f"gradient of {n}": (ours[1][n], exact[1][n]) for n in TRAINED}
    found = {}
    for name, (value, want) in pairs.items():
        error = (value.double() - want).abs() / want.abs().max()
        found[name] = {"largest": error.max().item(), "mean": error.mean().item()}
    return found


def main() -> None:
    """Take turns, compare, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--splats", default="250,500,1000")
    parser.add_argument("--size", default="64x80", help="height x width")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=common.THREADS)
    parser.add_argument("--json", type=Path, default=common.RESULTS / "rasterizer_reference.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    height, width = (int(side) for side in args.size.split("x"))
    sides: dict[str, tuple[Callable[..., Any], torch.dtype]] = {
        "ours": (rasterization, torch.float32),
        "reference_float32": (reference.rasterization, torch.float32),
        "reference_float64": (reference.rasterization, torch.float64),
    }
    rows = []
    for number in (int(n) for n in args.splats.split(",")):
        scene = draw_scene(number, width, height, None, "cpu")
        found = {name: draw(*side[:1], scene, side[1]) for name, side in sides.items()}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(args.rounds):
            for name, (function, dtype) in sides.items():
                used = time.process_time()
                draw(function, scene, dtype)
                seconds[name].append(time.process_time() - used)
        best = {name: min(values) for name, values in seconds.items()}
        row = {
            "splats": number,
            "cpu_seconds": best,
            "times_faster_than_float32": round(best["reference_float32"] / best["ours"], 1),
            "times_faster_than_float64": round(best["reference_float64"] / best["ours"], 1),
            "difference": compare(found["ours"], found["reference_float64"]),
        }
        rows.append(row)
        print(json.dumps({k: v for k, v in row.items() if k != "difference"}), flush=True)
    largest = {
        kind: max(entry[kind] for row in rows for entry in row["difference"].values())
        for kind in ("largest", "mean")
    }
    content = {
        "what": "rasterization forward + backward beside the float64 definition",
        "height": height,
        "width": width,
        "threads": args.threads,
        "rows": rows,
        "difference": largest,
        "holds": largest["largest"] < 1e-3,
    }
    common.write(args.json, content)


if __name__ == "__main__":
    main()
