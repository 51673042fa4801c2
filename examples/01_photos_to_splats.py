"""Photos to cameras, splats and a report.

Give a folder of photos, a clip, a COLMAP model or a transforms.json; without one a small scene is
drawn first, so that this file runs anywhere.

Usage: `python examples/01_photos_to_splats.py [PHOTOS] [OUTPUT]`
"""

import sys
import tempfile
from pathlib import Path

import sightline
from sightline.datasets.synthetic import make_scene, write_scene

output = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp()) / "scene"
if len(sys.argv) > 1:
    photos = Path(sys.argv[1])
else:
    photos = output.parent / "photos"
    write_scene(make_scene(num_views=9, height=72, width=96, kind="simple"), photos)

# Every 4th photo is kept out of the fit and used to judge it.
run = sightline.reconstruct(photos, output, test_every=4, steps=150)

print(run.sentence())
print(f"held-out PSNR {run.metrics['test']['psnr']['mean']:.1f} dB")
print(f"open {run.path / 'report.html'} for pictures and {run.path / 'splats.ply'} in a viewer")
