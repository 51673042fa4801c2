import struct
from dataclasses import replace

import cv2
import numpy as np
import pycolmap
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import FileFormatError, InputError
from sightline.io.colmap import (
    CAMERA_MODELS,
    ColmapCamera,
    ColmapImage,
    ColmapModel,
    ColmapPoints,
    camera_from_lens,
    lens_from_camera,
    model_views,
    read_colmap,
    write_colmap,
)
from tests.io.hostile import damage, survives

PARAMS = {
    "SIMPLE_PINHOLE": (500, 320, 240),
    "PINHOLE": (500, 510, 320, 240),
    "SIMPLE_RADIAL": (500, 320, 240, 0.05),
    "RADIAL": (500, 320, 240, 0.05, -0.01),
    "OPENCV": (500, 510, 320, 240, 0.05, -0.01, 0.001, -0.002),
    "OPENCV_FISHEYE": (500, 510, 320, 240, 0.05, -0.01, 0.003, -0.001),
    "FULL_OPENCV": (500, 510, 320, 240, 0.05, -0.01, 0.001, -0.002, 0.003, 0.01, 0.002, 0.001),
    "FOV": (500, 510, 320, 240, 0.5),
    "SIMPLE_RADIAL_FISHEYE": (500, 320, 240, 0.05),
    "RADIAL_FISHEYE": (500, 320, 240, 0.05, -0.01),
    "THIN_PRISM_FISHEYE": (500, 510, 320, 240, *[0.001] * 8),
    "RAD_TAN_THIN_PRISM_FISHEYE": (500, 510, 320, 240, *[0.001] * 12),
    "SIMPLE_DIVISION": (500, 320, 240, -0.05),
    "DIVISION": (500, 510, 320, 240, -0.05),
    "SIMPLE_FISHEYE": (500, 320, 240),
    "FISHEYE": (500, 510, 320, 240),
    "EUCM": (500, 510, 320, 240, 0.6, 1.1),
    "EQUIRECTANGULAR": (640, 480),
}

PARAMS = {name: tuple(map(float, values)) for name, values in PARAMS.items()}


def make_model(num_images=3, num_points=6, *, models=("PINHOLE", "OPENCV")):
    """Every point is seen by every image, except point 0, which none sees."""
    g = np.random.default_rng(4)
    cameras = {
        i + 1: ColmapCamera(id=i + 1, model=m, width=640, height=480, params=PARAMS[m])
        for i, m in enumerate(models)
    }
    ids = np.arange(num_points) * 7 + 3
    seen = ids[1:]
    images = {}
    for i in range(num_images):
        quat = g.normal(size=4)
        images[i * 2 + 1] = ColmapImage(
            id=i * 2 + 1,
            name=f"cam{i}/ü{i}.jpg" if i else "a.jpg",
            camera_id=1 + i % len(models),
            quat=quat / np.linalg.norm(quat),
            translation=g.normal(size=3),
            pixels=g.uniform(0, 480, (len(seen) + 1, 2)),
            point_ids=np.array([-1, *seen]),
        )
    rows = np.repeat(np.arange(1, num_points), num_images)
    owners = np.tile(list(images), num_points - 1)
    return ColmapModel(
        cameras=cameras,
        images=images,
        points=ColmapPoints(
            ids=ids,
            points=g.normal(size=(num_points, 3)),
            colors=g.integers(0, 256, (num_points, 3), dtype=np.uint8),
            errors=np.where(ids > 3, g.uniform(0, 2, num_points), -1),
            tracks=np.stack([rows, owners, rows], 1),
        ),
    )


def assert_same(a, b):
    assert a.cameras == b.cameras
    assert a.images.keys() == b.images.keys()
    for x, y in zip(a.images.values(), b.images.values(), strict=True):
        assert (x.id, x.name, x.camera_id) == (y.id, y.name, y.camera_id)
        for field in ("quat", "translation", "pixels", "point_ids"):
            np.testing.assert_array_equal(getattr(x, field), getattr(y, field))
    for field in ("ids", "points", "colors", "errors", "tracks"):
        np.testing.assert_array_equal(getattr(a.points, field), getattr(b.points, field))


@pytest.mark.parametrize("text", [True, False])
def test_round_trip(tmp_path, text):
    model = make_model()
    paths = write_colmap(tmp_path / "sparse" / "0", model, text=text)
    assert [p.name for p in paths] == [
        f"{n}.{'txt' if text else 'bin'}" for n in ("cameras", "images", "points3D")
    ]
    assert_same(read_colmap(tmp_path / "sparse" / "0"), model)
    assert_same(read_colmap(tmp_path), model)
    bare = make_model(2, 1)
    write_colmap(tmp_path / "bare", bare, text=text)
    assert_same(read_colmap(tmp_path / "bare"), bare)


def test_binary_bytes_are_exact(tmp_path):
    model = make_model(1, 2, models=("PINHOLE",))
    cameras, images, points = (p.read_bytes() for p in write_colmap(tmp_path, model))
    image, cloud = model.images[1], model.points
    assert cameras == struct.pack("<QIiQQ4d", 1, 1, 1, 640, 480, 500, 510, 320, 240)
    expected = struct.pack("<QI7dI", 1, 1, *image.quat, *image.translation, 1) + b"a.jpg\0"
    expected += struct.pack("<Q2dQ2dQ", 2, *image.pixels[0], 2**64 - 1, *image.pixels[1], 10)
    assert images == expected
    expected = struct.pack("<Q", 2)
    expected += struct.pack("<Q3d3BdQ", 3, *cloud.points[0], *cloud.colors[0], -1, 0)
    expected += struct.pack("<Q3d3BdQ", 10, *cloud.points[1], *cloud.colors[1], cloud.errors[1], 1)
    assert points == expected + struct.pack("<II", 1, 1)


@pytest.mark.parametrize("text", [True, False])
def test_pycolmap_reads_ours(tmp_path, text):
    model = make_model(models=tuple(CAMERA_MODELS))
    write_colmap(tmp_path, model, text=text)
    theirs = pycolmap.Reconstruction(tmp_path)
    assert theirs.num_reg_images() == 3
    for id_, camera in model.cameras.items():
        other = theirs.cameras[id_]
        assert (other.model.name, other.width, other.height) == (camera.model, 640, 480)
        assert tuple(other.params) == camera.params
    for id_, image in model.images.items():
        other = theirs.images[id_]
        assert (other.name, other.camera_id) == (image.name, image.camera_id)
        pose = other.cam_from_world()
        np.testing.assert_allclose(pose.rotation.matrix(), image.w2c[:3, :3], atol=1e-12)
        np.testing.assert_allclose(pose.translation, image.translation, atol=1e-12)
        np.testing.assert_allclose([p.xy for p in other.points2D], image.pixels)
        assert [p.has_point3D() for p in other.points2D] == [False] + [True] * 5
    assert len(theirs.points3D) == 6
    for row, id_ in enumerate(model.points.ids.tolist()):
        other = theirs.points3D[id_]
        np.testing.assert_array_equal(other.xyz, model.points.points[row])
        np.testing.assert_array_equal(other.color, model.points.colors[row])
        track = [(e.image_id, e.point2D_idx) for e in other.track.elements]
        ours = model.points.tracks
        assert track == [tuple(t) for t in ours[ours[:, 0] == row, 1:].tolist()]


@pytest.mark.parametrize("text", [True, False])
def test_we_read_pycolmaps(tmp_path, text):
    """Including its rigs and frames files, which we skip."""
    model = make_model()
    write_colmap(tmp_path / "ours", model)
    (tmp_path / "theirs").mkdir()
    theirs = pycolmap.Reconstruction(tmp_path / "ours")
    (theirs.write_text if text else theirs.write_binary)(tmp_path / "theirs")
    assert len(list((tmp_path / "theirs").iterdir())) == 5
    back = read_colmap(tmp_path / "theirs")
    np.testing.assert_allclose(back.images[3].w2c, model.images[3].w2c, atol=1e-12)
    assert back.cameras == model.cameras
    order = np.argsort(back.points.ids)
    np.testing.assert_array_equal(back.points.ids[order], model.points.ids)
    np.testing.assert_allclose(back.points.points[order], model.points.points)
    assert len(back.points.tracks) == len(model.points.tracks)


def test_model_table_is_pycolmaps():
    for index, (name, count) in enumerate(CAMERA_MODELS.items()):
        camera = pycolmap.Camera(model=name, width=640, height=480, params=PARAMS[name])
        assert (camera.model.name, int(camera.model)) == (name, index)
        assert len(camera.params) == count


@pytest.mark.parametrize("name", CAMERA_MODELS)
def test_lenses_agree_with_pycolmap(name):
    """The same rays through COLMAP's model and through OpenCV's formulas with our numbers."""
    camera = ColmapCamera(id=1, model=name, width=640, height=480, params=PARAMS[name])
    if name in (
        "FOV", "THIN_PRISM_FISHEYE", "RAD_TAN_THIN_PRISM_FISHEYE", "SIMPLE_DIVISION", "DIVISION",
        "EUCM", "EQUIRECTANGULAR",
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"lenses of model {name} cannot .*image_undistorter"):
            lens_from_camera(camera)
        return
    K, distortion, fisheye = lens_from_camera(camera)
    rays = np.random.default_rng(5).uniform(-0.5, 0.5, (50, 3))
    rays[:, 2] = 1
    theirs = pycolmap.Camera(model=name, width=640, height=480, params=PARAMS[name])
    expected = theirs.img_from_cam(rays)
    zero = np.zeros(3)
    if fisheye:
        pixels, _ = cv2.fisheye.projectPoints(rays[None], zero, zero, K, distortion[:4])
    else:
        pixels, _ = cv2.projectPoints(rays, zero, zero, K, distortion)
    np.testing.assert_allclose(pixels.reshape(-1, 2), expected, atol=1e-9)
    plain = camera_from_lens(1, K, distortion, fisheye=fisheye, width=640, height=480)
    again = lens_from_camera(plain)
    np.testing.assert_array_equal(again[0], K)
    np.testing.assert_array_equal(again[1], distortion)
    assert again[2] == fisheye


def test_views_of_a_model():
    names, w2c, lenses = model_views(make_model())
    assert names == ("a.jpg", "cam1/ü1.jpg", "cam2/ü2.jpg")
    assert w2c.shape == (3, 4, 4)
    assert lenses.sizes.tolist() == [[480, 640]] * 3
    assert not lenses.is_pinhole


def binary(tmp_path, part, data):
    write_colmap(tmp_path, make_model(1, 2))
    (tmp_path / part).write_bytes(data)


CAMERA = struct.pack("<QIiQQ4d", 1, 1, 1, 640, 480, 500, 510, 320, 240)
IMAGE = struct.pack("<QI7dI", 1, 1, 1, 0, 0, 0, 0, 0, 0, 1)


@pytest.mark.parametrize(
    ("part", "data", "message"),
    [
        ("cameras.bin", b"", "expected at least 8 bytes, got a file of 0"),
        ("cameras.bin", struct.pack("<Q", 10**6) + bytes(10), "1000000 cameras, got a file of 18"),
        ("cameras.bin", struct.pack("<QIiQQ2d", 1, 1, 99, 640, 480, 0, 0), "a camera model from 0 to 17, got 99"),
        ("cameras.bin", struct.pack("<QIiQQ2d", 1, 1, -1, 640, 480, 0, 0), "a camera model from 0 to 17, got -1"),
        ("cameras.bin", CAMERA[:-8], "expected at least 64 bytes, got a file of 56"),
        ("cameras.bin", CAMERA + b"x", "expected 64 bytes, got a file of 65"),
        ("cameras.bin", struct.pack("<QIiQQ4d", 1, 1, 1, 0, 480, 1, 1, 1, 1), "a picture size in pixels, got 0 x 480"),
        ("cameras.bin", struct.pack("<QIiQQ4d", 1, 1, 1, 2**63, 480, 1, 1, 1, 1), "a picture size in pixels"),
        ("cameras.bin", struct.pack("<QIiQQ4d", 1, 1, 1, 640, 480, float("nan"), 1, 1, 1), "finite parameters"),
        ("cameras.bin", struct.pack("<Q", 2) + CAMERA[8:] * 2, "one camera an id, got an id twice"),
        ("images.bin", IMAGE + b"a.jpg" * 10, "expected a name of at most 4096 bytes with an end, got none"),
        ("images.bin", IMAGE + b"\xff.jpg\0" + bytes(8), "expected names in UTF-8"),
        ("images.bin", IMAGE + b"a.jpg\0" + struct.pack("<Q", 2**63), r"expected at least \d+ bytes, got a file of 86"),
        ("images.bin", struct.pack("<Q", 2**63), "9223372036854775808 images, got a file of 8 bytes"),
        ("images.bin", IMAGE + b"../../etc/passwd\0" + bytes(8), "relative to the file's own folder, got '../../etc"),
        ("images.bin", IMAGE + b"/etc/passwd\0" + bytes(8), "relative to the file's own folder"),
        ("images.bin", struct.pack("<QI7dI", 1, 1, 0, 0, 0, 0, 0, 0, 0, 1) + b"a\0" + bytes(8), "unit quaternion"),
        ("images.bin", struct.pack("<QI7dI", 1, 1, 1e300, 0, 0, 0, 0, 0, 0, 1) + b"a\0" + bytes(8), "unit quaternion"),
        ("images.bin", struct.pack("<QI7dI", 1, 1, 1, 0, 0, 0, 0, 0, 0, 9) + b"a\0" + bytes(8), "got 9 for a"),
        ("images.bin", struct.pack("<Q", 2) + (IMAGE[8:] + b"a\0" + bytes(8)) * 2, "one image an id, got one twice"),
        ("images.bin", IMAGE + b"a\0" + bytes(8), "tracks of points in the images file, got image 1, image point 1"),
        ("images.bin", IMAGE + b"a\0" + struct.pack("<Q2dQ2dQ", 2, 1, 1, 77, 1, 1, 77), "names, got point 77 in a"),
        ("points3D.bin", struct.pack("<Q", 10**6) + bytes(10), "1000000 points, got a file of 18 bytes"),
        ("points3D.bin", struct.pack("<QQ3d3BdQ", 1, 1, 0, 0, 0, 0, 0, 0, 0, 2**62), "got a file of 59"),
        ("points3D.bin", struct.pack("<QQ3d3BdQ", 1, 1, 0, float("inf"), 0, 0, 0, 0, 0, 0), "finite positions, got NaN or infinity for point 1"),
        ("points3D.bin", struct.pack("<QQ3d3BdQII", 1, 10, 0, 0, 0, 0, 0, 0, 0, 1, 5, 0), "got image 5, image point 0"),
        ("points3D.bin", struct.pack("<QQ3d3BdQ", 1, 10, 0, 0, 0, 0, 0, 0, 0, 0) + b"xx", "expected 59 bytes, got a file of 61"),
    ],
)  # fmt: skip
def test_hostile_binary(tmp_path, part, data, message):
    binary(tmp_path, part, data)
    with pytest.raises(FileFormatError, match=message):
        read_colmap(tmp_path)
    survives(read_colmap, tmp_path)


@pytest.mark.parametrize(
    ("part", "text", "message"),
    [
        ("cameras.txt", "1 PINHOLE 640 480 1 2 3", "with all its parameters, got the line '1 PINHOLE"),
        ("cameras.txt", "1 PINEHOLE 640 480 1 2 3 4", "a camera model of COLMAP"),
        ("cameras.txt", "1 PINHOLE", "expected CAMERA_ID MODEL WIDTH HEIGHT PARAMS"),
        ("cameras.txt", "1 PINHOLE -640 480 1 2 3 4", "expected CAMERA_ID MODEL WIDTH"),
        ("cameras.txt", "\udcff", "expected text in UTF-8"),
        ("images.txt", "1 1 0 0 0 0 0 0 1", "expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME"),
        ("images.txt", "1 1 0 0 0 0 0 0 1 a\n1 2", "expected X Y POINT3D_ID"),
        ("images.txt", "1 1 0 0 0 0 0 0 1 a\n1 2 x", "expected X Y POINT3D_ID"),
        ("images.txt", "1 1 0 0 0 0 0 0 1 a\n1 2 0.5", "expected whole POINT3D_IDs"),
        ("images.txt", "1 nan 0 0 0 0 0 0 1 a\n", "unit quaternion and a finite position"),
        ("images.txt", "1 1 0 0 0 0 0 0 1 ../a\n", "relative to the file's own folder"),
        ("points3D.txt", "1 0 0 0 0 0 0", "expected POINT3D_ID X Y Z R G B ERROR TRACK"),
        ("points3D.txt", "1 0 0 0 0 0 256 0", "colours up to 255 and pairs in the track"),
        ("points3D.txt", "1 0 0 0 0 0 25 0 1", "colours up to 255 and pairs in the track"),
        ("points3D.txt", "1 0 0 0 0 0 25 0 1 -1", "expected POINT3D_ID"),
        ("points3D.txt", "1 0 0 " + "9" * 5000 + " 0 0 25 0", "finite positions"),
        ("points3D.txt", "9" * 5000 + " 0 0 0 0 0 25 0", "expected POINT3D_ID"),
    ],
)  # fmt: skip
def test_hostile_text(tmp_path, part, text, message):
    write_colmap(tmp_path, make_model(1, 2), text=True)
    (tmp_path / part).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(FileFormatError, match=rf"^{part}: .*{message}"):
        read_colmap(tmp_path)
    survives(read_colmap, tmp_path)


def test_names_with_blanks(tmp_path):
    model = make_model(1)
    image = replace(model.images[1], name="my cam/a b.jpg")
    model = replace(model, images={1: image})
    model = replace(model, points=replace(model.points, tracks=model.points.tracks[:0]))
    write_colmap(tmp_path, model)
    assert pycolmap.Reconstruction(tmp_path).images[1].name == "my cam/a b.jpg"
    assert read_colmap(tmp_path).images[1].name == "my cam/a b.jpg"
    with pytest.raises(InputError, match="text files cannot hold blanks in names, got 'my cam"):
        write_colmap(tmp_path, model, text=True)


def test_no_model(tmp_path):
    write_colmap(tmp_path, make_model())
    (tmp_path / "points3D.bin").unlink()
    with pytest.raises(InputError, match="there is no COLMAP model in .*model_converter"):
        read_colmap(tmp_path)


@given(data=st.data())
@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("part", ["cameras", "images", "points3D"])
def test_damage(tmp_path_factory, part, text, data):
    folder = tmp_path_factory.mktemp("colmap")
    write_colmap(folder, make_model(2, 3), text=text)
    path = folder / f"{part}{'.txt' if text else '.bin'}"
    path.write_bytes(damage(data.draw, path.read_bytes()))
    survives(read_colmap, folder)
