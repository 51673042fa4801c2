from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn

from sightline.checkpoints import aliases, compare, load_strict, read_weights, save_weights
from sightline.errors import CheckpointError


class Net(nn.Module):
    def __init__(self, width: int = 4, device: str | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, width, device=device) for _ in range(2))
        self.norm = nn.LayerNorm(width, device=device)
        self.norms = nn.ModuleList([nn.Identity(), self.norm])


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_round_trip_keeps_the_names(tmp_path: Path, suffix: str, device: str) -> None:
    net, twin = Net(), Net(device=device)
    save_weights(net, tmp_path / f"w{suffix}")
    state = read_weights(tmp_path / f"w{suffix}")
    assert state.keys() == net.state_dict().keys()
    load_strict(twin, state)
    assert same(net, twin)
    assert twin.norms[1].weight is twin.norm.weight


def test_wrappers_and_prefixes(tmp_path: Path) -> None:
    net = Net()
    state = {f"module.backbone.{k}": v for k, v in net.state_dict().items()}
    content = {"teacher": state | {"module.head.weight": torch.ones(1)}, "epoch": 3}
    torch.save(content, tmp_path / "w.pth")
    twin = Net()
    load_strict(twin, read_weights(tmp_path / "w.pth"))
    assert same(net, twin)
    torch.save({"args": Namespace(model="Net(4)"), "model": net.state_dict()}, tmp_path / "n.pth")
    load_strict(Net(), read_weights(tmp_path / "n.pth"))


def test_chunked_block_names() -> None:
    net, twin = Net(), Net()
    state = {k.replace("blocks.1.", "blocks.0.1."): v for k, v in net.state_dict().items()}
    state = {k.replace("blocks.0.weight", "blocks.0.0.weight"): v for k, v in state.items()}
    load_strict(twin, state)
    assert same(net, twin)


@pytest.mark.parametrize("dropped", ["norm.", "norms.1."])
def test_tensors_with_two_names_may_be_given_once(dropped: str) -> None:
    net, twin = Net(), Net()
    nn.init.normal_(net.norm.weight)
    assert sorted(map(sorted, aliases(net))) == [
        ["norm.bias", "norms.1.bias"],
        ["norm.weight", "norms.1.weight"],
    ]
    load_strict(twin, {k: v for k, v in net.state_dict().items() if not k.startswith(dropped)})
    assert same(net, twin)


def test_differences_are_told() -> None:
    state = Net(6).state_dict()
    del state["blocks.0.bias"]
    state["extra.weight"] = torch.ones(1)
    with pytest.raises(CheckpointError) as error:
        load_strict(Net(), state, "w.pth")
    text = str(error.value)
    assert "1 missing: blocks.0.bias" in text
    assert "1 unexpected: extra.weight" in text
    assert "wrong shape: blocks.0.weight (6, 6) instead of (4, 4)" in text
    assert "w.pth" in text


def test_broken_numbers_are_refused() -> None:
    state = Net().state_dict()
    state["blocks.0.bias"] = torch.full((4,), torch.nan)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.bias hold NaN or infinity"):
        load_strict(Net(), state)


def test_a_report_tells_what_was_dropped_and_held() -> None:
    net = Net()
    net.held_names = frozenset({"norm.weight", "norm.bias"})  # type: ignore[assignment]
    state = {f"module.{k}": v for k, v in net.state_dict().items()} | {"head.weight": torch.ones(1)}
    report = compare(net, state)
    assert report.strict
    assert (report.prefix, report.outside, report.held) == ("module.", 1, {"norm": 2})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_broken_numbers_of_every_kind(dtype: torch.dtype) -> None:
    state = Net().state_dict()
    state["norm.bias"] = torch.tensor([0.0, 1.0, torch.nan, 2.0]).to(dtype)
    state["norms.1.bias"] = state["norm.bias"]
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        load_strict(Net(), state)
