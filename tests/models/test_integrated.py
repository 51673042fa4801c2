from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sightline.errors import CheckpointError, InputError, UnknownNameError
from sightline.models import build
from sightline.models.dinov3 import Aggregator, DINOv3IntegratedModel, dinov3_vits16
from sightline.models.integrated import read_description

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "models").glob("*.yaml"))
SMALL: dict[str, Any] = {"backbone": {"depth": 1}, "depth": 1, "img_size": 32}


def test_pictures_and_videos() -> None:
    model = DINOv3IntegratedModel("dinov3_vits16", **SMALL).eval()
    pictures = torch.rand(2, 3, 32, 48)
    out = model(pictures)
    assert {name: tuple(t.shape) for name, t in out.items()} == {
        "cls_token": (2, 384),
        "patch_tokens": (2, 6, 384),
    }
    video = model(torch.rand(1, 3, 3, 32, 48))
    assert video["patch_start_idx"] == 5
    assert video["features"].shape == (1, 3, 11, 768)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    again: Any = model.backbone.forward_features((pictures - mean) / std)
    assert torch.equal(out["cls_token"], again["x_norm_clstoken"])


def test_videos_need_the_aggregator() -> None:
    model = DINOv3IntegratedModel("dinov3_vits16", use_aggregator=False, **SMALL)
    with pytest.raises(InputError, match="got a video; build the model with use_aggregator=True"):
        model(torch.rand(1, 3, 3, 32, 48))


def test_encoder_weights_are_listed_once() -> None:
    model = DINOv3IntegratedModel("dinov3_vits16", **SMALL)
    count = len(dinov3_vits16(False, depth=1).state_dict())
    names = {id(t) for t in model.backbone.state_dict(keep_vars=True).values()}
    assert sum(id(t) in names for t in model.state_dict(keep_vars=True).values()) == count
    plain = DINOv3IntegratedModel("dinov3_vits16", use_aggregator=False, **SMALL)
    assert len(plain.state_dict()) == count


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_presets(path: Path) -> None:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    model: Any = build("dinov3_integrated", config | {"device": "meta"})
    assert (model.aggregator is None) == (path.stem == "lightweight")
    side = config["model"]["backbone"]["img_size"]
    if model.aggregator is not None:
        out = model(torch.empty(1, 2, 3, side, side, device="meta"))
        width = 2 * config["model"]["backbone"]["embed_dim"]
        assert out["features"].shape == (1, 2, 5 + (side // 16) ** 2, width)


def test_descriptions_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    for path in CONFIGS:
        assert read_description(path.stem) == read_description(path)
        assert read_description(path)["model"]["backbone"]["patch_size"] == 16
    with pytest.raises(InputError, match="one of high-performance, lightweight, video, got heavy"):
        read_description("heavy")
    for text in ("- 1", "model: [", "\xff"):
        (tmp_path / "own.yaml").write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match="own.yaml"):
            read_description(tmp_path / "own.yaml")


def test_presets_are_there() -> None:
    assert [p.stem for p in CONFIGS] == ["high-performance", "lightweight", "video"]


def described(**backbone: Any) -> dict[str, Any]:
    return {"model": {"backbone": {"dinov3_model": "dinov3_vitl16", **backbone}}, "device": "meta"}


def test_contradictions_name_the_nearest_setting() -> None:
    with pytest.raises(InputError, match="got 518 and 16; the nearest is img_size=512"):
        build("dinov3_integrated", described(img_size=518, patch_size=16))
    with pytest.raises(InputError, match="use patch_size=16 and img_size=512"):
        build("dinov3_integrated", described(img_size=518, patch_size=14))
    with pytest.raises(CheckpointError, match="DINOv3 has patch 16 only: dinov3_vitl16"):
        build("dinov3_integrated", described(dinov3_model="dinov3_vitl14", pretrained=True))
    untrained = described(dinov3_model="dinov3_vitl14", img_size=518, patch_size=14)
    assert build("dinov3_integrated", untrained)
    with pytest.raises(UnknownNameError, match='no entry of model.backbone "dim"'):
        build("dinov3_integrated", described(dim=3))
    with pytest.raises(UnknownNameError, match='no entry of model "head"'):
        build("dinov3_integrated", {"model": {"head": {}}})


def test_the_drop_in_call_of_the_field() -> None:
    with pytest.warns(UserWarning, match="num_register_tokens|building dinov3_vitl16"):
        model = Aggregator(
            img_size=224,
            patch_size=16,
            embed_dim=1024,
            depth=24,
            num_heads=16,
            n_storage_tokens=4,
            patch_embed="dinov3_vitl16_reg",
            aa_order=["frame", "global"],
            device="meta",
        )
    layers, start = model(torch.empty(2, 8, 3, 224, 224, device="meta"))
    assert start == 5
    assert len(layers) == 24
    assert layers[-1] is not None
    assert layers[-1].shape == (2, 8, 201, 2048)
