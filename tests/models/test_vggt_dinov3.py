"""A whole VGGT behind a DINOv3: built, trained a step, saved, loaded."""

from pathlib import Path
from typing import Any

import torch

from sightline.checkpoints import load_strict, read_weights, save_weights
from sightline.models.vggt import VGGT


def small() -> VGGT:
    head: dict[str, Any] = {"num_heads": 2}
    return VGGT(
        32,
        16,
        16,
        aggregator={"patch_embed": "dinov3_vits16", "encoder": {"depth": 1}, "depth": 4, **head},
        camera={"trunk_depth": 1, **head},
        dpt={"features": 8, "out_channels": (4, 4, 8, 8), "intermediate_layer_idx": (0, 1, 2, 3)},
        enable_track=False,
    )


def test_trained_saved_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = small().train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    images = torch.rand(1, 2, 3, 32, 48)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        out = model(images)
        loss = (out["depth"] - 3).square().mean() + out["world_points"].square().mean()
        loss = loss + out["pose_enc"].square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    moved = {n for n, weight in model.state_dict().items() if not torch.equal(weight, before[n])}
    assert "aggregator.patch_embed.blocks.0.attn.qkv.weight" in moved
    assert "aggregator.patch_proj.weight" in moved

    save_weights(model, tmp_path / "model.safetensors")
    again = small()
    load_strict(again, read_weights(tmp_path / "model.safetensors"))
    with torch.no_grad():
        got, want = again.eval()(images), model.eval()(images)
    assert torch.equal(got["world_points"], want["world_points"])
    assert got["depth"].shape == (1, 2, 32, 48, 1)
