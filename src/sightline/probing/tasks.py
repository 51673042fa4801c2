"""What each kind of task does: reads the folders of its inputs, writes files, returns plain values."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.backbones.pca import pca_maps
from sightline.io.arrays import read_npz, write_npz
from sightline.io.ply import write_gaussian_ply
from sightline.io.tensors import write_safetensors
from sightline.metrics.lpips import Lpips, load_lpips
from sightline.probing import files
from sightline.probing.clouds import make_cloud, probe_input
from sightline.probing.features import POINTS, CloudPoints, Feature, FeaturePart, extract_feature
from sightline.probing.poses import RefinedPoses, draw, refine_test_poses
from sightline.probing.protocols import Protocol, Quirks, Rates
from sightline.probing.scenes import SceneSource, load_scene
from sightline.probing.scoring import score_renders
from sightline.probing.shape import shape_errors, write_metrics_3d
from sightline.probing.store import Task
from sightline.probing.train import ProbeResult, train_probe
from sightline.probing.visibility import counted_pixels
from sightline.protocols import Backbone, Progress
from sightline.types import Cameras, Gaussians

SCENE, CLOUD, TOKENS = "scene.npz", "cloud.npz", "tokens.npz"


def restore_protocol(values: Mapping[str, Any]) -> Protocol:
    """Build a protocol from the plain values of `Protocol.as_dict`."""
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Protocol(
        **{**plain, "rates": Rates(**plain["rates"]), "quirks": Quirks(**plain["quirks"])}
    )


def restore_source(values: Mapping[str, Any]) -> SceneSource:
    """Build a scene source from plain values."""
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return SceneSource(**plain)


def restore_feature(values: Mapping[str, Any]) -> Feature:
    """Build a feature from plain values."""
    parts = [FeaturePart(**{**p, "layers": tuple(p["layers"])}) for p in values["parts"]]
    return Feature(name=values["name"], parts=tuple(parts))


@dataclass(slots=True, kw_only=True)
class Worker:
    """Does tasks; keep one, so that LPIPS is loaded once.

    Attributes:
        device: Where networks and splats run.
        own: Backbones that are objects, by name.
        checkpoints: Of features, by row name and part: paths are no part of a result's key.
        sources: Scene id -> path, for the same reason.
        options: Of geometry estimators, by name.
        lpips: Files of LPIPS weights.
        progress: Called with the task's progress.
    """

    device: str = "cpu"
    own: Mapping[str, Backbone] = field(default_factory=dict)
    checkpoints: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lpips: tuple[str, ...] = ()
    progress: Progress | None = None
    _loaded: Lpips | None = None

    def __call__(self, task: Task, inputs: Sequence[Path], out: Path) -> dict[str, Any]:
        """Do one task."""
        return getattr(self, f"_{task.kind}")(task.params, inputs, out)

    def _scene(self, params: Mapping[str, Any], _: Sequence[Path], out: Path) -> dict[str, Any]:
        source = restore_source(params["source"])
        source = dataclasses.replace(source, path=self.sources.get(source.id, source.path))
        protocol = restore_protocol(params["protocol"])
        if params["sfm"]:
            from sightline.probing.sfm import load_with_sfm

            scene = load_with_sfm(source, protocol, self.progress)
        else:
            scene = load_scene(source, protocol)
        files.write_scene(scene, out / SCENE)
        return {
            "names": list(scene.names),
            "num_train": scene.num_train,
            "working": list(scene.frame.working),
            "target": list(scene.frame.target),
        }

    def _cloud(
        self, params: Mapping[str, Any], inputs: Sequence[Path], out: Path
    ) -> dict[str, Any]:
        scene = files.read_scene(inputs[0] / SCENE)
        protocol = restore_protocol(params["protocol"])
        method = params["method"]
        cloud = make_cloud(
            scene,
            method,
            protocol,
            options=self.options.get(method),
            noise=params["noise"],
            device=self.device,
            progress=self.progress,
        )
        files.write_cloud(cloud, out / CLOUD)
        return {
            "method": cloud.method,
            "points": int(cloud.valid.sum()),
            "valid": float(cloud.valid.float().mean()),
            "mask": [float(m.float().mean()) for m in counted_pixels(cloud.masks)],
            "unit": cloud.unit,
        }

    def _features(
        self, params: Mapping[str, Any], inputs: Sequence[Path], out: Path
    ) -> dict[str, Any]:
        scene = files.read_scene(inputs[0] / SCENE)
        feature = restore_feature(params["feature"])
        paths = self.checkpoints.get(feature.name, [None] * len(feature.parts))
        feature = dataclasses.replace(
            feature,
            parts=tuple(
                dataclasses.replace(part, checkpoint=path)
                for part, path in zip(feature.parts, paths, strict=True)
            ),
        )
        images = scene.working[: scene.num_train].float() / 255
        own = self.own
        if feature.needs_cloud:
            cloud = files.read_cloud(inputs[1] / CLOUD)
            own = {**own, POINTS: CloudPoints(cloud.points, cloud.valid)}
        found = extract_feature(
            feature,
            images.to(self.device),
            restore_protocol(params["protocol"]),
            seed=params["seed"],
            device=self.device,
            own=own,
        )
        files.write_tokens(found.tokens.to("cpu"), out / TOKENS)
        picture = pca_maps(found.tokens.grid.permute(0, 3, 1, 2).cpu())
        small = (picture.clamp(0, 1) * 255).round().to(torch.uint8)
        write_npz(out / "pca.npz", {"colors": small.numpy()})
        return {
            "encoder_ms": 1000 * found.seconds / len(images),
            "channels": found.channels,
            "components": found.tokens.width,
            "grid": list(found.tokens.grid.shape[1:3]),
            "bytes": found.tokens.grid.numel() * 4,
        }

    def _probe(
        self, params: Mapping[str, Any], inputs: Sequence[Path], out: Path
    ) -> dict[str, Any]:
        scene = files.read_scene(inputs[0] / SCENE).to(self.device)
        cloud = files.read_cloud(inputs[1] / CLOUD).to(self.device)
        protocol = restore_protocol(params["protocol"])
        tokens = None
        if len(inputs) > 2:
            tokens = files.read_tokens(inputs[2] / TOKENS).to(self.device)
        result = train_probe(
            probe_input(cloud, scene),
            tokens,
            params["mode"],
            protocol,
            seed=params["seed"],
            penalise_scales=params["penalise_scales"],
            progress=self.progress,
        )
        save_splats(result, out)
        summary: dict[str, Any] = {
            "mode": params["mode"],
            "splats": len(cloud.valid.flatten().nonzero()),
            "warm_seconds": result.warm_seconds,
            "train_seconds": result.seconds,
            "history": result.history,
        }
        truth = cloud.clean if cloud.clean is not None else cloud.points
        if cloud.clean is not None or cloud.method == "depth":
            errors = shape_errors(result.raw["xyz"], truth[cloud.valid], cloud.unit)
            summary["shape"] = {n: v if math.isfinite(v) else None for n, v in errors.items()}
            total = protocol.steps + protocol.warm_steps
            write_metrics_3d(out / "3d_metrics.json", errors, total)
        poses = {"train_w2c": result.w2c.cpu().numpy()}
        if scene.num_test:
            began = time.perf_counter()
            test = cloud.test.map(lambda t: t.float())
            photos = scene.targets[scene.num_train :].float() / 255
            found = refine_test_poses(result.gaussians(), test, photos, cloud.masks, protocol)
            summary["pose_seconds"] = time.perf_counter() - began
            renders = _render(result.gaussians(), found, test)
            network = self._network(protocol) if params["lpips"] else None
            masks = counted_pixels(cloud.masks)
            scores = score_renders(renders, photos, masks, protocol, network)
            summary["scores"] = {
                name: [v if math.isfinite(v) else None for v in values.tolist()]
                for name, values in scores.items()
            }
            summary["test"] = list(scene.names[scene.num_train :])
            pixels = (renders.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
            write_npz(out / "renders.npz", {"renders": pixels.numpy()})
            poses |= {"test_w2c": found.w2c.cpu().numpy(), "loss": found.loss.cpu().numpy()}
        write_npz(out / "poses.npz", poses)
        return summary

    def _video(
        self, params: Mapping[str, Any], inputs: Sequence[Path], out: Path
    ) -> dict[str, Any]:
        from sightline.probing.videos import render_probe_video

        protocol = restore_protocol(params["protocol"])
        found = render_probe_video(
            inputs[1], files.read_cloud(inputs[0] / CLOUD), out, params, protocol, self.progress
        )
        return {"files": found, "path": params["path"]}

    def _maps(self, params: Mapping[str, Any], inputs: Sequence[Path], out: Path) -> dict[str, Any]:
        from sightline.probing.maps import write_error_maps

        scene = files.read_scene(inputs[0] / SCENE)
        if not scene.num_test:
            return {"files": []}
        masks = counted_pixels(files.read_cloud(inputs[1] / CLOUD).masks)
        renders = torch.from_numpy(read_npz(inputs[2] / "renders.npz")["renders"])
        photos = scene.targets[scene.num_train :]
        protocol = restore_protocol(params["protocol"])
        network = self._network(protocol).to("cpu") if params["lpips"] else None
        return {"files": write_error_maps(out, renders, photos, masks, network)}

    def _probe3d(
        self, params: Mapping[str, Any], inputs: Sequence[Path], out: Path
    ) -> dict[str, Any]:
        from sightline.probing.probe3d import run_probe3d

        scene = files.read_scene(inputs[0] / SCENE)
        tokens = files.read_tokens(inputs[1] / TOKENS)
        return run_probe3d(params["probe"], scene, tokens, seed=params["seed"], out=out)

    def _network(self, protocol: Protocol) -> Lpips:
        if self._loaded is None:
            net = "vgg" if protocol.lpips == "vgg" else "alex"
            self._loaded = load_lpips(net, self.lpips or None)
        return self._loaded.to(self.device)


def save_splats(result: ProbeResult, out: Path) -> None:
    """Write the Gaussians as a 3DGS file, and the heads under their published names."""
    raw = {name: value.cpu() for name, value in result.gaussians().items()}
    gaussians = Gaussians(
        means=raw["means"],
        quats=torch.nn.functional.normalize(raw["quats"], dim=-1),
        scales=raw["scales"],
        opacities=raw["opacities"],
        sh=raw["colors"],
    )
    write_gaussian_ply(out / "splats.ply", gaussians)
    if result.readout:
        readout = {k: v.cpu() for k, v in result.readout.items()}
        write_safetensors(out / "readout.safetensors", readout)


@torch.no_grad()
def _render(gaussians: Mapping[str, Tensor], found: RefinedPoses, test: Cameras) -> Tensor:
    parts = [
        draw(gaussians, found.w2c[i : i + 1], test.select([i])).permute(0, 3, 1, 2)
        for i in range(len(test))
    ]
    return torch.cat(parts)
