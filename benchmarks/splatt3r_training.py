"""Splatt3R with each way of fusing, on synthetic rooms: is it better than its own start?

A DINOv2 of drawn weights is fused into a tiny Splatt3R in three ways. Each is trained from nothing
with all its parts; and each fusion alone, from a plain Splatt3R that learned the rooms before. Scores
are of held-out rooms, before and after. Finished runs in the working folder are kept, so the script
may be stopped and started, and ``--only`` lets several processes share the work.

    python benchmarks/splatt3r_training.py --work /tmp/fusing
"""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import RESULTS, write

if TYPE_CHECKING:
    from sightline.training.splatt3r.settings import Splatt3rSettings

NETWORK: dict[str, Any] = {
    "enc_depth": 3,
    "dpt": {"feature_dim": 24, "last_dim": 16, "layer_dims": [16, 24, 32, 32]},
}
MODES = ("concat", "add", "weighted_sum")


def settings(**changes: Any) -> "Splatt3rSettings":  # noqa: ANN401
    """Return what all runs have in common, with changes."""
    from sightline.training.splatt3r.settings import Splatt3rSettings

    values: dict[str, Any] = {
        "size": "tiny",
        "network": NETWORK,
        "resolution": 64,
        "batch_size": 4,
        "targets": 1,
        "val_pairs": 32,
        "lpips": "none",
        "clip": 1.0,
        "beta2": 0.99,
        "warmup": 20.0,
        "points": 0.5,
        "log_every": 20,
        "checkpoint_every": 50,
        "loggers": "csv",
        "device": "cpu",
        **changes,
    }
    return Splatt3rSettings(**values)


def run(name: str, work: Path, chosen: "Splatt3rSettings") -> dict[str, Any]:
    """Train, or take what a former call left, and return the scores."""
    from sightline.run import RunFolder
    from sightline.training.engine import train
    from sightline.training.splatt3r import Splatt3rTask

    folder = work / name
    task = Splatt3rTask(chosen)
    train(task, folder, resume=True)
    state = RunFolder.open(folder).state
    validation = state["metrics"]["validation"]
    return {
        "run": name,
        "steps": chosen.steps,
        "seconds": state["stages"]["train"]["seconds"],
        "trained_parameters": state["facts"]["trained_parameters"],
        "perceptual_loss": state["facts"]["perceptual_loss"],
        "start": validation["start"],
        "end": validation["last"],
        "gain_psnr_db": validation["last"]["psnr"] - validation["start"]["psnr"],
    }


def main() -> None:
    """Run what is missing and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument(
        "--json", type=Path, default=RESULTS / "train_splatt3r_synthetic.json", help="JSON"
    )
    parser.add_argument("--steps", type=int, default=600, help="of the network without fusion")
    parser.add_argument("--fusion-steps", type=int, default=120, help="of each fusion alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all-steps", type=int, default=100, help="of each network from nothing")
    parser.add_argument("--only", choices=("plain", *MODES, *(f"{m}-all" for m in MODES)))
    chosen = parser.parse_args()
    began = time.perf_counter()
    weights = str(chosen.work / "plain" / "checkpoints" / "splatt3r.safetensors")
    common: dict[str, Any] = {"lr": 1e-3, "seed": chosen.seed}
    fused = common | {"backbone": "random:dinov2_vits14"}
    plans = {"plain": common | {"train": "all", "steps": chosen.steps, "val_every": 200}}
    for mode in MODES:
        more = {"fusion": mode, "train": "all", "steps": chosen.all_steps}
        plans[f"{mode}-all"] = fused | more
    for mode in MODES:
        more = {"fusion": mode, "train": "fusion", "steps": chosen.fusion_steps}
        plans[mode] = fused | more | {"checkpoint": weights, "network": None}
    if chosen.only:
        run(chosen.only, chosen.work, settings(**plans[chosen.only]))
        return
    rows = [run(name, chosen.work, settings(**plan)) for name, plan in plans.items()]
    result = {
        "what": "held-out PSNR (masked), SSIM and point error of synthetic rooms at 64 x 64 pixels",
        "seed": chosen.seed,
        "held_out_pairs": 32,
        "runs": rows,
        "seconds_this_call": round(time.perf_counter() - began, 1),
        "all_better_than_their_start": all(row["gain_psnr_db"] > 0 for row in rows),
    }
    write(chosen.json, result)


if __name__ == "__main__":
    main()
