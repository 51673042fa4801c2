"""One scene, several features and modes: our pipeline against the same code step by step.

The step-by-step side does what the published runner does, with our code: the pictures, geometry, test
poses and masks again for every feature (the modes of a feature share them there too), features kept
for every pixel and both layers of the readout on each, one test view at a time, and plain instead of
fused SSIM. Rasteriser, optimiser and losses are the same, and so are all numbers of steps. Both sides
run in one process, feature by feature in turns, after a short run of each that compiles all kernels.

``--share`` shortens every stage (warm start, training, test poses, splats for depth) alike, so that
the proportions of the protocol stay.

    python benchmarks/probing.py [--share 0.05] [--modes G T A] [--json benchmarks/results/probing.json]
"""

import argparse
import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import common
import torch

from sightline.probing import poses, train
from sightline.probing.clouds import Cloud, make_cloud, probe_input
from sightline.probing.features import Feature, extract_feature, parse_features
from sightline.probing.protocols import Protocol, find_protocol
from sightline.probing.readout import Reading, Readout
from sightline.probing.scenes import ProbeScene, SceneSource, load_scene
from sightline.probing.scoring import score_renders
from sightline.probing.tokens import TokenGrid
from sightline.splatting.losses import photometric_loss_reference

FEATURES = ("iuvrgb", "random", "random:dinov2_vits14", "random:dinov3_vits16")


class PixelReadout(Readout):
    """The readout as published: features of every pixel, both layers on them, with autograd."""

    features: torch.Tensor | None = None

    def forward(self, reading: Reading) -> dict[str, torch.Tensor]:
        """Return the raw parameters of the pixels."""
        if self.features is None:
            self.features = reading.tokens.at_pixels().flatten(0, 2)[reading.pixels]
        return self.per_pixel(self.features)


def plain_loss(image: torch.Tensor, photo: torch.Tensor, protocol: Protocol) -> torch.Tensor:
    """Return the photometric loss without the fused kernel."""
    return photometric_loss_reference(image, photo, ssim_weight=protocol.ssim_weight)


def probe(
    scene: ProbeScene,
    cloud: Cloud,
    tokens: TokenGrid,
    mode: str,
    protocol: Protocol,
    *,
    one_by_one: bool,
) -> float:
    """Train and score one probe; return its PSNR."""
    splats = train.train_probe(probe_input(cloud, scene), tokens, mode, protocol).gaussians()
    test = cloud.test.map(lambda t: t.float())
    photos = scene.targets[scene.num_train :].float() / 255
    groups = [[i] for i in range(len(test))] if one_by_one else [list(range(len(test)))]
    scores = []
    for group in groups:
        found = poses.refine_test_poses(
            splats, test.select(group), photos[group], cloud.masks[group], protocol
        )
        with torch.no_grad():
            renders = poses.draw(splats, found.w2c, test.select(group)).permute(0, 3, 1, 2)
        scores.append(
            score_renders(renders, photos[group], cloud.masks[group] == 1, protocol)["psnr"]
        )
    return float(torch.cat(scores).nanmean())


def shortened(protocol: Protocol, share: float) -> Protocol:
    """Return the protocol with this part of the steps of every stage."""
    names = ("warm_steps", "steps", "pose_steps", "depth_steps")
    return dataclasses.replace(
        protocol, **{name: max(1, round(share * getattr(protocol, name))) for name in names}
    )


def warm_up(
    source: SceneSource, features: Sequence[Feature], modes: Sequence[str], protocol: Protocol
) -> None:
    """Compile all kernels of both sides."""
    short = shortened(protocol, 0)
    scene = dataclasses.replace(load_scene(source, short), depth=None)
    cloud = make_cloud(scene, "given", short)
    images = scene.working[: scene.num_train].float() / 255
    for feature in features:
        tokens = extract_feature(feature, images, short).tokens
        for mode in modes:
            probe(scene, cloud, tokens, mode, short, one_by_one=False)


@contextmanager
def step_by_step() -> Iterator[None]:
    """Train without the accelerations of the readout and the loss."""
    readout, loss = train.Readout, train.photo_loss
    train.Readout, train.photo_loss = PixelReadout, plain_loss
    try:
        yield
    finally:
        train.Readout, train.photo_loss = readout, loss


def main() -> None:
    """Time both sides and write the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.05, help="of the protocol's steps")
    parser.add_argument("--modes", nargs="+", default=["G", "T", "A"])
    parser.add_argument("--features", nargs="+", default=list(FEATURES))
    parser.add_argument("--scene", help="a scene on disk with cameras; default: a synthetic one")
    parser.add_argument("--json", type=Path, default=common.RESULTS / "probing.json")
    arguments = parser.parse_args()
    protocol = shortened(find_protocol("fast"), arguments.share)
    synthetic = {"num_views": 12, "height": 96, "width": 128}
    source = SceneSource(
        id="scene", path=arguments.scene or "", synthetic=None if arguments.scene else synthetic
    )
    features = parse_features(arguments.features)
    spent = {"ours": 0.0, "step_by_step": 0.0}
    cores = {"ours": 0.0, "step_by_step": 0.0}
    psnr: dict[str, dict[str, float]] = {"ours": {}, "step_by_step": {}}
    scene, cloud = None, None
    warm_up(source, features, arguments.modes, protocol)
    for feature in features:
        for side, slow in (("ours", False), ("step_by_step", True)):
            began, busy = time.perf_counter(), time.process_time()
            if slow or scene is None or cloud is None:
                found = dataclasses.replace(load_scene(source, protocol), depth=None)
                made = make_cloud(found, "given", protocol)
                if not slow:
                    scene, cloud = found, made
            else:
                found, made = scene, cloud
            images = found.working[: found.num_train].float() / 255
            tokens = extract_feature(feature, images, protocol).tokens
            for mode in arguments.modes:
                with step_by_step() if slow else nullcontext():
                    value = probe(found, made, tokens, mode, protocol, one_by_one=slow)
                psnr[side][f"{feature.name} {mode}"] = value
            spent[side] += time.perf_counter() - began
            cores[side] += time.process_time() - busy
            print(f"{feature.name} {side}: {spent[side]:.1f} s so far", flush=True)
    ratio = spent["ours"] / spent["step_by_step"]
    of_cores = cores["ours"] / cores["step_by_step"]
    print(
        f"ours takes {ratio:.3f} of the step-by-step pipeline, {of_cores:.3f} of its core seconds"
    )
    common.write(
        arguments.json,
        {
            "share": arguments.share,
            "protocol": protocol.as_dict(),
            "seconds": spent,
            "cpu_seconds": cores,
            "ratio": ratio,
            "cpu_ratio": of_cores,
            "psnr": psnr,
        },
    )


if __name__ == "__main__":
    main()
