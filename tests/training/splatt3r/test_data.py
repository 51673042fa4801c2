from pathlib import Path

import pytest
import torch

from sightline.checkpoints import read_checkpoint
from sightline.datasets.multiview import sample_rng
from sightline.errors import InputError
from sightline.training.engine import train
from sightline.training.splatt3r.batch import pair_batch
from sightline.training.splatt3r.data import estimated, held_out, open_source, training_batch
from sightline.training.splatt3r.task import Splatt3rTask
from tests.datasets.replicas import room, write_co3d
from tests.datasets.test_posed import MAKERS
from tests.training.splatt3r import small


def test_a_missing_folder_says_what_to_download(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"there is no folder .*co3d; get CO3D v2 \(https://.*9 GB"
    ):
        open_source(small.settings(data=str(tmp_path / "co3d")), "train")
    with pytest.raises(InputError, match="is empty"):
        open_source(small.settings(data=str(tmp_path)), "train")


def test_co3d_gives_pairs_with_targets(tmp_path: Path) -> None:
    write_co3d(tmp_path, room(8))
    chosen = small.settings(data=str(tmp_path), mask_background="no")
    source = open_source(chosen, "train")
    batch = training_batch(source, [sample_rng(0, "train", row) for row in range(2)], chosen)
    pairs = pair_batch(batch)
    assert pairs.targets.shape == (2, 2, 3, 32, 32)
    assert not pairs.metric.any()
    assert pairs.masks.float().mean() > 0.2


def test_held_out_pairs_do_not_depend_on_the_seed() -> None:
    one, other = (small.settings(seed=seed) for seed in (0, 7))
    first = held_out(open_source(one, "val"), one, 0, 2)
    second = held_out(open_source(other, "val"), other, 0, 2)
    assert torch.equal(first.images, second.images)
    assert first.scenes == ("room 0", "room 1")
    alone = held_out(open_source(one, "val"), one, 1, 1)
    assert torch.equal(alone.images[0], first.images[1])


def test_jitter_changes_all_views_alike() -> None:
    plain, changed = small.settings(), small.settings(jitter=True)
    source = open_source(plain, "train")
    first, second = (
        training_batch(source, [sample_rng(0, "train", 1)], chosen) for chosen in (plain, changed)
    )
    assert not torch.equal(first.images, second.images)
    assert torch.equal(first.depth, second.depth)


def test_posed_scenes_and_runs_give_pairs_and_say_whether_they_are_estimates(
    tmp_path: Path,
) -> None:
    for kind in ("transforms", "run"):
        chosen = small.settings(data=str(MAKERS[kind](tmp_path / kind)))
        source = open_source(chosen, "train")
        assert estimated(source) == (kind == "run")
        pairs = pair_batch(training_batch(source, [sample_rng(0, "train", 0)], chosen))
        assert pairs.targets.shape == (1, 2, 3, 32, 32)
        assert pairs.masks.any()


def test_a_file_says_that_its_truth_was_estimated(tmp_path: Path) -> None:
    data = MAKERS["run"](tmp_path / "run")
    run = train(Splatt3rTask(small.settings(data=str(data), steps=1)), tmp_path / "out")
    (file,) = (run / "checkpoints").glob("*.safetensors")
    assert read_checkpoint(file).notes == (
        "trained on pseudo ground truth: estimated cameras and depth",
    )
