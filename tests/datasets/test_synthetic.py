from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.datasets.synthetic import KINDS, SyntheticTruth, make_scene, write_scene
from sightline.errors import InputError, UnknownNameError
from sightline.geometry.camera import project_points, unproject_depth
from sightline.geometry.pointmap import depth_to_normals
from sightline.io.ply import read_point_ply
from sightline.io.transforms import read_transforms


@pytest.fixture(scope="module")
def scene():
    return make_scene(num_views=9, height=60, width=80, kind="simple", num_points=500)


@pytest.fixture(scope="module")
def truth(scene):
    assert scene.ground_truth is not None
    assert isinstance(scene.ground_truth.raw, SyntheticTruth)
    return scene.ground_truth


def test_the_scene_has_all_its_parts(scene, truth):
    assert scene.views.images.shape == (9, 3, 60, 80)
    assert scene.views.images.dtype == torch.float32
    assert 0 <= float(scene.views.images.min()) < float(scene.views.images.max()) <= 1
    assert scene.test == (0, 8)
    assert len(set(scene.views.names)) == 9
    assert truth.raw.objects == ("room", "ball", "block")
    for label in range(3):
        assert (truth.raw.labels == label).any()
    assert truth.valid.all()
    assert torch.equal(scene.views.cameras.w2c, truth.cameras.w2c)


def test_depth_points_and_cameras_agree(truth):
    lifted = unproject_depth(truth.depth, truth.cameras)
    torch.testing.assert_close(lifted, truth.points, rtol=0, atol=5e-6)


def test_depth_is_exact_on_the_ball_and_the_floor(truth):
    ball = truth.points[truth.raw.labels == 1]
    offsets = ball - torch.tensor([-0.35, 0.1, 0.35])
    torch.testing.assert_close(
        torch.linalg.vector_norm(offsets, dim=-1), torch.full((len(ball),), 0.35), atol=1e-6, rtol=0
    )
    away_from_walls = truth.points[..., :2].abs().amax(-1) < 2.89
    floor = truth.points[(truth.raw.labels == 0) & away_from_walls & (truth.points[..., 2] < 1)]
    assert len(floor) > 1000
    assert float(floor[:, 2].abs().max()) < 1e-6


def test_normals_are_unit_face_the_camera_and_agree_with_depth(truth):
    normals = truth.raw.normals
    torch.testing.assert_close(
        torch.linalg.vector_norm(normals, dim=-1), torch.ones_like(truth.depth)
    )
    rays = unproject_depth(
        torch.ones_like(truth.depth),
        replace(truth.cameras, w2c=torch.eye(4).expand_as(truth.cameras.w2c)),
    )
    assert ((normals * rays).sum(-1) < 0).all()
    agreement = (depth_to_normals(truth.depth, truth.cameras) * normals).sum(-1)
    assert float(agreement.median()) > 0.9999
    assert float((agreement > 0.95).float().mean()) > 0.95


def test_tracks_are_true_and_their_colours_are_those_of_the_pictures(scene, truth):
    sparse = truth.sparse
    point, view = sparse.tracks.long().unbind(-1)
    assert torch.bincount(point, minlength=500).min() >= 1
    assert float(torch.bincount(point).float().mean()) > 2
    pixels, depth = project_points(sparse.points, truth.cameras)
    u, v = pixels[view, point].unbind(-1)
    column, row = u.long().clamp(0, 79), v.long().clamp(0, 59)
    relative = (truth.depth[view, row, column] / depth[view, point] - 1).abs()
    assert float((relative < 0.02).float().mean()) > 0.9
    seen = scene.views.images[view, :, row, column]
    error = (seen - sparse.colors[point].float() / 255).abs().mean(-1)
    assert float(error.median()) < 0.04


def test_seed_and_threads(scene, truth):
    again = make_scene(9, 60, 80, kind="simple", num_points=500, threads=1)
    assert torch.equal(again.views.images, scene.views.images)
    assert again.ground_truth is not None
    assert again.ground_truth.sparse is not None
    assert torch.equal(again.ground_truth.sparse.tracks, truth.sparse.tracks)
    other = make_scene(9, 60, 80, seed=1, kind="simple", num_points=500)
    assert other.ground_truth is not None
    assert not torch.equal(other.ground_truth.cameras.w2c, truth.cameras.w2c)


def test_the_tabletop_shows_everything():
    scene = make_scene(8, 48, 64, test_every=0)
    assert scene.test == ()
    truth = scene.ground_truth
    assert truth is not None
    for label, name in enumerate(truth.raw.objects):
        assert (truth.raw.labels == label).any(), name
    # Real texture: neighbouring pixels differ, and no view is all dark or all bright.
    means = scene.views.images.mean((1, 2, 3))
    assert float(means.min()) > 0.25
    assert float(means.max()) < 0.7
    assert float(scene.views.images.std()) > 0.15


def test_requests_that_make_no_sense_are_refused():
    with pytest.raises(UnknownNameError, match='no synthetic scene "table"; closest: tabletop'):
        make_scene(kind="table")
    with pytest.raises(InputError, match="at least 1 view, pixel, ray and point, got 0 views of 9"):
        make_scene(0, 9, 9)
    assert set(KINDS) == {"tabletop", "simple"}


def test_a_written_scene_reads_back(scene, truth, tmp_path: Path):
    path = write_scene(scene, tmp_path / "disk")
    assert path == tmp_path / "disk" / "transforms.json"
    read = read_transforms(path)
    assert read.files == tuple(f"images/{name}" for name in scene.views.names)
    assert read.test_files == ("images/view_000.png", "images/view_008.png")
    assert read.train_files is not None
    assert len(read.train_files) == 7
    torch.testing.assert_close(read.w2c.float(), truth.cameras.w2c, rtol=0, atol=1e-6)
    torch.testing.assert_close(read.lenses.K.float(), truth.cameras.K)
    assert read.lenses.is_pinhole
    stored = torch.from_numpy(np.array(Image.open(path.parent / read.files[3]))) / 255
    torch.testing.assert_close(
        stored.movedim(-1, 0), scene.views.images[3], rtol=0, atol=0.5 / 255 + 1e-6
    )
    ball = np.array(Image.open(path.parent / "objects" / "ball" / "view_003.png"))
    np.testing.assert_array_equal(ball == 255, (truth.raw.labels[3] == 1).numpy())
    cloud = read_point_ply(path.parent / "points.ply")
    torch.testing.assert_close(cloud.points, truth.sparse.points)
    with np.load(path.parent / "truth.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["depth"], truth.depth.numpy())
        assert arrays["objects"].tolist() == list(truth.raw.objects)
    with pytest.raises(InputError, match="already holds something; choose a new folder"):
        write_scene(scene, tmp_path / "disk")
    with pytest.raises(InputError, match="not a synthetic one"):
        write_scene(replace(scene, ground_truth=None), tmp_path / "other")
