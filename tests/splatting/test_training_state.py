import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from sightline.errors import CheckpointError
from sightline.splatting.training_state import read_state, write_state


def test_tensors_and_facts_come_back_exactly(tmp_path):
    path = tmp_path / "state.safetensors"
    tensors = {"a.b": torch.randn(5, 3), "c": torch.arange(4), "empty": torch.zeros(0, 2)}
    facts = {"fingerprint": "f", "step": 7, "history": {"loss": [0.1, 1 / 3]}}
    write_state(path, tensors, facts)
    again, known = read_state(path, "f")
    assert set(again) == set(tensors)
    assert all(torch.equal(again[name], value) for name, value in tensors.items())
    assert known["history"] == facts["history"]
    assert known["step"] == 7


def test_a_new_state_replaces_the_old_one(tmp_path):
    path = tmp_path / "state.safetensors"
    for step in (1, 2):
        write_state(path, {"a": torch.full((2,), step)}, {"fingerprint": "", "step": step})
    assert read_state(path, "")[1]["step"] == 2
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_other_inputs_are_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    write_state(path, {}, {"fingerprint": "one"})
    with pytest.raises(CheckpointError, match="belongs to other pictures, cameras, options or"):
        read_state(path, "two")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="is no splat training state; remove it to start"):
        read_state(path, "")
    save_file({"weight": torch.zeros(3)}, path, metadata={"state": "[1, 2]"})
    with pytest.raises(CheckpointError, match="is no splat training state"):
        read_state(path, "")
    save_file({"weight": torch.zeros(3)}, path, metadata={"state": "{"})
    with pytest.raises(CheckpointError, match="unreadable file"):
        read_state(path, "")


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    with pytest.raises(CheckpointError, match="unreadable file"):
        read_state(path, "")
    write_state(path, {"a": torch.zeros(1000)}, {"fingerprint": ""})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="unreadable file"):
        read_state(path, "")
    # A header that declares far more than the file holds.
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    with pytest.raises(CheckpointError, match="unreadable file"):
        read_state(path, "")
