"""Golden family vggt_losses: normalised truth, and the objective with two settings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from sightline.training.vggt_losses import (
    CameraTerm,
    DenseTerm,
    Truth,
    normalize_truth,
    vggt_loss,
)
from tests.parity.compare import compare, read_config, read_io

SETTINGS = {"loss": "conf", "loss2": "conf2"}


def cases(folder: Path) -> list[str]:
    groups = {name.split(".")[0] for name in read_io(folder)}
    return [case for case in ("norm", *SETTINGS) if case in groups]


def run_case(folder: Path, case: str) -> None:
    config, io = read_config(folder), read_io(folder)
    outputs = normalized(io) if case == "norm" else losses(config[SETTINGS[case]], io, case)
    compare(config, io, outputs, rf"{case}\..*")


def normalized(io: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    truth = Truth(
        extrinsics=io["extrinsics"],
        world_points=io["world_points"],
        cam_points=io["cam_points"],
        depths=io["depths"],
        masks=io["point_masks"],
    )
    for name, value in normalize_truth(truth)._asdict().items():
        yield f"norm.{name}", value


def losses(settings: dict[str, Any], io: dict[str, Tensor], case: str) -> Iterator:
    truth = Truth(
        extrinsics=io["norm.extrinsics"],
        world_points=io["norm.world_points"],
        cam_points=io["norm.cam_points"],
        depths=io["norm.depths"],
        masks=io["point_masks"],
    )
    names = sorted(n for n in io if n.startswith("pred.pose_enc_iter."))
    predictions = {n.removeprefix("pred."): t for n, t in io.items() if n.startswith("pred.")}
    dense = {
        name: DenseTerm(
            weight=settings[name]["weight"],
            gradient=settings[name]["gradient_loss_fn"],
            valid_range=float(settings[name]["valid_range"]),
        )
        for name in ("depth", "point")
    }
    camera = settings["camera"]
    found = vggt_loss(
        {**predictions, "pose_enc_list": [io[n] for n in names]},
        truth,
        io["intrinsics"],
        camera=CameraTerm(weight=camera["weight"], kind=camera["loss_type"]),
        **dense,
    )
    yield from ((f"{case}.{name}", value) for name, value in found.items())
