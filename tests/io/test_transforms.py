import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sightline.errors import FileFormatError, InputError
from sightline.io.transforms import Transforms, read_transforms, write_transforms
from sightline.types import Lenses
from tests.io.hostile import damage, survives

IDENTITY = np.eye(4).tolist()


def make_transforms(count=3, *, kind="pinhole", shared=True, **extra):
    g = torch.Generator().manual_seed(6)
    w2c = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    w2c[:, :3, :3] = torch.linalg.qr(torch.randn(count, 3, 3, generator=g, dtype=torch.float64)).Q
    w2c[:, :3, 0] *= torch.linalg.det(w2c[:, :3, :3])[:, None]
    w2c[:, :3, 3] = torch.randn(count, 3, generator=g)
    K = torch.tensor([[600.0, 0, 310], [0, 610, 250], [0, 0, 1]], dtype=torch.float64)
    K = K.repeat(count, 1, 1)
    if not shared:
        K[:, 0, 0] += torch.arange(count)
    distortion = torch.zeros(count, 8, dtype=torch.float64)
    distortion[:] = {
        "pinhole": torch.zeros(8),
        "opencv": torch.tensor([0.1, -0.02, 0.001, 0.002, 0.003, 0, 0, 0]),
        "fisheye": torch.tensor([0.1, -0.02, 0.001, 0.002, 0, 0, 0, 0]),
    }[kind].double()
    return Transforms(
        files=tuple(f"images/{i}.jpg" for i in range(count)),
        w2c=w2c,
        lenses=Lenses(
            K=K,
            distortion=distortion,
            fisheye=torch.full((count,), kind == "fisheye"),
            sizes=torch.tensor([[480, 640]] * count),
        ),
        **extra,
    )


def frame(**fields):
    return {"file_path": "images/a.jpg", "transform_matrix": IDENTITY, **fields}


def write(path, *frames, **top):
    top = {"fl_x": 500, "w": 640, "h": 480, **top}
    path.write_text(json.dumps({**top, "frames": list(frames or [frame()])}))
    return path


@pytest.mark.parametrize("kind", ["pinhole", "opencv", "fisheye"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("full", [True, False])
def test_round_trip(tmp_path, kind, shared, full):
    extra = {}
    if full:
        extra = {
            "depth_files": ("depth/0.png", "depth/1.png", "depth/2.png"),
            "mask_files": ("masks/0.png", "masks/1.png", "masks/2.png"),
            "image_ids": (4, 5, 9),
            "ply_file": "sparse.ply",
            "applied_transform": torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]]),
            "depth_scale": 0.001,
            "train_files": ("images/0.jpg", "images/1.jpg"),
            "val_files": ("images/2.jpg",),
            "test_files": (),
        }
    transforms = make_transforms(kind=kind, shared=shared, **extra)
    write_transforms(tmp_path / "transforms.json", transforms)
    top = json.loads((tmp_path / "transforms.json").read_text())
    assert ("fl_x" in top) == shared
    assert all(("fl_x" in f) != shared for f in top["frames"])
    back = read_transforms(tmp_path)
    torch.testing.assert_close(back.w2c, transforms.w2c, atol=1e-12, rtol=0)
    for name in ("K", "distortion", "fisheye", "sizes"):
        assert torch.equal(getattr(back.lenses, name), getattr(transforms.lenses, name)), name
    for name in ("files", "depth_files", "mask_files", "image_ids", "ply_file", "depth_scale"):
        assert getattr(back, name) == getattr(transforms, name), name
    for name in ("train_files", "val_files", "test_files"):
        assert getattr(back, name) == getattr(transforms, name), name
    if full:
        assert torch.equal(back.applied_transform, transforms.applied_transform.double())
    else:
        assert back.applied_transform is None


def test_a_pixel_by_the_formats_own_rule(tmp_path):
    transforms = make_transforms(1)
    write_transforms(tmp_path / "transforms.json", transforms)
    top = json.loads((tmp_path / "transforms.json").read_text())
    point = transforms.w2c[0].inverse() @ torch.tensor([0.3, -0.2, 2.5, 1.0]).double()
    local = np.linalg.inv(top["frames"][0]["transform_matrix"]) @ point.numpy()
    x, y, z = local[:3]
    assert z < 0  # OpenGL cameras look along -z
    u = top["fl_x"] * x / -z + top["cx"]
    v = -top["fl_y"] * y / -z + top["cy"]
    K = transforms.lenses.K[0].numpy()
    expected = K @ (0.3 / 2.5, -0.2 / 2.5, 1)
    np.testing.assert_allclose((u, v), expected[:2])


def test_old_files(tmp_path):
    """instant-ngp: angles instead of focal lengths. Blender: no sizes, no suffix either."""
    path = write(tmp_path / "transforms.json", fl_x=None, camera_angle_x=2 * math.atan(0.64))
    K = read_transforms(path).lenses.K[0]
    torch.testing.assert_close(
        K, torch.tensor([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]]).double()
    )
    (tmp_path / "train").mkdir()
    Image.new("RGB", (100, 50)).save(tmp_path / "train" / "r_0.png")
    blender = frame(file_path="./train/r_0", transform_matrix=np.diag([2, 2, 2, 1.0]).tolist())
    write(path, blender, fl_x=None, w=None, h=None, camera_angle_x=math.pi / 2)
    back = read_transforms(path)
    assert back.files == ("train/r_0.png",)
    assert back.lenses.sizes.tolist() == [[50, 100]]
    assert back.lenses.K[0, 0, 0].item() == pytest.approx(50)
    torch.testing.assert_close(back.w2c[0], torch.diag(torch.tensor([1.0, -1, -1, 1])).double())
    write(path, is_fisheye=True, k1=0.1)
    assert read_transforms(path).lenses.fisheye.tolist() == [True]
    write(path, camera_model="SIMPLE_RADIAL", k1=0.1)
    assert read_transforms(path).lenses.distortion[0, 0] == 0.1


def test_paths_may_wander_inside_the_folder(tmp_path):
    path = write(tmp_path / "transforms.json", frame(file_path="./images\\..//images/a.jpg"))
    assert read_transforms(path).files == ("images/a.jpg",)


def test_rounded_rotations_are_made_orthonormal(tmp_path):
    rotation = make_transforms(1).w2c[0].numpy()
    path = write(tmp_path / "t.json", frame(transform_matrix=rotation.round(3).tolist()))
    back = read_transforms(path).w2c[0]
    torch.testing.assert_close(back[:3, :3] @ back[:3, :3].T, torch.eye(3).double())


NAN = float("nan")


@pytest.mark.parametrize(
    ("frames", "top", "message"),
    [
        ([frame(file_path="../../etc/passwd")], {}, r"relative to the file's own folder, got '\.\./\.\./etc"),
        ([frame(file_path="images/../../b.jpg")], {}, "relative to the file's own folder"),
        ([frame(file_path="/etc/passwd")], {}, "relative to the file's own folder"),
        ([frame(file_path="C:\\a.jpg")], {}, "relative to the file's own folder"),
        ([frame(file_path="a\0b")], {}, "relative to the file's own folder"),
        ([frame(file_path=5)], {}, "a path in file_path, got '5'"),
        ([frame(mask_path="../m.png")], {}, "relative to the file's own folder"),
        ([frame()], {"ply_file_path": "/a.ply"}, "relative to the file's own folder"),
        ([frame()], {"train_filenames": ["../x"]}, "relative to the file's own folder"),
        ([frame()], {"train_filenames": 3}, "a list of paths in train_filenames, got a int"),
        ([frame(), frame()], {}, "one frame a picture, got images/a.jpg 2 times"),
        ([frame(mask_path="m.png"), frame(file_path="b")], {}, "mask_path in all frames or in none, got 1 of 2"),
        ([frame(transform_matrix=[[NAN] * 4] * 4)], {}, "4 x 4 finite numbers for images/a.jpg"),
        ([frame(transform_matrix=[[1, 2], [3, 4]])], {}, "4 x 4 finite numbers for images/a.jpg"),
        ([frame(transform_matrix=[[1, 2, 3, 4], [3, 4]])], {}, "4 x 4 finite numbers for images/a.jpg"),
        ([frame(transform_matrix="x")], {}, "4 x 4 finite numbers for images/a.jpg"),
        ([frame(transform_matrix=np.zeros((3, 4)).tolist())], {}, "a rotation in transform_matrix for images/a.jpg, got a singular"),
        ([frame(transform_matrix=np.diag([1, 1, 0, 1.0]).tolist())], {}, "for images/a.jpg, got a singular or mirrored"),
        ([frame(transform_matrix=np.diag([1, 1, -1, 1.0]).tolist())], {}, "for images/a.jpg, got a singular or mirrored"),
        ([frame(transform_matrix=np.diag([1, 1.2, 1, 1.0]).tolist())], {}, "for images/a.jpg, got one that skews"),
        ([frame(transform_matrix=np.diag([1, 1, 1, 2.0]).tolist())], {}, "whose last row is 0 0 0 1 for images/a.jpg"),
        ([frame(colmap_im_id="x")], {}, "a whole colmap_im_id"),
        ([frame()], {"fl_x": NAN}, "a finite number in fl_x, got 'nan'"),
        ([frame()], {"fl_x": 10**400}, "a finite number in fl_x"),
        ([frame()], {"fl_x": -1}, "a positive fl_x for images/a.jpg, got -1"),
        ([frame()], {"fl_x": None}, "fl_x or camera_angle_x for images/a.jpg, got neither"),
        ([frame()], {"w": 1e12}, "a whole picture size w x h for images/a.jpg"),
        ([frame()], {"w": 64.5}, "a whole picture size w x h for images/a.jpg"),
        ([frame()], {"applied_transform": [[1, 2]]}, "3 x 4 finite numbers in applied_transform"),
        ([5], {}, "a list of frames, got none"),
    ],
)  # fmt: skip
def test_hostile(tmp_path, frames, top, message):
    path = write(tmp_path / "bad.json", *frames, **top)
    with pytest.raises(FileFormatError, match=rf"^bad\.json: expected .*{message}"):
        read_transforms(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected JSON, got an error"),
        ("[" * 100000, "expected JSON, got an error"),
        ("[]", "expected a JSON object with frames, got a list"),
        ('{"frames": []}', "expected a list of frames, got none"),
        (
            '{"frames": [{"file_path": "a", "n": ' + "9" * 5000 + "}]}",
            "expected JSON, got an error",
        ),
    ],
)
def test_not_even_json(tmp_path, text, message):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(FileFormatError, match=message):
        read_transforms(tmp_path / "bad.json")


def test_lenses_that_do_not_fit(tmp_path):
    path = write(tmp_path / "t.json", camera_model="EQUIRECTANGULAR")
    with pytest.raises(InputError, match="a lens of model EQUIRECTANGULAR cannot be used here"):
        read_transforms(path)
    write(path, camera_model="OPENCV", k4=0.1)
    with pytest.raises(InputError, match=r"a lens of model OPENCV with k4 = 0\.1 cannot"):
        read_transforms(path)
    transforms = make_transforms(1, kind="opencv")
    transforms.lenses.distortion[0, 6] = 0.1
    with pytest.raises(InputError, match="no rational lens model"):
        write_transforms(tmp_path / "b.json", transforms)
    transforms = make_transforms(1)
    transforms.w2c[0, 0, 0] = NAN
    with pytest.raises(InputError, match="needs finite poses, got NaN"):
        write_transforms(tmp_path / "b.json", transforms)
    with pytest.raises(InputError, match="there is no file"):
        read_transforms(tmp_path / "none.json")


@given(data=st.data())
def test_damage(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("transforms") / "transforms.json"
    extra = {"ply_file": "a.ply", "mask_files": ("m.png",), "applied_transform": torch.eye(4)[:3]}
    write_transforms(path, make_transforms(1, kind="opencv", **extra))
    path.write_bytes(damage(data.draw, path.read_bytes()))
    try:
        survives(read_transforms, path)
    except InputError as error:  # a damaged name is a missing picture or an unknown lens
        if "there is no file" not in str(error) and "a lens of model" not in str(error):
            raise


def test_real_files(shared_data):
    fox = read_transforms(shared_data / "fox")
    assert len(fox.files) == 50
    assert fox.lenses.distortion[0, 0] == 0.0578421
    assert all((shared_data / "fox" / name).is_file() for name in fox.files)
    chair = read_transforms(shared_data / "rgbd_chair")
    assert chair.lenses.is_pinhole
    assert chair.depth_scale == 0.001
