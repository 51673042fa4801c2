"""Draw the README's picture from a finished `sightline demo`: photo, rendering and depth.

python docs/make_demo_picture.py sightline-demo docs/images/demo.jpg
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import sightline
from sightline.report.colormap import TURBO, apply_colormap
from sightline.report.figures import depth_fraction, depth_mask, depth_range, to_pixels
from sightline.splatting import render_gaussians

_GAP = 6


def main(run_folder: str, picture: str) -> None:
    """Lay three held-out views side by side: what the camera saw above what the splats show."""
    run = sightline.open_run(run_folder)
    views, splats = run.views(), run.splats()
    assert splats is not None
    assert views.cameras is not None
    chosen = run.camera_file().test.nonzero()[:3, 0]
    cameras = views.cameras.select(chosen).map(lambda t: t.float())
    rendering = render_gaussians(splats, cameras)
    assert rendering.depth is not None
    depths = list(rendering.depth)
    limits = depth_range(depths, [depth_mask(d) for d in depths])
    columns = []
    for i, view in enumerate(chosen.tolist()):
        depth = apply_colormap(depth_fraction(depths[i].numpy(), *limits), TURBO)
        rows = [to_pixels(views.images[view]), to_pixels(rendering.rgb[i]), depth]
        columns.append(_stack(rows, 0))
    Image.fromarray(_stack(columns, 1)).save(picture, quality=88, optimize=True)


def _stack(pictures: list[np.ndarray], axis: int) -> np.ndarray:
    shape = list(pictures[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, 255, np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)][1:]
    return np.concatenate(parts, axis)


if __name__ == "__main__":
    with torch.no_grad():
        main(sys.argv[1], str(Path(sys.argv[2])))
