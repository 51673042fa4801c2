"""Golden family pair_utils: focals, pair graphs, canonical views, anchors."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.reconstruction.pairwise.canonical import anchor_offsets, canonical_view
from sightline.reconstruction.pairwise.focal import estimate_focal
from sightline.reconstruction.pairwise.graph import make_pairs
from tests.parity.compare import Config, compare, read_config, read_io

SUBSAMPLE = 8


def cases(folder: Path) -> list[str]:
    return sorted({name.split(".")[0] for name in read_io(folder)})


def run_case(folder: Path, case: str) -> None:
    config, io = read_config(folder), read_io(folder)
    if case == "pairs":
        for name in sorted(n for n in io if n.startswith("pairs.")):
            check_pairs(config, name, io[name])
        return
    steps: dict[str, Any] = {"focal": focals, "canon": canon, "anchor": anchors}
    must = {"focal": r"focal\.(weis|med).*", "canon": r"canon\..*\..*", "anchor": r"anchor\.[io].*"}
    compare(config, io, steps[case](io), must[case])


def check_pairs(config: Config, name: str, want: Tensor) -> None:
    _, graph, option = name.split(".")
    filtered = option if option.startswith(("seq", "cyc")) else None
    counts = config["n_images"]
    count = counts["generic"]
    if filtered is not None:
        count = next(n for key, n in counts.items() if filtered in key.split("/"))
    got = make_pairs(graph, count, symmetrize=option != "sym0", prefilter=filtered)
    if "win" in graph:  # the original goes through an unordered set
        assert sorted(got) == sorted(map(tuple, want.tolist())), name
        assert len(set(got)) == len(got)
    else:
        assert got == [tuple(row) for row in want.tolist()], name


def focals(io: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    points, center = io["focal.pts3d"], io["focal.pp"]
    yield "focal.weiszfeld", estimate_focal(points, center)
    yield "focal.median", estimate_focal(points, center, mode="median")
    near = points * torch.tensor([0.1, 0.1, 1.0])
    yield "focal.weiszfeld_clip", estimate_focal(near, center, low=0.5, high=3.5)


def canon(io: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for mode in ("avg-angle", "avg-reldepth"):
        mean, relative, confidence = canonical_view(
            io["canon.ptmaps"], io["canon.confs"], SUBSAMPLE, mode
        )
        yield f"canon.{mode}.canon", mean
        yield f"canon.{mode}.canon2", relative
        yield f"canon.{mode}.conf", confidence


def anchors(io: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    index, offset = anchor_offsets(
        io["canon.avg-angle.canon2"], io["anchor.pixels"].long(), SUBSAMPLE
    )
    yield "anchor.idx", index
    yield "anchor.offset", offset
