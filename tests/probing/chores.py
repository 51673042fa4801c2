"""Work for the runner's tests, in a module that another process imports quickly."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sightline.errors import InputError
from sightline.probing.store import Task


def work(task: Task, inputs: Sequence[Path], out: Path) -> dict[str, Any]:
    """Fail, or end the process, as the task's name says."""
    name = task.params["name"]
    (out / "half").write_text("x")
    if name == "broken":
        raise RuntimeError("no luck")
    if name == "wrong":
        raise InputError("wrong input; fix it")
    if name == "dies":
        marker = Path(task.params["marker"])
        if not marker.exists():
            marker.write_text("once")
            os._exit(9)
    return {"threads": torch.get_num_threads(), "inputs": [p.name for p in inputs]}
