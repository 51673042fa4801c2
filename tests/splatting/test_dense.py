import cv2
import numpy as np
import pytest
import torch

from sightline.geometry.camera import camera_rays
from sightline.splatting.dense import (
    DenseOptions,
    DensePoints,
    choose_neighbors,
    match_densely,
    thin_points,
)
from tests.splatting.toy import make_cameras

_OPTIONS = DenseOptions(stride=4)


def _wall(cameras):
    """Photos of a textured plane z = 0.3 x."""
    generator = np.random.default_rng(0)
    texture = generator.uniform(0, 255, (64, 64, 3)).astype(np.float32)
    texture = cv2.resize(texture, (640, 640), interpolation=cv2.INTER_CUBIC).clip(0, 255)
    origins, rays = camera_rays(cameras)
    normal = torch.tensor([-0.3, 0.0, 1.0])
    reach = -(origins @ normal)[:, None, None] / (rays @ normal)
    hits = origins[:, None, None] + reach[..., None] * rays
    place = ((hits[..., :2] + 3) / 6 * 640).numpy()
    images = [cv2.remap(texture, *np.moveaxis(p, -1, 0), cv2.INTER_LINEAR) for p in place]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).byte().contiguous()


@pytest.fixture(scope="module")
def scene():
    cameras = make_cameras(5, 120, 144, arc=0.6)
    return _wall(cameras), cameras


def _distance_from_wall(points):
    return (points @ torch.tensor([-0.3, 0.0, 1.0]) / 1.09**0.5).abs()


@pytest.mark.parametrize("anchored", [True, False])
def test_matches_lie_on_the_surface(scene, anchored):
    images, cameras = scene
    anchors = torch.rand(50, 3) * torch.tensor([1.0, 1.0, 0]) if anchored else None
    told = []
    dense = match_densely(
        images,
        None,
        cameras,
        anchors,
        options=_OPTIONS,
        progress=lambda *message: told.append(message),
    )
    candidates = 5 * 30 * 36
    assert len(dense) > 0.7 * candidates
    distance = _distance_from_wall(dense.points)
    pixel = 3 / (0.9 * 144)
    assert distance.median() < 0.5 * pixel
    assert distance.quantile(0.95) < 5 * pixel
    assert (dense.errors < 1).all()
    expected = 3 * 4 / (0.9 * 144)
    assert dense.spacing.median().item() == pytest.approx(expected, rel=0.2)
    assert told[-1] == ("splats", 5, 5)


def test_colours_are_those_of_the_pictures(scene):
    images, cameras = scene
    grey = torch.full_like(images, 100)
    grey[:, 0] = images[:, 0]
    dense = match_densely(grey, None, cameras, options=_OPTIONS)
    torch.testing.assert_close(dense.colors[:, 1:], torch.full((len(dense), 2), 100 / 255))


def test_masked_pixels_make_no_points(scene):
    images, cameras = scene
    masks = torch.zeros(5, 120, 144, dtype=torch.bool)
    masks[:, :, :72] = True
    dense = match_densely(images, masks, cameras, options=_OPTIONS)
    whole = match_densely(images, None, cameras, options=_OPTIONS)
    assert 0 < len(dense) < 0.6 * len(whole)
    nothing = match_densely(images, torch.zeros_like(masks), cameras, options=_OPTIONS)
    assert len(nothing) == 0


def test_pictures_of_different_things_hardly_match(scene):
    images, cameras = scene
    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8)
    strict = DenseOptions(stride=4, min_views=3)
    assert len(match_densely(noise, None, cameras, options=strict)) < 0.02 * 5 * 30 * 36
    assert len(match_densely(images, None, cameras, options=strict)) > 0.5 * 5 * 30 * 36


def test_a_lone_view_has_no_matches(scene):
    images, cameras = scene
    dense = match_densely(images[:1], None, cameras.select([0]), options=_OPTIONS)
    assert len(dense) == 0


def test_neighbours_are_those_at_a_useful_angle():
    cameras = make_cameras(9, arc=1.6)  # 11.5 degrees apart
    anchors = torch.randn(40, 3).double() * 0.2
    chosen = choose_neighbors(cameras, anchors, DenseOptions(neighbors=2, ideal_angle=11.0))
    assert sorted(chosen[4].tolist()) == [3, 5]
    assert chosen[0, 0] == 1
    two = choose_neighbors(cameras.select([0, 1]), anchors, DenseOptions(neighbors=3))
    assert two.tolist() == [[1, -1, -1], [0, -1, -1]]


def test_thinning_keeps_the_best_point_of_each_cell():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(5000, 3, generator=generator)
    errors = torch.rand(5000, generator=generator)
    dense = DensePoints(
        points=points, colors=points, spacing=torch.full((5000,), 0.01), errors=errors
    )
    thin, size = thin_points(dense, 500)
    assert 350 < len(thin) <= 500
    cells = torch.floor(points.double() / (size * 2.0 ** torch.tensor(0.01).log2().round()))
    _, labels = torch.unique(cells.long(), dim=0, return_inverse=True)
    best = [errors[labels == label].min() for label in labels.unique()]
    torch.testing.assert_close(thin.errors.sort().values, torch.stack(best).sort().values)


def test_thinning_a_few_points_keeps_them():
    points = torch.rand(20, 3) * 100
    dense = DensePoints(
        points=points, colors=points, spacing=torch.full((20,), 0.01), errors=torch.rand(20)
    )
    assert len(thin_points(dense, 100)[0]) == 20
    assert len(thin_points(dense.map(lambda t: t[:0]), 100)[0]) == 0
