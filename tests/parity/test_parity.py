"""Compare everything we build with golden reference values, case by case.

``pytest tests/parity --golden DIR [--golden DIR2]`` goes over every ``DIR/<family>/``. A family is
compared by the module that ``RUNNERS`` names, skipped with its reason when it stands in
``pending.txt``, and fails when it is neither.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import SHARED
from tests.parity import (
    convnext,
    croco,
    dino,
    dino_losses,
    fast_nn,
    fewshot,
    fusion,
    global_alignment,
    load_images,
    losses,
    pair_utils,
    pairs,
    pose_encoding,
    raster,
    rope2d,
    sam2,
    sparse_ga,
    splatt3r_utils,
    vggt,
    vggt_losses,
    vggt_omega,
)


class Runner(NamedTuple):
    """How one family is compared; any shape, count, seed and subset that its files hold."""

    cases: Callable[[Path], list[str]]
    run_case: Callable[[Path, str], None]


PAIR = Runner(pairs.cases, pairs.run_case)
VIT = Runner(dino.cases, dino.run_case)
RUNNERS = {
    "croco": Runner(croco.cases, croco.run_case),
    "croco_v1_cosine": Runner(croco.cases, croco.run_case),
    "dino_losses": Runner(dino_losses.cases, dino_losses.run_case),
    "dinov2": VIT,
    "dinov2_reg": VIT,
    "dinov2_swiglu_reg": VIT,
    "dinov3_convnext": Runner(convnext.cases, convnext.run_case),
    "dinov3_mlp": VIT,
    "dinov3_ropemax": VIT,
    "dinov3_swiglu": VIT,
    "dinov3_untied": VIT,
    "dust3r_dpt": PAIR,
    "dust3r_linear": PAIR,
    "fast_nn": Runner(fast_nn.cases, fast_nn.run_case),
    "fewshot": Runner(fewshot.cases, fewshot.run_case),
    "fusion": Runner(fusion.cases, fusion.run_case),
    "global_alignment": Runner(global_alignment.cases, global_alignment.run_case),
    "load_images_dust3r": Runner(load_images.cases, load_images.run_case),
    "load_images_splatt3r": Runner(load_images.cases, load_images.run_case),
    "losses": Runner(losses.cases, losses.run_case),
    "mast3r": PAIR,
    "pair_utils": Runner(pair_utils.cases, pair_utils.run_case),
    "pose_encoding": Runner(pose_encoding.cases, pose_encoding.run_case),
    "raster": Runner(raster.cases, raster.run_case),
    "rope2d": Runner(rope2d.cases, rope2d.run_case),
    "sam2_tiny": Runner(sam2.cases, sam2.run_case),
    "sparse_ga": Runner(sparse_ga.cases, sparse_ga.run_case),
    "splatt3r": PAIR,
    "splatt3r_utils": Runner(splatt3r_utils.cases, splatt3r_utils.run_case),
    "vggt": Runner(vggt.cases, vggt.run_case),
    "vggt_losses": Runner(vggt_losses.cases, vggt_losses.run_case),
    "vggt_omega": Runner(vggt_omega.cases, vggt_omega.run_case),
}


def pending() -> dict[str, str]:
    """Return family -> reason for the families that are not built yet."""
    lines = (Path(__file__).parent / "pending.txt").read_text(encoding="utf-8").splitlines()
    rows = (line.split(":", 1) for line in lines if line.strip() and not line.startswith("#"))
    return {family.strip(): reason.strip() for family, reason in rows}


def golden_roots(config: pytest.Config) -> list[Path]:
    given = config.getoption("--golden")
    if given:
        return given
    kept = Path(__file__).parents[1] / "golden"
    beside = SHARED / "golden"
    return [kept, beside] if beside.is_dir() else [kept]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    params = []
    waiting = pending()
    for number, root in enumerate(golden_roots(metafunc.config)):
        if not root.is_dir():
            raise pytest.UsageError(f"--golden {root} is not a folder")
        for folder in sorted(p for p in root.iterdir() if (p / "config.json").is_file()):
            runner = RUNNERS.get(folder.name)
            cases = runner.cases(folder) if runner else [""]
            for case in cases:
                name = f"{number}-{folder.name}" + (f"-{case}" if case else "")
                marks = []
                if runner is None and folder.name in waiting:
                    marks = [pytest.mark.skip(reason=waiting[folder.name])]
                params.append(pytest.param(folder, case, id=name, marks=marks))
    metafunc.parametrize(("folder", "case"), params)


def test_parity(folder: Path, case: str) -> None:
    assert folder.name in RUNNERS, (
        f'no runner for golden family "{folder.name}", and it is not in tests/parity/pending.txt'
    )
    json.loads((folder / "config.json").read_text(encoding="utf-8"))
    RUNNERS[folder.name].run_case(folder, case)
