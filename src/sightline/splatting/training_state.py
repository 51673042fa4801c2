"""What a splat run must remember to continue exactly: one file, written in one step."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sightline.errors import CheckpointError
from sightline.io.tensors import write_safetensors

FORMAT = "sightline-splat-training-1"


def write_state(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and JSON-able facts.

    Raises:
        OutputError: If the file cannot be written.
    """
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps({"format": FORMAT, **facts})
    write_safetensors(path, plain, {"state": text})


def read_state(path: Path, fingerprint: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_state` wrote for the same inputs.

    Args:
        path: The file.
        fingerprint: Of pictures, cameras, options and seed.

    Raises:
        CheckpointError: If the file is damaged, of another kind, or of other inputs.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("state", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} must be a splat training state, got an unreadable file ({error}); remove it "
            "to start over"
        ) from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no splat training state; remove it to start over")
    if facts.get("fingerprint") != fingerprint:
        raise CheckpointError(
            f"{path} belongs to other pictures, cameras, options or seed; remove it to start over"
        )
    return tensors, facts
