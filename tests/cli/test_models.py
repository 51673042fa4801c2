"""`sightline models`: list, check and download, as people type them."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sightline import models
from sightline.checkpoints import read_weights, save_weights
from sightline.cli import main
from sightline.hub import CATALOGUE, Entry
from tests.hub.server import serving
from tests.models.test_recognize import plain
from tests.models.test_round_trip import golden, same


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["models", *words])
    return int(stop.value.code or 0)


def test_list_shows_every_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    text = capsys.readouterr().out
    for name, entry in CATALOGUE.items():
        assert name in text
        assert entry.licence.split(" (")[0] in text
    assert run("list", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(CATALOGUE)
    assert all(row["cached"] is None for row in rows)
    assert {"parameters", "memory", "licence", "sources", "gated"} <= rows[0].keys()


@pytest.mark.parametrize("words", [["--help"], ["list"]])
def test_no_torch_before_it_is_needed(words: list[str]) -> None:
    code = (
        "import sys\nfrom sightline.cli import main\n"
        f"try:\n    main(['models', *{words!r}])\nexcept SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "assert not {'torch', 'numpy', 'safetensors'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_strict_match_exits_with_0(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("check", str(golden("dinov2") / "model.safetensors")) == 0
    shown = capsys.readouterr()
    assert "strict match: dinov2 of a size of its own (embed_dim 48)" in shown.out
    assert shown.err == ""
    save_weights(plain("dinov3_convnext_tiny"), tmp_path / "w.pth")
    assert run("check", str(tmp_path / "w.pth"), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["strict"]
    assert found["names"] == ["dinov3_convnext_tiny"]
    assert found["numbers"] == 27_820_128 + 2 * 768  # the last norm stands there twice


def test_anything_else_exits_with_2_and_the_report(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    state = read_weights(golden("dinov2") / "model.safetensors")
    state["norm.weight"] = torch.ones(5)
    state["extra"] = torch.ones(1)
    del state["blocks.0.norm1.bias"]
    save_file(state, tmp_path / "bad.safetensors")
    assert run("check", str(tmp_path / "bad.safetensors")) == 2
    shown = capsys.readouterr()
    assert "missing     1: blocks.0.norm1.bias" in shown.out
    assert "unexpected  1: extra" in shown.out
    assert "wrong shape 1: norm.weight (5,) instead of (48,)" in shown.out
    assert "changed or incomplete" in shown.err
    assert len(shown.err.strip().splitlines()) == 1


def test_names_cannot_drive_the_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    state = read_weights(golden("dinov2") / "model.safetensors")
    save_file({"\x1b[31mred\nline": torch.ones(1), **state}, tmp_path / "w.safetensors")
    assert run("check", str(tmp_path / "w.safetensors")) == 2
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert "?[31mred?line" in shown.out


class Bomb:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("exploded"),))


def test_hostile_files_give_one_sentence_and_run_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Bomb()}, "bomb.pth")
    Path("plain.pth").write_bytes(pickle.dumps(Bomb()))
    save_file({"a": torch.ones(1000)}, "cut.safetensors")
    whole = Path("cut.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(whole[:-100])
    Path("huge.safetensors").write_bytes((2**50).to_bytes(8, "little") + whole[8:])
    state = read_weights(golden("dinov2") / "model.safetensors")
    state["norm.bias"][0] = torch.nan
    save_file(state, "nan.safetensors")
    for name, text in (
        ("bomb.pth", "only code could make"),
        ("plain.pth", "stays unrun"),
        ("cut.safetensors", "not a whole safetensors file"),
        ("huge.safetensors", "not a whole safetensors file"),
        ("nan.safetensors", "norm.bias hold NaN"),
        ("none.pth", "does not exist"),
    ):
        assert run("check", name) == 2
        error = capsys.readouterr().err
        assert text in error
        assert len(error.strip().splitlines()) == 1
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["lits"], 'no action of models "lits"; closest: list'),
        (["check"], "give the file to check"),
        (["download"], "give what to download"),
        (["download", "--repo-id", "a/b"], "give what to download"),
        (["download", "dinov2_vits15"], "closest: dinov2_vits14"),
        (["download", "dinov2_vits14"], "switches the network off"),
        (["download", "http://example.org/w.pth"], "expected an https address"),
    ],
)
def test_wrong_usage(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert text in error
    assert len(error.strip().splitlines()) == 1


def test_download_prints_the_path(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SIGHTLINE_OFFLINE")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with serving() as site:
        monkeypatch.setenv("HF_ENDPOINT", site.url)
        site.files["/w.pth"] = b"weights"
        site.files["/owner/name/resolve/main/w.pt"] = b"others"
        entry = Entry(
            name="thing",
            family="dinov2",
            network="thing",
            parameters=1,
            sources=(f"{site.url}/w.pth",),
            licence="A licence",
        )
        monkeypatch.setitem(CATALOGUE, "thing", entry)
        assert run("download", "thing", "--target-dir", str(tmp_path / "mine")) == 0
        shown = capsys.readouterr()
        assert shown.out == f"{tmp_path / 'mine' / 'w.pth'}\n"
        assert "licence of these weights: A licence" in shown.err
        words = ["--repo-id", "owner/name", "--filename", "w.pt", "--json"]
        assert run("download", *words) == 0
        found = json.loads(capsys.readouterr().out)
        assert Path(found["path"]).read_bytes() == b"others"
        assert len(found["sha256"]) == 64
        assert run("download", "owner/name/w.pt", "--target-dir", str(tmp_path / "t")) == 0
        assert (tmp_path / "t" / "w.pt").read_bytes() == b"others"


def test_builders_fetch_when_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain("dinov3_convnext_tiny")
    save_weights(model, tmp_path / "w.safetensors")
    monkeypatch.delenv("SIGHTLINE_OFFLINE")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    from sightline.models.dinov3_convnext import dinov3_convnext_tiny

    with serving() as site:
        monkeypatch.setenv("HF_ENDPOINT", site.url)
        address = "facebook/dinov3-convnext-tiny-pretrain-lvd1689m/resolve/main/model.safetensors"
        site.files[f"/{address}"] = (tmp_path / "w.safetensors").read_bytes()
        same(dinov3_convnext_tiny(pretrained=True), model)
    same(models.load("dinov3_convnext_tiny"), model)  # from the cache: the server is gone
