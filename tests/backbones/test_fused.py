from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sightline.backbones import create_backbone
from sightline.backbones.controls import CoordinateBackbone, NoiseBackbone
from sightline.backbones.extract import write_features
from sightline.backbones.fused import FusedBackbone
from sightline.backbones.grid import pixel_positions
from sightline.checkpoints import save_weights
from sightline.errors import InputError
from sightline.models.dinov3 import dinov3_vits16
from sightline.protocols import Backbone
from sightline.types import Features
from tests.backbones import tiny


def test_channels_stand_side_by_side_on_the_first_grid() -> None:
    torch.manual_seed(0)
    first, second = tiny.BACKBONES["dinov2"](fit="pad"), tiny.BACKBONES["dinov3"]()
    fused = FusedBackbone([first, second, CoordinateBackbone(rgb=False)])
    assert isinstance(fused, Backbone)
    assert fused.embed_dim == 16 + 32 + 3
    assert fused.sequence
    images = torch.rand(2, 3, 50, 75)
    (features,) = fused.extract(images, layers=[-1])
    assert features.patches.shape == (2, 51, 4, 6)
    (alone,) = first.extract(images, layers=[-1])
    assert torch.equal(features.patches[:, :16], alone.patches)
    # u and v of the control say where each patch of the first grid lies.
    positions = pixel_positions(features, (50, 75), fused)
    inside = (positions > 1).all(-1) & (positions < torch.tensor([74, 49])).all(-1)
    u, v = ((positions[..., 0] - 0.5) / 74, (positions[..., 1] - 0.5) / 49)
    torch.testing.assert_close(features.patches[0, 49][inside], u[inside].float())
    torch.testing.assert_close(features.patches[1, 50][inside], v[inside].float())
    assert features.cls is None


def test_equal_grids_are_not_resampled() -> None:
    torch.manual_seed(0)
    one, two = tiny.BACKBONES["dinov3"](), tiny.BACKBONES["dinov3"]()
    images = torch.rand(1, 3, 48, 32)
    (features,) = FusedBackbone([one, two]).extract(images, layers=[0])
    torch.testing.assert_close(
        features.patches[:, 32:], two.extract(images, layers=[0])[0].patches, atol=1e-5, rtol=1e-5
    )
    assert features.cls is not None
    assert features.cls.shape == (1, 64)
    assert FusedBackbone([one, two]).views_at_once(512, 512) == 4


class Blocks:
    """A backbone as users write them, with the least that is asked for."""

    patch_size, embed_dim, mean, std = 10, 3, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def extract(self, images: torch.Tensor, *, layers: Sequence[int]) -> list[Features]:
        patches = torch.nn.functional.adaptive_avg_pool2d(images, (3, 5))
        return [Features(patches=patches, layer=0, normed=False) for _ in layers]


def test_with_a_backbone_of_ones_own(tmp_path: Path) -> None:
    images = torch.rand(2, 3, 30, 50)
    for parts in ([Blocks(), NoiseBackbone()], [NoiseBackbone(), Blocks()]):
        fused = FusedBackbone(parts)
        (features,) = fused.extract(images, layers=[-1])
        own = (3, 5) if isinstance(parts[0], Blocks) else (2, 3)
        assert features.patches.shape == (2, 259, *own)
        assert pixel_positions(features, (30, 50), fused).shape == (*own, 2)
    Image.new("RGB", (50, 30)).save(tmp_path / "a.png")
    write_features([tmp_path / "a.png"], tmp_path / "out", FusedBackbone([Blocks(), Blocks()]))
    assert (tmp_path / "out" / "pca" / "a.png").is_file()


@pytest.mark.usefixtures("narrow")
def test_by_name(tmp_path: Path) -> None:
    backbone: Any = create_backbone("fused:random:dinov3_vits16+iuvrgb", device="cpu")
    assert backbone.embed_dim == 38
    file = tmp_path / "small.safetensors"
    save_weights(dinov3_vits16(pretrained=False), file)
    backbone = create_backbone("fused:dinov3_vits16+random", f"{file},", device="cpu")
    assert isinstance(backbone.parts[1], NoiseBackbone)
    with pytest.raises(InputError, match="expected 2 checkpoints separated by commas.*got 1"):
        create_backbone("fused:dinov3_vits16+random", str(file), device="cpu")
    with pytest.raises(InputError, match=r'expected two names or more joined by "\+"'):
        create_backbone("fused:iuv", device="cpu")
