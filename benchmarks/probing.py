"""One scene, several features and modes: our pipeline against the same code step by step.

The step-by-step side does what the published runner does, with our code: geometry, test poses and
masks again for every feature, the readout's first layer on every pixel, one test view at a time, and
plain instead of fused SSIM. Training itself does the same steps on the same numbers. Both sides run in
one process, feature by feature in turns.

    python benchmarks/probing.py [--steps 60] [--modes G T A] [--json benchmarks/results/probing.json]
"""

import argparse
import dataclasses
import time
from pathlib import Path

import common
import torch

from sightline.probing import poses, train
from sightline.probing.clouds import Cloud, make_cloud, probe_input
from sightline.probing.features import extract_feature, parse_features
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


def main() -> None:
    """Time both sides and write the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--warm-steps", type=int, default=15)
    parser.add_argument("--pose-steps", type=int, default=8)
    parser.add_argument("--depth-steps", type=int, default=300)
    parser.add_argument("--modes", nargs="+", default=["G", "T", "A"])
    parser.add_argument("--features", nargs="+", default=list(FEATURES))
    parser.add_argument("--scene", help="a scene on disk with cameras; default: a synthetic one")
    parser.add_argument("--json", type=Path, default=common.RESULTS / "probing.json")
    arguments = parser.parse_args()
    changes = {
        "steps": arguments.steps,
        "warm_steps": arguments.warm_steps,
        "pose_steps": arguments.pose_steps,
        "depth_steps": arguments.depth_steps,
    }
    protocol = find_protocol("fast", changes)
    synthetic = {"num_views": 12, "height": 96, "width": 128}
    source = SceneSource(
        id="scene", path=arguments.scene or "", synthetic=None if arguments.scene else synthetic
    )
    began = time.perf_counter()
    scene = dataclasses.replace(load_scene(source, protocol), depth=None)
    loading = time.perf_counter() - began
    images = scene.working[: scene.num_train].float() / 255
    spent = {"ours": loading, "step_by_step": 0.0}
    psnr: dict[str, dict[str, float]] = {"ours": {}, "step_by_step": {}}
    fast_readout, fast_loss = train.Readout, train.photo_loss
    shared = None
    for feature in parse_features(arguments.features):
        for side in ("ours", "step_by_step"):
            began = time.perf_counter()
            slow = side == "step_by_step"
            train.Readout = PixelReadout if slow else fast_readout
            train.photo_loss = plain_loss if slow else fast_loss
            if slow:
                again = dataclasses.replace(load_scene(source, protocol), depth=None)
                cloud = make_cloud(again, "given", protocol)
            else:
                cloud = shared = shared or make_cloud(scene, "given", protocol)
            tokens = extract_feature(feature, images, protocol).tokens
            for mode in arguments.modes:
                value = probe(scene, cloud, tokens, mode, protocol, one_by_one=slow)
                psnr[side][f"{feature.name} {mode}"] = value
            spent[side] += time.perf_counter() - began
            print(f"{feature.name} {side}: {spent[side]:.1f} s so far")
    ratio = spent["ours"] / spent["step_by_step"]
    print(f"ours takes {ratio:.2f} of the step-by-step pipeline")
    common.write(
        arguments.json,
        {"protocol": protocol.as_dict(), "seconds": spent, "ratio": ratio, "psnr": psnr},
    )


if __name__ == "__main__":
    main()
