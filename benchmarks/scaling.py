"""How the work grows: splats, pixels, views, images and workers, each with its fitted exponent.

    python benchmarks/scaling.py [--curves splats,pixels,views,images,frames,workers]
                                 [--threads 2] [--rounds 2] [--json FILE]

Every curve changes one size and nothing else:

- ``splats``: the rasteriser, forward and backward, 640 x 480 pixels
- ``pixels``: the same with 100,000 splats
- ``views``: structure from motion of the procedural scene, all pairs matched
- ``images``: features of DINOv2 ViT-S/14 (drawn weights), 224 x 224
- ``frames``: a small VGGT, 112 x 112, whose frames attend to each other
- ``workers``: `sightline prepare` of the same pictures

Each round goes over all sizes once; the fastest of the rounds counts. The exponent is that of
``seconds = factor * size ** exponent`` by least squares of the logarithms: of CPU seconds of all
threads and children, which other programs disturb least, and of wall seconds; for workers only the
latter means something (-1 would be perfect).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch

Prepared = Callable[[], object]


def splats(size: int, scratch: Path) -> Prepared:
    """Draw so many splats and their gradients."""
    del scratch
    return _raster(size, 640, 480)


def pixels(size: int, scratch: Path) -> Prepared:
    """Draw pictures of so many pixels, 4:3."""
    del scratch
    height = round((size * 3 / 4) ** 0.5)
    return _raster(100_000, size // height, height)


def _raster(number: int, width: int, height: int) -> Prepared:
    from rasterizer import TRAINED, draw_scene

    from sightline.splatting import rasterization

    scene = draw_scene(number, width, height, None, "cpu")
    for name in TRAINED:
        scene[name].requires_grad_()

    def call() -> None:
        picture, alpha, _ = rasterization(**scene)
        torch.autograd.backward([picture, alpha], [torch.ones_like(picture), alpha.detach()])

    return call


def views(size: int, scratch: Path) -> Prepared:
    """Find the cameras of so many views."""
    from sightline.datasets.synthetic import make_scene, write_scene
    from sightline.io.ingest import IngestOptions, ingest
    from sightline.reconstruction.colmap import ColmapEstimator

    # Neighbours stay as near as in the largest set: views on a part of the way round.
    scene = make_scene(num_views=48, height=180, width=240, supersampling=1)
    folder = write_scene(scene, scratch / "scene").parent / "images"
    names = sorted(folder.iterdir())[:size]
    pictures = ingest(names, scratch / "in", IngestOptions()).views(240)

    def call() -> None:
        with tempfile.TemporaryDirectory(dir=scratch) as workspace:
            estimator = ColmapEstimator(
                workspace=Path(workspace), matching="exhaustive", num_threads=1
            )
            found = estimator.estimate(pictures)
        assert int(found.registered.sum()) > size // 2, f"{found.registered.sum()} of {size}"

    return call


def images(size: int, scratch: Path) -> Prepared:
    """Compute features of so many images."""
    del scratch
    from sightline import create_backbone

    backbone = create_backbone("random:dinov2_vits14", device="cpu")
    pictures = torch.rand(size, 3, 224, 224)
    return lambda: backbone.extract(pictures, layers=[-1])


def frames(size: int, scratch: Path) -> Prepared:
    """Run a VGGT on so many frames."""
    del scratch
    from sightline.models.vggt import VGGT

    encoder = {"embed_dim": 128, "depth": 2, "num_heads": 2}
    model = VGGT(
        *(112, 14, 128),
        aggregator={"patch_embed": "dinov2_vits14_reg", "encoder": encoder, "depth": 6}
        | {"num_heads": 4},
        camera={"trunk_depth": 2, "num_heads": 4},
        dpt={"features": 32, "out_channels": (16, 32, 64, 64)}
        | {"intermediate_layer_idx": (0, 2, 4, 5)},
        track=None,
    ).eval()
    pictures = torch.rand(1, size, 3, 112, 112)

    def call() -> None:
        with torch.inference_mode():
            model(pictures)

    return call


def workers(size: int, scratch: Path) -> Prepared:
    """Prepare the same pictures with so many workers."""
    from prepare import draw

    source = scratch / "in"
    if not source.is_dir():
        source.mkdir()
        draw(source, 600)

    def call() -> None:
        with tempfile.TemporaryDirectory(dir=scratch) as output:
            words = ["prepare", str(source), "-o", f"{output}/out", "--size", "256"]
            words += ["--workers", str(size)]
            subprocess.run(
                [sys.executable, "-m", "sightline", *words],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    return call


CURVES: dict[str, tuple[Callable[[int, Path], Prepared], tuple[int, ...]]] = {
    "splats": (splats, (10_000, 30_000, 100_000, 300_000, 1_000_000)),
    "pixels": (pixels, (19_200, 76_800, 307_200, 1_228_800)),
    "views": (views, (8, 12, 16, 24)),
    "images": (images, (1, 2, 4, 8, 16)),
    "frames": (frames, (2, 4, 8, 16, 32)),
    "workers": (workers, (1, 2, 4)),
}


def measure(call: Prepared) -> tuple[float, float]:
    """Return wall and CPU seconds of a call, children included."""
    began, busy = time.perf_counter(), common.cpu_seconds()
    call()
    return time.perf_counter() - began, common.cpu_seconds() - busy


def curve(name: str, rounds: int) -> dict[str, Any]:
    """Measure one curve and fit its exponents."""
    prepare, sizes = CURVES[name]
    with tempfile.TemporaryDirectory() as scratch:
        calls: dict[int, Prepared] = {}
        for size in sizes:
            folder = Path(scratch) / ("shared" if name == "workers" else str(size))
            folder.mkdir(exist_ok=True)
            calls[size] = prepare(size, folder)
        measure(calls[sizes[0]])  # compiles kernels
        found: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
        for _ in range(rounds):
            for size, call in calls.items():
                found[size].append(measure(call))
    wall, busy = ([min(row[i] for row in rows) for rows in found.values()] for i in (0, 1))
    return {
        "what": (prepare.__doc__ or "").rstrip("."),
        "sizes": list(sizes),
        "seconds": [round(v, 4) for v in wall],
        "cpu_seconds": [round(v, 4) for v in busy],
        "wall_fit": common.power_law(sizes, wall),
        "cpu_fit": common.power_law(sizes, busy),
    }


def main() -> None:
    """Measure the curves, print and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--curves", default=",".join(CURVES))
    parser.add_argument("--threads", type=int, default=common.THREADS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, default=common.RESULTS / "scaling.json")
    args = parser.parse_args()
    names = args.curves.split(",")
    if unknown := [name for name in names if name not in CURVES]:
        parser.error(f"unknown curves {', '.join(unknown)}; there are {', '.join(CURVES)}")
    torch.set_num_threads(args.threads)
    curves: dict[str, Any] = {}
    for name in names:
        curves[name] = curve(name, args.rounds)
        print(
            f"{name:8s} {curves[name]['cpu_fit']['exponent']:6.2f} of CPU time, "
            f"{curves[name]['wall_fit']['exponent']:6.2f} of wall time  "
            + "  ".join(
                f"{size}: {seconds:.3g} s"
                for size, seconds in zip(
                    curves[name]["sizes"], curves[name]["seconds"], strict=True
                )
            ),
            flush=True,
        )
    common.write(args.json, {"threads": args.threads, "rounds": args.rounds, "curves": curves})


if __name__ == "__main__":
    main()
