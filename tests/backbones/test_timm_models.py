"""A stand-in with timm's interface, since timm itself brings torchvision."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.backbones import create_backbone
from sightline.checkpoints import save_weights
from sightline.errors import CheckpointError, InputError


class Fake(nn.Module):
    """A ViT of timm: two blocks, a class token, a register, an interface of intermediates."""

    def __init__(self, dynamic_img_size: bool = False) -> None:
        super().__init__()
        self.dynamic_img_size = dynamic_img_size
        self.num_prefix_tokens = 2
        self.pretrained_cfg = {
            "mean": (0.1, 0.2, 0.3),
            "std": (0.5, 0.5, 0.5),
            "input_size": (3, 32, 32),
            "fixed_input_size": True,
        }
        self.feature_info = [{"num_chs": 6, "reduction": 8}] * 2
        self.proj = nn.Conv2d(3, 6, 8, 8)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: list[int],
        norm: bool,
        output_fmt: str,
        intermediates_only: bool,
        return_prefix_tokens: bool,
    ) -> list[tuple[Tensor, Tensor]]:
        assert output_fmt == "NCHW"
        assert intermediates_only
        assert return_prefix_tokens
        assert self.dynamic_img_size or x.shape[-2:] == (32, 32)
        maps = self.proj(x)
        prefix = torch.stack((maps.mean((-2, -1)), maps.amax((-2, -1))), 1)
        return [(maps * (i + 1), prefix) for i in indices]


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module: Any = ModuleType("timm")

    def create_model(name: str, pretrained: bool, num_classes: int, **options: Any) -> nn.Module:
        assert not pretrained
        if name == "vit_fake":
            return Fake(**options)
        if name == "vit_fixed":
            if options:
                raise TypeError("unexpected keyword")
            return Fake()
        raise RuntimeError("Unknown model")

    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


def test_timm_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="needs the timm package, which brings torchvision"):
        create_backbone("timm:vit_base_patch16_224", device="cpu")


def test_models_of_timm(timm: ModuleType, tmp_path: Path) -> None:
    images = torch.rand(2, 3, 40, 24)
    backbone: Any = create_backbone("random:timm:vit_fake", device="cpu")
    assert (backbone.mean, backbone.depth, backbone.patch_size) == ((0.1, 0.2, 0.3), 2, 8)
    last, first = backbone.extract(images, layers=[1, 0])
    mean = torch.tensor(backbone.mean).view(3, 1, 1)
    want = backbone.network.proj((images - mean) / 0.5)
    torch.testing.assert_close(first.patches, want)
    torch.testing.assert_close(last.patches, 2 * want)
    torch.testing.assert_close(first.cls, want.mean((-2, -1)))
    assert first.registers.shape == (2, 1, 6)
    file = tmp_path / "fake.safetensors"
    save_weights(backbone.network, file)
    again = create_backbone("timm:vit_fake", file, device="cpu")
    assert torch.equal(again.extract(images, layers=[0])[0].patches, first.patches)


def test_models_of_one_size_get_it(timm: ModuleType) -> None:
    backbone = create_backbone("random:timm:vit_fixed", device="cpu")
    assert backbone.extract(torch.rand(1, 3, 40, 24), layers=[0])[0].patches.shape[2:] == (4, 4)
    with pytest.raises(InputError, match="Fake takes pictures of 32x32 pixels only"):
        create_backbone("random:timm:vit_fixed", device="cpu", fit="pad")


def test_wrong_names_and_missing_weights(timm: ModuleType) -> None:
    with pytest.raises(InputError, match='timm has no model "vit_nothing"'):
        create_backbone("random:timm:vit_nothing", device="cpu")
    with pytest.raises(CheckpointError, match="never fetched: give a file with --checkpoint"):
        create_backbone("timm:vit_fake", device="cpu")
