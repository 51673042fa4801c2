"""A VGGT small enough for tests, on generated rooms."""

from typing import Any

from sightline.training.vggt import VggtSettings


def settings(**changes: Any) -> VggtSettings:
    values: dict[str, Any] = {
        "steps": 3,
        "batch_size": 4,
        "lr": 1e-3,
        "min_lr": 1e-5,
        "encoder": "dinov3_vits16",
        "encoder_dim": 32,
        "encoder_depth": 1,
        "encoder_heads": 2,
        "embed_dim": 32,
        "depth": 2,
        "heads": 2,
        "registers": 1,
        "features": 8,
        "camera_depth": 1,
        "layer_scale": 0.1,
        "gradient_checkpointing": False,
        "max_frames": 2,
        "width": 32,
        "min_aspect": 1.0,
        "val_scenes": 2,
        "val_frames": 2,
        "device": "cpu",
        "loggers": "csv",
        "log_every": 1,
        **changes,
    }
    return VggtSettings(**values)
