from collections.abc import Sequence
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from sightline.backbones.controls import CoordinateBackbone
from sightline.backbones.fusion import (
    FusedPairNetwork,
    FusionAdapter,
    Mode,
    Site,
    TokenFusion,
    align_tokens,
    features_on_grid,
)
from sightline.errors import InputError
from sightline.models.dust3r import AsymmetricCroCo3DStereo
from sightline.models.splatt3r import Splatt3R
from sightline.types import Features
from tests.backbones import tiny

TINY: dict[str, Any] = {
    "patch_size": 16,
    "enc_embed_dim": 32,
    "enc_depth": 1,
    "enc_num_heads": 2,
    "dec_embed_dim": 64,
    "dec_depth": 4,
    "dec_num_heads": 2,
    "dpt": {"feature_dim": 8, "last_dim": 4, "layer_dims": [4, 4, 8, 8]},
}


class Means(nn.Module):
    """A backbone whose features are the mean colour and position of each patch."""

    patch_size = 14
    embed_dim = 3
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)

    def extract(self, images: Tensor, *, layers: Sequence[int]) -> list[Features]:
        assert images.shape[-1] % 14 == 0
        assert images.shape[-2] % 14 == 0
        patches = nn.functional.avg_pool2d(images, 14)
        return [Features(patches=patches, layer=layer, normed=True) for layer in layers]


def network(**options: Any) -> AsymmetricCroCo3DStereo:
    return AsymmetricCroCo3DStereo(head_type="dpt", **{**TINY, **options}).eval()


def views(batch: int = 2) -> list[dict[str, Any]]:
    return [{"img": torch.rand(batch, 3, 32, 48) * 2 - 1} for _ in range(2)]


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("site", get_args(Site))
def test_a_fused_network_starts_as_the_original(mode: Mode, site: Site) -> None:
    model = network()
    fused = FusedPairNetwork(model, Means(), mode, site).eval()
    pair = views()
    for result, want in zip(fused(*pair), model(*pair), strict=True):
        assert result.keys() == want.keys()
        for name, value in result.items():
            assert torch.equal(value, want[name])
    for module in fused.modules():
        if isinstance(module, TokenFusion):
            nn.init.normal_(module.out.weight, std=0.1)
    changed = fused(*pair)
    assert not torch.allclose(changed[0]["pts3d"], model(*pair)[0]["pts3d"], atol=1e-4)
    (changed[0]["conf"].sum() + changed[1]["conf"].sum()).backward()
    dead = [n for n, p in fused.fusion.named_parameters() if p.grad is None]
    assert not dead


def test_sites_have_their_adapters() -> None:
    def names(site: Site) -> set[str]:
        fused = FusedPairNetwork(network(), Means(), "add", site)
        return {".".join(n.split(".")[1:3]) for n in fused.fusion.state_dict()}

    assert names("encoder") == {"0.0"}
    assert names("decoder") == {"0.4", "1.4"}
    assert names("head") == {f"{view}.{entry}" for view in (0, 1) for entry in (0, 2, 3, 4)}


def test_stored_portraits_are_seen_upright() -> None:
    fused = FusedPairNetwork(network(), Means(), "concat", "decoder").eval()
    for module in fused.modules():
        if isinstance(module, TokenFusion):
            nn.init.normal_(module.out.weight, std=0.1)
    tall, other = ({"img": torch.rand(2, 3, 48, 32) * 2 - 1} for _ in range(2))
    upright = fused(tall, other)
    fused.network.landscape_only = True
    shape = torch.tensor([[48, 32], [48, 32]])
    stored = [{"img": v["img"].mT, "true_shape": shape} for v in (tall, other)]
    for result, want in zip(fused(*stored), upright, strict=True):
        for name, value in result.items():
            assert torch.allclose(value.transpose(1, 2), want[name], atol=1e-5)
    mixed = {"img": torch.cat((stored[0]["img"][:1], views()[0]["img"][:1]))}
    mixed["true_shape"] = torch.tensor([[48, 32], [32, 48]])
    result = fused(mixed, mixed)[0]["conf"][:1].transpose(1, 2)
    assert torch.allclose(result, fused_alone(fused, tall), atol=1e-5)


def fused_alone(fused: FusedPairNetwork, view: dict[str, Any]) -> Tensor:
    fused.network.landscape_only = False
    one = {"img": view["img"][:1]}
    return fused(one, one)[0]["conf"]


def test_symmetrized_batches() -> None:
    fused = FusedPairNetwork(network(), Means(), "add", "head").eval()
    a, b = views(4)
    a["img"][1::2], b["img"][1::2] = b["img"][::2], a["img"][::2]
    plain = fused(a, b)
    a["instance"], b["instance"] = ["0", "1", "2", "3"], ["1", "0", "3", "2"]
    halved = fused(a, b)
    assert torch.allclose(plain[1]["conf"], halved[1]["conf"], atol=1e-6)


def test_it_takes_the_place_of_a_splatt3r_encoder() -> None:
    model: Any = Splatt3R(hidden_dim_factor=1.0, **TINY).eval()
    pair = views(1)
    want = model(*pair)[0]["means"]
    model.encoder = FusedPairNetwork(model.encoder, Means(), "gated", "head")
    assert torch.equal(model.eval()(*pair)[0]["means"], want)


def test_patches_coincide_when_the_picture_is_resized() -> None:
    ramp = torch.linspace(0.1, 0.9, 96).expand(1, 3, 64, 96)
    tokens = features_on_grid(Means(), ramp, (4, 6))
    want = nn.functional.avg_pool2d(ramp, 16).flatten(2).mT
    assert torch.allclose(tokens, want, atol=1e-3)
    rough = features_on_grid(Means(), ramp, (4, 6), alignment="features")
    assert rough.shape == tokens.shape
    assert not torch.allclose(rough, want, atol=1e-2)


def test_grids_are_resized_only_when_they_differ() -> None:
    tokens = torch.randn(2, 6, 5)
    assert align_tokens(tokens, (2, 3), (2, 3)) is tokens
    assert align_tokens(tokens, (2, 3), (4, 5)).shape == (2, 20, 5)
    flat = torch.ones(1, 6, 5)
    assert torch.allclose(align_tokens(flat, (2, 3), (3, 4)), torch.ones(1, 12, 5))


def test_published_names() -> None:
    def names(mode: Any, first: int, second: int) -> set[str]:
        return {n.split(".")[0] for n in FusionAdapter(mode, first, second, 64).state_dict()}

    assert names("concat", 64, 64) == {"mast3r_proj", "dinov2_proj", "output_proj"}
    assert names("add", 64, 64) == set()
    assert names("add", 64, 32) == {"dinov2_proj"}
    assert names("add", 32, 64) == {"mast3r_proj", "dinov2_proj"}
    assert names("weighted_sum", 32, 64) == {"mast3r_proj", "dinov2_weight"}
    assert names("gated", 64, 64) == {"mast3r_proj", "dinov2_proj", "gate"}


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="multiple of 32 groups, got 48"):
        FusionAdapter("add", 48, 48, 48)


def test_backbones_of_their_own_grid_are_read_where_the_patches_are() -> None:
    images = torch.rand(2, 3, 48, 80)
    # The control's u and v are linear, so they tell exactly where it was read.
    tokens = features_on_grid(CoordinateBackbone(rgb=False), images, (3, 5))
    assert tokens.shape == (2, 15, 3)
    assert not tokens[..., 0].any()  # every picture alone, although it numbers views
    grid = tokens[1].unflatten(0, (3, 5))
    torch.testing.assert_close(grid[0, :, 1], torch.linspace(0, 1, 5))
    torch.manual_seed(0)
    square = tiny.BACKBONES["sam2"]()
    found = features_on_grid(square, images, (3, 5), alignment="image")
    resized = nn.functional.interpolate(images, (48, 80), mode="bicubic", antialias=True)
    maps = square.extract(resized.clamp(0, 1), layers=[-1])[0].patches
    want = nn.functional.interpolate(maps, (3, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, want.flatten(2).mT, atol=1e-5, rtol=1e-4)
    convnext = tiny.BACKBONES["convnext"]()
    assert features_on_grid(convnext, images, (3, 5)).shape == (2, 15, 16)
