import gzip
import json

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.datasets.co3d import (
    Co3d,
    camera_from_pytorch3d,
    draw_frames,
    half_float_depth,
    open_co3d,
)
from sightline.datasets.multiview import sample_rng
from sightline.errors import FileFormatError, InputError, UnknownNameError
from tests.datasets.multiview import check_sample, worst_reprojection
from tests.datasets.replicas import HEIGHT, WIDTH, room, write_co3d

EXACT = room(8)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_co3d(tmp_path_factory.mktemp("co3d"), EXACT)


def test_cameras_project_as_pytorch3d_defines_it():
    rng = np.random.default_rng(0)
    R, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    R *= np.sign(np.linalg.det(R))
    T, focal, principal = (
        rng.normal(size=3) + [0, 0, 5],
        np.array([2.1, 2.3]),
        np.array([0.1, -0.2]),
    )
    size = (60, 80)
    w2c, K = camera_from_pytorch3d(R, T, focal, principal, size)
    points = rng.normal(size=(20, 3))
    view = points @ R + T  # x to the left, y up
    ndc = focal * view[:, :2] / view[:, 2:] + principal
    expected = np.array([80, 60]) / 2 - ndc * 60 / 2
    local = points @ w2c[:3, :3].T + w2c[:3, 3]
    shown = local @ K.T
    np.testing.assert_allclose(shown[:, :2] / shown[:, 2:], expected, atol=1e-9)
    assert np.linalg.det(w2c[:3, :3]) == pytest.approx(1)


def test_annotations_give_the_exact_cameras_back(root):
    (sequence,) = open_co3d(root)
    assert len(sequence) == 8
    np.testing.assert_allclose(sequence.w2c, EXACT.w2c.double().numpy(), atol=1e-6)
    np.testing.assert_allclose(sequence.K, EXACT.K.double().numpy(), atol=1e-4)
    assert sequence.images[0] == "apple/1_2_3/images/frame000001.jpg"


def test_views_agree_where_they_overlap(root):
    source = Co3d(root=root, sequences=open_co3d(root), mask_background=False)
    for place in range(3):
        sample = source.draw(sample_rng(0, "train", place), 2, 48, 64)
        check_sample(sample, 2, 48, 64)
        share, apart = worst_reprojection(sample)
        assert share > 0.4
        assert apart < 0.04
    assert not bool(sample.metric)
    again = source.draw(sample_rng(0, "train", 2), 2, 48, 64)
    assert torch.equal(sample.images, again.images)


@pytest.mark.parametrize(
    ("masked", "shares"), [(True, {0.5}), (False, {1.0}), ("random", {0.5, 1.0})]
)
def test_background_keeps_or_loses_its_depth(root, masked, shares):
    source = Co3d(root=root, sequences=open_co3d(root), mask_background=masked)
    found = set()
    for place in range(8):
        sample = source.draw(sample_rng(0, "train", place), 2, HEIGHT, WIDTH)
        assert sample.masks is not None
        assert float(sample.masks.float().mean()) == pytest.approx(0.5)
        found.add(round(float(sample.valid.float().mean()), 2))
    assert found == shares


def test_half_floats_come_back(tmp_path):
    depth = np.array([[0.5, 1.25], [np.inf, 17.5]], np.float16)
    Image.fromarray(depth.view(np.uint16)).save(tmp_path / "d.png")
    assert half_float_depth(tmp_path / "d.png").tolist() == [[0.5, 1.25], [0.0, 17.5]]
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "e.png")
    with pytest.raises(FileFormatError, match=r"e\.png: expected 16-bit depth.*got uint8"):
        half_float_depth(tmp_path / "e.png")


def test_pairs_are_drawn_as_published():
    rng = np.random.default_rng(0)
    gaps = []
    for _ in range(400):
        i, j = draw_frames(rng, 100, 2)
        assert 0 <= i < 100
        assert 0 <= j < 100
        gaps.append(abs(j - i))
    assert min(gaps) >= 1
    assert 30 < max(gaps) <= 38
    assert draw_frames(rng, 100, 6)[0] not in draw_frames(rng, 3, 3)[1:]
    places = draw_frames(rng, 100, 12)
    assert len(set(places)) == 12
    assert max(abs(p - places[0]) for p in places) <= 30
    with pytest.raises(InputError, match="at least 5 frames, got 3"):
        draw_frames(rng, 3, 5)


def test_a_frame_without_depth_gives_way(tmp_path):
    root = write_co3d(tmp_path, room(3))
    empty = np.zeros((HEIGHT, WIDTH), np.uint16)
    Image.fromarray(empty).save(root / "apple/1_2_3/depths/frame000002.jpg.geometric.png")
    source = Co3d(root=root, sequences=open_co3d(root), mask_background=False)
    for place in range(6):
        sample = source.draw(sample_rng(0, "train", place), 2, 24, 32)
        assert bool(sample.valid.flatten(1).any(1).all())
        assert not any("frame000002" in name for name in sample.names[0])
    with pytest.raises(InputError, match=r"apple/1_2_3: expected 3 frames with depth, got 2"):
        source.draw(sample_rng(0, "train", 0), 3, 24, 32)


def test_choice_of_sequences(root, tmp_path):
    with pytest.raises(InputError, match="holds no sequences of val"):
        open_co3d(root, split="val")
    with pytest.raises(InputError, match="holds no sequences"):
        open_co3d(root, min_quality=2.0)
    with pytest.raises(UnknownNameError, match='no CO3D category "aple"; closest: apple'):
        open_co3d(root, categories=["aple"])
    with pytest.raises(InputError, match="holds no categories of CO3D"):
        open_co3d(tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        open_co3d(tmp_path / "none")
    assert len(open_co3d(root, split="test")[0]) == 2


def edit(root, change):
    file = root / "apple" / "frame_annotations.jgz"
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        frames = json.load(opened)
    frames = change(frames) or frames
    with gzip.open(file, "wt", encoding="utf-8") as out:
        json.dump(frames, out)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: f[1]["viewpoint"].pop("R") and None, r'"R" in "viewpoint" of frame 1, got none'),
        (lambda f: f[1]["viewpoint"].update(T=[0, "x", 0]), r'3 numbers as "T" of'),
        (lambda f: f[1]["image"].update(path="../../../etc/passwd"), "frame_annotations.jgz"),
        (lambda f: f[:1], "frame 2 of 1_2_3, which a set list names, got none"),
        (lambda f: {"frames": f}, "a list of frame, got dict"),
        (lambda f: f[0]["viewpoint"].update(intrinsics_format="ndc_norm_image_bounds"), "ndc_iso"),
    ],
)
def test_damaged_annotations_are_named(tmp_path, change, sentence):
    root = write_co3d(tmp_path, room(3))
    edit(root, change)
    with pytest.raises(FileFormatError, match=sentence) as error:
        open_co3d(root)
    assert "frame_annotations.jgz" in str(error.value)


def test_damaged_files_are_named(tmp_path):
    root = write_co3d(tmp_path, room(3))
    (root / "apple" / "sequence_annotations.jgz").write_bytes(b"no gzip")
    with pytest.raises(FileFormatError, match=r"sequence_annotations\.jgz: expected a gzip file"):
        open_co3d(root)
    root = write_co3d(tmp_path, room(3))
    source = Co3d(root=root, sequences=open_co3d(root), mask_background=False)
    for number in (1, 2, 3):
        (root / f"apple/1_2_3/images/frame00000{number}.jpg").unlink()
    with pytest.raises(InputError, match="frame00000"):
        source.draw(sample_rng(0, "train", 0), 2, 24, 32)
