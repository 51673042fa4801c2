"""Scenes read from folders, transforms.json and COLMAP workspaces."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.datasets.base import Scenes, held_out
from sightline.datasets.colmap import read_colmap_scene
from sightline.datasets.folder import read_folder_scene
from sightline.datasets.scenes import open_scenes, read_scene
from sightline.datasets.synthetic import make_scene, write_scene
from sightline.datasets.transforms import read_transforms_scene
from sightline.errors import FileFormatError, InputError
from sightline.geometry.camera import unproject_depth
from sightline.protocols import SceneDataset
from tests.io.pictures import texture
from tests.io.test_ingest import make_colmap, make_transforms, save, turned


@pytest.mark.parametrize(
    ("count", "every", "want"),
    [(17, 8, (0, 8, 16)), (16, 8, (0, 8)), (5, 0, ()), (3, 2, (0, 2)), (0, 8, ())],
)
def test_held_out(count, every, want):
    assert held_out(count, every) == want


@pytest.mark.parametrize("every", [1, -8])
def test_held_out_refuses(every):
    with pytest.raises(InputError, match="--test-every must be 0"):
        held_out(10, every)


def test_folder_of_photos(tmp_path):
    for i in (1, 2, 10):
        save(tmp_path / f"room/v{i}.jpg", texture(30, 40, seed=i))
    save(tmp_path / "room/masks/v2.png", np.zeros((30, 40), np.uint8))
    scene = read_folder_scene(tmp_path / "room", long_side=20, test_every=2)
    assert scene.id == "room"
    assert scene.views.names == ("v1.jpg", "v2.jpg", "v10.jpg")
    assert scene.views.images.shape == (3, 3, 15, 20)
    assert scene.test == (0, 2)
    assert scene.ground_truth is None
    assert scene.views.masks is not None
    assert scene.views.masks.flatten(1).all(1).tolist() == [True, False, True]


def test_transforms_with_depth(tmp_path):
    folder = make_transforms(tmp_path / "rgbd", depth=True)
    scene = read_transforms_scene(folder, long_side=16, test_every=2)
    truth = scene.ground_truth
    assert truth is not None
    assert scene.views.names == ("1.png", "2.png", "10.png")
    assert scene.test == (0, 2)
    assert truth.depth is not None
    assert truth.depth.shape == (3, 12, 16)
    assert (truth.depth == 2).all()
    assert truth.valid is not None
    assert truth.valid.all()
    lifted = unproject_depth(truth.depth.double(), truth.cameras)
    torch.testing.assert_close(lifted[..., 2], torch.full_like(lifted[..., 2], 2.0))
    assert truth.sparse is not None
    assert len(truth.sparse.points) == 3 * 24 * 32


def test_a_split_in_the_file_wins(tmp_path):
    folder = make_transforms(
        tmp_path / "s", train_filenames=["color/1.png"], test_filenames=["color/10.png"]
    )
    assert read_transforms_scene(folder, test_every=2).test == (2,)


def test_missing_depth_is_invalid(tmp_path):
    folder = make_transforms(tmp_path / "rgbd", depth=True)
    holes = np.full((24, 32), 1500, np.uint16)
    holes[:, :16] = 0
    Image.fromarray(holes).save(folder / "depth/1.png")
    truth = read_transforms_scene(folder).ground_truth
    assert truth is not None
    assert truth.depth is not None
    assert truth.valid is not None
    assert not truth.valid[0, :, :16].any()
    torch.testing.assert_close(truth.depth[0, :, 16:], torch.full((24, 16), 1.5))


def test_colmap_workspace(tmp_path):
    scene = read_colmap_scene(make_colmap(tmp_path / "ws"), long_side=32)
    truth = scene.ground_truth
    assert truth is not None
    assert scene.views.names == ("a.jpg", "b.jpg")
    assert truth.cameras.w2c[:, 0, 3].tolist() == pytest.approx([0.2, 0.1])
    assert truth.sparse is not None
    assert truth.sparse.tracks.dtype == torch.int32
    assert truth.depth is None
    assert truth.lenses is not None
    assert not truth.lenses.is_pinhole


def test_cameras_belong_to_stored_pixels(tmp_path):
    scene = read_colmap_scene(make_colmap(tmp_path / "ws", orientation=6))
    assert scene.views.sizes.tolist() == [[48, 64]] * 2
    red = scene.views.images[0, :, 4, 4].tolist()
    assert red[0] > 200
    assert max(red[1:]) < 60


def test_synthetic_scene_survives_the_disk(tmp_path):
    made = make_scene(
        num_views=4, height=24, width=32, kind="simple", supersampling=1, test_every=2
    )
    write_scene(made, tmp_path / "s")
    scene = read_scene(tmp_path / "s")
    truth, want = scene.ground_truth, made.ground_truth
    assert truth is not None
    assert want is not None
    assert scene.views.names == made.views.names
    assert scene.test == made.test
    torch.testing.assert_close(truth.cameras.w2c, want.cameras.w2c.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(truth.cameras.K, want.cameras.K.double())
    images = (made.views.images * 255).round().to(torch.uint8)
    assert torch.equal(scene.views.images, images)
    assert truth.sparse is not None
    assert want.sparse is not None
    torch.testing.assert_close(truth.sparse.points.float(), want.sparse.points.float())


def test_read_scene_tells_kinds_apart(tmp_path):
    save(tmp_path / "all/photos/a.jpg")
    make_transforms(tmp_path / "all/nerf10")
    make_colmap(tmp_path / "all/nerf9")
    (tmp_path / "all/.cache").mkdir()
    scenes = open_scenes(tmp_path / "all", long_side=16)
    assert isinstance(scenes, Scenes)
    assert isinstance(scenes, SceneDataset)
    assert len(scenes) == 3
    assert [scene.id for scene in (scenes[0], scenes[1], scenes[2])] == [
        "nerf9",
        "nerf10",
        "photos",
    ]
    with pytest.raises(IndexError):
        scenes[3]


def test_errors(tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        read_folder_scene(tmp_path / "none")
    with pytest.raises(InputError, match="is no folder"):
        open_scenes(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no folders"):
        open_scenes(tmp_path / "empty")
    with pytest.raises(InputError, match="is empty"):
        read_folder_scene(tmp_path / "empty")
    folder = make_transforms(tmp_path / "t")
    (folder / "color/1.png").unlink()
    with pytest.raises(InputError, match="names 1 of 3 pictures that are not there"):
        read_scene(folder)
    (folder / "transforms.json").write_text(json.dumps({"frames": []}))
    with pytest.raises(FileFormatError, match="a list of frames"):
        read_scene(folder)


def test_turned_photos_of_a_folder_are_upright(tmp_path):
    turned(tmp_path / "p/a.jpg", 6)
    scene = read_folder_scene(tmp_path / "p")
    assert scene.views.sizes.tolist() == [[64, 48]]


def test_real_sets(shared_data):
    fox = read_scene(shared_data / "fox", long_side=96, test_every=8)
    assert fox.test == (0, 8, 16, 24, 32, 40, 48)
    assert len(fox.views) == 50
    chair = read_scene(shared_data / "rgbd_chair", long_side=160)
    assert chair.ground_truth is not None
    assert chair.ground_truth.depth is not None
    assert 0.3 < float(chair.ground_truth.depth[chair.ground_truth.depth > 0].median()) < 5
