"""Tensors on disk: the same bytes each time, and a full disk is told as everywhere."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sightline.errors import OutputError
from sightline.io.tensors import write_safetensors, write_torch

TENSORS = {"a": torch.rand(300, 400), "b": torch.arange(5)}


def test_both_kinds_come_back_and_repeat(tmp_path: Path) -> None:
    for name in "xy":
        write_torch(tmp_path / f"{name}.pt", {"model": TENSORS, "step": 3})
        write_safetensors(tmp_path / f"{name}.safetensors", TENSORS, {"note": "text"})
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    assert content["step"] == 3
    assert torch.equal(content["model"]["a"], TENSORS["a"])
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], TENSORS["a"])
    for suffix in (".pt", ".safetensors"):
        files = [(tmp_path / f"{name}{suffix}").read_bytes() for name in "xy"]
        assert files[0] == files[1]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files")
@pytest.mark.parametrize("write", [write_torch, write_safetensors])
def test_what_does_not_fit_is_told_and_leaves_nothing(write, tmp_path: Path) -> None:
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OutputError, match="file too large"):
            write(tmp_path / "a", TENSORS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())
