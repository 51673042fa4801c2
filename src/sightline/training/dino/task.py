"""Self-distillation without labels: DINO, iBOT, KoLeo and Gram anchoring.

A student sees two global crops, partly masked, and several local ones; a teacher, the moving
average of the student, sees the global crops whole. The student learns to say what the teacher
says of the other crop (DINO), of the patches that are hidden from it (iBOT), to spread its features
(KoLeo), and to keep the similarities of patches that an earlier teacher had (Gram). The parts are
in `sightline.training.distillation`; sums over a batch there are over all processes.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sightline.checkpoints import save_state_dict
from sightline.errors import InputError
from sightline.models.dinov2 import DinoVisionTransformer as DinoV2
from sightline.training.dino.data import DinoData
from sightline.training.dino.network import Distilled, build_encoder, follow, make_teacher
from sightline.training.dino.settings import DinoSettings
from sightline.training.dino.validation import feature_picture, measure
from sightline.training.distillation import (
    Center,
    dino_loss,
    gram_loss,
    ibot_loss,
    koleo_loss,
    sinkhorn_targets,
)
from sightline.training.draws import Draw
from sightline.training.schedules import cosine_schedule
from sightline.training.task import ParameterGroup, Plan, TrainTask, is_decayed, part_of


class DinoTask(TrainTask):
    """See the module's text.

    Attributes:
        student: What is trained.
        teacher: Its moving average, which is exported.
        gram: An earlier teacher's encoder, while Gram anchoring is on.
    """

    name = "dino"
    settings: DinoSettings

    def __init__(self, settings: DinoSettings) -> None:
        """Find the pictures and build the networks.

        Raises:
            InputError: If there are no pictures or no such network.
        """
        super().__init__(settings)
        self.data = DinoData(settings)
        self.epoch_size = len(self.data.train)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            backbone = build_encoder(settings)
            self.student = Distilled(backbone, settings)
        self.family = "dinov2" if isinstance(backbone, DinoV2) else "dinov3"
        self.patch = int(backbone.patch_size)
        self.teacher = make_teacher(self.student)
        self.gram = copy.deepcopy(self.teacher.backbone) if settings.gram_weight else None
        self.register_buffer("gram_teachers", torch.zeros((), dtype=torch.long))
        shape = (1, settings.prototypes)
        self.dino_center, self.ibot_center = Center(shape), Center(shape)

    def check(self) -> None:
        """Look at sizes and at the first pictures."""
        settings, patch = self.settings, self.patch
        sizes = {
            "global_size": settings.global_size,
            "local_size": settings.local_size if settings.local_crops else patch,
            "gram_size": settings.gram_size or patch,
            "val_size": settings.val_size or settings.global_size,
        }
        for name, size in sizes.items():
            if size % patch:
                near = max(1, round(size / patch)) * patch
                raise InputError(
                    f"--{name.replace('_', '-')} must be a multiple of the model's patch {patch}, "
                    f"got {size}; use {near}"
                )
        if settings.dino_weight == 0 and settings.local_crops:
            raise InputError("local crops only serve the DINO loss; set --local-crops 0")
        if settings.ibot_weight and not settings.mask_share:
            raise InputError("the iBOT loss needs masks; raise --mask-share, or --ibot-weight 0")
        self.data.check()

    def facts(self) -> dict[str, Any]:
        """Return what the data and the network are."""
        return {
            "pictures": len(self.data.train),
            "validation pictures": len(self.data.val),
            "classes": len(self.data.classes),
            "parameters": sum(p.numel() for p in self.student.backbone.parameters()),
            "mean": list(self.data.recipe.mean),
            "std": list(self.data.recipe.std),
        }

    # -- schedules --------------------------------------------------------------------------

    def begin(self, plan: Plan) -> None:
        """Make the schedules."""
        super().begin(plan)
        settings, steps = self.settings, plan.steps
        final = settings.weight_decay if (end := settings.weight_decay_end) is None else end
        self._decays = cosine_schedule(settings.weight_decay, final, steps).tolist()
        self._momenta = cosine_schedule(*settings.momentum, steps).tolist()
        self._warm = _steps(settings.teacher_warmup, steps)
        self._frozen = _steps(settings.freeze_last, steps)
        self._gram_start = _steps(settings.gram_start, steps)
        scale = {
            "none": 1.0,
            "sqrt": (plan.batch / 1024) ** 0.5,
            "linear": plan.batch / 256,
        }[settings.scale_lr]
        self._lr_scale = scale

    def teacher_temperature(self, step: int) -> float:
        """Return the teacher's temperature: a linear rise, then constant."""
        first, last = self.settings.teacher_temp
        return first + (last - first) * min(1.0, step / self._warm if self._warm else 1.0)

    def rates(self, group: ParameterGroup, step: int) -> tuple[float, float]:
        """Return the rates; the heads' last layers wait at first."""
        lr = self._rates[step] * group.lr_scale * self._lr_scale
        if group.name.startswith("last layer") and step < self._frozen:
            lr = 0.0
        return lr, self._decays[step] if group.decay else 0.0

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return groups by layer, for layer-wise decay of the learning rate, and the last layers."""
        depth, settings = len(self.student.backbone.blocks), self.settings
        found: dict[tuple[str, str, float, bool], list[torch.nn.Parameter]] = {}
        for name, parameter in self.student.named_parameters():
            if not parameter.requires_grad:
                continue
            if not name.startswith("backbone."):
                head = name.split(".")[0]
                kind = f"last layer of {head}" if ".last_layer." in name else head
                scale, clip = 1.0, head
            else:
                layer = _layer(name.removeprefix("backbone."), depth)
                kind, clip = f"layer {layer}", "backbone"
                scale = settings.layer_decay ** (depth + 1 - layer)
                if ".patch_embed." in name:
                    kind, scale = "patches", scale * settings.patch_lr
            decay = is_decayed(name, parameter)
            found.setdefault((kind, clip, scale, decay), []).append(parameter)
        return [
            ParameterGroup(
                name=kind if decay else f"{kind}, no decay",
                parameters=parameters,
                lr_scale=scale,
                decay=decay,
                clip=clip,
            )
            for (kind, clip, scale, decay), parameters in found.items()
        ]

    # -- a step -----------------------------------------------------------------------------

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return crops ``[crops, pictures, ...]`` and masks of a share of a step."""
        return self.data.batch(draw, self.patch)

    def forward(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """Return the losses of a batch."""
        settings = self.settings
        pictures = batch["global"].shape[1]
        images, masks = batch["global"].flatten(0, 1), batch["masks"].flatten(0, 1)
        local = batch["local"].flatten(0, 1) if "local" in batch else None
        dino, ibot = self._targets(images, masks, step)
        student, *rest = self.student(images, masks, local)
        cls = student["x_norm_clstoken"]
        parts: dict[str, Tensor] = {}
        total = cls.new_zeros(())
        if settings.dino_weight:
            logits = self.student.dino_head(cls).unflatten(0, (2, pictures))
            among = dino_loss(logits, dino, ignore_diagonal=True)
            crops = settings.local_crops
            value = among * 2 / (2 + 2 * crops)
            parts["dino_global"] = among
            if rest:
                logits = self.student.dino_head(rest[0]["x_norm_clstoken"])
                across = dino_loss(logits.unflatten(0, (crops, pictures)), dino)
                value = value + across * 2 * crops / (2 + 2 * crops)
                parts["dino_local"] = across
            total = total + settings.dino_weight * value
        if settings.ibot_weight:
            logits = self.student.ibot_head(student["x_norm_patchtokens"][masks])
            parts["ibot"] = ibot_loss(logits, ibot, masks)
            total = total + settings.ibot_weight * parts["ibot"]
        if settings.koleo_weight:
            spread = [koleo_loss(crop) for crop in cls.unflatten(0, (2, pictures))]
            parts["koleo"] = torch.stack(spread).mean()
            total = total + settings.koleo_weight * 2 * parts["koleo"]
        if self.gram is not None and step >= self._gram_start:
            parts["gram"] = self._gram(batch, student["x_norm_patchtokens"])
            total = total + settings.gram_weight * parts["gram"]
        return {"loss": total, **parts}

    @torch.no_grad()
    def _targets(
        self, images: Float[Tensor, "b c h w"], masks: Tensor, step: int
    ) -> tuple[Float[Tensor, "2 n K"], Float[Tensor, "m K"]]:
        """Return what the teacher says of the crops and of the masked patches."""
        (seen,) = self.teacher(images)
        temperature = self.teacher_temperature(step)
        found = []
        for tokens, head, center in (
            (seen["x_norm_clstoken"], self.teacher.dino_head, self.dino_center),
            (seen["x_norm_patchtokens"][masks], self.teacher.ibot_head, self.ibot_center),
        ):
            logits = head(tokens).float()
            if self.settings.targets == "sinkhorn":
                found.append(sinkhorn_targets(logits, temperature))
            else:
                found.append(center.targets(logits, temperature))
                center.update(logits)
        return found[0].unflatten(0, (2, -1)), found[1]

    def _gram(self, batch: dict[str, Tensor], student: Float[Tensor, "b p d"]) -> Tensor:
        assert self.gram is not None
        images = batch.get("gram", batch["global"]).flatten(0, 1)
        with torch.no_grad():
            theirs = self.gram(images, None, is_training=True)["x_norm_patchtokens"]
            side, ours = round(theirs.shape[1] ** 0.5), round(student.shape[1] ** 0.5)
            if side != ours:
                grid = theirs.mT.unflatten(2, (side, side))
                grid = functional.interpolate(
                    grid, (ours, ours), mode="bicubic", align_corners=False, antialias=True
                )
                theirs = grid.flatten(2).mT
        return gram_loss(student, theirs)

    def after_step(self, step: int) -> None:
        """Move the teacher, and renew the Gram teacher when it is time."""
        follow(self.teacher, self.student, self._momenta[step])
        if self.gram is None:
            return
        done, since = step + 1, step + 1 - self._gram_start
        due = done == max(1, self._gram_start) or (
            since > 0 and since % self.settings.gram_every == 0
        )
        if due and int(self.gram_teachers) <= self.settings.gram_updates:
            self.gram.load_state_dict(self.teacher.backbone.state_dict())
            self.gram_teachers += 1

    # -- results ----------------------------------------------------------------------------

    def validate(self, step: int) -> dict[str, float]:
        """Return how well the teacher's features tell the classes, and how many directions they use."""
        return measure(self.teacher, self.data, self.plan.device)

    def pictures(self, step: int, folder: Path) -> None:
        """Leave the principal components of the teacher's features of a few pictures."""
        feature_picture(self.teacher, self.data, self.patch, self.plan.device, folder)

    def export(self, state: Mapping[str, Tensor], path: Path) -> list[Path]:
        """Write the teacher's encoder under its official names."""
        file = path / f"{self.family}_custom.pt"
        about = {
            "trainer": "sightline train dino",
            "model": self.settings.model,
            "mean": list(self.data.recipe.mean),
            "std": list(self.data.recipe.std),
            "image_size": self.settings.global_size,
        }
        save_state_dict(part_of(state, "teacher.backbone."), file, about)
        return [file]


def _steps(amount: float, total: int) -> int:
    """Return a number of steps; below 1 it is a share of all."""
    return round(amount * total) if amount < 1 else min(round(amount), total)


def _layer(name: str, depth: int) -> int:
    """Return how deep a parameter lies: 0 before the blocks, ``depth + 1`` after them."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    early = ("patch_embed.", "cls_token", "pos_embed", "mask_token", "storage_", "register_")
    return 0 if name.startswith(early) else depth + 1
