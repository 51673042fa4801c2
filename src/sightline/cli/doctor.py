"""`sightline doctor`: what this machine and this installation can do."""

import json
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from sightline import __version__
from sightline.cli.parser import VerbParser

EXTRAS = {
    "app": (("viser", "gradio"), "sightline view and sightline app"),
    "cuda": (("gsplat",), "splats on an NVIDIA GPU"),
    "eval": (("pycocotools",), "COCO evaluation"),
    "geo": (("tifffile", "imagecodecs"), "GeoTIFF and multi-band pictures"),
    "heif": (("pi_heif",), "HEIC, HEIF and AVIF photos"),
    "hf": (("transformers", "diffusers"), "backbones from transformers and diffusers"),
    "train": (("lightning", "tensorboard"), "training"),
    "cluster": (("ray",), "work over many machines"),
}
"""Extra -> (modules, what is missing without them)."""


def examine() -> dict[str, Any]:
    """Return what was found, as plain values."""
    packages = {}
    for name in ("torch", "numpy", "numba", "pycolmap", "opencv-python-headless", "pillow"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    import torch

    devices = [f"cpu: {os.cpu_count()} cores"]
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index}: {found.name}, {found.total_memory / 1e9:.0f} GB")
    extras = {
        extra: {
            "installed": all(find_spec(module) is not None for module in modules),
            "enables": purpose,
        }
        for extra, (modules, purpose) in EXTRAS.items()
    }
    return {
        "sightline": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "memory_gb": _memory_gb(),
        "free_disk_gb": round(shutil.disk_usage(os.curdir).free / 1e9, 1),
        "devices": devices,
        "packages": packages,
        "extras": extras,
        "h264": "ffmpeg program" if shutil.which("ffmpeg") else None,
    }


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def parser() -> VerbParser:
    """Return the verb's parser."""
    verb = VerbParser("doctor", "Tell what this machine and this installation can do.")
    verb.add_argument("--json", action="store_true", help="print the findings as JSON")
    return verb


def run(words: list[str]) -> None:
    """Run the verb."""
    arguments = parser().parse_args(words)
    found = examine()
    if arguments.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"sightline {found['sightline']}, Python {found['python']}, {found['system']}\n"
        f"memory {found['memory_gb']} GB, free disk here {found['free_disk_gb']} GB"
    )
    for device in found["devices"]:
        console.print(f"device {device}")
    console.print(", ".join(f"{name} {number}" for name, number in found["packages"].items()))
    table = Table("extra", "", "what it adds", "install", box=None, pad_edge=False)
    for extra, state in found["extras"].items():
        installed = state["installed"]
        table.add_row(
            extra,
            "[green]yes[/]" if installed else "[yellow]no[/]",
            state["enables"],
            "" if installed else f'pip install "sightline\\[{extra}]"',
        )
    console.print(table)
    if found["h264"] is None:
        console.print("videos are written as VP9 (no ffmpeg program was found for H.264)")
