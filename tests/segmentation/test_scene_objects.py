"""Masks of views become objects: exact, missing, corrupted, unnumbered; and are drawn again."""

import math

import pytest
import torch

from sightline.datasets.synthetic import make_scene
from sightline.errors import InputError, ShapeError
from sightline.geometry.sh import rgb_to_sh0
from sightline.segmentation.scene_objects import (
    LiftOptions,
    SceneObjects,
    fit_masks,
    lift_objects,
    render_objects,
)
from sightline.types import Cameras, Gaussians, InstanceMasks

HELD_OUT = (0, 5)


@pytest.fixture(scope="module")
def world() -> tuple[Gaussians, Cameras, torch.Tensor]:
    """Splats on the exact surfaces of the simple scene, its cameras and its true labels."""
    scene = make_scene(num_views=10, height=72, width=96, kind="simple", supersampling=1)
    truth = scene.ground_truth
    assert truth is not None
    assert truth.points is not None
    assert truth.depth is not None
    cameras = truth.cameras.map(lambda t: t.float())
    focal = float(cameras.K[0, 0, 0])
    points = truth.points.flatten(0, 2)
    count = len(points)
    splats = Gaussians(
        means=points.float(),
        quats=torch.tensor([1.0, 0, 0, 0]).expand(count, 4).contiguous(),
        scales=(truth.depth.flatten()[:, None] / focal * 0.6).expand(count, 3).float().contiguous(),
        opacities=torch.full((count,), 0.9),
        sh=rgb_to_sh0(torch.full((count, 3), 0.5))[:, None],
    )
    return splats, cameras, truth.raw.labels


def masks_of(labels: torch.Tensor, order: list[int]) -> InstanceMasks:
    """The masks of the things (label 0 is the room) in a given order, without classes."""
    present = [n for n in order if (labels == n).any()]
    masks = torch.stack([labels == n for n in present]) if present else labels[None][:0] > 0
    count = len(present)
    return InstanceMasks(
        masks=masks,
        boxes=torch.zeros(count, 4),
        labels=torch.full((count,), -1),
        scores=torch.ones(count),
    )


def mean_iou(drawn: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean over true things of the best object's IoU."""
    values = []
    for thing in truth.unique().tolist():
        wanted = truth == thing
        if thing == 0 or wanted.sum() < 300:
            continue
        found = [
            float(((drawn == n) & wanted).sum() / ((drawn == n) | wanted).sum())
            for n in range(int(drawn.max()) + 1)
        ]
        values.append(max(found, default=0.0))
    return sum(values) / len(values)


def check(world, views: list[int], masks: list[InstanceMasks]) -> tuple[SceneObjects, float]:
    splats, cameras, labels = world
    objects = lift_objects(splats, cameras.select(views), masks)
    drawn = render_objects(splats, objects, cameras.select(list(HELD_OUT)))
    scores = [mean_iou(d, labels[v]) for d, v in zip(drawn, HELD_OUT, strict=True)]
    return objects, sum(scores) / len(scores)


def test_exact_masks_are_found_in_other_views(world) -> None:
    labels = world[2]
    things = [n for n in labels.unique().tolist() if n]
    views = [1, 2, 3, 4]
    # Another order in every view: nothing says which masks belong together.
    masks = [masks_of(labels[v], things[:: (-1) ** i]) for i, v in enumerate(views)]
    objects, score = check(world, views, masks)
    assert len(objects) == len(things)
    assert objects.views.all()
    assert score > 0.45  # these views show one side only


def test_missing_and_corrupted_masks_do_little_harm(world) -> None:
    labels = world[2]
    things = [n for n in labels.unique().tolist() if n]
    views = [1, 2, 3, 4, 6, 7, 8, 9]
    masks = [masks_of(labels[v], things) for v in views]
    empty = masks_of(labels[0] * 0, things)
    masks[2] = empty
    noise = torch.zeros_like(masks[5].masks)
    noise[:, :20, :20] = True  # a mask of nothing in particular
    masks[5] = InstanceMasks(
        masks=noise, boxes=masks[5].boxes, labels=masks[5].labels, scores=masks[5].scores
    )
    objects, score = check(world, views, masks)
    assert score > 0.75
    assert not objects.views[:, 2].any()
    assert not (objects.of_mask[5] >= 0).all()


def test_numbered_masks_of_views_all_around_cover_the_things(world) -> None:
    splats, cameras, labels = world
    views = [1, 4, 6, 9]
    masks = [masks_of(labels[v], [1, 2]) for v in views]
    known = [torch.arange(len(m.masks)) for m in masks]
    objects = lift_objects(splats, cameras.select(views), masks, known=known)
    drawn = render_objects(splats, objects, cameras.select(list(HELD_OUT)))
    scores = [mean_iou(d, labels[v]) for d, v in zip(drawn, HELD_OUT, strict=True)]
    assert min(scores) > 0.75  # coarse: an edge is a large part of a thing at 96 x 72 pixels


def test_numbers_and_classes_that_are_known_are_kept(world) -> None:
    splats, cameras, labels = world
    things = [n for n in labels.unique().tolist() if n]
    views = [1, 6]
    masks = [masks_of(labels[v], things) for v in views]
    classes = torch.arange(len(things)) + 40
    masks = [
        InstanceMasks(masks=m.masks, boxes=m.boxes, labels=classes[: len(m.masks)], scores=m.scores)
        for m in masks
    ]
    known = [torch.arange(len(m.masks)) for m in masks]
    objects = lift_objects(splats, cameras.select(views), masks, known=known)
    assert objects.labels.tolist() == classes.tolist()
    assert [ids.tolist() for ids in objects.of_mask] == [k.tolist() for k in known]
    one = objects.select(splats, 0)
    rest = objects.select(splats, 0, keep=False)
    assert len(one) + len(rest) == len(splats)
    assert len(one) > 50
    with pytest.raises(InputError, match="expected an object from 0 to"):
        objects.select(splats, len(objects))


def test_classes_keep_masks_apart(world) -> None:
    splats, cameras, labels = world
    thing = max(labels.unique().tolist())
    masks = [masks_of(labels[v], [thing]) for v in (1, 2)]
    other = InstanceMasks(
        masks=masks[1].masks,
        boxes=masks[1].boxes,
        labels=masks[1].labels + 3,
        scores=masks[1].scores,
    )
    named = InstanceMasks(
        masks=masks[0].masks,
        boxes=masks[0].boxes,
        labels=masks[0].labels + 4,
        scores=masks[0].scores,
    )
    assert len(lift_objects(splats, cameras.select([1, 2]), masks)) == 1
    assert len(lift_objects(splats, cameras.select([1, 2]), [named, other])) == 2


def test_no_masks_give_no_objects(world) -> None:
    splats, cameras, labels = world
    empty = masks_of(labels[0] * 0, [])
    objects = lift_objects(splats, cameras.select([1, 2, 3]), [empty] * 3)
    assert len(objects) == 0
    assert (objects.owner == -1).all()
    assert (render_objects(splats, objects, cameras.select([0])) == -1).all()


def test_masks_come_to_the_view_s_size() -> None:
    masks = torch.zeros(2, 60, 80, dtype=torch.bool)
    masks[0, 20:40, 20:60] = True
    masks[1, :, 10:12] = True
    given = InstanceMasks(
        masks=masks,
        boxes=torch.tensor([[20.0, 20, 60, 40], [10, 0, 12, 60]]),
        labels=torch.tensor([3, 4]),
        scores=torch.ones(2),
    )
    half = fit_masks(given, torch.diag(torch.tensor([0.5, 0.5, 1.0])), (30, 50))
    assert half.masks.shape == (2, 30, 50)
    wanted = torch.zeros(30, 50, dtype=torch.bool)
    wanted[10:20, 10:30] = True
    assert torch.equal(half.masks[0], wanted)
    assert half.masks[1, :, 5].all()
    assert half.boxes[0].tolist() == [10, 10, 30, 20]
    assert math.isclose(float(half.masks[0].sum()), 200)


def test_wrong_counts_and_sizes_are_explained(world) -> None:
    splats, cameras, labels = world
    masks = masks_of(labels[1], [1])
    with pytest.raises(ShapeError, match="each of 2 views, got 1"):
        lift_objects(splats, cameras.select([1, 2]), [masks])
    small = InstanceMasks(
        masks=masks.masks[:, ::2], boxes=masks.boxes, labels=masks.labels, scores=masks.scores
    )
    with pytest.raises(ShapeError, match="use fit_masks"):
        lift_objects(splats, cameras.select([1]), [small], options=LiftOptions())
