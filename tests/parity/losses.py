"""Golden family losses: training and test losses of DUSt3R and MASt3R."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from sightline.training.pairwise_losses import (
    dust3r_loss,
    mast3r_regression_loss,
    matching_loss,
    scale_shift_invariant_loss,
)
from tests.parity.compare import compare, read_config, read_io

LOSSES: dict[str, Callable[..., Tensor]] = {
    "dust3r_conf": dust3r_loss,
    "dust3r_ssi_gtscale": scale_shift_invariant_loss,
    "mast3r_conf": mast3r_regression_loss,
    "mast3r_match": matching_loss,
    "mast3r_match_noconf": lambda *views: matching_loss(*views, alpha=None),
}


def cases(folder: Path) -> list[str]:
    return sorted(n.removeprefix("loss.") for n in read_io(folder) if n.startswith("loss."))


def run_case(folder: Path, case: str) -> None:
    config, io = read_config(folder), read_io(folder)
    views = [
        {n.removeprefix(f"{who}."): t for n, t in io.items() if n.startswith(f"{who}.")}
        for who in ("gt1", "gt2", "pred1", "pred2")
    ]
    compare(config, io, [(f"loss.{case}", LOSSES[case](*views))], rf"loss\.{case}")
