"""Golden family fusion: the published adapter, and the alignment of patch grids."""

from pathlib import Path

import torch

from sightline.backbones.fusion import FusionAdapter, align_tokens
from sightline.checkpoints import load_strict, read_weights
from tests.parity.compare import compare, read_config, read_io


def cases(folder: Path) -> list[str]:
    return sorted({name.split(".")[0] for name in read_io(folder)})


@torch.no_grad()
def run_case(folder: Path, case: str) -> None:
    config, io = read_config(folder), read_io(folder)
    if case == "align":
        source, target = (tuple(io[f"align.hw{patch}"].tolist()) for patch in (14, 16))
        tokens = align_tokens(io["align.tokens14"], source, target)
        return compare(config, io, [("align.tokens16", tokens)], r"align\.tokens16")
    adapter = FusionAdapter(**config["cases"][case]).eval()
    weights = read_weights(folder / "model.safetensors")
    own = {n.removeprefix(f"{case}."): t for n, t in weights.items() if n.startswith(f"{case}.")}
    load_strict(adapter, own)
    out = adapter(io[f"{case}.mast3r"], io[f"{case}.dino"])
    return compare(config, io, [(f"{case}.out", out)], rf"{case}\.out")
