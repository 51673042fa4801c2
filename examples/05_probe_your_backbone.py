"""Does your model know 3D? Read Gaussians out of its features and score novel views.

Any object with four attributes and a method `extract` is a backbone.

Usage: `python examples/05_probe_your_backbone.py [OUTPUT]`
"""

import sys
import tempfile
from pathlib import Path

import torch

from sightline.probing.config import ProbeConfig
from sightline.probing.grid import run_grid
from sightline.probing.report import write_report
from sightline.types import Features


class MeanColors:
    """The mean colour of every patch of 8 x 8 pixels."""

    patch_size, embed_dim, mean, std = 8, 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    fingerprint = "1"  # change it with the weights, so that no old score is shown for new ones

    def extract(self, images: torch.Tensor, *, layers: list[int]) -> list[Features]:
        """Return one record a layer asked for."""
        patches = torch.nn.functional.avg_pool2d(images, self.patch_size) * 2 - 1
        return [Features(patches=patches, layer=layer, normed=False) for layer in layers]


output = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()) / "probe"
config = ProbeConfig(
    protocol="fast",
    changes={"steps": 60, "warm_steps": 20},  # leave these out for scores that mean something
    scenes=[{"id": "ball", "synthetic": {"kind": "simple", "num_views": 8}}],
    features=["mine", "random"],
    modes=["G"],
    seeds=[0, 1],
    lpips=["none"],
)
outcome = run_grid(config, output, own={"mine": MeanColors()})
print(f"{len(outcome.done)} tasks done, {len(outcome.kept)} kept from before")
print(f"open {write_report(output)}")
