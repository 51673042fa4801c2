"""Golden family rope2d: the integer-grid rotation, and CroCo v1's fixed table."""

from pathlib import Path

import torch
from safetensors import safe_open

from sightline.nn.rope import RotaryPositionEmbedding2D, grid_rotary, sincos_grid
from tests.parity.compare import compare, read_config, read_io


def cases(folder: Path) -> list[str]:
    with safe_open(folder / "io.safetensors", "pt") as file:
        return sorted({name.split(".")[0] for name in file.keys()})  # noqa: SIM118


def run_case(folder: Path, case: str) -> None:
    config, io = read_config(folder), read_io(folder)
    if case == "sincos":
        height, width = io["sincos.grid_hw"].tolist()
        dims = [int(name.removeprefix("sincos.dim")) for name in io if ".dim" in name]
        tables = ((f"sincos.dim{d}", torch.from_numpy(sincos_grid(height, width, d))) for d in dims)
        return compare(config, io, tables, r"sincos\.dim.*")
    tokens, positions, freq = (io[f"{case}.{n}"] for n in ("tokens", "positions_yx", "freq"))
    shared = grid_rotary(positions, tokens.shape[-1], float(freq)).rotate(tokens)
    compare(config, io, [(f"{case}.out", shared)], rf"{case}\.out")
    layer = RotaryPositionEmbedding2D(float(freq))
    return compare(config, io, [(f"{case}.out", layer(tokens, positions))])
