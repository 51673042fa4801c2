"""The rasteriser alone: gsplat's call, on a CPU, with gradients.

Five hundred random Gaussians learn to look like one picture.

Usage: `python examples/03_rasterize.py [PICTURE.png]`
"""

import sys
from pathlib import Path

import torch

from sightline.datasets.synthetic import make_scene
from sightline.io.images import read_image
from sightline.splatting import rasterization

if len(sys.argv) > 1:
    pixels = torch.from_numpy(read_image(Path(sys.argv[1])))
    target = torch.nn.functional.interpolate(pixels.movedim(-1, 0)[None].float() / 255, (96, 128))
    target = target[0].movedim(0, -1)
else:
    scene = make_scene(num_views=1, height=96, width=128, kind="simple")
    target = scene.views.images[0].movedim(0, -1)  # [H W 3] in [0, 1]
height, width = target.shape[:2]

torch.manual_seed(0)
count = 500
raw = {
    "means": torch.rand(count, 3) * torch.tensor([4.0, 3.0, 1.0]) - torch.tensor([2.0, 1.5, -3.5]),
    "scales": torch.full((count, 3), -2.0),
    "quats": torch.randn(count, 4),
    "opacities": torch.zeros(count),
    "colors": torch.zeros(count, 3),
}
raw = {name: value.requires_grad_() for name, value in raw.items()}
optimizer = torch.optim.Adam(raw.values(), lr=0.03)
K = torch.tensor([[[width, 0.0, width / 2], [0.0, width, height / 2], [0.0, 0.0, 1.0]]])

for step in range(101):
    picture, alpha, meta = rasterization(
        raw["means"],
        raw["quats"],
        raw["scales"].exp(),
        raw["opacities"].sigmoid(),
        raw["colors"].sigmoid(),
        torch.eye(4)[None],  # world to camera
        K,
        width,
        height,
    )
    loss = (picture[0] - target).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 0:
        print(f"step {step:3d}  PSNR {-10 * loss.log10():.2f} dB")
