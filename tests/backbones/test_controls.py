import torch

from sightline.backbones import create_backbone
from sightline.backbones.controls import CoordinateBackbone, NoiseBackbone
from sightline.backbones.grid import pixel_positions


def test_iuvrgb_is_that_of_feat2gs() -> None:
    images = torch.rand(3, 3, 5, 7)
    backbone = create_backbone("iuvrgb", device="cpu")
    (features,) = backbone.extract(images, layers=[-1])
    maps = features.patches
    assert maps.shape == (3, 6, 5, 7)
    assert maps[:, 0, 2, 3].tolist() == [0.0, 0.5, 1.0]
    torch.testing.assert_close(maps[1, 1, 4], torch.linspace(0, 1, 7))
    torch.testing.assert_close(maps[1, 2, :, 6], torch.linspace(0, 1, 5))
    torch.testing.assert_close(maps[:, 3:], images * 2 - 1)
    positions = pixel_positions(features, (5, 7), backbone)
    assert positions[4, 6].tolist() == [6.5, 4.5]
    (plain,) = CoordinateBackbone(rgb=False).extract(images)
    assert torch.equal(plain.patches, maps[:, :3])


def test_a_single_view_has_index_zero() -> None:
    (features,) = CoordinateBackbone(rgb=False).extract(torch.rand(1, 3, 4, 4))
    assert not features.patches[:, 0].any()


def test_noise_depends_on_seed_place_and_content_alone() -> None:
    images = torch.randint(0, 256, (2, 3, 48, 64)) / 255
    images[1, :, :16] = images[0, :, :16]
    images[1, :, 32:, :16] = images[1, :, :16, :16]
    (features,) = NoiseBackbone().extract(images)
    maps = features.patches
    assert maps.shape == (2, 256, 3, 4)
    assert torch.equal(maps[0, :, 0], maps[1, :, 0])  # the same content at the same place
    assert not torch.allclose(maps[0, :, 1], maps[1, :, 1])
    assert not torch.allclose(maps[1, :, 2, 0], maps[1, :, 0, 0])  # the same content elsewhere
    # Any order and number of views, and noise far below eight bits, leave it as it is.
    (again,) = NoiseBackbone().extract(images[[1]] + 1e-5)
    assert torch.equal(again.patches[0], maps[1])
    (other,) = NoiseBackbone(seed=1).extract(images)
    assert not torch.allclose(other.patches, maps)


def test_noise_is_normal_and_uncorrelated() -> None:
    (features,) = NoiseBackbone(embed_dim=8).extract(torch.rand(4, 3, 256, 256))
    tokens = features.patches.permute(0, 2, 3, 1).flatten(0, 2)
    assert tokens.mean(0).abs().max() < 0.15
    assert (torch.cov(tokens.mT) - torch.eye(8)).abs().max() < 0.2
    assert 0.25 < (tokens.abs() > 1).float().mean() < 0.38  # 0.317 of a normal


def test_noise_is_the_same_on_every_machine() -> None:
    (features,) = NoiseBackbone(embed_dim=4).extract(torch.full((1, 3, 16, 16), 0.5))
    torch.testing.assert_close(
        features.patches.flatten(),
        torch.tensor([0.213024, 1.102349, 1.021089, -0.346484]),
        atol=1e-5,
        rtol=0,
    )
    assert len(set(features.patches.flatten().tolist())) == 4
