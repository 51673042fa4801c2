"""Golden family dino_losses: targets, losses, projection heads and schedules."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sightline.checkpoints import load_strict, read_weights
from sightline.training import distillation as d
from sightline.training.schedules import cosine_schedule, linear_cosine_constant
from tests.parity.compare import Config, compare, read_config, read_io

INPUTS = (
    r"(teacher|student_global|student_local)_logits|ibot_masks.*|ibot_(teacher|student)_logits"
    r"|ibot_dense_.*|koleo_input|gram_(student|teacher)|head_input"
)


def cases(folder: Path) -> list[str]:
    names = read_io(folder)
    groups = {"dino": "dino|center|v[23].sinkhorn", "ibot": "ibot", "koleo": "koleo"}
    groups |= {"gram": "gram", "head": "head", "schedule": "schedule"}
    return [
        case
        for case, pattern in groups.items()
        if any(re.search(pattern, n) and not re.fullmatch(INPUTS, n) for n in names)
    ]


def run_case(folder: Path, case: str) -> None:
    config, io = read_config(folder), read_io(folder)
    weights = read_weights(folder / "model.safetensors")
    outputs = {
        "dino": lambda: dino(config, io),
        "ibot": lambda: ibot(config, io),
        "koleo": lambda: koleo(config, io),
        "gram": lambda: gram(io),
        "head": lambda: heads(config, io, weights),
        "schedule": lambda: schedules(config),
    }[case]()
    own = {
        "dino": r"v[23]\.(center.*|dino.*|sinkhorn)",
        "ibot": r"v[23]\.ibot.*",
        "koleo": r"v[23]\.koleo.*",
        "gram": r"v3\.gram.*",
        "head": r"v[23]\.head.*",
        "schedule": r"schedule\..*",
    }[case]
    compare(config, io, outputs, own)


def dino(config: Config, io: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    teacher, ours = io["teacher_logits"], io["student_global_logits"]
    temperature, student = config["teacher_temp"], config["student_temp"]
    center = d.Center((1, config["prototypes"]), config["center_momentum"])
    yield "v2.centered_softmax.step1", center.targets(teacher.flatten(0, 1), temperature)
    center.update(teacher.flatten(0, 1))
    yield "v2.center.after1", center.value
    yield "v2.centered_softmax.step2", center.targets(ours.flatten(0, 1), temperature)
    targets = d.sinkhorn_targets(teacher, temperature, config["sinkhorn_iterations"])
    yield "v2.sinkhorn", targets.flatten(0, 1)
    yield "v3.sinkhorn", targets
    local = io["student_local_logits"]
    yield "v2.dino_local_sum", d.cross_entropies(local, targets, student).sum()
    joined = [crops.flatten(0, 1)[None] for crops in (ours, targets.flip(0))]
    yield "v2.dino_global_joined", d.cross_entropies(joined[0], joined[1], student).sum()
    yield "v3.dino_local", d.dino_loss(local, targets, temperature=student)
    yield "v3.dino_global_full", d.dino_loss(ours, targets, temperature=student)
    other = d.dino_loss(ours, targets, ignore_diagonal=True, temperature=student)
    yield "v3.dino_global_ignore_diag", other


def ibot(config: Config, io: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    teacher, ours = io["ibot_teacher_logits"], io["ibot_student_logits"]
    masks, temperature = io["ibot_masks"], config["teacher_temp"]
    student = config["student_temp"]
    torch.testing.assert_close(d.mask_weights(masks), io["ibot_masks_weight"])
    targets = d.sinkhorn_targets(teacher, temperature, config["sinkhorn_iterations"])
    yield "v2.ibot_sinkhorn", targets
    loss = d.ibot_loss(ours, targets, masks, io["ibot_masks_weight"], student)
    yield from ((f"v{version}.ibot_masked", loss) for version in (2, 3))
    yield "v2.ibot_masked_noweight", d.ibot_loss(ours, targets, masks, temperature=student)
    dense = d.ibot_dense_loss(io["ibot_dense_student"], io["ibot_dense_teacher"], masks, student)
    yield "v2.ibot_dense", dense
    center = d.Center((1, 1, config["prototypes"]), config["center_momentum"])
    yield "v2.ibot_centered.step1", center.targets(teacher[None], temperature)
    center.update(teacher[None])
    yield "v2.ibot_center.after1", center.value
    yield "v2.ibot_centered.step2", center.targets(ours[None], temperature)


def koleo(config: Config, io: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    features = io["koleo_input"].clone().requires_grad_()
    loss = d.koleo_loss(features, config["koleo_eps"])
    loss.backward()
    assert features.grad is not None
    yield from ((f"v{version}.koleo", loss.detach()) for version in (2, 3))
    yield "v2.koleo_grad", features.grad


def gram(io: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    pair = io["gram_student"], io["gram_teacher"]
    yield "v3.gram_img", d.gram_loss(*pair)
    yield "v3.gram_batch", d.gram_loss(*pair, level="batch")
    yield "v3.gram_img_removeneg", d.gram_loss(*pair, clip="both")
    yield "v3.gram_img_removeteacherneg", d.gram_loss(*pair, clip="teacher")
    yield "v3.gram_unnormalised", d.gram_loss(*pair, normalize=False)


@torch.no_grad()
def heads(
    config: Config, io: dict[str, Tensor], weights: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    size = config["head"]
    for version in (2, 3):
        head = d.ProjectionHead(
            config["dim"], config["prototypes"], size["hidden_dim"], size["bottleneck_dim"],
            size["nlayers"], weight_norm=version == 2,
        )  # fmt: skip
        prefix = f"v{version}_head."
        own = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
        load_strict(head, own)
        yield f"v{version}.head", head(io["head_input"])
        yield f"v{version}.head_no_last_layer", head(io["head_input"], last_layer=False)


def schedules(config: Config) -> Iterator[tuple[str, Tensor]]:
    """Build the schedules from their descriptions."""
    described = config["schedules"]
    for name, text in described.items():
        extra = re.search(r"as (\w+) with trunc_extra ([\d.]+)", text)
        text = described[extra[1]] if extra else text
        numbers = [float(n) for n in re.findall(r"(?<![\w.])\d[\d.]*(?:e-?\d+)?", text)]
        if name.startswith("v3"):
            start, peak, end, warmup, total, cosine = numbers
            values = linear_cosine_constant(
                start, peak, end, int(total), warmup=int(warmup), cosine=int(cosine)
            )
        elif "warmup" in text:
            base, final, total, warmup, start = numbers
            values = cosine_schedule(
                base, final, int(total), warmup=int(warmup), warmup_start=start,
                trunc_extra=float(extra[2]) if extra else 0.0,
            )  # fmt: skip
        else:
            base, final, total = numbers
            values = cosine_schedule(base, final, int(total))
        yield f"schedule.{name}", torch.from_numpy(values)
