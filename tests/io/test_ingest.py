"""What lies in a run folder after ingestion, and that it comes back the same."""

import errno
import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.errors import Cancelled, FileFormatError, InputError, OutputError
from sightline.geometry.camera import project_points
from sightline.io import store
from sightline.io.colmap import ColmapCamera, ColmapImage, ColmapModel, ColmapPoints, write_colmap
from sightline.io.frames import FrameOptions
from sightline.io.images import read_image
from sightline.io.ingest import IngestOptions, ingest
from sightline.io.ingested import load_ingested
from sightline.types import Cameras

from .clips import moving, write_clip
from .pictures import HEIC_TURNED, quarters, texture
from .test_images import SHOWN, corners


def save(path, pixels=None, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = texture(24, 32, seed=len(path.name)) if pixels is None else pixels
    Image.fromarray(pixels).save(path, **kw)
    return path


def turned(path, orientation=6, **tags):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for tag, value in tags.items():
        exif[int(tag[1:], 16)] = value
    return save(path, quarters(), exif=exif.tobytes())


def listing(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_original_bytes_are_kept_where_possible(tmp_path):
    jpeg = save(tmp_path / "in/IMG_2.JPG")
    png = save(tmp_path / "in/IMG_10.png")
    grey = save(tmp_path / "in/grey.png", texture(24, 32)[..., 0])
    webp = save(tmp_path / "in/soft.webp")
    got = ingest([tmp_path / "in"], tmp_path / "run")
    assert got.names == ("grey.png", "IMG_2.JPG", "IMG_10.png", "soft.png")
    assert (tmp_path / "run/images/IMG_2.JPG").read_bytes() == jpeg.read_bytes()
    assert (tmp_path / "run/images/IMG_10.png").read_bytes() == png.read_bytes()
    for name, source in (("grey.png", grey), ("soft.png", webp)):
        stored = np.asarray(Image.open(tmp_path / "run/images" / name))
        np.testing.assert_array_equal(stored, read_image(source).pixels)
    assert listing(tmp_path / "run") == [
        *(f"images/{n}" for n in sorted(got.names)),
        "inputs.json",
    ]
    assert got.lenses is None
    assert got.given is None
    assert torch.isnan(got.focal_priors).all()
    assert torch.isnan(got.times).all()


def test_turned_photos_are_stored_upright_without_a_tag(tmp_path):
    turned(tmp_path / "in/a.jpg", 6, x010F="Apple", x0110="iPhone")
    (tmp_path / "in/b.heic").write_bytes(HEIC_TURNED)
    got = ingest([tmp_path / "in"], tmp_path / "run")
    assert got.names == ("a.png", "b.png")
    for file, orientation in zip(got.files, (6, 1), strict=True):
        with Image.open(file) as image:
            assert image.getexif().get(0x0112, 1) == 1
            assert corners(np.asarray(image)) == SHOWN[6]
    first, second = got.records
    assert (first.source_height, first.source_width) == (48, 64)
    assert (first.height, first.width) == (64, 48)
    assert first.transform == [[0, 1, 0], [-1, 0, 48]]
    assert first.exif is not None
    assert first.exif["Orientation"] == 6
    assert second.transform == [[1, 0, 0], [0, 1, 0]]
    # the HEIC has a 35-mm focal length; the other is a guess and so unknown
    assert math.isnan(got.focal_priors[0])
    assert got.focal_priors[1] == pytest.approx(26 / 43.27 * 80)
    assert first.camera is not None
    assert first.camera["source"] == "guessed"
    assert got.groups[1] == "Apple iPhone 12 26 mm 48x64"


def test_loading_gives_the_same(tmp_path):
    save(tmp_path / "in/a.jpg")
    turned(tmp_path / "in/b.jpg")
    save(tmp_path / "in/masks/a.png", np.full((24, 32), 255, np.uint8))
    got = ingest([tmp_path / "in"], tmp_path / "run")
    again = load_ingested(tmp_path / "run")
    assert again.names == got.names
    assert again.records == got.records
    assert again.notes == got.notes
    assert again.mask_files == got.mask_files == (tmp_path / "run/masks/a.png", None)
    assert torch.equal(again.sizes, torch.tensor([[24, 32], [64, 48]]))
    views = again.views(32)
    assert views.images.shape == (2, 3, 32, 32)
    assert views.groups == got.groups


def test_alpha_and_drawn_masks_are_joined(tmp_path):
    pixels = np.dstack([texture(24, 32), np.full((24, 32), 255, np.uint8)])
    pixels[:12, :, 3] = 0
    save(tmp_path / "in/a.png", pixels)
    mask = np.zeros((24, 32), np.uint8)
    mask[:, :16] = 1
    save(tmp_path / "in/masks/a.png", mask)
    got = ingest([tmp_path / "in"], tmp_path / "run")
    stored = np.asarray(Image.open(tmp_path / "run/masks/a.png"))
    assert (stored[12:, :16] == 255).all()
    assert stored.sum() == 255 * 12 * 16
    picture = np.asarray(Image.open(tmp_path / "run/images/a.png"))
    assert picture.shape == (24, 32, 3)
    assert (picture[:12] == 255).all()
    assert any("used 1 masks of" in note for note in got.notes)
    flipped = ingest(
        [tmp_path / "in"], tmp_path / "run2", IngestOptions(invert_masks=True, alpha="ignore")
    )
    stored = np.asarray(Image.open(tmp_path / "run2/masks/a.png"))
    assert (stored[:, 16:] == 255).all()
    assert not stored[:, :16].any()
    assert flipped.views().masks is not None


def test_thermal_frames_share_one_range(tmp_path):
    for i, top in enumerate((1000, 4000)):
        save(
            tmp_path / f"thermal/{i}.png",
            np.linspace(0, top, 768).reshape(24, 32).astype(np.uint16),
        )
    got = ingest([tmp_path / "thermal"], tmp_path / "run")
    first, second = (r.range for r in got.records)
    assert first == second
    assert first is not None
    assert first["rule"] == "percentile"
    bright = [np.asarray(Image.open(f)).max() for f in got.files]
    assert bright[0] < 80
    assert bright[1] == 255
    assert {r.modality for r in got.records} == {"thermal"}
    assert {r.source_dtype for r in got.records} == {"uint16"}


def test_sixteen_bit_depth_maps_are_no_pictures(tmp_path):
    save(tmp_path / "in/frame_color.png")
    save(tmp_path / "in/frame_depth.png", np.ones((24, 32), np.uint16))
    got = ingest([tmp_path / "in"], tmp_path / "run")
    assert got.names == ("frame_color.png",)
    assert any("named as depth maps" in note for note in got.notes)


def test_names_of_two_folders_stay_apart(tmp_path):
    for side in ("left", "right"):
        save(tmp_path / side / "001.jpg")
    got = ingest([tmp_path / "left", tmp_path / "right"], tmp_path / "run")
    assert got.names == ("left_001.jpg", "right_001.jpg")
    assert got.groups == ("left 32x24", "right 32x24")


def test_video_frames(tmp_path):
    clip = write_clip(tmp_path / "walk.mp4", moving(30))
    options = IngestOptions(frames=FrameOptions(every=10))
    steps = []
    got = ingest(
        [clip], tmp_path / "run", options, lambda stage, done, total: steps.append((stage, done))
    )
    assert got.names == ("walk_000000.png", "walk_000010.png", "walk_000020.png")
    assert got.times.tolist() == pytest.approx([0, 1 / 3, 2 / 3], abs=1e-3)
    assert got.groups == ("walk",) * 3
    record = got.records[1]
    assert record.kind == "frame"
    assert record.video is not None
    assert record.video["frame"] == 10
    assert record.video["sharpness"] > 0
    assert record.source == str(clip)
    assert {stage for stage, _ in steps} == {"survey walk.mp4", "read inputs"}
    assert steps[-1] == ("read inputs", 3.0)


def test_mixed_inputs_and_the_cap(tmp_path):
    photos = [save(tmp_path / f"p/{i}.jpg") for i in range(4)]
    clip = write_clip(tmp_path / "c.mp4", moving(30))
    other = write_clip(tmp_path / "d/c.mp4", moving(30))
    options = IngestOptions(frames=FrameOptions(num_frames=4))
    got = ingest([clip, *photos, other], tmp_path / "run", options)
    assert len(got) == 12
    assert got.names[0].endswith("c_000000.png")
    assert got.names[4] == "0.jpg"
    assert len(set(got.groups)) == 3
    assert len(set(got.names)) == 12
    capped = IngestOptions(frames=FrameOptions(num_frames=4, max_frames=3))
    few = ingest([clip, *photos], tmp_path / "run", capped)
    assert few.names == ("c_000000.png", "0.jpg", "3.jpg")
    assert any("took 3 of 7 views" in note for note in few.notes)
    assert len(list((tmp_path / "run/images").iterdir())) == 3  # the former run's are gone


def test_damaged_pictures_stop_or_are_skipped(tmp_path):
    save(tmp_path / "in/a.png")
    broken = save(tmp_path / "in/b.png")
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(FileFormatError, match=r"b\.png: .*truncated"):
        ingest([tmp_path / "in"], tmp_path / "run")
    assert listing(tmp_path / "run") == []
    got = ingest([tmp_path / "in"], tmp_path / "run", IngestOptions(keep_going=True))
    assert got.names == ("a.png",)
    assert any(note.startswith("skipped b.png:") for note in got.notes)
    (tmp_path / "in/a.png").unlink()
    with pytest.raises(FileFormatError, match=r"b\.png"):
        ingest([tmp_path / "in"], tmp_path / "run", IngestOptions(keep_going=True))


def test_intrinsics_option(tmp_path):
    save(tmp_path / "in/a.jpg")
    save(tmp_path / "in/b.jpg")
    got = ingest([tmp_path / "in"], tmp_path / "run", IngestOptions(intrinsics="40,41,16,12"))
    assert got.lenses is not None
    assert got.lenses.K[1].tolist() == [[40, 0, 16], [0, 41, 12], [0, 0, 1]]
    assert got.lenses.sizes.tolist() == [[24, 32]] * 2
    assert got.focal_priors.tolist() == [40, 40]
    assert got.given is None
    clip = write_clip(tmp_path / "c.mp4", moving(12))
    video = ingest([clip], tmp_path / "run", IngestOptions(intrinsics="100,100,64,48"))
    assert video.lenses is not None
    assert video.focal_priors[0] == 100


def make_transforms(folder, *, depth=False, size=(24, 32), **top):
    """Three cameras on a line that look at a plane 2 away."""
    frames = []
    for i in (2, 10, 1):
        save(folder / f"color/{i}.png", texture(*size, seed=i))
        c2w = np.eye(4)
        c2w[:3, :3] = np.diag((1.0, -1.0, -1.0))  # OpenGL axes of an OpenCV camera
        c2w[0, 3] = 0.1 * i
        frame = {"file_path": f"color/{i}.png", "transform_matrix": c2w.tolist()}
        if depth:
            save(folder / f"depth/{i}.png", np.full(size, 2000, np.uint16))
            frame["depth_file_path"] = f"depth/{i}.png"
        frames.append(frame)
    shared = {"fl_x": 30.0, "fl_y": 31.0, "cx": 15.0, "cy": 12.5, "w": size[1], "h": size[0]}
    if depth:
        shared["depth_unit_scale_factor"] = 0.001
    (folder / "transforms.json").write_text(json.dumps(shared | top | {"frames": frames}))
    return folder


def test_transforms_bring_cameras_in_natural_order(tmp_path):
    got = ingest([make_transforms(tmp_path / "in")], tmp_path / "run")
    assert got.names == ("1.png", "2.png", "10.png")
    assert got.given is not None
    assert got.given.registered.all()
    np.testing.assert_allclose(
        got.given.cameras.centers.numpy(), [[0.1, 0, 0], [0.2, 0, 0], [1.0, 0, 0]], atol=1e-15
    )
    assert got.given.cameras.K[0].tolist() == [[30, 0, 15], [0, 31, 12.5], [0, 0, 1]]
    assert got.lenses is not None
    views = got.views(16)
    assert views.cameras is not None
    assert views.cameras.K[0].tolist() == [[15, 0, 7.5], [0, 15.5, 6.25], [0, 0, 1]]
    assert (views.cameras.height, views.cameras.width) == (12, 16)


def test_distorted_transforms_are_undistorted_in_views(tmp_path):
    got = ingest([make_transforms(tmp_path / "in", k1=-0.2)], tmp_path / "run")
    assert got.lenses is not None
    assert not got.lenses.is_pinhole
    assert got.lenses.distortion[0, 0] == -0.2
    assert got.given is not None
    views = got.views()
    assert views.cameras is not None
    torch.testing.assert_close(views.cameras.K, got.given.cameras.K)
    assert views.cameras.K[0, 0, 0] != 30


def test_depth_maps_are_kept_and_give_points(tmp_path):
    got = ingest([make_transforms(tmp_path / "in", depth=True)], tmp_path / "run")
    assert got.depth_files is not None
    assert got.depth_files[0] == tmp_path / "run/stages/ingest/depth/1.png"
    assert got.depth_scale.tolist() == [0.001] * 3
    assert got.given is not None
    sparse = got.given.sparse
    assert sparse is not None
    torch.testing.assert_close(sparse.points[:, 2], torch.full((len(sparse.points),), 2.0).double())
    # Every point lies on its own pixel's centre and has that pixel's colour.
    for view in range(3):
        own = sparse.tracks[sparse.tracks[:, 1] == view, 0].long()
        assert len(own) == 24 * 32
        camera = Cameras(
            w2c=got.given.cameras.w2c[view : view + 1],
            K=got.given.cameras.K[view : view + 1],
            height=24,
            width=32,
        )
        pixels, _ = project_points(sparse.points[own], camera)
        assert torch.allclose(pixels % 1, torch.tensor(0.5).double(), atol=1e-9)
        column, row = pixels[0].long().unbind(-1)
        picture = torch.from_numpy(read_image(got.files[view]).pixels)
        assert torch.equal(picture[row, column], sparse.colors[own])
    shutil.rmtree(tmp_path / "in")
    again = load_ingested(tmp_path / "run")
    assert again.given is not None
    assert again.given.sparse is not None
    assert torch.equal(again.given.sparse.points, sparse.points)


def test_missing_pictures_of_transforms(tmp_path):
    folder = make_transforms(tmp_path / "in")
    (folder / "color/2.png").unlink()
    with pytest.raises(
        InputError, match=r"names 1 of 3 pictures that are not there \(color/2\.png"
    ):
        ingest([folder], tmp_path / "run")
    got = ingest([folder], tmp_path / "run", IngestOptions(keep_going=True))
    assert got.names == ("1.png", "10.png")


def make_colmap(folder, names=("b.jpg", "a.jpg"), orientation=1, size=(48, 64)):
    for name in names:
        turned(folder / "images" / name, orientation)
    images = {}
    for i, name in enumerate(names, start=1):
        images[i] = ColmapImage(
            id=i,
            name=name,
            camera_id=1,
            quat=np.array([1.0, 0, 0, 0]),
            translation=np.array([0.1 * i, 0, 0]),
            pixels=np.array([[5.0, 6.0]]),
            point_ids=np.array([7]),
        )
    model = ColmapModel(
        cameras={
            1: ColmapCamera(
                id=1,
                model="SIMPLE_RADIAL",
                width=size[1],
                height=size[0],
                params=(60.0, size[1] / 2, size[0] / 2, 0.01),
            )
        },
        images=images,
        points=ColmapPoints(
            ids=np.array([7]),
            points=np.array([[0.0, 0.1, 3.0]]),
            colors=np.array([[1, 2, 3]], np.uint8),
            errors=np.array([0.5]),
            tracks=np.array([[0, i, 0] for i in images]),
        ),
    )
    write_colmap(folder / "sparse/0", model)
    return folder


def test_colmap_workspace(tmp_path):
    got = ingest([make_colmap(tmp_path / "in")], tmp_path / "run")
    assert got.names == ("a.jpg", "b.jpg")
    assert got.given is not None
    assert got.given.cameras.w2c[:, 0, 3].tolist() == pytest.approx([0.2, 0.1])
    assert got.given.sparse is not None
    assert sorted(got.given.sparse.tracks.tolist()) == [[0, 0], [0, 1]]
    assert got.given.sparse.errors is not None
    assert got.lenses is not None
    assert got.lenses.distortion[0, 0] == 0.01
    assert got.records[0].camera is not None
    assert got.records[0].camera["source"] == "colmap"
    assert got.groups == ("camera 1", "camera 1")


def test_points_follow_the_views_that_are_kept(tmp_path):
    names = ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")
    folder = make_colmap(tmp_path / "in", names)
    got = ingest([folder], tmp_path / "run", IngestOptions(frames=FrameOptions(max_frames=2)))
    assert got.names == ("a.jpg", "e.jpg")
    assert got.given is not None
    assert got.given.sparse is not None
    assert sorted(got.given.sparse.tracks.tolist()) == [[0, 0], [0, 1]]
    assert got.given.cameras.w2c[:, 0, 3].tolist() == pytest.approx([0.1, 0.5])


def test_given_cameras_belong_to_stored_pixels(tmp_path):
    """Programs that ignore EXIF orientation found them; the pictures stay as those saw them."""
    got = ingest([make_colmap(tmp_path / "in", orientation=6)], tmp_path / "run")
    assert got.sizes.tolist() == [[48, 64]] * 2
    assert corners(np.asarray(Image.open(got.files[0]))) == SHOWN[1]
    with Image.open(got.files[0]) as image:
        assert image.getexif().get(0x0112, 1) == 1
    upright = ingest(
        [make_colmap(tmp_path / "in2", orientation=6, size=(64, 48))], tmp_path / "run2"
    )
    assert upright.sizes.tolist() == [[64, 48]] * 2
    assert corners(np.asarray(Image.open(upright.files[0]))) == SHOWN[6]


def test_resized_pictures_scale_their_camera(tmp_path):
    got = ingest([make_colmap(tmp_path / "in", size=(96, 128))], tmp_path / "run")
    assert got.lenses is not None
    assert got.lenses.K[0].tolist() == [[30, 0, 32], [0, 30, 24], [0, 0, 1]]
    assert any("scaled the camera" in note for note in got.notes)
    with pytest.raises(InputError, match="is 64 x 48 pixels, but its camera says 50 x 50"):
        ingest([make_colmap(tmp_path / "in2", size=(50, 50))], tmp_path / "run2")


def test_cameras_and_other_photos_together(tmp_path):
    folder = make_colmap(tmp_path / "in")
    extra = save(tmp_path / "extra.jpg")
    got = ingest([folder, extra], tmp_path / "run")
    assert got.lenses is None
    assert got.given is not None
    assert got.given.registered.tolist() == [True, True, False]
    assert torch.isnan(got.given.cameras.w2c[2]).all()
    assert got.given.rejected == (("extra.jpg", "the input has no camera for it"),)
    with pytest.raises(InputError, match="both bring cameras, each in its own world"):
        ingest([folder, make_transforms(tmp_path / "t")], tmp_path / "run")


def test_a_run_is_an_input_too(tmp_path):
    first = ingest([make_colmap(tmp_path / "in")], tmp_path / "run")
    again = ingest([tmp_path / "run"], tmp_path / "run2")
    assert again.names == first.names
    assert again.given is not None
    assert first.given is not None
    torch.testing.assert_close(again.given.cameras.w2c, first.given.cameras.w2c)
    assert [f.read_bytes() for f in again.files] == [f.read_bytes() for f in first.files]


def test_cancel_leaves_no_manifest(tmp_path):
    for i in range(4):
        save(tmp_path / f"in/{i}.jpg")
    ingest([tmp_path / "in"], tmp_path / "run")

    def stop(stage, done, total):
        if done >= 2:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        ingest([tmp_path / "in"], tmp_path / "run", progress=stop)
    assert not (tmp_path / "run/inputs.json").exists()
    assert not [p for p in (tmp_path / "run").rglob("*") if ".tmp" in p.name]
    with pytest.raises(InputError, match=r"has no inputs\.json"):
        load_ingested(tmp_path / "run")


def test_full_disk(tmp_path, monkeypatch):
    save(tmp_path / "in/a.webp")

    def full(path, pixels):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "_write_png", full)
    with pytest.raises(OutputError, match="no space left on device; free some space"):
        ingest([tmp_path / "in"], tmp_path / "run")
    assert listing(tmp_path / "run") == []


def test_output_that_cannot_be_made(tmp_path):
    save(tmp_path / "in/a.jpg")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        ingest([tmp_path / "in"], tmp_path / "file" / "run")


def test_lost_and_hostile_manifests(tmp_path):
    save(tmp_path / "in/a.jpg")
    got = ingest([tmp_path / "in"], tmp_path / "run")
    manifest = tmp_path / "run/inputs.json"
    text = manifest.read_text()
    got.files[0].rename(tmp_path / "run/images/b.jpg")
    with pytest.raises(InputError, match=r"a\.jpg is missing; restore it"):
        load_ingested(tmp_path / "run")
    manifest.write_text(text.replace("images/a.jpg", "../in/a.jpg"))
    with pytest.raises(FileFormatError, match="paths relative to the file's own folder"):
        load_ingested(tmp_path / "run")


def test_masks_option(tmp_path):
    save(tmp_path / "in/a.jpg")
    save(tmp_path / "in/b.jpg")
    camera = save(tmp_path / "camera.png", np.full((12, 16), 255, np.uint8))
    got = ingest([tmp_path / "in"], tmp_path / "run", IngestOptions(masks=camera))
    assert all(got.mask_files)
    assert any("resized it to the nearest pixel" in note for note in got.notes)
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="no mask in .* fits a picture by name"):
        ingest([tmp_path / "in"], tmp_path / "run", IngestOptions(masks=tmp_path / "other"))


@pytest.mark.parametrize(
    ("name", "views", "posed", "masks"),
    [
        ("fox", 50, 50, 0),
        ("rgbd_chair", 5, 5, 0),
        ("robot", 8, 0, 8),
        ("thermal", 8, 0, 0),
        ("geotiff", 3, 0, 1),
        ("video_great_wall", 40, 0, 0),
        ("video_robot", 28, 0, 0),
    ],
)
def test_real_sets(shared_data, tmp_path, name, views, posed, masks):
    got = ingest([shared_data / name], tmp_path / "run")
    assert len(got) == views
    assert (0 if got.given is None else int(got.given.registered.sum())) == posed
    assert sum(m is not None for m in got.mask_files) == masks
    assert len(got.views(64)) == views
