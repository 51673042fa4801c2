import pickle
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sightline.checkpoints import aliases, load_strict, read_weights, save_weights
from sightline.errors import CheckpointError, FileFormatError, InputError


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


class Bomb:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("exploded"),))


def test_code_in_a_file_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Bomb()}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Bomb()))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(FileFormatError, match="could run code"):
            read_weights(tmp_path / name)
    assert not Path("exploded").exists()


def test_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_weights(tmp_path / "none.pth")
    save_file({"a": torch.ones(100)}, tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[:-50])
    (tmp_path / "big.safetensors").write_bytes((2**60).to_bytes(8, "little") + whole[8:])
    for name in ("w.safetensors", "big.safetensors"):
        with pytest.raises(FileFormatError, match="not a whole safetensors file"):
            read_weights(tmp_path / name)
    torch.save({"a": torch.ones(100)}, tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pth").write_text("hello")
    for name in ("w.pth", "text.pth"):
        with pytest.raises(FileFormatError):
            read_weights(tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(FileFormatError, match="expected named tensors"):
        read_weights(tmp_path / "empty.pth")
