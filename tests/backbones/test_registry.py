import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

import sightline
from sightline.backbones import ALIASES, BACKBONES, PREFIXES, _find, create_backbone
from sightline.checkpoints import save_weights
from sightline.errors import CheckpointError, InputError, UnknownNameError
from sightline.hub import CATALOGUE
from sightline.models import dinov2, dinov3, dinov3_convnext, networks
from sightline.models.sam2 import PUBLISHED as SAM2
from sightline.protocols import Backbone


@pytest.mark.parametrize("entry", sorted({*BACKBONES.values(), *PREFIXES.values()}))
def test_factories_and_networks_exist(entry: Any) -> None:
    module, function = entry.factory.split(":")
    assert callable(getattr(import_module(f"sightline.backbones.{module}"), function))
    if module == "networks":
        assert entry.source in networks.names()


def test_every_published_network_of_an_encoder_is_there() -> None:
    wanted = {*dinov2.MODELS, *dinov3.MODELS, *dinov3_convnext.MODELS, *SAM2}
    assert wanted <= BACKBONES.keys()
    assert dinov3.ALIASES.keys() <= ALIASES.keys()
    for name in ALIASES.values():
        assert name in BACKBONES or name.partition(":")[0] in PREFIXES


@pytest.mark.parametrize("name", sorted(networks.names()))
def test_names_of_published_networks_are_known(name: str) -> None:
    if name in ("vggt_1b_commercial", "vggt_omega_1b_256_text"):
        return  # other weights of the same networks: given as checkpoints
    assert _find(name).factory.startswith("networks:")


def test_import_brings_no_torch() -> None:
    code = (
        "import sys, sightline.backbones as b; assert b.BACKBONES\n"
        "print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.usefixtures("narrow")
def test_random_weights_are_drawn_from_the_seed_alone() -> None:
    images = torch.rand(1, 3, 28, 28)
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    first = create_backbone("random:dinov2_vits14", device="cpu")
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(4)
    second = sightline.create_backbone("random:dinov2-vits14", device="cpu", dtype=torch.float32)
    other = create_backbone("random:dinov2_vits14", device="cpu", seed=1)
    one, two, three = (b.extract(images, layers=[-1])[0].patches for b in (first, second, other))
    assert torch.equal(one, two)
    assert not torch.allclose(one, three)
    assert isinstance(first, Backbone)
    assert (first.patch_size, first.embed_dim) == (14, 32)


@pytest.mark.usefixtures("narrow")
def test_a_checkpoint_is_read(tmp_path: Any) -> None:
    network = dinov3.dinov3_vits16(pretrained=False)
    file = tmp_path / "small.safetensors"
    save_weights(network, file)
    images = torch.rand(1, 3, 32, 48)
    backbone = create_backbone("dinov3_small", file, device="cpu")
    want: Any = create_backbone("dinov3_vits16", str(file), device="cpu", norm=False)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))
    features: Any = network.eval().forward_features((images - mean) / std)
    found = backbone.extract(images, layers=[-1])[0].patches.flatten(2).mT
    torch.testing.assert_close(found, features["x_norm_patchtokens"])
    raw = want.extract(images, layers=[-1])[0].patches.flatten(2).mT
    torch.testing.assert_close(raw, features["x_prenorm"][:, 5:])
    with pytest.raises(CheckpointError, match="expected the 175 tensors of Dino"):
        create_backbone("dinov2_vits14", file, device="cpu")


@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov3_convnext_tiny", "vggt", "radio"])
def test_without_weights_three_ways_out_are_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("SIGHTLINE_CACHE", "HF_HUB_CACHE", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(CheckpointError) as found:
        create_backbone(name, device="cpu")
    text = str(found.value)
    assert "--checkpoint" in text
    assert "sightline models download" in text
    assert f"random:{name}" in text


@pytest.mark.usefixtures("narrow")
def test_published_weights_in_the_cache_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path))
    network = dinov2.dinov2_vits14(pretrained=False)
    address = urlsplit(CATALOGUE["dinov2_vits14"].sources[0])
    save_weights(network, tmp_path / "weights" / address.netloc / address.path[1:])
    backbone: Any = create_backbone("dinov2_vits14", device="cpu")
    for name, tensor in backbone.network.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])


def test_wrong_names_and_options_are_answered() -> None:
    with pytest.raises(UnknownNameError, match=r'no backbone "dinov2_vits15"; closest: dinov2_'):
        create_backbone("dinov2_vits15")
    with pytest.raises(UnknownNameError, match='no number type "float8"'):
        create_backbone("iuv", dtype="float8")
    with pytest.raises(UnknownNameError, match='no option of backbones "pad"'):
        create_backbone("iuv", pad=True)
    with pytest.raises(InputError, match='no device "gpu"; use auto, cpu or cuda'):
        create_backbone("iuv", device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA device on this machine for cuda"):
            create_backbone("iuv", device="cuda")
    for name in ("iuvrgb", "random", "random:dinov2_vits14"):
        with pytest.raises(InputError, match=f"{name} takes no weights, got the checkpoint a.pth"):
            create_backbone(name, "a.pth", device="cpu")
    with pytest.raises(InputError, match='fit must be "stretch" or "pad", got .square.'):
        create_backbone("random:dinov2_vits14", fit="square")


def test_controls_take_options_and_need_no_weights() -> None:
    for name in ("iuv", "iuvrgb", "random"):
        assert isinstance(create_backbone(name, device="cpu"), Backbone)
