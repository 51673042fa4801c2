"""What a vision model sees: features with exact positions, and a picture of them.

Usage: `python examples/04_features.py [BACKBONE] [CHECKPOINT]`
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

import sightline
from sightline.backbones import pixel_positions
from sightline.backbones.pca import pca_maps, to_colors
from sightline.datasets.synthetic import make_scene

name = sys.argv[1] if len(sys.argv) > 1 else "random:dinov2_vits14"  # untrained: needs no weights
backbone = sightline.create_backbone(name, *sys.argv[2:3], device="cpu")
images = make_scene(num_views=3, height=96, width=128, kind="simple").views.images

last, middle = backbone.extract(images, layers=[-1, 5])
positions = pixel_positions(last, images.shape[2:], backbone)
print(f"{name}: layer {last.layer} is {tuple(last.patches.shape)} [views, channels, rows, columns]")
print("its first patch looks at pixel", positions[0, 0].tolist())

maps = pca_maps(last.patches)  # colours common to all views
folder = Path(tempfile.mkdtemp())
for view, colors in enumerate(maps):
    Image.fromarray(to_colors(colors).numpy()).resize((256, 192), Image.Resampling.NEAREST).save(
        folder / f"{view}.png"
    )
print(f"principal components as colours: {folder}")
