"""Golden family raster: the CPU kernels (float32) and the reference (float64)."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sightline.splatting.rasterize import rasterization, reference

EXACT = 1e-9
EXACT_DEGENERATE = 1e-7
MOST_PAIRS = 30_000_000
"""Pixels times Gaussians up to which the reference, which keeps them all, is compared too."""


def cases(folder: Path) -> list[str]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return [
        case["name"]
        for case in config["cases"]
        if (folder / f"{case['name']}.safetensors").is_file()
    ]


def run_case(folder: Path, name: str) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    case = next(c for c in config["cases"] if c["name"] == name)
    tensors = load_file(folder / f"{name}.safetensors")
    rtol_image = case.get("rtol_image", config["defaults"]["rtol_image"])
    rtol_grad = case.get("rtol_grad", config["defaults"]["rtol_grad"])
    kwargs = case["kwargs"]
    for packed in (False, True):
        got = draw(rasterization, tensors, kwargs | {"packed": packed}, torch.float32)
        if packed:  # rows are visible pairs only: compare what does not depend on that
            got = {k: v for k, v in got.items() if "means2d" not in k and k != "out.radii"}
        compare(got, tensors, rtol_image, rtol_grad, f"cpu, packed={packed}", radius_slack=1)
    if tensors["in.means"][..., 0].numel() * kwargs["width"] * kwargs["height"] > MOST_PAIRS:
        return
    exact = EXACT_DEGENERATE if "degenerate" in name else EXACT
    got = draw(reference.rasterization, tensors, kwargs, torch.float64)
    compare(got, tensors, exact, exact, "reference")


def draw(function: Any, tensors: dict[str, Tensor], kwargs: Any, dtype: torch.dtype) -> dict:
    """Return out.*, grad.* and absgrad.* under the file's names."""
    inputs = {
        k.removeprefix("in."): v.to(dtype, copy=True).requires_grad_()
        for k, v in tensors.items()
        if k.startswith("in.")
    }
    inputs = dict.fromkeys(("quats", "scales", "colors")) | inputs
    colors, alphas, meta = function(**inputs, **kwargs)
    centres = meta["means2d"]
    loss = colors.new_zeros(())
    for name, picture in (("colors", colors), ("alphas", alphas)):
        if f"w.{name}" in tensors:
            loss = loss + (picture * tensors[f"w.{name}"].to(dtype)).sum()
    if centres.requires_grad:
        centres.retain_grad()
    if loss.requires_grad:
        loss.backward()
    got = {"out.colors": colors.detach(), "out.alphas": alphas.detach(), "out.radii": meta["radii"]}
    for name, leaf in inputs.items():
        if leaf is not None:
            gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            got[f"grad.{name}"] = (gradient + gradient.mT) / 2 if name == "covars" else gradient
    if "grad.covars" in got:  # these are replaced by it
        for name in ("grad.quats", "grad.scales"):
            got.setdefault(name, torch.zeros_like(tensors[name]))
    got["grad.means2d"] = torch.zeros_like(centres) if centres.grad is None else centres.grad
    if kwargs.get("absgrad"):
        got["absgrad.means2d"] = centres.absgrad
    return got


def compare(
    got: dict[str, Tensor],
    tensors: dict[str, Tensor],
    rtol_image: float,
    rtol_grad: float,
    who: str,
    radius_slack: int = 0,
) -> None:
    """Raise AssertionError naming the first tensor, forward to backward, that differs too much."""
    clear = ~tensors["out.ambiguous"][..., None] if "out.ambiguous" in tensors else torch.ones(1)
    for name, value in got.items():
        if name not in tensors:
            continue
        want = tensors[name].double()
        value = value.double()
        assert value.numel() == want.numel(), f"{who}: {name} has shape {tuple(value.shape)}"
        difference = (value.reshape(want.shape) - want).abs()
        if name == "out.radii":
            allowed = radius_slack
        elif name.startswith("out."):
            difference = difference * clear
            allowed = rtol_image * (1 + want.abs().max().item() if want.numel() else 1)
        else:
            allowed = rtol_grad * (want.abs().max().item() if want.numel() else 0)
        worst = difference.max().item() if difference.numel() else 0.0
        assert worst <= allowed, f"{who}: {name} differs by {worst:.3g}, {allowed:.3g} allowed"
