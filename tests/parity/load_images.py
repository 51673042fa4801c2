"""Golden families load_images_dust3r and load_images_splatt3r: resizing, cropping, training crops."""

import re
from pathlib import Path

import numpy as np
import torch

from sightline.reconstruction.pairwise.images import crop_for_training, fit_dust3r, fit_splatt3r
from tests.parity.compare import read_io


def cases(folder: Path) -> list[str]:
    names = read_io(folder)
    crops = {m[1] for n in names if (m := re.match(r"(crop\d+)\.", n))}
    return sorted(n for n in names if n.startswith("out")) + sorted(crops)


def run_case(folder: Path, case: str) -> None:
    io = read_io(folder)
    if case.startswith("crop"):
        run_crop(io, case)
        return
    match = re.fullmatch(r"out(\d+)\.size(\d+)(?:\.sq(\d))?(?:\.patch(\d+))?", case)
    assert match is not None, case
    number, size, square, patch = match.groups()
    pixels = io[f"in{number}"].numpy()
    if folder.name == "load_images_splatt3r":
        made = fit_splatt3r(pixels, int(size))
    else:
        square_ok = square == "1" or patch is not None
        made = fit_dust3r(pixels, int(size), square_ok=square_ok, patch_size=int(patch or 16))
    assert torch.equal(torch.from_numpy(made.pixels.copy()), io[case])


def run_crop(io: dict[str, torch.Tensor], case: str) -> None:
    width, height = io[f"{case}.resolution_wh"].tolist()
    made = crop_for_training(
        io[f"{case}.in_img"].numpy(),
        io[f"{case}.in_depth"].numpy(),
        io[f"{case}.in_K"].numpy(),
        (width, height),
        aug_crop=int(io[f"{case}.aug_crop"]),
        rng=np.random.default_rng(int(io[f"{case}.rng_seed"])),
    )
    assert torch.equal(torch.from_numpy(made.pixels.copy()), io[f"{case}.img"])
    assert torch.equal(torch.from_numpy(made.depth.copy()), io[f"{case}.depth"])
    assert torch.allclose(torch.from_numpy(made.K), io[f"{case}.K"], rtol=1e-6, atol=1e-5)
