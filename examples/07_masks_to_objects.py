"""Masks of a few views become an object of its own, made of splats.

Usage: `python examples/07_masks_to_objects.py`
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import sightline
from sightline.datasets.synthetic import SyntheticTruth, make_scene, write_scene
from sightline.io.ply import read_gaussian_ply
from sightline.pipeline.objects import lift_run

folder = Path(tempfile.mkdtemp())
scene = make_scene(num_views=10, height=72, width=96, kind="simple")
write_scene(scene, folder / "data")
run = sightline.reconstruct(folder / "data", folder / "scene", steps=150)

assert scene.ground_truth is not None
truth = scene.ground_truth.raw
assert isinstance(truth, SyntheticTruth)
(folder / "masks").mkdir()
for view in (0, 3, 6, 9):  # four marked views: 0 is nothing, every other value an object
    labels = truth.labels[view].numpy().astype(np.uint8)
    Image.fromarray(labels).save(folder / "masks" / scene.views.names[view])

for path in lift_run(run.path, folder / "objects", masks=folder / "masks"):
    print(path)
for path in sorted((folder / "objects" / "objects").glob("*.ply")):
    print(f"{path.name}: {len(read_gaussian_ply(path))} splats of {len(run.splats() or [])}")
