import json
from pathlib import Path

import pytest
import torch

from sightline.backbones.fusion import load_fused
from sightline.checkpoints import read_weights
from sightline.models.check import check_file
from sightline.reconstruction.pairwise.estimators import Splatt3rEstimator
from sightline.training.engine import train
from sightline.training.splatt3r import Splatt3rTask
from sightline.training.splatt3r.evaluate import score_pairs
from tests.training.splatt3r import small


def test_a_run_exports_what_reconstruct_loads(tmp_path: Path) -> None:
    chosen = small.settings(train="all", lr=1e-3, fusion="concat", site="head")
    task = Splatt3rTask(chosen)
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    train(task, tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "splatt3r.safetensors"
    found = check_file(file)
    assert found.strict, found.verdict
    weights = read_weights(file)
    changed = {name for name in weights if not torch.equal(weights[name], before[name])}
    assert changed <= {*task.trained, *(n.replace("layer_rn.0", "layer1_rn") for n in changed)} | {
        name for name in changed if ".layer_rn." in name
    }
    assert any(name.startswith("fusion.adapters.") for name in changed)
    again = load_fused(file).eval()
    task.eval()
    views = small.pairs().views()
    with torch.no_grad():
        torch.testing.assert_close(again(*views)[0]["means"], task.network(*views)[0]["means"])
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    assert state["facts"]["perceptual_loss"].startswith("gradients and structural similarity")
    assert state["facts"]["trained_tensors"] == len(task.trained)
    assert {"psnr", "ssim", "points"} <= state["metrics"]["validation"]["last"].keys()
    assert list((tmp_path / "run" / "pictures").rglob("*.png"))
    estimator = Splatt3rEstimator(checkpoint=file)
    assert type(estimator._network()).__name__ == "FusedSplatt3R"


def test_frozen_weights_do_not_move(tmp_path: Path) -> None:
    task = Splatt3rTask(small.settings(train="fusion", lr=1e-2, steps=2, warmup=0.0))
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    train(task, tmp_path / "run")
    for name, value in task.network.state_dict().items():
        moved = not torch.equal(value, before[name])
        assert moved == name.startswith("fusion.adapters."), name


def test_step_schedule() -> None:
    from sightline.training.task import Plan

    task = Splatt3rTask(small.settings(schedule="step", lr=1e-3))
    plan = Plan(steps=10, epoch_steps=10, rank=0, world=1, batch=2, device=torch.device("cpu"))
    task.begin(plan)
    (group, *_) = task.parameter_groups()
    rates = [task.rates(group, step)[0] for step in range(10)]
    assert rates == pytest.approx([1e-3] * 5 + [1e-4] * 5)


def test_scores_know_a_perfect_network_from_a_bad_one() -> None:
    class Exact(torch.nn.Module):
        def __init__(self, error: float) -> None:
            super().__init__()
            self.error = error

        def forward(self, view1: dict, view2: dict) -> tuple[dict, dict]:
            from tests.training.splatt3r.test_render import exact

            first, second = exact(small.pairs(64))
            for result in (first, second):
                for name in result:
                    if name.startswith("means"):
                        result[name] = result[name] + self.error
            return first, second

    batch = small.pairs(64)
    good, bad = (score_pairs(Exact(e), [batch]) for e in (0.0, 0.3))
    assert len(good) == 2
    for a, b in zip(good, bad, strict=True):
        assert a.psnr > b.psnr + 2
        assert a.ssim > b.ssim
        assert a.points < 1e-4
        assert a.lpips != a.lpips  # no weights, no number
        assert a.coverage == pytest.approx(b.coverage)
