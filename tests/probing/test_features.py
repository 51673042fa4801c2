"""Every probed model by name, layers, concatenations, fused pairs, files and objects."""

import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from sightline.backbones import ALIASES, BACKBONES, create_backbone
from sightline.checkpoints import save_weights
from sightline.datasets.synthetic import make_scene, write_scene
from sightline.errors import InputError, UnknownNameError
from sightline.probing.config import config_from
from sightline.probing.features import (
    PUBLISHED,
    FeaturePart,
    extract_feature,
    identify,
    parse_features,
)
from sightline.probing.grid import plan_grid
from sightline.probing.protocols import PROTOCOLS, find_protocol
from sightline.probing.results import collect
from sightline.probing.tokens import (
    TokenMaps,
    concatenate,
    even_placement,
    principal_components,
)
from tests.probing import tiny

OURS = PROTOCOLS["sightline-1"]
WIRED = (
    *("iuv", "zero123", "vggt_df", "vggt_dg", "dinov2_b14_reg", "dinov2_l14", "clip_l14"),
    *("clip_b16_laion", "siglip_b16", "siglip_l16", "deit3_b16", "deit3_l16", "ibot_b16"),
    *("ibot_l16", "ibot_b16_in22k", "ibot_l16_in22k", "mae_l16", "sam_large", "clip_convnext"),
    *("clip_convnext_augreg", "convnext_fcmae", "convnext_in22k"),
)
"""What Feat2GS's runner knows besides its table."""


def test_every_probed_model_is_known_by_name() -> None:
    assert len(PUBLISHED) == 13
    names = [*PUBLISHED, *WIRED, *BACKBONES, *ALIASES]
    names += ["random:dinov3_vits16", "random:vggt_encoder", "fused:croco+dinov2_vits14"]
    names += ["hf:some/model", "timm:vit_small_patch16_224", "radio+mast3r+iuvrgb"]
    names = list(dict.fromkeys(names))
    grid = plan_grid(config_from(tiny.grid(features=names)))
    assert [feature.name for feature in grid.features] == names
    assert len(grid.cells) == len(names)


@pytest.mark.parametrize("name", ["dinov9", "random:dinov9", "iuv+dinov9", "fused:iuv+dinov9"])
def test_unknown_models_stop_a_grid_before_it_starts(name: str) -> None:
    with pytest.raises(UnknownNameError, match="dinov9"):
        plan_grid(config_from(tiny.grid(features=[name])))


def test_layers_sweeps_and_parts() -> None:
    rows = parse_features(
        [
            {"name": "d", "backbone": "random:dinov2_vits14", "sweep": [2, 11], "norm": False},
            {"backbone": "random:dinov2_vits14", "layers": [5, 11]},
            {"name": "both", "parts": ["iuvrgb", {"backbone": "croco", "layers": 3}]},
            {"name": "a+b", "backbone": "radio+clip_b16"},
        ]
    )
    assert [row.name for row in rows] == ["d@2", "d@11", "random:dinov2_vits14", "both", "a+b"]
    assert (rows[0].parts[0].layers, rows[0].parts[0].norm) == ((2,), False)
    assert rows[2].parts[0].layers == (5, 11)
    assert [(p.backbone, p.layers) for p in rows[3].parts] == [("iuvrgb", ()), ("croco", (3,))]
    assert [p.backbone for p in rows[4].parts] == ["radio", "clip_b16"]
    assert parse_features(["fused:iuv+random:dinov2_vits14"])[0].is_drawn
    for wrong in (
        {"name": "x", "parts": ["iuv"]},
        {"name": "x", "parts": ["a", "b"], "norm": True},
    ):
        with pytest.raises(InputError, match="two or more"):
            parse_features([wrong])
    with pytest.raises(InputError, match="must be a name or have a backbone"):
        parse_features([{"name": "x", "parts": ["iuv", {"checkpoint": "a"}]}])


def test_random_networks_of_every_kind() -> None:
    """Layers differ, follow the seed, and fused pairs and concatenations have all channels."""
    images = torch.rand(2, 3, 32, 48)
    name = "random:dinov2_vits14"
    first, last = parse_features([{"name": name, "sweep": [1, 11]}])
    early, late = (extract_feature(f, images, OURS, seed=0) for f in (first, last))
    assert early.channels == late.channels == 384
    assert early.tokens.grid.shape[1:3] == (2, 3)
    assert not torch.equal(early.tokens.grid, late.tokens.grid)
    other = extract_feature(last, images, OURS, seed=1)
    assert not torch.equal(late.tokens.grid, other.tokens.grid)
    again = extract_feature(last, images, OURS, seed=0)
    assert torch.equal(late.tokens.grid, again.tokens.grid)
    (several,) = parse_features([{"name": name, "layers": [1, 11]}])
    assert extract_feature(several, images, OURS).channels == 768
    (fused,) = parse_features(["fused:random:dinov2_vits14+random:dinov3_vits16"])
    assert extract_feature(fused, images, OURS).channels == 768
    (joined,) = parse_features(["random:dinov2_vits14+iuvrgb"])
    found = extract_feature(joined, images, OURS)
    assert found.channels == 390
    assert found.tokens.is_pixels


def test_concatenation_step_by_step() -> None:
    """Independent: PCA, one range to [0, 1], half the size by interpolate, side by side, PCA."""
    torch.manual_seed(0)
    size = (64, 96)
    maps = [10 * torch.randn(2, 7, 4, 6), torch.randn(2, 5, 8, 12)]
    parts = [
        TokenMaps(maps=m, placement=even_placement(size, (m.shape[-2], m.shape[-1]))) for m in maps
    ]

    def reduced(values: torch.Tensor) -> torch.Tensor:
        return principal_components(values, OURS, 0)

    def unit(values: torch.Tensor) -> torch.Tensor:
        return (values - values.min()) / (values.max() - values.min())

    cells = (4, 6)
    small = [
        functional.interpolate(unit(reduced(m)), cells, mode="bilinear", align_corners=False)
        for m in maps
    ]
    want = reduced(torch.cat(small, 1))
    found = concatenate(parts, OURS, 0).grid.permute(0, 3, 1, 2)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
    pixels = torch.rand(2, 6, *size) * 3 - 1
    control = TokenMaps(maps=pixels, placement=even_placement(size, size), is_pixels=True)
    full = functional.interpolate(want, size, mode="bilinear", align_corners=False)
    want = reduced(torch.cat([full, unit(pixels)], 1))
    found = concatenate([control, *parts], OURS, 0).grid.permute(0, 3, 1, 2)
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-3)


def test_a_checkpoint_file_is_probed(tmp_path: Path) -> None:
    """The same network from a file gives the same features; its bytes are part of the key."""
    network: Any = create_backbone("random:dinov2_vits14", device="cpu", seed=5)
    file = tmp_path / "weights" / "mine.safetensors"
    file.parent.mkdir()
    save_weights(network.network, file)
    entry = {"name": "mine", "backbone": "dinov2_vits14", "checkpoint": "weights/mine.safetensors"}
    config = config_from(tiny.grid(features=[entry]), tmp_path)
    (feature,) = parse_features([*config.features])
    images = torch.rand(2, 3, 32, 48)
    (drawn,) = parse_features(["random:dinov2_vits14"])
    want = extract_feature(drawn, images, OURS, seed=5).tokens.grid
    torch.testing.assert_close(extract_feature(feature, images, OURS).tokens.grid, want)
    before = identify(feature.parts[0], {})
    file.write_bytes(file.read_bytes() + b" ")
    assert identify(feature.parts[0], {}) != before
    with pytest.raises(InputError, match="there is no checkpoint"):
        identify(FeaturePart(backbone="dinov2_vits14", checkpoint="nowhere.pth"), {})


def test_files_of_parts_and_addresses(tmp_path: Path) -> None:
    values = tiny.grid(
        features=[
            {"name": "a", "parts": [{"backbone": "croco", "checkpoint": "c.pth"}, "iuv"]},
            {"name": "b", "backbone": "fused:croco+iuv", "checkpoint": "c.pth,"},
            {"name": "c", "backbone": "croco", "checkpoint": "https://host/c.pth"},
        ]
    )
    first, second, third = config_from(values, tmp_path).features
    assert first["parts"][0]["checkpoint"] == str(tmp_path / "c.pth")
    assert second["checkpoint"] == f"{tmp_path / 'c.pth'},"
    assert third["checkpoint"] == "https://host/c.pth"
    (tmp_path / "c.pth").write_bytes(b"1")
    keys = {identify(f.parts[0], {}) for f in parse_features([first, second, third])}
    assert len(keys) == 3


def test_padding_and_sam_under_the_published_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.probing import features

    asked: list[dict[str, Any]] = []

    def build(name: str, *args: Any, **options: Any) -> Any:
        asked.append({"name": name, **options})
        return create_backbone("random:dinov2_vits14", device="cpu")

    monkeypatch.setattr(features, "create_backbone", build)
    published = PROTOCOLS["feat2gs-v1"]
    for name in ("sam_base", "clip_b16", "dinov2_b14", "mae_b16"):
        found: Any = features._build(FeaturePart(backbone=name), published, 0, "cpu")
        assert found.fit == "pad"
        ours: Any = features._build(FeaturePart(backbone=name), OURS, 0, "cpu")
        assert ours.fit == "stretch"
    told = [{k: v for k, v in entry.items() if k in ("fit", "norm", "project")} for entry in asked]
    assert told[0] == {"norm": False, "fit": "pad"}  # SAM's positions are resized
    assert told[2] == {"project": True}  # 512 channels
    assert told[4] == {"norm": False}
    assert told[6] == {"norm": False}
    assert all(not entry for entry in told[1::2])


def test_the_guide_s_own_backbone_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = Path(__file__).parents[2] / "docs" / "probing.md"
    if not guide.is_file():
        pytest.skip("the guide is not part of an installed package")
    text = guide.read_text("utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "class Mine" in block
    lines = [line for line in block.splitlines() if line.strip() and "import" not in line]
    assert len(lines) <= 10
    small = replace(find_protocol("fast"), **{**tiny.CHANGES, "rates": find_protocol("fast").rates})
    monkeypatch.setitem(PROTOCOLS, small.name, small)
    monkeypatch.chdir(tmp_path)
    write_scene(make_scene(5, 32, 48, kind="simple", num_points=50), Path("photos"))
    # The guide's photos have no cameras; these bring theirs, which saves a search for them.
    Path("guide.py").write_text(block.replace('"colmap"', '"auto"'))
    runpy.run_path("guide.py")
    found = {row.feature for row in collect(Path("out")).rows}
    assert found == {"mine", "iuvrgb"}
    assert (Path("out") / "report.html").is_file()
