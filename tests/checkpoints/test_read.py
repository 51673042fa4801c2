"""Files of every kind are read, and hostile ones are answered with one sentence and run nothing."""

import io
import json
import pickle
import struct
import zipfile
from argparse import Namespace
from collections import OrderedDict, defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sightline.checkpoints import parse_constructor, read_checkpoint, read_weights
from sightline.checkpoints.pickled import Made, Name, read_pickle
from sightline.checkpoints.save import save_weights
from sightline.errors import FileFormatError, InputError


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(3, 5),
        "a.half": torch.randn(4).half(),
        "b.brain": torch.randn(2, 2).bfloat16(),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "turned": torch.randn(4, 6).t()[1:, ::2],
        "empty": torch.empty(0, 3),
    }


def equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("old", [False, True])
def test_torch_files_of_both_ages(old: bool, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"model": tensors()}, path, _use_new_zipfile_serialization=not old)
    checkpoint = read_checkpoint(path)
    equal(checkpoint.weights, tensors())
    assert (checkpoint.kind, checkpoint.inside, checkpoint.notes) == ("torch", "model", ())
    # A change in memory stays there.
    checkpoint.weights["a.weight"].zero_()
    equal(read_weights(path), tensors())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(protocol: int, tmp_path: Path) -> None:
    torch.save(OrderedDict(tensors()), tmp_path / "w.pt", pickle_protocol=protocol)
    equal(read_weights(tmp_path / "w.pt"), tensors())


def test_parameters_and_shared_numbers(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    state = {"p": nn.Parameter(base.view(3, 4)), "view": base[4:8], "same": base.view(3, 4)}
    torch.save(state, tmp_path / "w.pt")
    found = read_weights(tmp_path / "w.pt")
    assert torch.equal(found["p"], base.view(3, 4))
    assert torch.equal(found["view"], base[4:8])
    assert found["p"].data_ptr() == found["same"].data_ptr()


class Foreign:
    """Stands for a class of a training script that is not installed here."""

    def __init__(self) -> None:
        self.settings = {"lr": 0.1}


def test_lightning_checkpoints_with_foreign_classes(tmp_path: Path) -> None:
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {f"encoder.{name}": tensor for name, tensor in tensors().items()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
        "hyper_parameters": {
            "config": Foreign(),
            "folder": PurePosixPath("data"),
            "best": np.float64(0.5),
            "args": Namespace(lr=1),
            "counts": defaultdict(list, a=[1]),
            "chosen": {1, 2},
            "array": np.arange(3),
            "dtype": torch.float16,
            "device": torch.device("cpu"),
            "shape": torch.Size([1, 2]),
        },
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": ""}},
    }
    torch.save(content, tmp_path / "epoch=3.ckpt")
    checkpoint = read_checkpoint(tmp_path / "epoch=3.ckpt")
    equal(checkpoint.weights, {f"encoder.{name}": t for name, t in tensors().items()})
    assert checkpoint.notes == ("training checkpoint: state_dict inside, which was taken",)


def test_the_teacher_of_a_self_distillation_is_taken(tmp_path: Path) -> None:
    both = {"teacher": tensors(), "student": {"x": torch.ones(1)}, "epoch": 1}
    torch.save(both, tmp_path / "w.pth")
    checkpoint = read_checkpoint(tmp_path / "w.pth")
    equal(checkpoint.weights, tensors())
    assert checkpoint.inside == "teacher"


def test_a_whole_pickled_module_gives_its_state(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3)))
    torch.save(net, tmp_path / "net.pt")
    torch.save({"model": net, "optimizer": None}, tmp_path / "both.pt")
    for name in ("net.pt", "both.pt"):
        equal(read_weights(tmp_path / name), dict(net.state_dict()))


def test_constructor_texts_are_parsed(tmp_path: Path) -> None:
    text = "Net(pos_embed='RoPE100', img_size=(512, 512), mode=('exp', -inf, float('inf')), x=None)"
    torch.save({"args": Namespace(model=text), "model": tensors()}, tmp_path / "w.pth")
    found = read_checkpoint(tmp_path / "w.pth").constructor
    assert found is not None
    assert found.name == "Net"
    assert found.options == {
        "pos_embed": "RoPE100",
        "img_size": (512, 512),
        "mode": ("exp", float("-inf"), float("inf")),
        "x": None,
    }
    torch.save({"croco_kwargs": {"enc_depth": 24}, "model": tensors()}, tmp_path / "c.pth")
    assert read_checkpoint(tmp_path / "c.pth").config == {"enc_depth": 24}


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "Net(x=__import__('os'))",
        "Net(x=open('f'))",
        "Net(x=[i for i in 'ab'])",
        "Net(x=a.b)",
        "Net(**{'a': 1})",
        "Net(1)",
        "Net(x=2**999)",
        "Net(x=" + "(" * 500 + ")" * 500 + ")",
        "Net(x=" + "-" * 3000 + "1)",
        "Net(x='" + "a" * 9000 + "')",
        "",
    ],
)
def test_texts_with_anything_else_are_refused(text: str) -> None:
    with pytest.raises(FileFormatError, match="expected a constructor with plain values"):
        parse_constructor(text)


def shards(folder: Path, suffix: str) -> Path:
    parts = [dict(list(tensors().items())[:3]), dict(list(tensors().items())[3:])]
    table = {}
    for index, part in enumerate(parts, 1):
        name = f"part-{index:05}-of-00002{suffix}"
        if suffix == ".safetensors":
            save_file({n: t.contiguous() for n, t in part.items()}, folder / name)
        else:
            torch.save(part, folder / name)
        table |= dict.fromkeys(part, name)
    stem = "model.safetensors" if suffix == ".safetensors" else "pytorch_model.bin"
    index = folder / f"{stem}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_sharded_sets(suffix: str, tmp_path: Path) -> None:
    index = shards(tmp_path, suffix)
    equal(read_weights(index), tensors())
    checkpoint = read_checkpoint(tmp_path)
    equal(checkpoint.weights, tensors())
    assert "2 files" in checkpoint.kind


def test_damaged_indices(tmp_path: Path) -> None:
    index = shards(tmp_path, ".safetensors")
    whole = json.loads(index.read_text())

    def refused(change: Any, error: type[Exception], text: str) -> None:
        index.write_text(change if isinstance(change, str) else json.dumps(change))
        with pytest.raises(error, match=text):
            read_weights(index)

    table = whole["weight_map"]
    for name in ("../secret.safetensors", "/etc/passwd", "a\\b", "..", ""):
        refused({"weight_map": table | {"a.weight": name}}, FileFormatError, "not beside it")
    refused({"weight_map": table | {"more": table["count"]}}, FileFormatError, "promises 1 tensors")
    refused({"weight_map": {"a": index.name}}, FileFormatError, "no shards")
    refused({"weight_map": {}}, FileFormatError, "found none")
    refused({"weight_map": 3}, FileFormatError, "weight_map")
    refused("[" * 100_000, FileFormatError, "weight_map")
    (tmp_path / table["count"]).unlink()
    refused(whole, InputError, "1 are missing")


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found none"):
        read_weights(tmp_path)
    torch.save(tensors(), tmp_path / "any.pth")
    equal(read_weights(tmp_path), tensors())
    torch.save(tensors(), tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"found 2 \(any.pth, other.pth\); give the file itself"):
        read_weights(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_weights(tmp_path / "none.pth")


# Hostile files.


class Bomb:
    """Unpickling this makes a file."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("exploded"),))


class Sneaky:
    def __reduce__(self) -> tuple:
        return (eval, ("__import__('pathlib').Path('exploded').touch()",))


@pytest.mark.parametrize("bomb", [Bomb(), Sneaky()])
def test_code_in_a_file_never_runs(
    bomb: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(bomb))
    assert Path("exploded").exists(), "the bomb works"
    Path("exploded").unlink()
    torch.save({"model": bomb}, tmp_path / "a.pth")
    torch.save({"model": bomb}, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "b.pth").write_bytes(pickle.dumps(bomb))
    (tmp_path / "d.pth").write_bytes(pickle.dumps(bomb, protocol=0))
    for name in ("a.pth", "b.pth", "c.pth", "d.pth"):
        with pytest.raises(FileFormatError) as error:
            read_weights(tmp_path / name)
        assert len(str(error.value).splitlines()) == 1
    # Beside honest tensors it is passed over, and still does not run.
    torch.save({"model": tensors(), "extra": bomb, "args": bomb}, tmp_path / "e.pth")
    equal(read_weights(tmp_path / "e.pth"), tensors())
    assert not Path("exploded").exists()


def test_names_stay_names() -> None:
    found = read_pickle(io.BytesIO(b"cos\nsystem\n(S'touch exploded'\ntR."), {})
    assert isinstance(found, Made)
    assert (found.path, found.args) == ("os.system", ("touch exploded",))
    found = read_pickle(io.BytesIO(b"(S'touch exploded'\nios\nsystem\n."), {})
    assert isinstance(found, Made)
    found = read_pickle(io.BytesIO(b"\x80\x04\x8c\x02os\x8c\x06system\x93."), {})
    assert isinstance(found, Name)
    # Setting the state of a name (here, of the reader's own functions) changes nothing.
    makers = {"a.b": dict}
    built = read_pickle(io.BytesIO(b"ca\nb\n}S'__call__'\nI1\nsb."), makers)
    assert isinstance(built, Name)


DEEP = 20_000


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\x80\x02" + b"]" * 3, "no end|damaged"),
        (b"\x80\x02j\xff\xff\xff\x7f.", "damaged"),  # a memo entry that was never put
        (b"\x80\x02.", "damaged"),  # nothing on the stack
        (b"\x80\x02t.", "damaged"),  # a tuple without a mark
        (b"\x80\x02\x82\x01.", "EXT1"),  # the extension registry
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"\x80\x02X\xff\xff\xff\x7f", "damaged"),  # a text of 2 GB that is not there
        (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f", "damaged"),  # one of 2^63 bytes
        (b"\x80\x02\x8b\xff\xff\xff\x7f", "damaged"),  # a number of 2 GB
        (b"I" + b"9" * 5000 + b"\n.", "damaged"),  # a number of 5000 digits
    ],
)
def test_hostile_pickles(data: bytes, text: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=text):
        read_pickle(io.BytesIO(data), {})
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", data)
    with pytest.raises(FileFormatError, match="w.pth is not a whole torch file"):
        read_weights(path)


def test_deep_nesting_and_huge_memo_numbers_do_no_harm(tmp_path: Path) -> None:
    nested = [
        b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",  # lists in lists
        b"\x80\x02)" + b"\x85" * DEEP + b".",  # tuples in tuples
        b"\x80\x02}" + b")" + b"\x85" * DEEP + b"Ns.",  # such a tuple as a key
        b"\x80\x02]r\xff\xff\xff\x7fj\xff\xff\xff\x7f.",  # memo entry 2^31 - 1
        b"\x80\x02}" + b"cx\ny\n)R" * 1000 + b".",
    ]
    for index, data in enumerate(nested):
        path = tmp_path / f"{index}.pth"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w/data.pkl", data)
        with pytest.raises(FileFormatError):
            read_weights(path)


def edited(path: Path, old: bytes, new: bytes) -> None:
    """Change the pickle inside a torch file."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            if name.endswith("data.pkl"):
                assert old in data
                data = data.replace(old, new)
            archive.writestr(name, data)


def test_tensors_that_claim_more_than_the_file_has(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    for new in (
        b"J\xff\xff\xff\x7f",  # a huge size
        b"J\xff\xff\xff\xff",  # a negative one
    ):
        torch.save({"w": torch.zeros(77)}, path)
        edited(path, b"KM\x85", new + b"\x85")
        with pytest.raises(FileFormatError, match="shape|numbers"):
            read_weights(path)
    # Overlapping numbers would grow without limit when they are copied.
    torch.save({"w": torch.zeros(1).expand(1 << 40)}, path)
    with pytest.raises(FileFormatError, match="needs more numbers than the file has"):
        read_weights(path)


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", b"\x80\x02]" + b"N" * 50_000_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(FileFormatError, match="compressed"):
        read_weights(path)


def test_endless_instructions_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.checkpoints.pickled.MAX_STEPS", 1000)
    with pytest.raises(FileFormatError, match="larger than that of any checkpoint"):
        read_pickle(io.BytesIO(b"\x80\x02" + b"N0" * 2000 + b"N."), {})


def header(path: Path, table: dict[str, Any], data: bytes = b"", length: int | None = None) -> None:
    text = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def test_hostile_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"

    def refused(text: str = "not a whole safetensors file") -> None:
        with pytest.raises(FileFormatError, match=text):
            read_weights(path)

    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header(path, {"a": entry}, bytes(8))
    assert read_weights(path)["a"].tolist() == [0, 0]
    header(path, {"a": entry}, bytes(4))
    refused()
    header(path, {"a": entry}, bytes(8), length=2**60)
    refused()
    header(path, {"a": entry | {"shape": [2**40], "data_offsets": [0, 2**42]}}, bytes(8))
    refused()
    header(path, {"a": entry | {"shape": [2**40]}}, bytes(8))
    refused()
    header(path, {"a": entry, "b": entry}, bytes(8))  # overlapping
    refused()
    header(path, {"a": entry, "b": entry | {"data_offsets": [16, 24]}}, bytes(24))  # a hole
    refused()
    header(path, {"a": entry | {"data_offsets": [8, 0]}}, bytes(8))
    refused()
    header(path, {"a": entry | {"dtype": "F99"}}, bytes(8))
    refused()
    path.write_bytes(struct.pack("<Q", 200_000) + b"[" * 200_000)
    refused()
    header(path, {})
    refused("found none")
    path.write_bytes(b"")
    refused()


def test_other_things_under_the_name_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    for content, text in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"hello", "neither a zip archive nor a pickle"),
        (b"", "it is empty"),
        (b"PK\x03\x04nothing", "damaged or missing"),
    ):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=text):
            read_weights(path)
    (tmp_path / "w.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(FileFormatError, match="Git LFS pointer"):
        read_weights(tmp_path / "w.safetensors")
    torch.save({"epoch": 3}, path)
    with pytest.raises(FileFormatError, match="expected named tensors"):
        read_weights(path)


@pytest.mark.parametrize("old", [False, True])
def test_truncated_torch_files(old: bool, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=not old)
    whole = path.read_bytes()
    for keep in (20, len(whole) // 3, len(whole) - 2000, len(whole) - 10):
        path.write_bytes(whole[:keep])
        with pytest.raises(FileFormatError, match="not a whole torch file"):
            read_weights(path)


@pytest.mark.filterwarnings("ignore")
def test_programs_and_quantised_weights_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("net/data.pkl", b"\x80\x02N.")
        archive.writestr("net/code/__torch__.py", b"")
    with pytest.raises(FileFormatError, match="TorchScript"):
        read_weights(tmp_path / "script.pt")
    weights = torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8)
    torch.save({"w": weights}, tmp_path / "q.pth")
    with pytest.raises(FileFormatError, match="quantised"):
        read_weights(tmp_path / "q.pth")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_same_weights_give_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for file in files:
        save_weights({"weight": torch.ones(2, 3)}, file)
    assert files[0].read_bytes() == files[1].read_bytes()
