import json

import numpy as np
import pytest
import torch

from sightline.datasets.multiview import collate, sample_rng
from sightline.datasets.rooms import Rooms
from sightline.errors import Cancelled, InputError
from sightline.models import load
from sightline.models.check import check_file
from sightline.models.pose_encoding import encode_cameras
from sightline.training.draws import Draw
from sightline.training.engine import train
from sightline.training.vggt import VggtTask
from sightline.training.vggt.data import training_batch, true_tracks, truth_of
from sightline.training.vggt.measure import Prediction, constant, mean_prediction, measure
from sightline.training.vggt_losses import normalize_truth, track_loss
from tests.datasets.replicas import room, write_co3d, write_scannetpp
from tests.datasets.test_posed import write_pictures, write_run, write_transforms_scene
from tests.training.vggt.small import settings

ROOMS = Rooms()


def rooms(count: int, views: int = 3, side: int = 32, split="train"):
    return collate([ROOMS.draw(sample_rng(0, split, i), views, side, side) for i in range(count)])


# -- data -----------------------------------------------------------------------------------------


def test_two_shares_of_a_step_are_one_of_twice_the_size():
    task = VggtTask(settings(batch_size=4, max_frames=4, min_aspect=0.5, width=64))
    wide = VggtTask(settings(batch_size=8, max_frames=4, min_aspect=0.5, width=64))
    for step in range(3):
        parts = [
            task.batch(Draw(seed=0, step=step, part=part, parts=2, size=4)) for part in range(2)
        ]
        if len(parts[0]) == 3:
            continue  # three views do not divide four pictures
        whole = wide.batch(Draw(seed=0, step=step, part=0, parts=1, size=8))
        assert torch.equal(torch.cat([p.images for p in parts]), whole.images)
        assert torch.equal(torch.cat([p.w2c for p in parts]), whole.w2c)
    assert {len(p) for p in parts} <= {2, 3, 4}


def test_batches_follow_from_the_step_alone():
    task = VggtTask(settings())
    draw = Draw(seed=0, step=5, part=0, parts=1, size=4)
    first = training_batch(draw, ROOMS, task.shapes, task.jitter)
    again = training_batch(draw, ROOMS, task.shapes, task.jitter)
    assert torch.equal(first.images, again.images)


def test_tracks_are_where_the_cameras_say():
    batch = rooms(2, views=3, side=64)
    queries, places, seen = true_tracks(batch, 50, np.random.default_rng(0))
    assert queries.shape == (2, 50, 2)
    assert len({tuple(q) for q in queries[0].tolist()}) == 50
    torch.testing.assert_close(places[:, 0], queries, atol=2e-3, rtol=0)
    assert bool(seen[:, 0].all())
    assert 0.3 < float(seen[:, 1:].float().mean()) < 1
    # What is seen has the colour it has in the first view, edges of the paint apart.
    for b in range(2):
        for v in (1, 2):
            here = places[b, v][seen[b, v]].round().long()
            start = queries[b][seen[b, v]].long()
            colors = batch.images[b, v][:, here[:, 1].clamp(0, 63), here[:, 0].clamp(0, 63)]
            wanted = batch.images[b, 0][:, start[:, 1], start[:, 0]]
            assert float((colors - wanted).abs().mean(0).median()) < 0.03


@pytest.mark.parametrize("kind", ["co3d", "scannetpp", "scene", "run"])
def test_what_the_data_are_is_found_out(tmp_path, kind):
    folder = tmp_path / kind
    if kind == "co3d":
        write_co3d(folder, room(4))
    elif kind == "scannetpp":
        write_scannetpp(folder, room(4), bad=9)
        write_scannetpp(folder, room(4), bad=9)  # its val list names an excluded scene only
        (folder / "raw" / "splits" / "nvs_sem_val.txt").write_text("0123456789\n")
        coverage = folder / "coverage" / "0123456789.json"
        coverage.parent.mkdir()
        coverage.write_text(json.dumps({"0123456789": np.ones((4, 4)).tolist()}))
    elif kind == "run":
        write_run(folder)
    else:
        write_transforms_scene(folder)
    task = VggtTask(settings(data=str(folder)))
    task.check()
    facts = task.facts()
    assert facts["pseudo ground truth"] == (kind == "run")
    assert task.epoch_size == (5 if kind == "scene" else 4)
    batch = task.batch(Draw(seed=0, step=0, part=0, parts=1, size=4))
    assert batch.images.shape == (2, 2, 3, 32, 32)
    assert torch.isfinite(task(batch, 0)["loss"])


def test_photos_are_refused_with_the_way_to_make_truth(tmp_path):
    write_pictures(tmp_path / "photos")
    with pytest.raises(InputError, match="sightline reconstruct"):
        VggtTask(settings(data=str(tmp_path / "photos"))).check()


# -- measures -------------------------------------------------------------------------------------


def test_a_perfect_prediction_has_no_error():
    batch = rooms(3)
    truth = normalize_truth(truth_of(batch))
    exact = Prediction(
        encoding=encode_cameras(truth.extrinsics, batch.K, batch.size), depth=truth.depths
    )
    measures = measure([exact], [batch])
    assert measures["rotation"] == pytest.approx(0, abs=0.05)
    assert measures["translation"] == pytest.approx(0, abs=1e-5)
    assert measures["auc@10"] == pytest.approx(1)
    assert measures["abs_rel"] == pytest.approx(0, abs=1e-6)
    assert measures["delta_1.25"] == 1


def test_depth_errors_are_relative():
    batch = rooms(2)
    truth = normalize_truth(truth_of(batch))
    measures = measure([Prediction(encoding=None, depth=1.3 * truth.depths)], [batch])
    assert measures == {"abs_rel": pytest.approx(0.3), "delta_1.25": 0}


def test_the_mean_predictor_knows_the_mean_and_no_picture():
    batches = [rooms(1, split=split) for split in ("train", "val")]
    mean = mean_prediction(batches)
    assert mean.encoding is not None
    assert mean.depth is not None
    truths = [normalize_truth(truth_of(b)) for b in batches]
    encodings = torch.cat(
        [encode_cameras(t.extrinsics, b.K, b.size) for t, b in zip(truths, batches, strict=True)]
    )
    torch.testing.assert_close(mean.encoding[0, 0], encodings[:, 0].mean(0))
    torch.testing.assert_close(mean.encoding[0, 2], encodings[:, 1:].mean((0, 1)))
    torch.testing.assert_close(mean.depth[0, 0], (truths[0].depths + truths[1].depths)[0, 0] / 2)
    assert torch.equal(mean.depth[0, 1], mean.depth[0, 2])
    measures = measure([constant(mean, b) for b in batches], batches)
    assert measures["rotation"] > 1
    assert measures["abs_rel"] > 0.05


# -- the task -------------------------------------------------------------------------------------


def test_tracks_that_are_right_cost_nothing_and_wrong_ones_their_pixels():
    truth = torch.rand(1, 2, 5, 2) * 10
    seen = torch.tensor([[[True] * 5, [True, True, False, False, False]]])
    right = track_loss([truth], seen.float(), seen.float(), truth, seen)
    assert float(right["loss_places"]) == 0
    assert float(right["loss_seen"] + right["loss_sure"]) < 1e-4
    wrong = truth.clone()
    wrong[0, 1, 2:] = float("nan")  # has no place that a picture could tell
    off = track_loss([truth + 3], seen.float(), seen.float(), wrong, seen)
    assert float(off["loss_places"]) == pytest.approx(3)
    far = track_loss([truth + 30], seen.float(), seen.float(), wrong, seen)
    assert float(far["loss_sure"]) > 1 > float(off["loss_sure"])


@pytest.mark.parametrize(
    ("changes", "frozen"),
    [
        ({"point_weight": 1.0, "track_weight": 0.05, "track_points": 8}, ""),
        ({"freeze": "*aggregator*"}, "aggregator"),
        ({"freeze": "*patch_embed*", "gradient_checkpointing": True}, "patch_embed"),
        ({"model": "omega"}, ""),
    ],
)
def test_gradients_reach_all_that_is_trained_and_nothing_else(changes, frozen):
    task = VggtTask(settings(**changes)).train()
    losses = task(task.batch(Draw(seed=0, step=0, part=0, parts=1, size=4)), 0)
    assert torch.isfinite(torch.stack(list(losses.values()))).all()
    losses["loss"].backward()
    trained = {id(p) for group in task.parameter_groups() for p in group.parameters}
    for name, parameter in task.network.named_parameters():
        expected = parameter.requires_grad
        assert expected == (id(parameter) in trained), name
        if frozen and frozen in name:
            assert not expected, name
        assert (parameter.grad is not None) == expected, name


def test_groups_are_clipped_by_part_and_the_encoder_has_its_rate():
    groups = {g.name: g for g in VggtTask(settings(encoder_lr_scale=0.1)).parameter_groups()}
    assert groups["encoder.weights"].lr_scale == 0.1
    assert groups["aggregator.weights"].lr_scale == 1.0
    assert groups["encoder.weights"].clip == groups["aggregator.weights"].clip == "aggregator"
    assert groups["camera_head.weights"].clip == "camera_head"
    assert not groups["depth_head.no decay"].decay


def test_training_leaves_a_checkpoint_that_tells_its_story(tmp_path):
    data = write_run(tmp_path / "run")
    run = train(VggtTask(settings(data=str(data), steps=2)), tmp_path / "out")
    file = run / "checkpoints" / "vggt_custom.pt"
    story = torch.load(file, weights_only=True)["sightline"]
    assert story["pseudo ground truth"] is True
    assert "trained on pseudo ground truth" in check_file(file).checkpoint.notes[0]
    state = json.loads((run / "run.json").read_text())
    assert state["facts"]["pseudo ground truth"] is True
    assert state["status"] == "done"
    kept = state["metrics"]["validation"]["last"]
    assert {"rotation", "mean rotation", "abs_rel", "mean abs_rel", "auc@30"} <= set(kept)
    assert len(list((run / "pictures").rglob("*.png"))) == 4
    assert type(load(file)).__name__ == "VGGT"


def test_a_resumed_training_is_the_unbroken_one(tmp_path):
    chosen = settings(steps=4, checkpoint_every=2)
    whole = train(VggtTask(chosen), tmp_path / "whole")
    asked = iter([False, True])
    with pytest.raises(Cancelled):
        train(
            VggtTask(chosen),
            tmp_path / "parts",
            should_stop=lambda: next(asked),
        )
    parts = train(VggtTask(chosen), tmp_path / "parts", resume=True)
    ours, theirs = (
        torch.load(run / "checkpoints" / "vggt_custom.pt", weights_only=True)["model"]
        for run in (whole, parts)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_few_steps_on_one_batch_lower_its_loss():
    task = VggtTask(settings(jitter=False)).train()
    batch = task.batch(Draw(seed=0, step=0, part=0, parts=1, size=4))
    optimizer = torch.optim.AdamW(task.network.parameters(), lr=2e-3)
    losses = []
    for step in range(25):
        loss = task(batch, step)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
