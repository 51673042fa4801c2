import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.errors import CheckpointError, InputError, ShapeError
from sightline.metrics.lpips import Lpips, LpipsMetric, find_lpips, load_lpips, lpips_state
from sightline.protocols import Metric


def waves(net):
    """The network with weights from sines, which any program can make again."""
    model = Lpips(net)
    state = {}
    for i, (name, tensor) in enumerate(model.features.state_dict().items()):
        n = torch.arange(tensor.numel(), dtype=torch.float64)
        size = 2 / math.sqrt(tensor[0].numel()) if tensor.ndim == 4 else 0.01
        state[f"features.{name}"] = (size * torch.sin(0.7 * n + i)).float().reshape(tensor.shape)
    for i in range(5):
        name = f"lin{i}.model.1.weight"
        shape = model.state_dict()[name].shape
        n = torch.arange(shape[1], dtype=torch.float64)
        state[name] = torch.sin(0.3 * n + i).abs().float().reshape(shape)
    model.load_state_dict(state)
    return model


def pictures():
    rng = np.random.default_rng(0)
    target = rng.random((40, 52, 3))
    predicted = np.clip(target + 0.15 * rng.standard_normal(target.shape), 0, 1)
    return (torch.from_numpy(x).float().permute(2, 0, 1)[None] for x in (target, predicted))


@pytest.fixture(scope="module")
def alex():
    return waves("alex")


@pytest.mark.parametrize(
    ("net", "normalized", "raw"),
    [
        ("alex", 0.5514505505561829, 0.5699828863143921),
        ("vgg", 0.881081759929657, 0.8294930458068848),
    ],
)
def test_numbers_of_the_original(net, normalized, raw):
    # lpips 0.1.4 with the same weights: LPIPS(net)(a, b, normalize=True) and without.
    model = waves(net)
    a, b = pictures()
    assert float(model(a, b)) == pytest.approx(normalized, rel=1e-5)
    assert float(model(a, b, normalize=False)) == pytest.approx(raw, rel=1e-5)


def test_equal_pictures_have_no_distance_and_finite_gradients(alex):
    a, b = pictures()
    assert float(alex(a, a)) == 0
    b.requires_grad_()
    alex(torch.zeros_like(b), b * 0).sum().backward()
    assert b.grad is not None
    assert torch.isfinite(b.grad).all()


def test_masks(alex):
    a, b = pictures()
    full = torch.ones(1, 40, 52, dtype=torch.bool)
    torch.testing.assert_close(alex(a, b, full), alex(a, b))
    mask = full.clone()
    mask[:, :, 26:] = False
    half = alex(a, b, mask)
    rubbish = a.clone()
    rubbish[..., 26:] = torch.nan
    torch.testing.assert_close(alex(rubbish, b, mask), half)
    # The masked half does not count as perfect: the distance stays near the whole picture's.
    assert float(half) > 0.7 * float(alex(a, b))


def test_official_files_in_all_their_shapes_load_strictly(alex, tmp_path: Path):
    state = alex.state_dict()
    trunk = {n: t for n, t in state.items() if n.startswith("features.")}
    heads = {n: t for n, t in state.items() if n.startswith("lin")}
    torch.save({**trunk, "classifier.1.weight": torch.zeros(2, 2)}, tmp_path / "trunk.pth")
    torch.save(heads, tmp_path / "heads.pth")
    slices = {"0": 1, "3": 2, "6": 3, "8": 4, "10": 5}
    whole = {"scaling_layer.shift": alex.shift, **heads}
    for name, tensor in trunk.items():
        index, rest = name.removeprefix("features.").split(".")
        whole[f"net.slice{slices[index]}.{index}.{rest}"] = tensor
    for name, tensor in heads.items():
        whole[name.replace("lin", "lins.", 1)] = tensor
    torch.save(whole, tmp_path / "whole.pth")
    in_splatt3r = {f"lpips_criterion.{n}": t for n, t in whole.items()} | {
        "encoder.x": torch.zeros(1)
    }
    torch.save({"state_dict": in_splatt3r}, tmp_path / "splatt3r.ckpt")
    for files in (["trunk.pth", "heads.pth"], ["whole.pth"], ["splatt3r.ckpt"]):
        loaded = load_lpips("alex", [tmp_path / f for f in files])
        assert loaded.state_dict().keys() == state.keys()
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, state[name])
        assert not loaded.training
    assert lpips_state(whole).keys() == state.keys()


def test_wrong_files_say_so(alex, tmp_path: Path):
    torch.save({"something": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(
        CheckpointError, match="expected LPIPS trunk or head weights in .*other.pth"
    ):
        load_lpips("alex", [tmp_path / "other.pth"])
    torch.save(alex.state_dict(), tmp_path / "alex.pth")
    with pytest.raises(CheckpointError, match="expected the 31 tensors of Lpips"):
        load_lpips("vgg", [tmp_path / "alex.pth"])


def test_the_cache_is_searched_and_an_absent_measure_has_its_reason(
    alex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(os.environ, "TORCH_HOME", str(tmp_path))
    metric, reason = find_lpips()
    assert metric is None
    assert "put torchvision's alexnet*.pth and the lpips package's alex.pth into" in reason
    with pytest.raises(InputError, match=r"LPIPS \(vgg\) needs its weights"):
        load_lpips("vgg")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    state = alex.state_dict()
    for name, start in (("alexnet-owt-7be5be79.pth", "features"), ("alex.pth", "lin")):
        torch.save({n: t for n, t in state.items() if n.startswith(start)}, folder / name)
    metric, reason = find_lpips()
    assert reason == ""
    assert isinstance(metric, Metric)
    assert (metric.name, metric.unit, metric.higher_is_better) == ("lpips", "", False)
    a, b = pictures()
    torch.testing.assert_close(
        metric(torch.cat([a, b]), torch.cat([b, b])), torch.cat([alex(a, b), torch.zeros(1)])
    )
    assert LpipsMetric(alex, normalize=False).name == "lpips_unnormalized"


def test_tiny_pictures_are_refused(alex):
    with pytest.raises(ShapeError, match="at least 31 x 31, got 30 x 40"):
        alex(torch.zeros(1, 3, 30, 40), torch.zeros(1, 3, 30, 40))
    assert torch.isfinite(alex(torch.zeros(1, 3, 31, 31), torch.ones(1, 3, 31, 31))).all()
