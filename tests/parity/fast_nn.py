"""Golden family fast_nn: exact and fast nearest neighbours, and the matches of a pair."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sightline.reconstruction.pairwise.matching import (
    Matches,
    match_pair,
    match_symmetric,
    matches_of_pixels,
    nearest_neighbors,
    reciprocal_basins,
    reciprocal_matches,
    reciprocal_points,
)
from tests.parity.compare import Config, compare, read_config, read_io

CONF = 1e-6
"""Stated in words in the configuration: integers are exact."""


def cases(folder: Path) -> list[str]:
    return sorted({n.split(".")[0] for n in read_io(folder)} - {"desc1", "desc2"})


def run_case(folder: Path, case: str) -> None:
    config: Config = read_config(folder) | {"tolerance": CONF}
    io = read_io(folder)
    inputs = r"(?!.*\.(P1|P2|init_.|conf\d+|desc\d+)$)"
    compare(config, io, outputs(io, case), rf"{inputs}{case}\..*")


def pixels(index: Tensor, width: int) -> Tensor:
    return torch.stack([index % width, index // width], -1)


def outputs(io: dict[str, Tensor], case: str) -> Iterator[tuple[str, Tensor]]:
    if case == "pts":
        mutual, nearest = reciprocal_points(io["pts.P1"].numpy(), io["pts.P2"].numpy())
        yield "pts.reciprocal_in_P2", torch.from_numpy(mutual)
        yield "pts.nn2_in_P1", torch.from_numpy(nearest)
        return
    first, second = io["desc1"], io["desc2"]
    widths = (first.shape[1], second.shape[1])
    if case == "brute":
        flat1, flat2 = first.flatten(0, 1), second.flatten(0, 1)
        yield "brute.nn_1to2", nearest_neighbors(flat1, flat2)
        yield "brute.nn_2to1", nearest_neighbors(flat2, flat1, 300)
    elif match := re.fullmatch(r"fast_s(\d+)", case):
        options = {"subsample": int(match[1]), "block": 500}
        for name, index, width in zip(
            ("xy1", "xy2"), reciprocal_matches(first, second, **options), widths, strict=True
        ):
            yield f"{case}.{name}", pixels(index, width)
        index, basin = reciprocal_basins(first, second, **options)
        yield f"{case}.basin_xy1", pixels(index, widths[0])
        yield f"{case}.basin", basin
    elif match := re.fullmatch(r"fast_tol(\d+)", case):
        start = torch.stack([io[f"{case}.init_x"], io[f"{case}.init_y"]], -1)
        found = matches_of_pixels(first, second, start, tolerance=float(match[1]))
        for name, index, width in zip(("xy1", "xy2"), found, widths, strict=True):
            yield f"{case}.{name}", pixels(index, width)
    else:
        one = (first, io["nonsym.conf1"]), (second, io["nonsym.conf2"])
        if case == "nonsym":
            matches: Matches = match_pair(*one)
        else:
            other = (io["sym.desc12"], io["sym.conf12"]), (io["sym.desc22"], io["sym.conf22"])
            matches = match_symmetric((one[0], other[0]), (one[1], other[1]))
        for name, value in zip(("xy1", "xy2", "conf"), matches, strict=True):
            yield f"{case}.{name}", value
