import pytest
import torch
from torch.nn import functional

from sightline.backbones.grid import place
from sightline.errors import InputError
from sightline.probing.features import (
    Feature,
    FeaturePart,
    extract_feature,
    parse_features,
    reading_of,
    vggt_pictures,
)
from sightline.probing.protocols import PROTOCOLS, find_protocol
from sightline.probing.tokens import (
    TokenMaps,
    concatenate,
    even_placement,
    make_grid,
    principal_components,
    reduce_tokens,
)

OURS = PROTOCOLS["sightline-1"]
PUBLISHED = PROTOCOLS["feat2gs-v1"]


def test_pixels_read_bilinearly_as_interpolate_does() -> None:
    maps = torch.randn(2, 5, 3, 4)
    grid = make_grid(maps, even_placement((24, 32), (3, 4)))
    want = functional.interpolate(maps, (24, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(grid.at_pixels().permute(0, 3, 1, 2), want, rtol=1e-5, atol=1e-5)


def test_q6_padded_pictures_are_sampled_where_they_lie() -> None:
    placement = place((20, 20), "pad", step=14, stride=14)
    maps = torch.arange(4.0).view(1, 1, 2, 2)
    grid = make_grid(maps, placement)
    # The patches' centres are at 7 - 4 = 3 and 21 - 4 = 17 of 20 pixels; the middle is half way.
    middle = grid.at_pixels()[0, 9:11, 9:11, 0].mean()
    assert middle.item() == pytest.approx(1.5)
    corner = grid.at_pixels()[0, 3, 3, 0].item()
    even = make_grid(maps, even_placement((20, 20), (2, 2))).at_pixels()[0, 3, 3, 0].item()
    assert corner != pytest.approx(even)


def test_pca_keeps_what_there_is() -> None:
    maps = torch.randn(2, 40, 3, 4)  # 24 tokens
    found = principal_components(maps, OURS, 0)
    assert found.shape == (2, 24, 3, 4)
    tokens = maps.permute(0, 2, 3, 1).flatten(0, 2)
    centred = tokens - tokens.mean(0)
    # A rotation of what is centred: all inner products stay.
    flat = found.permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(flat @ flat.mT, centred @ centred.mT, rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="256 principal components"):
        principal_components(maps, PUBLISHED, 0)


def test_q7_randomised_pca_follows_its_seed() -> None:
    maps = torch.randn(1, 12, 4, 5)
    protocol = find_protocol("sightline-1", {"components": 4, "quirks": {"Q7": True}})
    first = principal_components(maps, protocol, 3)
    assert torch.equal(first, principal_components(maps, protocol, 3))
    exact = principal_components(maps, find_protocol("sightline-1", {"components": 4}), 3)
    assert not torch.equal(first, exact)
    torch.testing.assert_close(first.abs(), exact.abs(), rtol=1e-3, atol=1e-3)  # but for signs


def test_q24_features_without_pca() -> None:
    maps = torch.randn(1, 12, 4, 5)
    plain = find_protocol("sightline-1", {"components": None})
    assert principal_components(maps, plain, 0) is maps
    with pytest.raises(InputError, match="needs_pca"):
        find_protocol("sightline-1", {"components": None, "quirks": {"Q24": True}})


def test_concatenation_scales_and_reduces() -> None:
    size = (32, 48)
    parts = [
        TokenMaps(maps=100 * torch.randn(2, 6, 2, 3), placement=even_placement(size, (2, 3))),
        TokenMaps(maps=torch.randn(2, 5, 4, 6), placement=even_placement(size, (4, 6))),
    ]
    joined = concatenate(parts, OURS, 0)
    assert joined.grid.shape == (2, 2, 3, 11)
    # After scaling to [0, 1] no part outweighs the other by its units.
    assert joined.grid.abs().max() < 4
    pixels = TokenMaps(
        maps=torch.rand(2, 6, *size), placement=even_placement(size, size), is_pixels=True
    )
    full = concatenate([*parts, pixels], OURS, 0)
    assert full.is_pixels
    assert full.grid.shape == (2, *size, 17)


def test_iuvrgb_of_the_spec() -> None:
    images = torch.rand(3, 3, 16, 32)
    feature = parse_features(["iuvrgb"])[0]
    grid = extract_feature(feature, images, OURS).tokens
    assert grid.is_pixels
    assert grid.grid[:, 0, 0, 0].tolist() == [0, 0.5, 1]
    assert grid.grid[0, :, 0, 2].tolist() == pytest.approx(torch.linspace(0, 1, 16).tolist())
    torch.testing.assert_close(grid.grid[..., 3:].permute(0, 3, 1, 2), images * 2 - 1)


def test_q25_a_single_view() -> None:
    feature = parse_features(["iuv"])[0]
    images = torch.rand(1, 3, 16, 16)
    assert not extract_feature(feature, images, OURS).tokens.grid[..., 0].any()
    with pytest.raises(InputError, match="divides by zero"):
        extract_feature(feature, images, find_protocol("sightline-1", {"quirks": {"Q25": True}}))


def test_q5_and_layers_of_the_published_table() -> None:
    mae, dino = FeaturePart(backbone="mae_b16"), FeaturePart(backbone="dino_b16")
    assert reading_of(mae, PUBLISHED) == ((-2,), False)
    assert reading_of(mae, OURS) == ((-1,), True)
    assert reading_of(dino, PUBLISHED) == ((-1,), False)
    assert reading_of(FeaturePart(backbone="vggt_e"), PUBLISHED) == ((-1,), True)
    chosen = FeaturePart(backbone="dino_b16", layers=(3, 7), norm=True)
    assert reading_of(chosen, PUBLISHED) == ((3, 7), True)


def test_q4_imagenet_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.backbones.controls import NoiseBackbone
    from sightline.probing import features

    made = []

    def build(*_: object, **__: object) -> NoiseBackbone:
        made.append(NoiseBackbone())
        return made[-1]

    monkeypatch.setattr(features, "create_backbone", build)
    feature = Feature(name="clip_b16", parts=(FeaturePart(backbone="clip_b16"),))
    images = torch.rand(2, 3, 32, 32)
    extract_feature(feature, images, OURS)
    assert made[-1].mean == (0.0, 0.0, 0.0)
    extract_feature(feature, images, find_protocol("sightline-1", {"quirks": {"Q4": True}}))
    assert made[-1].mean == (0.485, 0.456, 0.406)


def test_vggt_loader_of_the_spec() -> None:
    assert vggt_pictures(torch.rand(1, 3, 384, 512)).shape[-2:] == (392, 518)
    assert vggt_pictures(torch.rand(1, 3, 512, 384)).shape[-2:] == (518, 518)  # cropped


def test_own_backbone_and_layers() -> None:
    class Mine:
        patch_size, embed_dim = 16, 4
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

        def extract(self, images, *, layers):
            from sightline.types import Features

            maps = functional.avg_pool2d(images, 16)
            return [Features(patches=maps + i, layer=i, normed=False) for i in layers]

    feature = parse_features([{"name": "mine", "layers": [0, 1]}])[0]
    found = extract_feature(feature, torch.rand(2, 3, 64, 64), OURS, own={"mine": Mine()})
    assert found.channels == 6
    assert found.tokens.grid.shape == (2, 4, 4, 6)


def test_features_of_a_configuration() -> None:
    rows = parse_features(
        ["iuv", "iuv+random", {"name": "d", "backbone": "random", "sweep": [1, 2]}]
    )
    assert [row.name for row in rows] == ["iuv", "iuv+random", "d@1", "d@2"]
    assert rows[1].is_drawn
    assert rows[0].is_pixels
    assert not rows[1].is_pixels
    assert rows[3].parts[0].layers == (2,)
    with pytest.raises(InputError, match="two features are called iuv"):
        parse_features(["iuv", "iuv"])
    with pytest.raises(InputError, match="no option wrong"):
        parse_features([{"name": "iuv", "wrong": 1}])


def test_reduction_keeps_pixels() -> None:
    maps = torch.rand(1, 3, 8, 8)
    kept = reduce_tokens(
        TokenMaps(maps=maps, placement=even_placement((8, 8), (8, 8)), is_pixels=True), OURS, 0
    )
    assert torch.equal(kept.grid.permute(0, 3, 1, 2), maps)
