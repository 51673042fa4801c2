"""The trainer of Splatt3R with a fused backbone."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sightline.checkpoints import save_weights
from sightline.checkpoints.read import PSEUDO
from sightline.errors import CheckpointError, InputError
from sightline.metrics.lpips import Lpips, find_lpips, load_lpips
from sightline.models.fusion import FusedSplatt3R
from sightline.training.draws import Draw
from sightline.training.splatt3r.batch import (
    PairBatch,
    correspondences,
    in_unit,
    pair_batch,
    unit_of,
)
from sightline.training.splatt3r.data import estimated, held_out, open_source, training_batch
from sightline.training.splatt3r.evaluate import PairScore, means, score_pairs
from sightline.training.splatt3r.losses import SUBSTITUTE, splatt3r_loss
from sightline.training.splatt3r.network import build_network, freeze, frozen_parts, weights_file
from sightline.training.splatt3r.render import draw_pair
from sightline.training.splatt3r.settings import Splatt3rSettings
from sightline.training.task import ParameterGroup, Plan, TrainTask, part_of

FILE = "splatt3r.safetensors"
"""The exported checkpoint."""
_SHOWN = 4


class Splatt3rTask(TrainTask):
    """Two views in, Gaussians out, judged by other views.

    Smart et al., Splatt3R, 2024 (arXiv 2408.13912). What differs: any backbone may be fused in, and
    targets are never the context views.
    """

    name = "splatt3r"
    settings: Splatt3rSettings

    def __init__(self, settings: Splatt3rSettings) -> None:
        """Build the network; see `network.build_network`."""
        super().__init__(settings)
        self.network = build_network(settings)
        self.trained = freeze(self.network, settings)
        lpips, self.look = _perceptual(settings)
        # In a list, so that its weights are not part of the state.
        self._lpips: list[Lpips] = [] if lpips is None else [lpips]
        self.scores: dict[int, list[PairScore]] = {}
        self.train()

    @property
    def lpips(self) -> Lpips | None:
        """LPIPS on the device of the network, where its weights are known."""
        if not self._lpips:
            return None
        return self._lpips[0].to(next(self.network.parameters()).device)

    def train(self, mode: bool = True) -> "Splatt3rTask":
        """Set the mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in frozen_parts(self.network):
            module.eval()
        return self

    def check(self) -> None:
        """Open the data and draw a sample of each split.

        Raises:
            InputError: If there is no data, or it does not serve.
        """
        self.source = open_source(self.settings, "train")
        self.val_source = open_source(self.settings, "val")
        batch = pair_batch(held_out(self.val_source, self.settings, 0, 1))
        if not bool(batch.masks.any()):
            batch = pair_batch(held_out(self.val_source, self.settings, 1, 4))
        if not bool(batch.masks.any()):
            raise InputError(
                "no pixel of the first held-out targets is seen by their context views; look at the "
                "data's depth and poses, or raise --overlap"
            )
        training_batch(self.source, [np.random.default_rng(0)], self.settings)

    def begin(self, plan: Plan) -> None:
        """Take the plan."""
        super().begin(plan)
        if self.settings.schedule == "step":
            half = plan.steps // 2
            lr = self.settings.lr
            self._rates = [lr if step < half else lr / 10 for step in range(plan.steps)]

    def batch(self, draw: Draw) -> dict[str, Any]:
        """Return pairs with their targets, in the first view's camera axes."""
        rngs = [draw.of_item(index) for index in draw.items]
        views = training_batch(self.source, rngs, self.settings)
        pairs = pair_batch(views)
        matches = None
        if self.settings.points and self.settings.matching:
            matches = correspondences(views)
        return {"pairs": pairs, "matches": matches}

    def forward(self, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        """Return the loss and its parts."""
        pairs: PairBatch = batch["pairs"]
        first, second = self.network(*pairs.views())
        cameras = in_unit(pairs.w2c, unit_of(pairs, first, second))
        drawn = draw_pair(
            first,
            second,
            cameras,
            pairs.K,
            pairs.size,
            point_gradients=self.settings.point_gradients,
        )
        found = splatt3r_loss(
            drawn, pairs, (first, second), self.settings, self.lpips, batch["matches"]
        )
        return {name: value for name, value in found._asdict().items() if value.requires_grad}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return what is trained, and make sure that it is what was chosen."""
        groups = super().parameter_groups()
        count = sum(len(group.parameters) for group in groups)
        assert count == len(self.trained), "a frozen parameter asks for gradients"
        return groups

    def validate(self, step: int) -> dict[str, float]:
        """Return PSNR, SSIM, LPIPS where known, and the points' error, on held-out pairs."""
        self.scores[step] = score_pairs(self.network, self._held_out(), self.lpips)
        found = means(self.scores[step])
        found.pop("coverage")
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def _held_out(self) -> Iterator[PairBatch]:
        device = next(self.network.parameters()).device
        total, size = self.settings.val_pairs, self.settings.batch_size
        for first in range(0, total, size):
            batch = held_out(self.val_source, self.settings, first, min(size, total - first))
            yield pair_batch(batch).to(device)

    @torch.no_grad()
    def pictures(self, step: int, folder: Path) -> None:
        """Leave rows of context views, a target, and what is drawn of it."""
        settings = self.settings
        count = min(_SHOWN, settings.val_pairs)
        pairs = pair_batch(held_out(self.val_source, settings, 0, count))
        pairs = pairs.to(next(self.network.parameters()).device)
        first, second = self.network(*pairs.views())
        cameras = in_unit(pairs.w2c, unit_of(pairs, first, second))
        drawn = draw_pair(first, second, cameras, pairs.K, pairs.size).clamp(0, 1)
        for row in range(count):
            shown = torch.where(pairs.masks[row, 0], drawn[row, 0], 0.25 * drawn[row, 0] + 0.75)
            parts = [*pairs.images[row], pairs.targets[row, 0], drawn[row, 0], shown]
            strip = torch.cat(parts, 2).movedim(0, -1).cpu().numpy()
            image = Image.fromarray((strip * 255).round().astype(np.uint8))
            factor = max(1, 128 // image.height)
            image = image.resize((image.width * factor, image.height * factor), 0)
            image.save(folder / f"contexts_target_drawn_masked_{row}.png")

    def export(self, state: Mapping[str, Tensor], path: Path) -> list[Path]:
        """Write the network under Splatt3R's names, with the fusion beside them."""
        file = path / FILE
        save_weights(part_of(state, "network."), file, self.config())
        return [file]

    def config(self) -> dict[str, Any]:
        """Return what the exported file says of itself beyond its tensors."""
        network = self.network.encoder
        found: dict[str, Any] = {
            "enc_num_heads": network.enc_embed_dim // network.enc_head_dim,
            "dec_num_heads": network.dec_embed_dim // network.dec_head_dim,
            "img_size": self.settings.resolution,
        }
        if isinstance(self.network, FusedSplatt3R):
            found["fusion"] = self.network.note
        if estimated(self.source):
            found[PSEUDO] = True
        return found

    def facts(self) -> dict[str, Any]:
        """Return what ``run.json`` says of the network, the data and the loss."""
        settings = self.settings
        total = sum(p.numel() for p in self.network.parameters())
        trained = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        backbone = settings.backbone or settings.backbone_checkpoint or "none"
        return {
            "perceptual_loss": self.look,
            "data_source": settings.data or "synthetic rooms",
            PSEUDO: estimated(self.source),
            "fused_backbone": backbone,
            "parameters": total,
            "trained_parameters": trained,
            "trained_tensors": len(self.trained),
        }


def _perceptual(settings: Splatt3rSettings) -> tuple[Lpips | None, str]:
    """Return LPIPS, or None, and what a run says of it."""
    if settings.lpips == "none" or not settings.perceptual:
        return None, SUBSTITUTE if settings.perceptual else "none"
    if settings.lpips != "auto":
        files = settings.lpips_files()
        return load_lpips("alex", files), f"LPIPS (AlexNet) of {', '.join(files)}"
    found, why = find_lpips("alex")
    if found is not None:
        return found.model, "LPIPS (AlexNet) of torch's cache"
    if settings.checkpoint is not None:
        try:
            files = [weights_file(settings.checkpoint)]
            return load_lpips("alex", files), "LPIPS (AlexNet) of the checkpoint"
        except CheckpointError:
            pass
    return None, f"{SUBSTITUTE} ({why})"
