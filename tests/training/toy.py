"""A tiny task that uses everything of the engine: dropout, a teacher, a buffer, pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sightline.training.draws import Draw, torch_generator
from sightline.training.settings import TrainSettings
from sightline.training.task import TrainTask, part_of


def settings(**changes: Any) -> TrainSettings:
    values = {
        "steps": 8,
        "batch_size": 4,
        "lr": 1e-2,
        "log_every": 1,
        "checkpoint_every": 3,
        "val_every": 4,
        "device": "cpu",
        "loggers": "csv",
        **changes,
    }
    return TrainSettings(**values)


class Toy(TrainTask):
    name = "toy"
    epoch_size = 16

    def __init__(self, chosen: TrainSettings, dropout: float = 0.25) -> None:
        super().__init__(chosen)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(chosen.seed)
            self.network = nn.Sequential(
                nn.Linear(6, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 2)
            )
            self.teacher = nn.Linear(16, 2).requires_grad_(False)
        self.register_buffer("seen", torch.zeros(2))
        self.draws: list[range] = []

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        self.draws.append(draw.items)
        values = [draw.of_item(index).normal(size=6) for index in draw.items]
        x = torch.from_numpy(np.stack(values)).float()
        return {"x": x, "y": torch.stack([x.sum(1), x.square().sum(1)], 1)}

    def forward(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        error = self.network(batch["x"]) - batch["y"]
        return {"loss": error.square().mean(), "first": error[:, 0].abs().mean()}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        self.teacher.weight.lerp_(self.network[3].weight, 0.1)
        self.seen += 1

    def validate(self, step: int) -> dict[str, float]:
        x = torch.randn(32, 6, generator=torch_generator(self.settings.seed, "validation"))
        guess = self.network(x.to(self.seen.device))[:, 0].cpu()
        return {"error": float((guess - x.sum(1)).abs().mean())}

    def pictures(self, step: int, folder: Path) -> None:
        weight = self.network[3].weight.detach().cpu()
        Image.fromarray((weight.sigmoid().numpy() * 255).astype(np.uint8)).save(folder / "w.png")

    def export(self, state: Mapping[str, Tensor], path: Path) -> list[Path]:
        torch.save(part_of(state, "network."), path / "toy.pt")
        return [path / "toy.pt"]
