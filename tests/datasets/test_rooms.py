import numpy as np
import pytest
import torch

from sightline.datasets.multiview import (
    MultiViewSource,
    camera_points,
    collate,
    sample_rng,
    world_points,
)
from sightline.datasets.overlap import coverage, target_masks
from sightline.datasets.rooms import Rooms
from sightline.errors import ShapeError
from tests.datasets.multiview import check_sample, worst_reprojection

FAMILY = Rooms()


@pytest.fixture(scope="module")
def sample():
    return FAMILY.draw(sample_rng(0, "train", 3), 3, 48, 64)


def test_a_sample_is_whole(sample):
    assert isinstance(FAMILY, MultiViewSource)
    check_sample(sample, 3, 48, 64)
    assert bool(sample.valid.all())
    assert bool(sample.metric)


def test_a_sample_follows_from_its_place_alone(sample):
    again = FAMILY.draw(sample_rng(0, "train", 3), 3, 48, 64)
    assert torch.equal(sample.images, again.images)
    assert torch.equal(sample.w2c, again.w2c)
    assert sample.scenes == again.scenes
    others = [
        FAMILY.draw(sample_rng(*place), 3, 48, 64)
        for place in ((0, "val", 3), (1, "train", 3), (0, "train", 4))
    ]
    scenes = {sample.scenes, *(other.scenes for other in others)}
    assert len(scenes) == 4


@pytest.mark.parametrize("family", [FAMILY, Rooms(views="orbit")], ids=["walk", "orbit"])
@pytest.mark.parametrize("place", range(4))
def test_views_agree_where_they_overlap(place, family):
    sample = family.draw(sample_rng(5, "train", place), 2, 96, 96)
    share, apart = worst_reprojection(sample)
    assert share > 0.25
    # Checks and stripes have hard edges: most pixels agree to a hundredth, edges do not.
    assert apart < 0.03


def test_a_wrong_camera_is_noticed():
    sample = FAMILY.draw(sample_rng(5, "train", 0), 2, 96, 96)
    wrong = sample.map(torch.clone)
    wrong.w2c[1] = torch.linalg.inv(sample.w2c[1])
    assert worst_reprojection(wrong)[0] < 0.2 * worst_reprojection(sample)[0]


def test_points_lie_in_the_room(sample):
    points = world_points(sample)
    assert float(points[..., 2].min()) > -1e-3
    assert float(points[..., 2].max()) < FAMILY.ceiling[1] + 1e-3
    assert float(points[..., :2].abs().max()) < FAMILY.side[1] / 2 + 1e-3
    local = camera_points(sample)
    torch.testing.assert_close(local[..., 2], sample.depth)


def test_orbiting_cameras_stand_on_an_arc_at_one_height():
    family = Rooms(views="orbit")
    rng = np.random.default_rng(0)
    heights = []
    for _ in range(20):
        sample = family.draw(rng, 4, 8, 8)
        centers = torch.linalg.inv(sample.w2c)[:, :3, 3]
        assert float(centers[:, 2].max() - centers[:, 2].min()) < 1e-4
        assert float((centers[1:] - centers[0]).norm(dim=-1).min()) > 1e-3
        heights.append(float(centers[0, 2]))
    assert min(heights) >= family.height[0] - 1e-4
    assert max(heights) <= family.height[1] + 1e-4
    assert max(heights) - min(heights) > 0.5


def test_cameras_keep_their_distance():
    rng = np.random.default_rng(0)
    for _ in range(20):
        sample = FAMILY.draw(rng, 4, 8, 8)
        centers = torch.linalg.inv(sample.w2c)[:, :3, 3]
        apart = (centers[1:] - centers[0]).norm(dim=-1)
        assert float(apart.min()) > FAMILY.baseline[0] - 1e-4
        assert float(apart.max()) < FAMILY.baseline[1] + 1e-4
        assert float(sample.depth.min()) > 0.05


def test_coverage_is_whole_with_oneself_only(sample):
    shares = coverage(sample)
    assert bool((shares.diagonal() > 0.99).all())
    assert 0 <= float(shares.min()) <= float(shares.max()) <= 1
    assert float(shares[0, 1]) < 0.97


def test_masks_of_targets_cover_what_the_context_shows():
    samples = [Rooms(num_context=2).draw(sample_rng(0, "train", i), 3, 32, 32) for i in range(2)]
    batch = collate(samples)
    assert batch.images.shape == (2, 3, 3, 32, 32)
    masks = target_masks(batch)
    assert masks.shape == (2, 1, 32, 32)
    assert 0.3 < float(masks.float().mean()) <= 1
    with pytest.raises(ShapeError, match="set num_context"):
        target_masks(collate([FAMILY.draw(sample_rng(0, "train", 0), 3, 16, 16)]))


def test_batches_are_of_one_kind():
    small = FAMILY.draw(sample_rng(0, "train", 0), 2, 16, 16)
    large = FAMILY.draw(sample_rng(0, "train", 0), 2, 16, 24)
    with pytest.raises(ShapeError, match=r"2 views of 16 x 16, 2 views of 16 x 24"):
        collate([small, large])
    with pytest.raises(ShapeError, match="got none"):
        collate([])
