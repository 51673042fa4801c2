"""A finished run: what is in it, files for other tools, and a video.

Usage: `python examples/02_open_export_render.py [RUN]`
"""

import sys
import tempfile
from pathlib import Path

import sightline
from sightline.datasets.synthetic import make_scene, write_scene

if len(sys.argv) > 1:
    run = sightline.open_run(sys.argv[1])
else:
    folder = Path(tempfile.mkdtemp())
    write_scene(make_scene(num_views=8, height=60, width=80, kind="simple"), folder / "data")
    run = sightline.reconstruct(folder / "data", folder / "scene", steps=60)

cameras = run.cameras()  # OpenCV axes, pixels of the model's resolution
splats = run.splats()
assert splats is not None
print(f"{len(cameras)} cameras of {cameras.width} x {cameras.height}, {len(splats)} splats")
print("first camera stands at", [round(x, 2) for x in cameras.centers[0].tolist()])

for path in run.export(["spz", "splat", "colmap", "transforms", "html"]):
    print(path)
video = run.render(
    run.path / "arc.mp4", trajectory="arc", modes=("rgb", "depth"), frames=12, overwrite=True
)
print(video)
