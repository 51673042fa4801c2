import json
import struct
from dataclasses import replace

import cv2
import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image

from sightline.errors import FileFormatError, InputError
from sightline.geometry.camera import project_points
from sightline.geometry.pose import look_at
from sightline.io.depth import read_depth_npz, read_depth_png, read_depth_scale, read_normals_png
from sightline.io.export import EXPORTERS, ExportOptions, SceneResult, source_views
from sightline.io.export_colmap import confident
from sightline.io.glb import read_glb
from sightline.io.ply import read_gaussian_ply, read_point_ply
from sightline.io.splat import read_splat
from sightline.io.spz import read_spz
from sightline.io.transforms import read_transforms
from sightline.io.undistort import distort
from sightline.types import Cameras, Lenses, PointCloud, SparsePoints
from tests.io.test_ply import make_gaussians

HEIGHT, WIDTH = 60, 80
FULL_HEIGHT, FULL_WIDTH = 125, 160
OPTIONS = ExportOptions()


def make_scene(folder=None, *, distorted=False, count=4, suffix=".png", dense=False):
    """Cameras around the origin; view 1 is not registered; models see a crop of the pictures."""
    angles = torch.arange(count).double() * 0.4
    centers = torch.stack([3 * angles.sin(), -0.5 + 0 * angles, -3 * angles.cos()], 1)
    c2w = look_at(centers, torch.zeros(3).double(), torch.tensor([0.0, -1, 0]).double())
    K = torch.tensor([[70.0, 0, 41], [0, 71, 29], [0, 0, 1]]).double().expand(count, 3, 3)
    cameras = Cameras(w2c=torch.linalg.inv(c2w), K=K.clone(), height=HEIGHT, width=WIDTH)
    registered = torch.ones(count, dtype=torch.bool)
    registered[1] = False
    cameras.w2c[1] = torch.nan
    from_original = torch.tensor([[0.5, 0, 0], [0, 0.5, -1.25], [0, 0, 1]]).double()
    g = torch.Generator().manual_seed(8)
    points = (torch.rand(30, 3, generator=g) - 0.5).double()
    tracks = torch.tensor([(p, v) for p in range(30) for v in range(count) if p >= 10 or v < 2])
    sparse = SparsePoints(
        points=points,
        colors=torch.randint(0, 256, (30, 3), generator=g).to(torch.uint8),
        tracks=tracks.int(),
        errors=torch.rand(30, generator=g),
    )
    cloud = PointCloud(
        points=points.float(),
        colors=sparse.colors.float() / 255,
        confidence=torch.bincount(tracks[:, 0]).float(),
    )
    depth = torch.full((count, HEIGHT, WIDTH), 3.0) if dense else None
    files = lenses = None
    names = tuple(f"cam/{i}{suffix}" for i in range(count))
    if folder is not None:
        files = tuple(folder / "run" / "images" / name for name in names)
        rng = np.random.default_rng(0)
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            noise = cv2.resize(
                rng.integers(0, 256, (9, 12, 3), np.uint8), (FULL_WIDTH, FULL_HEIGHT)
            )
            Image.fromarray(noise).save(file)
        distortion = torch.zeros(count, 8).double()
        if distorted:
            distortion[:, :2] = torch.tensor([-0.1, 0.02])
        lenses = Lenses(
            K=torch.tensor([[141.0, 0, 81], [0, 141, 61], [0, 0, 1]]).double().repeat(count, 1, 1),
            distortion=distortion,
            fisheye=torch.zeros(count, dtype=torch.bool),
            sizes=torch.tensor([[FULL_HEIGHT, FULL_WIDTH]] * count),
        )
    return SceneResult(
        names=names,
        cameras=cameras,
        from_original=from_original.repeat(count, 1, 1),
        original_sizes=torch.tensor([[FULL_HEIGHT, FULL_WIDTH]] * count),
        registered=registered,
        points=cloud,
        sparse=None if dense else sparse,
        gaussians=make_gaussians(40, 2),
        depth=depth,
        files=files,
        lenses=lenses,
    )


def test_names_of_all_exports(tmp_path):
    scene = make_scene(tmp_path, dense=True)
    expected = {
        "ply": ["scene.ply"],
        "gs-ply": ["gaussians.ply"],
        "splat": ["scene.splat"],
        "spz": ["scene.spz"],
        "glb": ["scene.glb"],
        "colmap": ["sparse/0", "images"],
        "transforms": ["transforms.json", "images", "scene.ply"],
        "depth": ["depth"],
    }
    assert list(EXPORTERS) == list(expected)
    for name, files in expected.items():
        paths = EXPORTERS[name](scene, tmp_path / "exports", OPTIONS)
        assert paths == [tmp_path / "exports" / file for file in files]
        assert all(path.exists() for path in paths)
    assert not [p for p in (tmp_path / "exports").rglob("*") if ".tmp" in p.name]


def test_one_point_is_the_same_pixel_in_every_format(tmp_path):
    """Each format's own rule, from its own bytes, against our cameras at source resolution."""
    scene = make_scene(tmp_path)
    views = source_views(scene)
    ours, _ = project_points(
        scene.sparse.points,
        Cameras(w2c=views.w2c, K=views.K, height=FULL_HEIGHT, width=FULL_WIDTH),
    )
    assert views.names == ("cam/0.png", "cam/2.png", "cam/3.png")
    model, _ = project_points(scene.sparse.points, scene.cameras.select([0, 2, 3]))
    torch.testing.assert_close(ours * 0.5 - torch.tensor([0, 1.25]), model)
    for name in ("colmap", "transforms", "glb", "ply", "gs-ply", "splat", "spz"):
        EXPORTERS[name](scene, tmp_path / "out", OPTIONS)

    theirs = pycolmap.Reconstruction(tmp_path / "out" / "sparse" / "0")
    ply = read_point_ply(tmp_path / "out" / "scene.ply").points.double().numpy()
    for row, name in enumerate(views.names):
        image = theirs.find_image_with_name(name)
        for point_id, point in theirs.points3D.items():
            pixel = theirs.cameras[image.camera_id].img_from_cam(image.cam_from_world() * point.xyz)
            np.testing.assert_allclose(pixel, ours[row, point_id - 1], atol=1e-9)
    # transforms.json moves the points of its own PLY file by camera-to-world in OpenGL axes.
    top = json.loads((tmp_path / "out" / "transforms.json").read_text())
    assert top["ply_file_path"] == "scene.ply"
    for row, frame in enumerate(top["frames"]):
        view = np.linalg.inv(frame["transform_matrix"])
        x, y, z = view[:3, :3] @ ply.T + view[:3, 3:]
        pixels = np.stack([top["fl_x"] * x, -top["fl_y"] * y], 1) / -z[:, None]
        pixels += (top["cx"], top["cy"])
        np.testing.assert_allclose(pixels, ours[row], atol=1e-4)
    # glTF: node matrix column by column, camera along -z, points of the file itself. The principal
    # point is in the pyramid only, so the ray is taken through the pyramid's corners.
    raw = (tmp_path / "out" / "scene.glb").read_bytes()
    length = struct.unpack_from("<I", raw, 12)[0]
    document = json.loads(raw[20 : 20 + length])
    binary = raw[28 + length :]
    xyz = np.frombuffer(binary, "<f4", 90).reshape(30, 3)
    for row, node in enumerate(document["nodes"][1:]):
        primitive = document["meshes"][node["mesh"]]["primitives"][0]
        accessor = document["accessors"][primitive["attributes"]["POSITION"]]
        start = document["bufferViews"][accessor["bufferView"]]["byteOffset"]
        corner = np.frombuffer(binary, "<f4", 15, start).reshape(5, 3)
        view = np.linalg.inv(np.array(node["matrix"]).reshape(4, 4).T)
        local = xyz @ view[:3, :3].T + view[:3, 3]
        at = local[:, :2] / -local[:, 2:] * -corner[1, 2]
        left_top, right_bottom = corner[1, :2], corner[3, :2]
        pixels = (at - left_top) / (right_bottom - left_top) * (FULL_WIDTH, FULL_HEIGHT)
        np.testing.assert_allclose(pixels, ours[row], atol=1e-3)
    # Splats keep our world in all three formats.
    means = scene.gaussians.means
    for file, read in (("gaussians.ply", read_gaussian_ply), ("scene.spz", read_spz)):
        assert (read(tmp_path / "out" / file).means - means).abs().max() <= 1.3e-4
    found = read_splat(tmp_path / "out" / "scene.splat").means
    assert torch.cdist(means.double(), found.double()).amin(1).max() < 1e-6
    assert read_glb(tmp_path / "out" / "scene.glb").names == views.names


def test_colmap_tracks_are_the_real_ones(tmp_path):
    scene = make_scene(tmp_path)
    EXPORTERS["colmap"](scene, tmp_path, OPTIONS)
    theirs = pycolmap.Reconstruction(tmp_path / "sparse" / "0")
    assert theirs.num_reg_images() == 3
    assert len(theirs.cameras) == 1
    assert theirs.cameras[1].model.name == "PINHOLE"
    assert (theirs.cameras[1].width, theirs.cameras[1].height) == (FULL_WIDTH, FULL_HEIGHT)
    names = {image_id: image.name for image_id, image in theirs.images.items()}
    for point_id, point in theirs.points3D.items():
        row = point_id - 1
        tracks = scene.sparse.tracks
        expected = {scene.names[v] for v in tracks[tracks[:, 0] == row, 1].tolist() if v != 1}
        assert {names[e.image_id] for e in point.track.elements} == expected
        assert point.color.tolist() == scene.sparse.colors[row].tolist()
        assert point.error == pytest.approx(scene.sparse.errors[row].item())
    for point in theirs.points3D.values():
        for element in point.track.elements:
            image = theirs.images[element.image_id]
            seen = image.points2D[element.point2D_idx].xy
            pixel = image.project_point(point.xyz)
            np.testing.assert_allclose(seen, pixel, atol=1e-9)
            assert (seen >= 0).all()
            assert (seen <= (FULL_WIDTH, FULL_HEIGHT)).all()


def test_dense_points_get_tracks_from_depth(tmp_path):
    scene = make_scene(tmp_path, dense=True)
    rows = torch.linspace(0.5, 59.5, 60)
    columns = torch.linspace(0.5, 79.5, 80)
    v, u = torch.meshgrid(rows, columns, indexing="ij")
    c2w = scene.cameras.c2w[0].float()
    K = scene.cameras.K[0].float()
    local = torch.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], torch.ones_like(u)], -1)
    points = (3 * local) @ c2w[:3, :3].T + c2w[:3, 3]
    cloud = PointCloud(points=points.reshape(-1, 3), colors=torch.rand(4800, 3))
    EXPORTERS["colmap"](replace(scene, points=cloud), tmp_path, OPTIONS)
    theirs = pycolmap.Reconstruction(tmp_path / "sparse" / "0")
    assert 1000 < len(theirs.points3D) <= 4800
    first = theirs.find_image_with_name("cam/0.png")
    assert first.num_points3D > 0.95 * len(theirs.points3D)
    second = theirs.find_image_with_name("cam/2.png")
    assert 0 < second.num_points3D < first.num_points3D


def test_pictures_are_linked_when_they_are_pinhole(tmp_path):
    scene = make_scene(tmp_path)
    for _ in range(2):
        EXPORTERS["colmap"](scene, tmp_path / "out", OPTIONS)
    made = sorted(p.name for p in (tmp_path / "out" / "images" / "cam").iterdir())
    assert made == ["0.png", "2.png", "3.png"]
    assert (tmp_path / "out" / "images" / "cam" / "0.png").samefile(scene.files[0])


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_pictures_are_undistorted_to_the_exported_camera(tmp_path, suffix):
    scene = make_scene(tmp_path, distorted=True, suffix=suffix)
    EXPORTERS["transforms"](scene, tmp_path / "out", OPTIONS)
    back = read_transforms(tmp_path / "out")
    assert back.lenses.is_pinhole
    assert back.files[0] == f"images/cam/0{suffix}"
    made = np.asarray(Image.open(tmp_path / "out" / back.files[0])).astype(float)
    source = np.asarray(Image.open(scene.files[0])).astype(np.float32)
    assert made.shape == (FULL_HEIGHT, FULL_WIDTH, 3)
    u, v = np.meshgrid(np.arange(20, 140, 10) + 0.5, np.arange(20, 105, 10) + 0.5)
    K = back.lenses.K[0].numpy()
    rays = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]], -1)
    bent = distort(rays, scene.lenses.distortion[0].numpy(), False)
    at = (bent * 141 + (81, 61) - 0.5).astype(np.float32)
    expected = cv2.remap(source, at[..., 0], at[..., 1], cv2.INTER_LINEAR)
    difference = np.abs(made[20:105:10, 20:140:10] - expected)
    assert difference.max() < 8
    # and the correction is visible, so the test would notice if nothing were done
    assert np.abs(made - source).max() > 30


def test_rare_formats_become_png(tmp_path):
    scene = make_scene(tmp_path, suffix=".ppm")
    EXPORTERS["colmap"](scene, tmp_path, OPTIONS)
    theirs = pycolmap.Reconstruction(tmp_path / "sparse" / "0")
    assert theirs.images[1].name == "cam/0.ppm.png"
    made = np.asarray(Image.open(tmp_path / "images" / "cam" / "0.ppm.png"))
    np.testing.assert_array_equal(made, np.asarray(Image.open(scene.files[0])))


def test_without_pictures_the_cameras_are_still_written(tmp_path, caplog):
    EXPORTERS["colmap"](make_scene(), tmp_path, OPTIONS)
    assert "full-size pictures are not known" in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["sparse"]


def test_held_out_views_are_named(tmp_path):
    EXPORTERS["transforms"](replace(make_scene(tmp_path), test=(0, 1)), tmp_path, OPTIONS)
    back = read_transforms(tmp_path)
    assert back.train_files == ("images/cam/2.png", "images/cam/3.png")
    assert back.val_files == back.test_files == ("images/cam/0.png",)


def test_min_confidence(tmp_path):
    scene = make_scene(tmp_path)
    options = ExportOptions(min_confidence=40.0)
    EXPORTERS["ply"](scene, tmp_path, options)
    assert len(read_point_ply(tmp_path / "scene.ply").points) == 20
    EXPORTERS["colmap"](scene, tmp_path, options)
    assert len(pycolmap.Reconstruction(tmp_path / "sparse" / "0").points3D) == 20
    with pytest.raises(InputError, match="--min-confidence must be 0 to 100 percent, got 101"):
        ExportOptions(min_confidence=101.0)
    values = torch.tensor([5.0, 1, 4, 2, 3])
    assert confident(values, 40.0).tolist() == [True, False, True, False, True]
    assert confident(values, 100.0).tolist() == [True, False, False, False, False]
    assert confident(values, 0.0).all()
    assert confident(torch.ones(4), 99.0).all()


def test_points_without_confidence_say_so(tmp_path, caplog):
    cloud = PointCloud(
        points=torch.tensor([[0.0, 0, 0], [torch.nan, 0, 0]]), colors=torch.rand(2, 3)
    )
    scene = SceneResult.bare(points=cloud)
    EXPORTERS["ply"](scene, tmp_path, ExportOptions(min_confidence=10.0))
    assert len(read_point_ply(tmp_path / "scene.ply").points) == 1
    assert "these points carry no confidence" in caplog.text


def test_depth(tmp_path):
    scene = make_scene(tmp_path, dense=True)
    depth = torch.linspace(1, 5, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).repeat(4, 1, 1)
    depth[:, 0, 0] = torch.nan
    confidence = depth.nan_to_num(0)
    scene = replace(
        scene,
        depth=depth,
        confidence=confidence,
        original_sizes=torch.tensor([[100, 140]] * 4),  # the rest of the model's picture is padding
        from_original=torch.diag(torch.tensor([0.5, 0.5, 1])).double().repeat(4, 1, 1),
    )
    EXPORTERS["depth"](scene, tmp_path, ExportOptions(min_confidence=25.0))
    found = sorted(str(p.relative_to(tmp_path / "depth")) for p in tmp_path.glob("depth/**/*.*"))
    assert found == sorted(
        [f"{d}cam/{i}.png" for i in (0, 2, 3) for d in ("", "preview/", "normals/")]
        + [f"cam/{i}.npz" for i in (0, 2, 3)]
        + ["scale.json"]
    )
    scale, metric = read_depth_scale(tmp_path / "depth")
    assert (scale, metric) == (1e-4, False)
    back = read_depth_png(tmp_path / "depth" / "cam" / "2.png", scale)
    exact = read_depth_npz(tmp_path / "depth" / "cam" / "2.npz")
    assert back.shape == exact.depth.shape == (50, 70)
    expected = torch.where(depth[0] >= 2, depth[0], 0.0)[:50, :70]
    torch.testing.assert_close(exact.depth, expected, atol=2e-3, rtol=0)
    assert (back - exact.depth).abs().max() <= scale / 2 + 1e-6
    assert torch.equal(exact.K, scene.cameras.K[2])
    assert torch.equal(exact.w2c, scene.cameras.w2c[2])
    normals = read_normals_png(tmp_path / "depth" / "normals" / "cam" / "2.png")
    assert (normals[40:, :, 2] < 0).any()
    EXPORTERS["depth"](replace(scene, metric=True), tmp_path, OPTIONS)
    assert read_depth_scale(tmp_path / "depth") == (0.001, True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ply", "no points to export as ply; make them with: sightline reconstruct --geometry"),
        ("glb", "no points to export as glb; make them with"),
        ("gs-ply", "no splats to export as gs-ply; make them with: sightline reconstruct --splats"),
        ("splat", "no splats to export as splat"),
        ("spz", "no splats to export as spz"),
        ("colmap", "no registered views to export; make cameras with: sightline reconstruct"),
        ("transforms", "no registered views to export"),
        ("depth", "no registered views to export"),
    ],
)
def test_what_is_missing_is_said(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        EXPORTERS[name](SceneResult.bare(), tmp_path, OPTIONS)
    if name == "depth":
        with pytest.raises(InputError, match="no depth maps to export as depth; make them with"):
            EXPORTERS[name](make_scene(), tmp_path, OPTIONS)


def test_hostile_names_stay_inside(tmp_path):
    scene = make_scene(tmp_path)
    scene = replace(scene, names=("../../evil.png", *scene.names[1:]))
    for name in ("colmap", "transforms"):
        with pytest.raises(FileFormatError, match="relative to the file's own folder"):
            EXPORTERS[name](scene, tmp_path / "out", OPTIONS)
    with pytest.raises(FileFormatError, match="relative to the file's own folder"):
        EXPORTERS["depth"](replace(scene, depth=torch.ones(4, 60, 80)), tmp_path / "out", OPTIONS)


def test_no_points_at_all_leaves_the_cameras(tmp_path, caplog):
    scene = replace(make_scene(tmp_path), points=None, sparse=None)
    EXPORTERS["colmap"](scene, tmp_path, OPTIONS)
    assert "has no points, so the COLMAP model has cameras only" in caplog.text
    assert pycolmap.Reconstruction(tmp_path / "sparse" / "0").num_reg_images() == 3


def test_cameras_of_unlike_pictures_are_kept_apart(tmp_path):
    scene = make_scene()
    sizes = scene.original_sizes.clone()
    sizes[2] = torch.tensor([100, 160])
    EXPORTERS["colmap"](replace(scene, original_sizes=sizes), tmp_path, OPTIONS)
    theirs = pycolmap.Reconstruction(tmp_path / "sparse" / "0")
    assert sorted(c.height for c in theirs.cameras.values()) == [100, 125]
    scene_file = EXPORTERS["glb"](replace(scene, original_sizes=sizes), tmp_path, OPTIONS)[0]
    assert len(set(read_glb(scene_file).aspect.tolist())) == 2
