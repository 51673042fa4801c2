"""Every family: a tiny network goes through save and load under the same names, in both kinds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sightline.checkpoints import load_strict, read_weights, save_weights
from sightline.models import BUILDERS, build
from sightline.models.vggt import VGGT
from tests.conftest import SHARED

KEPT = Path(__file__).parents[1] / "golden"


def golden(family: str) -> Path:
    for root in (KEPT, SHARED / "golden"):
        if (root / family / "model.safetensors").is_file():
            return root / family
    pytest.skip("the reference networks are not beside this checkout")


def same(a: nn.Module, b: nn.Module) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert list(left) == list(right)
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("family", sorted(BUILDERS.keys() - {"dinov3_integrated"}))
def test_round_trip(family: str, suffix: str, tmp_path: Path) -> None:
    folder = golden(family)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    official = read_weights(folder / "model.safetensors")
    model = build(family, config)
    load_strict(model, official)
    save_weights(model, tmp_path / f"w{suffix}")
    saved = read_weights(tmp_path / f"w{suffix}")
    assert saved.keys() == official.keys()
    assert all(torch.equal(saved[name], official[name]) for name in official)
    twin = build(family, config | {"device": "meta"})
    load_strict(twin, saved)
    same(model, twin)
    assert not [name for name, tensor in twin.state_dict().items() if tensor.is_meta]


def test_vggt_with_dinov3_trains_and_comes_back(tmp_path: Path) -> None:
    def make() -> VGGT:
        parts: dict[str, Any] = {
            "aggregator": {
                "patch_embed": "dinov3_vits16",
                "encoder": {"depth": 1},
                "depth": 2,
                "num_heads": 2,
            },
            "dpt": {
                "features": 8,
                "out_channels": (4, 4, 8, 8),
                "intermediate_layer_idx": (0, 0, 1, 1),
            },
            "camera": {"trunk_depth": 1, "num_heads": 2},
        }
        return VGGT(32, 16, 16, enable_track=False, **parts)

    model = make().train()
    images = torch.rand(1, 2, 3, 32, 48)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    out = model(images)
    (out["depth"].mean() + out["pose_enc"].square().mean()).backward()
    optimizer.step()
    save_weights(model, tmp_path / "w.safetensors")
    twin = make().eval()
    load_strict(twin, read_weights(tmp_path / "w.safetensors"))
    assert torch.equal(model.eval()(images)["depth"], twin(images)["depth"])
