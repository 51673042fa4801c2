"""Read a golden folder, and compare tensors with its stated tolerance."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

Config = dict[str, Any]
Named = Iterable[tuple[str, Tensor]]


def read_config(folder: Path) -> Config:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def read_io(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "io.safetensors")


def bound(config: Config, name: str, want: Tensor) -> Tensor:
    """Return the allowed difference of every element of tensor ``name``."""
    size = want.abs()
    rule: Any = config.get("tolerance", config.get("tolerance_abs"))
    if not isinstance(rule, dict):
        scaled = "max(1" in config.get("tolerance_rule", "")
        return rule * size.clamp(min=1.0) if scaled else torch.full_like(size, rule)
    for pattern, exception in rule.get("exceptions", {}).items():
        forms = [
            re.sub(r"<\w+>", "[^.]+", p.strip().replace(".", r"\.")) for p in pattern.split(",")
        ]
        if any(re.fullmatch(form, name) for form in forms):
            rule = exception
    atol = rule["atol"]
    noise = config.get("fp32_vs_fp64_max_abs", {}).get(name, 0.0)
    atol = max(atol, rule.get("fp32_vs_fp64_factor", 0.0) * noise)
    return atol + rule["rtol"] * size


def compare(config: Config, io: dict[str, Tensor], outputs: Named, must: str | None = None) -> None:
    """Compare outputs in the order given, so that the first divergence is the one that is named.

    Outputs that the file does not hold are passed over. With ``must``, every tensor of the file
    whose name matches this expression has to be among the outputs.
    """
    seen = set()
    for name, got in outputs:
        if name not in io or name in seen:
            continue
        seen.add(name)
        want = io[name]
        assert got.shape == want.shape, f"{name}: shape {tuple(got.shape)} != {tuple(want.shape)}"
        if want.dtype.is_floating_point:
            over = (got.double() - want.double()).abs() - bound(config, name, want.double())
            assert not got.isnan().any(), f"first divergence at {name}: NaN"
            worst = over.argmax()
            difference = (got.double() - want.double()).abs().flatten()[worst]
            assert over.max() <= 0, (
                f"first divergence at {name}: differs by {difference:.3g} at flat index {worst}, "
                f"{float(over.max()):.3g} more than allowed"
            )
        else:
            assert torch.equal(got.to(want.dtype), want), f"first divergence at {name}: not equal"
    if must is not None:
        missed = sorted(k for k in io if re.fullmatch(must, k) and k not in seen)
        assert not missed, f"never compared: {', '.join(missed)}"


def with_prefix(prefix: str, outputs: dict[str, Tensor | None]) -> Iterator[tuple[str, Tensor]]:
    for name, value in outputs.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
