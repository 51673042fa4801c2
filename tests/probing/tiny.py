"""A grid that takes a second: 32 pixels, a handful of steps."""

from typing import Any

CHANGES = {
    "long_side": 32,
    "hidden": 32,
    "warm_steps": 6,
    "steps": 8,
    "baseline_steps": 8,
    "pose_steps": 2,
    "depth_steps": 10,
    "train_views": 2,
    "test_views": 1,
}


def grid(**more: Any) -> dict[str, Any]:
    return {
        "protocol": "fast",
        "changes": CHANGES,
        "scenes": [
            {
                "id": "ball",
                "synthetic": {"kind": "simple", "num_views": 6, "height": 32, "width": 32},
            }
        ],
        "features": ["iuvrgb", "random"],
        "modes": ["G"],
        "seeds": [0],
        "lpips": ["none"],
        "device": "cpu",
        **more,
    }
