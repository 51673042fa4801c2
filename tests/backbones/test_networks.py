from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.backbones import networks
from sightline.backbones.base import IMAGENET_MEAN, IMAGENET_STD, NetworkBackbone, split_tokens
from sightline.backbones.fusion import FusedPairNetwork
from sightline.backbones.grid import pixel_positions
from sightline.errors import InputError, ShapeError
from sightline.models.croco import Encoded
from sightline.protocols import Backbone
from tests.backbones import tiny

SIZE = (64, 96)


def normalised(images: Tensor, mean: Any = IMAGENET_MEAN, std: Any = IMAGENET_STD) -> Tensor:
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def same(features: Any, other: Any) -> None:
    assert (features.layer, features.normed) == (other.layer, other.normed)
    for name in ("patches", "cls", "registers"):
        one, two = getattr(features, name), getattr(other, name)
        assert (one is None) == (two is None)
        if one is not None:
            torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", tiny.BACKBONES)
def test_contract(family: str) -> None:
    backbone = tiny.BACKBONES[family]()
    assert isinstance(backbone, Backbone)
    images = torch.rand(3, 3, 50, 75)
    kept = images.clone()
    found = backbone.extract(images, layers=[-1, 0, -1])
    assert torch.equal(images, kept)
    assert [f.layer for f in found] == [backbone.depth - 1, 0, backbone.depth - 1]
    same(found[0], found[2])
    last = found[0]
    assert last.patches.shape[:2] == (3, backbone.embed_dim)
    assert last.patches.shape[2:] == backbone.placement(50, 75).grid
    assert not last.patches.is_inference()
    assert not last.patches.requires_grad
    assert pixel_positions(last, (50, 75), backbone).shape == (*last.patches.shape[2:], 2)
    # Each layer alone is what it is among others.
    same(backbone.extract(images, layers=[0])[0], found[1])
    with pytest.raises(InputError, match=f"from 0 to {backbone.depth - 1}.*got {backbone.depth}"):
        backbone.extract(images, layers=[0, backbone.depth])
    with pytest.raises(InputError, match="got none"):
        backbone.extract(images, layers=[])


@pytest.mark.parametrize("family", tiny.BACKBONES)
def test_chunks_give_what_one_batch_gives(family: str) -> None:
    torch.manual_seed(1)
    images = torch.rand(3, 3, 50, 75)
    torch.manual_seed(2)
    whole = tiny.BACKBONES[family](chunk=100)
    torch.manual_seed(2)
    parts = tiny.BACKBONES[family](chunk=2)
    for one, two in zip(
        whole.extract(images, layers=[0, -1]), parts.extract(images, layers=[0, -1]), strict=True
    ):
        same(one, two)
    assert (whole.views_at_once(50, 75) is None) == whole.sequence


@pytest.mark.parametrize("family", ["dinov2", "dinov3", "convnext"])
def test_dino_families_equal_the_network_itself(family: str) -> None:
    network = getattr(tiny, family)()
    read = getattr(networks, f"read_{family}")
    side = (32, 64) if family != "dinov2" else (28, 42)
    images = torch.rand(2, 3, *side)
    options: dict[str, Any] = {"depth": network.n_blocks, "patch_size": network.patch_size}
    backbone = NetworkBackbone(network, read, embed_dim=network.embed_dim, **options)
    found = backbone.extract(images, layers=[1, 2])
    want = network.get_intermediate_layers(
        normalised(images), n=[1, 2], reshape=True, return_class_token=True
    )
    for features, (patches, cls) in zip(found, want, strict=True):
        assert torch.equal(features.patches, patches)
        assert features.cls is not None
        assert torch.equal(features.cls, cls)
    raw = NetworkBackbone(network, read, embed_dim=network.embed_dim, norm=False, **options)
    (bare,) = raw.extract(images, layers=[-1])
    (want_bare,) = network.get_intermediate_layers(
        normalised(images), n=1, reshape=True, norm=False
    )
    assert torch.equal(bare.patches, want_bare)
    assert not bare.normed
    assert not torch.allclose(bare.patches, backbone.extract(images, layers=[-1])[0].patches)


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_registers_come_along(family: str) -> None:
    network = getattr(tiny, family)()
    images = torch.rand(2, 3, 2 * network.patch_size, 3 * network.patch_size)
    backbone = networks.vit(network, getattr(networks, f"read_{family}"))
    (features,) = backbone.extract(images, layers=[-1])
    want = network.forward_features(normalised(images))
    assert features.registers is not None
    torch.testing.assert_close(features.registers, want["x_norm_regtokens"])
    torch.testing.assert_close(features.patches.flatten(2).mT, want["x_norm_patchtokens"])


def test_untied_norms_of_dinov3() -> None:
    network = tiny.dinov3(untie_cls_and_patch_norms=True)
    images = torch.rand(1, 3, 32, 32)
    (features,) = networks.vit(network, networks.read_dinov3).extract(images, layers=[-1])
    want = network.forward_features(normalised(images))
    assert features.cls is not None
    torch.testing.assert_close(features.cls, want["x_norm_clstoken"])


def test_croco_encoder_equals_the_network_itself() -> None:
    network = tiny.croco()
    images = torch.rand(2, 3, *SIZE)
    blocks: list[Tensor] = []
    want = network.encode(normalised(images), blocks=blocks)
    first, last = networks.adapt_encoder(network).extract(images, layers=[0, -1])
    torch.testing.assert_close(last.patches.flatten(2).mT, want.tokens)
    torch.testing.assert_close(first.patches.flatten(2).mT, network.enc_norm(blocks[0]))
    (raw,) = networks.adapt_encoder(network, norm=False).extract(images, layers=[0])
    torch.testing.assert_close(raw.patches.flatten(2).mT, blocks[0])
    assert raw.cls is None


def test_decoder_looks_at_the_next_view() -> None:
    network = tiny.pair()
    images = torch.rand(3, 3, *SIZE)
    (features,) = networks.adapt_decoder(network).extract(images, layers=[-1])
    x = images * 2 - 1
    for view in range(3):
        pair = [network.encode(x[i : i + 1]) for i in (view, (view + 1) % 3)]
        lists = network.decode_pair(*pair)
        torch.testing.assert_close(
            features.patches[view].flatten(1).T, lists[0][-1][0], atol=1e-5, rtol=1e-4
        )
    (alone,) = networks.adapt_decoder(network).extract(images[:1], layers=[-1])
    own = Encoded(*network.encode(x[:1]))
    torch.testing.assert_close(
        alone.patches[0].flatten(1).T, network.decode_pair(own, own)[0][-1][0]
    )


@pytest.mark.parametrize("make", [tiny.aggregator, tiny.omega])
def test_aggregators_see_all_views_as_one_sequence(make: Any) -> None:
    network = make()
    backbone = networks.adapt_aggregator(network)
    patch = network.patch_size
    images = torch.rand(3, 3, 2 * patch, 3 * patch)
    (features,) = backbone.extract(images, layers=[0])
    layers, start = network(images[None], keep=[0])
    torch.testing.assert_close(features.patches.flatten(2).mT, layers[0][0, :, start:])
    assert features.cls is not None
    torch.testing.assert_close(features.cls, layers[0][0, :, 0])
    assert features.registers is not None
    assert features.registers.shape[1] == start - 1
    (other,) = backbone.extract(images[[0, 2, 1]], layers=[0])
    torch.testing.assert_close(other.patches[[0, 2, 1]], features.patches, atol=1e-4, rtol=1e-3)
    (alone,) = backbone.extract(images[:1], layers=[0])
    assert not torch.allclose(alone.patches[0], features.patches[0], atol=1e-4)
    halves = [networks.adapt_aggregator(network, half) for half in ("frame", "global")]
    joined = torch.cat([b.extract(images, layers=[0])[0].patches for b in halves], 1)
    torch.testing.assert_close(joined, features.patches)


def test_sam2_gives_its_pyramid() -> None:
    network = tiny.sam2()
    backbone = networks.adapt_sam2(network)
    images = torch.rand(2, 3, 64, 64)
    found = backbone.extract(images, layers=[2, 0])
    torch.testing.assert_close(found[0].patches, network.encode(normalised(images)).embedding)
    assert found[1].patches.shape[2:] == (16, 16)
    # The finer map has exact positions too.
    positions = pixel_positions(found[1], (48, 32), backbone)
    assert positions[0, 0].tolist() == [1.0, 1.5]


def test_padding_keeps_pixels_and_states_where_they_are() -> None:
    network = tiny.dinov2()
    backbone = networks.vit(network, networks.read_dinov2, fit="pad")
    images = torch.rand(1, 3, 26, 41)
    (features,) = backbone.extract(images, layers=[-1])
    padded = nn.functional.pad(normalised(images), (0, 1, 1, 1))
    want = network.forward_features(padded)["x_norm_patchtokens"]
    torch.testing.assert_close(features.patches.flatten(2).mT, want)
    assert pixel_positions(features, (26, 41), backbone)[0, 0].tolist() == [7.0, 6.0]


def test_features_may_enter_a_network_that_is_trained() -> None:
    backbone = tiny.BACKBONES["dinov3"]()
    fused = FusedPairNetwork(tiny.pair(enc_embed_dim=32), backbone, "concat").train()
    assert not backbone.network.training
    views = [{"img": torch.rand(1, 3, 32, 32)} for _ in range(2)]
    fused(*views)[0]["conf"].sum().backward()
    assert all(p.grad is None for p in backbone.parameters())
    assert any(p.grad is not None for p in fused.fusion.parameters())


def test_half_precision_weights() -> None:
    network = tiny.dinov3().to(torch.bfloat16)
    (features,) = networks.vit(network, networks.read_dinov3).extract(
        torch.rand(1, 3, 32, 32), layers=[-1]
    )
    assert features.patches.dtype == torch.float32


def test_no_pictures_are_refused() -> None:
    with pytest.raises(ShapeError, match="expected one picture or more"):
        tiny.BACKBONES["dinov3"]().extract(torch.zeros(0, 3, 32, 32), layers=[-1])


def test_tokens_have_to_fill_the_grid() -> None:
    with pytest.raises(ShapeError, match="expected 2x3 patch tokens behind 0 others, got 5"):
        split_tokens(torch.zeros(1, 5, 4), (2, 3))
