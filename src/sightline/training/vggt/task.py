"""The trainer of VGGT and VGGT-Omega, as `sightline.training.engine` runs it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sightline.checkpoints import save_state_dict
from sightline.datasets.augment import ColorJitter
from sightline.io.atomic import atomic_path
from sightline.io.depth import depth_preview
from sightline.models.vggt import VGGT
from sightline.training.draws import Draw, generator
from sightline.training.log import MEAN
from sightline.training.task import ParameterGroup, TrainTask, part_of, weight_groups
from sightline.training.vggt.data import (
    Sources,
    fixed_samples,
    open_sources,
    shapes_of,
    training_batch,
    true_tracks,
    truth_of,
)
from sightline.training.vggt.measure import Prediction, constant, mean_prediction, measure
from sightline.training.vggt.network import build_network, check_recognized, patch_of
from sightline.training.vggt.settings import VggtSettings
from sightline.training.vggt_losses import (
    CameraTerm,
    DenseTerm,
    normalize_truth,
    track_loss,
    vggt_loss,
)
from sightline.types import MultiView

_MEAN_SAMPLES = 128
"""Training samples that the mean predictor is the mean of."""
_PICTURES = 4


class VggtTask(TrainTask):
    """Cameras, depth, points and tracks from views, learned from views with cameras and depth."""

    name = "vggt"

    def __init__(self, settings: VggtSettings) -> None:
        """Build the network; data are opened by `check`."""
        super().__init__(settings)
        self.chosen = settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.network = build_network(settings)
        self.patch = patch_of(self.network)
        self.shapes = shapes_of(settings, self.patch)
        self.jitter = ColorJitter() if settings.jitter else None
        self._sources: Sources | None = None
        self._held: list[MultiView] | None = None
        self._mean: Prediction | None = None
        side = int(settings.width * settings.max_aspect) // self.patch * self.patch
        self.val_size = (max(side, self.patch), settings.width)
        self.val_frames = min(settings.val_frames, settings.max_frames)
        self.val_frames = max(self.val_frames, 2)

    @property
    def sources(self) -> Sources:
        """The data, opened when first asked for."""
        if self._sources is None:
            self._sources = open_sources(self.chosen)
        return self._sources

    @property
    def epoch_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Pictures of one pass; 0 for generated rooms."""
        return self.sources.pictures

    def check(self) -> None:
        """Open the data, read one sample of each part, and make sure of the network's sizes."""
        check_recognized(self.network)
        for what, source in (("train", self.sources.train), ("val", self.sources.val)):
            source.draw(generator(self.chosen.seed, "check", what), self.val_frames, *self.val_size)

    def batch(self, draw: Draw) -> MultiView:
        """Return views of some scenes."""
        return training_batch(draw, self.sources.train, self.shapes, self.jitter)

    def forward(self, batch: MultiView, step: int) -> dict[str, Tensor]:
        """Return the objective and its parts."""
        chosen = self.chosen
        tracks = None
        if chosen.track_weight:
            rng = generator(chosen.seed, "tracks", step)
            tracks = true_tracks(batch, chosen.track_points, rng)
        predictions = self.predict(batch.images, None if tracks is None else tracks[0])
        losses = vggt_loss(
            predictions,
            normalize_truth(truth_of(batch)),
            batch.K,
            camera=CameraTerm(weight=chosen.camera_weight) if chosen.camera_weight else None,
            depth=self._term(chosen.depth_weight, chosen.depth_gradient),
            point=self._term(chosen.point_weight, chosen.point_gradient),
        )
        total = losses.pop("objective")
        if tracks is not None:
            parts = track_loss(
                predictions["track_list"], predictions["vis"], predictions["conf"], *tracks[1:]
            )
            total = total + chosen.track_weight * parts["loss_track"]
            losses |= parts
        return {"loss": total, **{k.removeprefix("loss_"): v for k, v in losses.items()}}

    def predict(self, images: Tensor, queries: Tensor | None = None) -> dict[str, Any]:
        """Return what the network says, with ``pose_enc_list`` whatever its kind."""
        if isinstance(self.network, VGGT):
            return self.network(images, queries)
        predictions: dict[str, Any] = self.network(images)
        if "pose_enc" in predictions:
            predictions["pose_enc_list"] = [predictions["pose_enc"]]
        return predictions

    def _term(self, weight: float, gradient: Any) -> DenseTerm | None:  # noqa: ANN401
        if not weight:
            return None
        return DenseTerm(weight=weight, gradient=gradient, valid_range=self.chosen.valid_range)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the parts of the network, each clipped by itself; the encoder has its own rate."""
        encoder = {id(p) for p in self.network.aggregator.patch_embed.parameters()}
        groups = []
        for name, part in self.network.named_children():
            for group in weight_groups(part, name=name, clip=name):
                inside = [p for p in group.parameters if id(p) in encoder]
                outside = [p for p in group.parameters if id(p) not in encoder]
                scale = self.chosen.encoder_lr_scale
                kind = group.name.removeprefix(f"{name}.")
                for label, parameters, factor in (
                    (f"{name}.{kind}", outside, 1.0),
                    (f"encoder.{kind}", inside, scale),
                ):
                    if parameters:
                        groups.append(
                            ParameterGroup(
                                name=label,
                                parameters=parameters,
                                lr_scale=factor,
                                decay=group.decay,
                                clip=name,
                            )
                        )
        return groups

    # -- validation -------------------------------------------------------------------------

    @property
    def held_out(self) -> list[MultiView]:
        """The samples of the validation, the same at every call."""
        if self._held is None:
            self._held = self._fixed(self.sources.val, "validation", self.chosen.val_scenes)
        return self._held

    def _fixed(self, source: Any, what: str, count: int) -> list[MultiView]:  # noqa: ANN401
        samples = fixed_samples(
            source, what, count, self.val_frames, self.val_size, self.chosen.seed
        )
        return [_batched(sample) for sample in samples]

    def mean_predictor(self) -> Prediction:
        """Return what the mean of the training data predicts."""
        if self._mean is None:
            self._mean = mean_prediction(self._fixed(self.sources.train, "mean", _MEAN_SAMPLES))
        return self._mean

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """Return the errors on held-out scenes, and beside them those of the mean predictor."""
        device = next(self.network.parameters()).device
        predictions = []
        for batch in self.held_out:
            found = self.predict(batch.images.to(device))
            predictions.append(
                Prediction(
                    encoding=found["pose_enc"].cpu() if "pose_enc" in found else None,
                    depth=found["depth"][..., 0].cpu() if "depth" in found else None,
                )
            )
        ours = measure(predictions, self.held_out)
        mean = self.mean_predictor()
        theirs = measure([constant(mean, b) for b in self.held_out], self.held_out)
        return {**ours, **{MEAN + name: theirs[name] for name in ours}}

    def pictures(self, step: int, folder: Path) -> None:
        """Write held-out views, above them their true and below their predicted depth."""
        device = next(self.network.parameters()).device
        for index, batch in enumerate(self.held_out[:_PICTURES]):
            found = self.predict(batch.images.to(device))
            if "depth" not in found:
                return
            truth = normalize_truth(truth_of(batch))
            rows = [
                [depth_preview(d) for d in truth.depths[0]],
                [
                    (i.movedim(0, -1).numpy() * 255).round().astype(np.uint8)
                    for i in batch.images[0]
                ],
                [depth_preview(d) for d in found["depth"][0, ..., 0].float().cpu()],
            ]
            picture = np.concatenate([np.concatenate(row, 1) for row in rows])
            with atomic_path(folder / f"scene_{index}.png") as tmp:
                Image.fromarray(picture).save(tmp, format="PNG")

    # -- the result -------------------------------------------------------------------------

    def export(self, state: Mapping[str, Tensor], path: Path) -> list[Path]:
        """Write the network as a checkpoint of its family, which tells how it came about."""
        file = path / "vggt_custom.pt"
        save_state_dict(part_of(state, "network."), file, self.facts())
        return [file]

    def facts(self) -> dict[str, Any]:
        """Return what the network and the data are."""
        trained = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        return {
            **self.sources.facts(),
            "network": type(self.network).__name__,
            "encoder": self.chosen.encoder,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "trained parameters": trained,
            "patch size": self.patch,
        }


def _batched(sample: MultiView) -> MultiView:
    return sample.map(lambda tensor: tensor[None])
