"""Self-distillation: views and masks, what a step is made of, and that it learns."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sightline.datasets.pictures import read_picture_set
from sightline.errors import InputError
from sightline.io.arrays import write_npz
from sightline.io.manifest import Record, write_manifest
from sightline.models.check import check_file
from sightline.training.dino import DinoSettings, DinoTask
from sightline.training.dino.probes import effective_rank, knn_accuracy, linear_accuracy
from sightline.training.dino.views import (
    Box,
    Recipe,
    block_mask,
    blurred,
    cut,
    jitter_bands,
    jitter_colours,
    mask_counts,
    random_box,
)
from sightline.training.draws import Draw, generator
from sightline.training.engine import LAST, train
from sightline.training.settings import building
from sightline.training.state import load_state
from sightline.training.task import Plan
from tests.training.processes import processes


def settings(**changes: Any) -> DinoSettings:
    values: dict[str, Any] = {
        "data": "generated:24",
        "steps": 3,
        "batch_size": 4,
        "model": "dinov3_tiny",
        "model_options": {"patch_size": 8, "depth": 2, "embed_dim": 64, "num_heads": 1},
        "global_size": 32,
        "local_size": 16,
        "local_crops": 2,
        "prototypes": 32,
        "head_hidden": 32,
        "head_bottleneck": 16,
        "freeze_last": 0.0,
        "log_every": 1,
        "device": "cpu",
        "loggers": "csv",
        **changes,
    }
    return DinoSettings(**values)


def begun(task: DinoTask, steps: int = 10) -> DinoTask:
    task.begin(
        Plan(steps=steps, epoch_steps=1, rank=0, world=1, batch=4, device=torch.device("cpu"))
    )
    return task


def draw(step: int = 0, size: int = 4, part: int = 0, parts: int = 1) -> Draw:
    return Draw(seed=0, step=step, part=part, parts=parts, size=size)


# -- views and masks ------------------------------------------------------------------------------


@given(st.integers(8, 300), st.integers(8, 300), st.integers(0, 99))
def test_boxes_lie_inside_and_have_the_area_asked_for(height: int, width: int, seed: int) -> None:
    box = random_box(generator(seed), height, width, (0.2, 0.6))
    assert 0 <= box.top <= height - box.height
    assert 0 <= box.left <= width - box.width
    assert box.height > 0
    assert box.width > 0
    if 0.5 < height / width < 2 and min(height, width) > 40:
        assert 0.15 < box.height * box.width / (height * width) < 0.65


@given(st.integers(2, 16), st.integers(2, 16), st.floats(0, 1), st.integers(0, 99))
def test_masks_have_the_exact_count(rows: int, columns: int, share: float, seed: int) -> None:
    count = int(share * rows * columns)
    mask = block_mask(generator(seed), rows, columns, count)
    assert mask.shape == (rows, columns)
    assert mask.sum() == count


def test_masks_come_in_blocks() -> None:
    rng = generator(0)
    apart = []
    for _ in range(20):
        mask = block_mask(rng, 14, 14, 60)
        alike = (mask[1:] == mask[:-1]).mean() + (mask[:, 1:] == mask[:, :-1]).mean()
        apart.append(alike / 2)
    assert np.mean(apart) > 0.75  # drawn one by one: 0.57


def test_mask_counts_spread_over_half_of_the_crops() -> None:
    counts = mask_counts(generator(1), 40, 196, 0.5, (0.1, 0.5))
    masked = sorted(count for count in counts if count)
    assert len(masked) == 20
    assert masked[0] >= 19
    assert masked[-1] <= 98
    steps = np.diff(masked)
    assert steps.max() <= 9  # no gap wider than two of the twenty parts


def test_crops_show_the_picture() -> None:
    picture = np.zeros((40, 60, 3), np.float32)
    picture[:, 30:] = 1
    crop = cut(picture, Box(0, 10, 40, 40), 20, flip=False)
    assert np.allclose(crop[:, :9], 0, atol=1e-3)
    assert np.allclose(crop[:, 11:], 1, atol=1e-3)
    assert np.allclose(cut(picture, Box(0, 10, 40, 40), 20, flip=True), crop[:, ::-1])


def test_colours_stay_in_range_and_change() -> None:
    crop = generator(3).random((16, 16, 3)).astype(np.float32)
    for seed in range(10):
        changed = jitter_colours(crop, generator(seed))
        assert changed.min() >= 0
        assert changed.max() <= 1
        assert np.abs(changed - crop).mean() > 1e-3
    assert np.allclose(jitter_colours(crop, generator(0), 0.0), crop, atol=1e-5)


def test_band_jitter_keeps_what_bands_say_about_each_other() -> None:
    crop = generator(3).normal(size=(16, 16, 7)).astype(np.float32)
    changed = jitter_bands(crop, generator(5))
    for band in range(7):
        assert np.corrcoef(crop[..., band].ravel(), changed[..., band].ravel())[0, 1] > 0.999


def test_blur_keeps_the_mean_and_smooths_any_number_of_bands() -> None:
    crop = generator(3).random((24, 24, 5)).astype(np.float32)
    soft = blurred(crop, 1.5)
    assert soft.shape == crop.shape
    assert np.allclose(soft.mean(), crop.mean(), atol=0.02)
    assert np.diff(soft, axis=0).std() < 0.4 * np.diff(crop, axis=0).std()


def test_a_recipe_makes_the_crops_it_promises() -> None:
    recipe = Recipe(
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        global_size=32,
        local_size=16,
        local_crops=3,
        gram_size=48,
        global_scale=(0.3, 1.0),
        local_scale=(0.05, 0.3),
        jitter=1.0,
        blur=2.0,
    )
    pixels = generator(0).integers(0, 256, (50, 40, 3)).astype(np.uint8)
    crops = recipe.crops(pixels, generator(1))
    assert {name: value.shape for name, value in crops.items()} == {
        "global": (2, 3, 32, 32),
        "local": (3, 3, 16, 16),
        "gram": (2, 3, 48, 48),
    }
    again = recipe.crops(pixels, generator(1))
    assert all(np.array_equal(crops[name], again[name]) for name in crops)
    # Normalised: white is (1 - .5) / .25.
    white = recipe.whole(np.full((8, 8, 3), 255, np.uint8), 16)
    assert np.allclose(white, 2.0, atol=1e-5)


# -- pictures -------------------------------------------------------------------------------------


def paint(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 50, 3), shade, np.uint8)).save(path)


def test_folders_are_classes(tmp_path: Path) -> None:
    for name in ("b", "a"):
        for index in range(3):
            paint(tmp_path / name / f"{index}.png", index)
    pictures = read_picture_set(tmp_path)
    assert len(pictures) == 6
    assert pictures.labels == ("a", "b")
    assert pictures.read(0).shape == (40, 50, 3)
    assert pictures.read(0, 20).shape == (20, 25, 3)
    paint(tmp_path / "loose.png", 9)
    assert read_picture_set(tmp_path).labels == ()


def manifest(folder: Path, bands: int = 5) -> Path:
    records = []
    rng = np.random.default_rng(0)
    for index in range(6):
        values = rng.normal(1000 + 200 * np.arange(bands), 50, (40, 40, bands)).astype(np.float32)
        values[:20] += 100 * (index % 2)
        (folder / "bands").mkdir(parents=True, exist_ok=True)
        write_npz(folder / f"bands/{index}.npz", {"values": values})
        paint(folder / f"images/{index}.png", 40 * index)
        counts = np.full((30, 30), 5000 + index, np.uint16)
        (folder / "raw").mkdir(exist_ok=True)
        Image.fromarray(counts).save(folder / f"raw/{index}.png")
        records.append(
            Record(
                id=f"r{index}",
                file=f"images/{index}.png",
                width=50,
                height=40,
                channels=3,
                bands=list(range(bands)),
                bands_file=f"bands/{index}.npz",
                labels={"class": "even" if index % 2 == 0 else "odd"},
                split="val" if index > 3 else "train",
            )
        )
    write_manifest(folder / "manifest.json", records)
    return folder


def test_prepared_bands_are_values_with_statistics(tmp_path: Path) -> None:
    pictures = read_picture_set(manifest(tmp_path), channels=5)
    assert pictures.labels == ("even", "odd")
    assert pictures.read(0).dtype == np.float32
    assert pictures.read(0).shape == (40, 40, 5)
    mean, std = pictures.statistics()
    assert np.allclose(mean, 1025 + 200 * np.arange(5), atol=5)
    assert 50 < min(std) < max(std) < 90
    assert read_picture_set(tmp_path).read(1).dtype == np.uint8
    with pytest.raises(InputError, match="has no pictures of 7 channels|expected 7"):
        read_picture_set(tmp_path, channels=7).read(0)


def test_plain_folders_have_three_channels_and_eight_bits(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", 3)
    with pytest.raises(InputError, match="sightline prepare .* --bands all"):
        read_picture_set(tmp_path, channels=5)
    Image.fromarray(np.full((30, 30), 5000, np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"b\.png has more than 8 bits"):
        read_picture_set(tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        read_picture_set(tmp_path / "none")


def test_masked_and_missing_values_do_not_count(tmp_path: Path) -> None:
    values = np.full((20, 20, 4), 10, np.float32)
    values[:10] = -9999
    write_npz(tmp_path / "v.npz", {"values": values})
    paint(tmp_path / "images/0.png", 3)
    mask = np.zeros((20, 20), np.uint8)
    mask[10:] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    record = Record(
        id="x", file="images/0.png", width=20, height=20, bands=[0, 1, 2, 3], bands_file="v.npz",
        mask="m.png",
    )  # fmt: skip
    write_manifest(tmp_path / "manifest.json", [record])
    pictures = read_picture_set(tmp_path, channels=4)
    assert np.isnan(pictures.read(0)[:10]).all()
    assert pictures.statistics()[0] == (10.0,) * 4


# -- the step -------------------------------------------------------------------------------------


def test_a_step_has_every_loss_and_only_the_student_learns() -> None:
    task = begun(DinoTask(settings(gram_weight=2.0, gram_start=0.0, gram_size=48)))
    parts = task(task.batch(draw()), 5)
    assert set(parts) == {"loss", "dino_global", "dino_local", "ibot", "koleo", "gram"}
    total = (
        (2 * parts["dino_global"] + 4 * parts["dino_local"]) / 6
        + parts["ibot"]
        + 0.1 * 2 * parts["koleo"]
        + 2.0 * parts["gram"]
    )
    torch.testing.assert_close(parts["loss"], total)
    parts["loss"].backward()
    assert all(p.grad is None for p in task.teacher.parameters())
    without = {n for n, p in task.student.named_parameters() if p.grad is None}
    assert without == set()
    groups = task.parameter_groups()
    grouped = {id(p) for group in groups for p in group.parameters}
    assert grouped == {id(p) for p in task.student.parameters()}


@pytest.mark.parametrize(
    "options",
    [
        {"depth": "x"},
        {"depth": 0},
        {"num_heads": 0},
        {"embed_dim": 7},
        {"foo": 1},
        {"patch_size": 0},
    ],
)
def test_options_of_which_no_network_can_be_built(options: dict[str, Any]) -> None:
    for model in ("dinov2_tiny", "dinov3_tiny"):
        with pytest.raises(InputError, match=r"--model-options: no network .*; correct it"):
            DinoTask(settings(model=model, model_options=options))


def test_only_what_was_given_is_blamed() -> None:
    with pytest.raises(RuntimeError, match="a fault of ours"), building("--network", None):
        raise RuntimeError("a fault of ours")


@pytest.mark.parametrize("model", ["dinov2_tiny", "dinov3_tiny"])
def test_an_untrained_pair_says_nothing_yet(model: str) -> None:
    task = begun(DinoTask(settings(model=model)))
    parts = task(task.batch(draw()), 0)
    loss = float(parts["dino_global"].detach())
    if model == "dinov3_tiny":  # uniform answers: the entropy of the prototypes
        assert loss == pytest.approx(math.log(32), abs=0.2)
    else:  # DINOv2's normed last layer starts with opinions of its own
        assert math.log(32) - 0.2 < loss < 10


def test_rates_follow_the_recipe() -> None:
    chosen = settings(
        lr=1e-3, warmup=2.0, layer_decay=0.5, patch_lr=0.2, freeze_last=3.0, weight_decay=0.1,
        weight_decay_end=0.4,
    )  # fmt: skip
    task = begun(DinoTask(chosen), 20)
    groups = {group.name: group for group in task.parameter_groups()}
    peak = 2
    base = task.rates(groups["layer 3, no decay"], peak)[0]  # the norm after the blocks
    assert base == pytest.approx(1e-3)
    assert task.rates(groups["layer 2"], peak)[0] == pytest.approx(0.5 * base)
    assert task.rates(groups["layer 1"], peak)[0] == pytest.approx(0.25 * base)
    assert task.rates(groups["patches"], peak)[0] == pytest.approx(0.2 * 0.125 * base)
    last = groups["last layer of dino_head"]
    assert [task.rates(last, step)[0] > 0 for step in (1, 2, 3)] == [False, False, True]
    assert task.rates(groups["layer 2"], 0)[1] == pytest.approx(0.1)
    assert task.rates(groups["layer 2"], 19)[1] > 0.39
    assert task.rates(groups["layer 2, no decay"], 10)[1] == 0
    assert task.teacher_temperature(0) == pytest.approx(0.04)
    assert task.teacher_temperature(19) == pytest.approx(0.07)


def test_the_teacher_follows_and_gram_teachers_are_earlier_ones() -> None:
    task = begun(DinoTask(settings(gram_weight=1.0, gram_start=4.0, gram_every=3, gram_updates=1)))
    assert task.gram is not None
    with torch.no_grad():
        for parameter in task.student.parameters():
            parameter.add_(1.0)
    before = task.teacher.backbone.norm.weight.clone()
    copies = []
    for step in range(10):
        task.after_step(step)
        copies.append(task.gram.norm.weight.clone())
    assert torch.allclose(task.teacher.backbone.norm.weight, before + 1 - 0.992 * 1, atol=0.1)
    assert torch.equal(copies[2], before)  # not begun
    changes = [not torch.equal(copies[i], copies[i - 1]) for i in range(1, 10)]
    assert [i + 1 for i, changed in enumerate(changes) if changed] == [3, 6]  # one update, no more
    assert int(task.gram_teachers) == 2


def test_batches_do_not_depend_on_how_a_step_is_shared() -> None:
    data = DinoTask(settings()).data
    whole = data.batch(draw(step=3, size=4), 8)
    halves = [data.batch(draw(step=3, size=2, part=part, parts=2), 8) for part in (0, 1)]
    for name, value in whole.items():
        assert torch.equal(value, torch.cat([half[name] for half in halves], 1))


@pytest.mark.parametrize("targets", ["sinkhorn", "centering"])
def test_two_processes_make_the_step_of_one(tmp_path: Path, targets: str) -> None:
    """Losses whose terms span the batch (Sinkhorn, centres, KoLeo) are over all processes."""
    # Without the coordinates that DINOv3 rescales at random in every forward pass.
    model = {"patch_size": 8, "depth": 2, "embed_dim": 64, "num_heads": 1}
    model["pos_embed_rope_rescale_coords"] = None
    changes = {
        "steps": 1,
        "targets": targets,
        "koleo_weight": 1.0,
        "model_options": model,
    }
    code = (
        "import json, sys; from pathlib import Path\n"
        "from tests.training.test_dino import settings\n"
        "from sightline.training.dino import DinoTask\n"
        "from sightline.training.engine import train\n"
        "train(DinoTask(settings(devices=2, batch_size=4, **json.loads(sys.argv[2]))),"
        " Path(sys.argv[1]), resume=True)\n"
    )
    with processes(["-c", code, str(tmp_path / "two"), json.dumps(changes)], 2):
        train(DinoTask(settings(batch_size=8, **changes)), tmp_path / "one")
    one, two = (load_state(tmp_path / name / LAST) for name in ("one", "two"))
    # Adam divides by the gradient's own size, so rounding shows in the weights of tiny gradients;
    # its first moment is the gradient itself, clipped, times 0.1.
    for index, moments in one["optimizer"]["state"].items():
        other = two["optimizer"]["state"][index]["exp_avg"]
        torch.testing.assert_close(moments["exp_avg"], other, rtol=1e-4, atol=1e-6)
    for name in ("dino_center.value", "ibot_center.value"):
        torch.testing.assert_close(one["task"][name], two["task"][name], rtol=0, atol=1e-6)


# -- results --------------------------------------------------------------------------------------


def test_it_learns_shapes_and_leaves_a_normal_checkpoint(tmp_path: Path) -> None:
    task = DinoTask(
        settings(
            steps=30,
            batch_size=8,
            lr=2e-3,
            data="generated:32",
            momentum=(0.9, 1.0),
            head_norm=True,
            linear=False,
        )
    )
    train(task, tmp_path)
    check = check_file(tmp_path / "checkpoints" / "dinov3_custom.pt")
    assert check.strict
    assert check.recognition is not None
    assert check.recognition.family == "dinov3"
    log = (tmp_path / "logs" / "train.csv").read_text(encoding="utf-8").splitlines()
    column = log[0].split(",").index("dino_global")
    first, last = (float(log[i].split(",")[column]) for i in (1, -1))
    assert last < 0.9 * first  # they come to agree on what a crop's picture is
    assert len(list((tmp_path / "pictures").glob("step-*/features.png"))) == 2


def test_bands_widen_an_official_checkpoint(tmp_path: Path) -> None:
    train(DinoTask(settings(steps=1)), tmp_path / "rgb")
    start = tmp_path / "rgb" / "checkpoints" / "dinov3_custom.pt"
    task = DinoTask(
        settings(
            data=str(manifest(tmp_path / "bands")), channels=5, checkpoint=str(start), steps=2,
            batch_size=2,
        )
    )  # fmt: skip
    weight = task.student.backbone.patch_embed.proj.weight
    assert weight.shape[1] == 5
    assert torch.equal(weight[:, 3], weight[:, :3].mean(1))
    assert len(task.data.train) == 4  # the manifest's split
    assert len(task.data.val) == 2
    train(task, tmp_path / "run")
    state = torch.load(tmp_path / "run/checkpoints/dinov3_custom.pt", weights_only=True)
    assert len(state["sightline"]["mean"]) == 5
    assert check_file(tmp_path / "run/checkpoints/dinov3_custom.pt").strict


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"data": None}, "give a folder of pictures with --data"),
        ({"data": "generated:x"}, "expected generated:N"),
        ({"data": "nowhere"}, "there is no folder nowhere"),
        ({"global_size": 33}, "--global-size must be a multiple of the model's patch 8"),
        ({"local_size": 20}, "--local-size must be a multiple"),
        ({"mask_share": 0.0}, "the iBOT loss needs masks"),
        ({"batch_size": 1}, "the KoLeo loss compares pictures"),
        ({"local_scale": (0.5, 0.1)}, "--local-scale must be two shares"),
        ({"momentum": (0.9, 1.1)}, "--momentum must be two shares"),
        ({"model": "dinov3_vits61"}, 'no network "dinov3_vits61"'),
        ({"model": "vggt"}, "trains the vision transformers|no"),
        ({"holdout": 1.0}, "--holdout must be a share"),
        ({"data": "generated:9", "val_data": "generated:9", "holdout": 0.5}, "exclude each other"),
    ],
)
def test_what_cannot_work_is_refused_before_it_starts(changes: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        DinoTask(settings(**changes)).check()


def test_neighbours_and_lines_tell_clusters_apart() -> None:
    labels = torch.arange(60) % 3
    centers = torch.eye(3, 8)[labels]
    apart = centers + 0.05 * torch.randn(60, 8)
    assert knn_accuracy(apart, labels, None, None, 5) == 1.0
    assert linear_accuracy(apart, labels, None, None) == 1.0
    assert knn_accuracy(apart[:30], labels[:30], apart[30:], labels[30:], 5) == 1.0
    assert linear_accuracy(apart[:30], labels[:30], apart[30:], labels[30:]) == 1.0
    noise = torch.randn(60, 8)
    assert knn_accuracy(noise, labels, None, None, 5) < 0.6
    # A picture does not vote for itself.
    alone = torch.eye(4)
    assert knn_accuracy(alone, torch.tensor([0, 0, 1, 1]), None, None, 1) < 1.0


def test_effective_rank_counts_directions() -> None:
    flat = torch.randn(100, 1) @ torch.randn(1, 16)
    assert effective_rank(flat) == pytest.approx(1.0, abs=0.01)
    assert effective_rank(torch.randn(400, 16)) == pytest.approx(16, rel=0.05)
