"""Files are known by names and shapes alone: every published network, every size of our own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sightline import models
from sightline.checkpoints import load_strict, read_weights, save_weights
from sightline.errors import CheckpointError, InputError, UnknownNameError
from sightline.hub import CATALOGUE
from sightline.models.check import check_file
from sightline.models.networks import FAMILIES
from sightline.models.recognize import KNOWN, digest, explain, network_class, recognize
from tests.conftest import SHARED
from tests.models.test_round_trip import golden, same

SOME = (
    "dinov2_vits14",
    "dinov2_vitb14_reg",
    "dinov3_vits16plus",
    "dinov3_vitl16_sat493m",
    "dinov3_convnext_tiny",
    "CroCo",
    "CroCo_V2_ViTBase_SmallDecoder",
    "DUSt3R_ViTLarge_BaseDecoder_512_linear",
    "MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric",
    "splatt3r_v1.0",
    "vggt_1b_commercial",
    "vggt_omega_1b_512",
    "sam2_hiera_tiny",
    "sam2.1_hiera_small",
)


def plain(name: str) -> torch.nn.Module:
    """Return a published network with plain numbers, which is faster than drawing them."""
    model = models.load(name, False, device="meta").to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape) % 97)
    return model


@pytest.mark.parametrize("name", SOME)
def test_published_networks_are_known_by_name(name: str) -> None:
    entry = CATALOGUE[name]
    model = models.load(name, False, device="meta")
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == entry.parameters
    found = recognize(model.state_dict())
    assert found is not None
    assert found.family == entry.family
    assert name in found.names
    assert found.report.strict
    assert not found.assumed
    twin = network_class(found.family)(**found.options, device="meta")
    shapes = {n: t.shape for n, t in model.state_dict().items()}
    assert {n: t.shape for n, t in twin.state_dict().items()} == shapes


def test_what_cannot_be_told_apart_is_told() -> None:
    state = models.load("vggt_1b", False, device="meta").state_dict()
    found = recognize(state)
    assert found is not None
    assert found.names == ("vggt_1b", "vggt_1b_commercial")
    assert found.title == "vggt_1b or vggt_1b_commercial"


@pytest.mark.parametrize("family", sorted(models.BUILDERS.keys() - {"dinov3_integrated"}))
def test_other_sizes_are_built_from_the_file_alone(family: str, tmp_path: Path) -> None:
    folder = golden(family)
    official = read_weights(folder / "model.safetensors")
    found = recognize(official)
    assert found is not None
    assert found.report.strict
    assert found.names == ()
    assert found.family in FAMILIES
    # The same in a training checkpoint, behind the prefix that torch's wrappers add.
    wrapped = {f"module.{name}": tensor for name, tensor in official.items()}
    torch.save({"model": wrapped, "optimizer": {}, "epoch": 3}, tmp_path / "w.pth")
    loaded = models.load(tmp_path / "w.pth").state_dict()
    assert loaded.keys() == official.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in official.items())


def test_a_training_checkpoint_is_called_one(tmp_path: Path) -> None:
    state = read_weights(golden("dinov2") / "model.safetensors")
    torch.save({"model": state, "optimizer": {}}, tmp_path / "w.pth")
    check = check_file(tmp_path / "w.pth")
    assert check.strict
    assert check.checkpoint.notes == ("training checkpoint: model inside, which was taken",)


def test_heads_that_a_file_tells_in_words_are_taken(tmp_path: Path) -> None:
    from argparse import Namespace

    weights = read_weights(golden("mast3r") / "model.safetensors")
    text = "AsymmetricMASt3R(enc_num_heads=4, dec_num_heads=3, landscape_only=True, freeze='none')"
    torch.save({"args": Namespace(model=text), "model": weights}, tmp_path / "w.pth")
    model: Any = models.load(tmp_path / "w.pth")
    assert (model.enc_head_dim, model.dec_head_dim) == (8, 8)
    assert model.landscape_only is False


def sharded(state: dict[str, Tensor], folder: Path) -> Path:
    folder.mkdir()
    rows = list(state.items())
    table = {}
    for index, part in enumerate((dict(rows[::2]), dict(rows[1::2]))):
        name = f"model-{index}.safetensors"
        save_file({n: t.clone() for n, t in part.items()}, folder / name)
        table |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return folder


@pytest.mark.parametrize("family", sorted(models.BUILDERS.keys() - {"dinov3_integrated"}))
def test_lightning_and_sharded_files_come_back(family: str, tmp_path: Path) -> None:
    config = json.loads((golden(family) / "config.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    model = models.build(family, config)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    lightning = {"state_dict": state, "epoch": 1, "hyper_parameters": {"lr": 0.1}}
    torch.save(lightning, tmp_path / "w.ckpt")
    for path in (tmp_path / "w.ckpt", sharded(state, tmp_path / "shards")):
        twin = models.build(family, config | {"device": "meta"})
        load_strict(twin, read_weights(path))
        same(model, twin)


def test_one_door_for_names_and_files(tmp_path: Path) -> None:
    model = plain("dinov3_convnext_tiny")
    save_weights(model, tmp_path / "w.safetensors")
    for loaded in (
        models.load("dinov3_convnext_tiny", tmp_path / "w.safetensors"),
        models.load(str(tmp_path / "w.safetensors")),
        models.load(tmp_path),
    ):
        same(model, loaded)
    half = models.load(tmp_path / "w.safetensors", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_the_door_explains() -> None:
    with pytest.raises(
        UnknownNameError, match='no network "dinov4_vitl16"; closest: dinov3_vitl16'
    ):
        models.load("dinov4_vitl16")
    with pytest.raises(InputError, match=r"no_such.pth is none"):
        models.load("no_such.pth")
    for name in ("dinov2_vits14", "vggt_1b", "splatt3r_v1.0", "sam2_hiera_tiny"):
        with pytest.raises(
            CheckpointError, match=f"{name} is not on this machine and SIGHTLINE_OFF"
        ):
            models.load(name)


def test_another_size_or_family_is_named(tmp_path: Path) -> None:
    small = plain("dinov2_vits14")
    save_weights(small, tmp_path / "s.safetensors")
    with pytest.raises(CheckpointError) as error:
        models.load("dinov2_vitl14", tmp_path / "s.safetensors")
    text = str(error.value)
    assert "these are weights of dinov2_vits14, and dinov2_vitl14 was asked for" in text
    assert len(text.splitlines()) == 1
    with pytest.raises(
        CheckpointError, match="these are weights of dinov2_vits14, and vggt_1b was"
    ):
        models.load("vggt_1b", tmp_path / "s.safetensors")
    state = dict(small.state_dict())
    del state["blocks.3.norm1.weight"]
    assert explain(state) == "these are weights of dinov2_vits14, changed or incomplete"
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(CheckpointError, match="changed or incomplete"):
        models.load(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vision_model.encoder.layers.0.layer_norm1.weight", "CLIP or SigLIP"),
        ("model.layers.0.mlp.down_proj.weight_scale", "quantised"),
        ("fc.weight", "another network"),
    ],
)
def test_foreign_weights_are_named_where_they_are_known(name: str, text: str) -> None:
    assert text in explain({name: torch.ones(1)})


def test_hostile_shapes_build_nothing() -> None:
    for shape in ((0, 0), (1,), (2**40, 1, 1, 1)):
        state = {
            "cls_token": torch.empty(shape, device="meta"),
            "pos_embed": torch.empty(1, 5, 3, device="meta"),
            "mask_token": torch.empty(1, 3, device="meta"),
            "patch_embed.proj.weight": torch.empty(shape, device="meta"),
            "blocks.0.attn.qkv.weight": torch.empty(9, 3, device="meta"),
            "blocks.999999999.norm1.weight": torch.empty(1, device="meta"),
        }
        found = recognize(state)
        assert found is not None
        assert not found.report.strict


def test_a_check_reads_numbers_too(tmp_path: Path) -> None:
    state = read_weights(golden("dinov2") / "model.safetensors")
    state["norm.bias"][3] = torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    check = check_file(tmp_path / "nan.safetensors")
    assert not check.strict
    assert check.broken == ("norm.bias",)
    assert "norm.bias hold NaN or infinity" in check.verdict
    with pytest.raises(CheckpointError, match="NaN"):
        models.load(tmp_path / "nan.safetensors")


def test_held_groups_are_counted_apart() -> None:
    found = recognize(models.load("sam2.1_hiera_tiny", False, device="meta").state_dict())
    assert found is not None
    assert sum(found.report.held.values()) == 160
    found = recognize(models.load("splatt3r_v1.0", False, device="meta").state_dict())
    assert found is not None
    assert found.report.held == {"lpips_criterion": 22}


@pytest.mark.skipif(not (SHARED / "keys").is_dir(), reason="the key lists are not beside this")
def test_every_key_list_is_in_the_table() -> None:
    for path in sorted((SHARED / "keys").glob("*.tsv")):
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
        state = {
            name: torch.empty([int(n) for n in shape.split("x") if n], device="meta")
            for name, shape, _ in rows
        }
        assert path.stem in KNOWN[digest(state)]
