"""Undistortion against exact pictures, intrinsics without borders, and views that map back."""

import functools
import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sightline.errors import FileFormatError, InputError, ShapeError
from sightline.geometry.camera import project_points
from sightline.io.masks import write_mask
from sightline.io.undistort import (
    distort,
    new_intrinsics,
    pinhole_intrinsics,
    undistort_image,
)
from sightline.io.views import load_views, resized_shape
from sightline.types import Cameras, Lenses

from .pictures import texture

HEIGHT, WIDTH = 120, 160
K = np.array([[130.0, 0, 83.2], [0, 128.0, 58.7], [0, 0, 1]])
LENSES = {
    "none": (np.zeros(8), False),
    "barrel": (np.array([-0.25, 0.06, 0.002, -0.001, 0, 0, 0, 0]), False),
    "pincushion": (np.array([0.15, -0.02, 0, 0.001, 0, 0, 0, 0]), False),
    "rational": (np.array([0.3, 0.05, 0.0, 0.0, 0.01, 0.5, 0.1, 0.0]), False),
    "fisheye": (np.array([0.02, -0.01, 0.002, 0.0, 0, 0, 0, 0]), True),
}


def pattern(rays: np.ndarray) -> np.ndarray:
    """A smooth picture of the plane z = 1, known everywhere."""
    x, y = rays[..., 0], rays[..., 1]
    waves = [np.sin(9 * x + 1), np.sin(8 * y - 2), np.sin(6 * x + 5 * y)]
    return np.stack([127.5 + 110 * w for w in waves], -1)


def pixel_rays(K: np.ndarray, height: int, width: int) -> np.ndarray:
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1]], -1)


def undo(points: np.ndarray, distortion: np.ndarray, fisheye: bool) -> np.ndarray:
    """Invert `distort` by Newton's method with numeric derivatives, for the test only."""
    flat = points.reshape(-1, 2)
    guess = flat / (1 + 0.3 * (flat**2).sum(-1, keepdims=True)) if not fisheye else flat.copy()
    for _ in range(40):
        error = distort(guess, distortion, fisheye) - flat
        h = 1e-6
        columns = [
            (
                distort(guess + step, distortion, fisheye)
                - distort(guess - step, distortion, fisheye)
            )
            / (2 * h)
            for step in (np.array([h, 0.0]), np.array([0.0, h]))
        ]
        jacobian = np.stack(columns, -1)
        guess = guess - 0.7 * np.linalg.solve(jacobian, error[..., None])[..., 0]
    np.testing.assert_allclose(distort(guess, distortion, fisheye), flat, atol=1e-9)
    return guess.reshape(points.shape)


@functools.cache
def distorted_picture(name: str, scale: int = 1) -> np.ndarray:
    distortion, fisheye = LENSES[name]
    scaled = np.diag((scale, scale, 1.0)) @ K
    rays = undo(pixel_rays(scaled, HEIGHT * scale, WIDTH * scale), distortion, fisheye)
    return np.rint(pattern(rays)).astype(np.uint8)


@pytest.mark.parametrize("name", LENSES)
def test_distort_is_opencvs_model(name):
    distortion, fisheye = LENSES[name]
    points = np.random.default_rng(0).uniform(-0.6, 0.6, (50, 2))
    rays = np.concatenate([points, np.ones((50, 1))], 1)[:, None]
    if fisheye:
        want, _ = cv2.fisheye.projectPoints(
            rays, np.zeros((3, 1)), np.zeros((3, 1)), np.eye(3), distortion[:4]
        )
    else:
        want, _ = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), np.eye(3), distortion)
    np.testing.assert_allclose(distort(points, distortion, fisheye), want[:, 0], atol=1e-12)


@pytest.mark.parametrize("name", LENSES)
def test_new_intrinsics_leave_no_border_and_waste_nothing(name):
    distortion, fisheye = LENSES[name]
    new_K = new_intrinsics(K, distortion, fisheye, HEIGHT, WIDTH)
    np.testing.assert_array_equal(new_K[:, 2], K[:, 2])
    assert new_K[0, 0] / new_K[1, 1] == pytest.approx(K[0, 0] / K[1, 1])
    along = np.linspace(0, 1, 200)
    edges = np.concatenate(
        [np.stack([along, s], -1) for s in (0 * along, 0 * along + 1)]
        + [np.stack([s, along], -1) for s in (0 * along, 0 * along + 1)]
    ) * (WIDTH, HEIGHT)
    rays = (edges - new_K[:2, 2]) / (new_K[0, 0], new_K[1, 1])
    source = distort(rays, distortion, fisheye) * (K[0, 0], K[1, 1]) + K[:2, 2]
    margin = np.minimum(source, (WIDTH, HEIGHT) - source)
    assert margin.min() == pytest.approx(0, abs=0.01)  # inside, and touching somewhere


def test_without_distortion_nothing_changes():
    np.testing.assert_array_equal(new_intrinsics(K, np.zeros(8), False, HEIGHT, WIDTH), K)


def test_wide_fisheye_is_cut_to_a_usable_angle():
    wide = np.array([[40.0, 0, 80], [0, 40, 60], [0, 0, 1]])
    new_K = new_intrinsics(wide, np.zeros(8), True, HEIGHT, WIDTH)
    half_diagonal = math.degrees(math.atan(math.hypot(80, 60) / new_K[0, 0]))
    assert half_diagonal == pytest.approx(65, abs=0.1)


def test_a_lens_that_folds_the_picture_is_zoomed_into_its_usable_part():
    folded = np.array([-0.9, 0, 0, 0, 0, 0, 0, 0.0])  # r - 0.9 r^3 turns back at r = 0.61
    new_K = new_intrinsics(K, folded, False, HEIGHT, WIDTH)
    rays = pixel_rays(new_K, HEIGHT, WIDTH)
    assert np.hypot(rays[..., 0], rays[..., 1]).max() < 0.61


def test_impossible_lens():
    with pytest.raises(InputError, match="the lens distortion is too strong"):
        new_intrinsics(K, np.array([-500.0, 0, 0, 0, 0, 0, 0, 0]), False, HEIGHT, WIDTH)


@pytest.mark.parametrize("name", LENSES)
def test_undistorted_picture_equals_the_exact_one(name):
    distortion, fisheye = LENSES[name]
    new_K = new_intrinsics(K, distortion, fisheye, HEIGHT, WIDTH)
    made, valid = undistort_image(distorted_picture(name), K, distortion, fisheye, new_K)
    assert valid.all()
    error = np.abs(made - pattern(pixel_rays(new_K, HEIGHT, WIDTH)))
    # Half a pixel of misalignment would give 4 and more on average.
    assert error.mean() < 0.5
    assert np.quantile(error, 0.99) < 2


@pytest.mark.parametrize("name", ["barrel", "fisheye"])
@pytest.mark.parametrize("size", [(60, 80), (45, 60), (37, 49), (20, 27)])
def test_shrinking_and_undistorting_in_one_pass(name, size):
    distortion, fisheye = LENSES[name]
    scale = 2
    K2 = np.diag((scale, scale, 1.0)) @ K
    full = new_intrinsics(K2, distortion, fisheye, HEIGHT * scale, WIDTH * scale)
    new_K = np.diag((size[1] / WIDTH / scale, size[0] / HEIGHT / scale, 1.0)) @ full
    picture = distorted_picture(name, scale)
    made, valid = undistort_image(picture, K2, distortion, fisheye, new_K, size=size)
    assert valid.all()
    # The exact mean over each new pixel, from 8 x 8 points of the pattern.
    dense = np.diag((8, 8, 1.0)) @ new_K
    rays = pixel_rays(dense, size[0] * 8, size[1] * 8)
    want = pattern(rays).reshape(size[0], 8, size[1], 8, 3).mean((1, 3))
    error = np.abs(made - want)
    assert error.mean() < 0.6
    assert np.quantile(error, 0.99) < 3


def test_shrinking_does_not_alias():
    stripes = np.zeros((400, 400), np.uint8)
    stripes[:, ::2] = 255
    K2 = np.array([[300.0, 0, 200], [0, 300, 200], [0, 0, 1]])
    weak = np.array([-0.01, 0, 0, 0, 0, 0, 0, 0])
    made, _ = undistort_image(
        stripes, K2, weak, False, np.diag((0.125, 0.125, 1.0)) @ K2, size=(50, 50)
    )
    assert np.abs(made.astype(int) - 127).max() < 25


def test_pixels_without_a_source_are_marked():
    distortion, fisheye = LENSES["barrel"]
    wide = K.copy()
    wide[0, 0] *= 0.5
    wide[1, 1] *= 0.5
    _, valid = undistort_image(distorted_picture("barrel"), K, distortion, fisheye, wide)
    assert not valid[0].any()
    assert not valid[:, -1].any()
    assert valid[HEIGHT // 2, WIDTH // 2]
    rays = pixel_rays(wide, HEIGHT, WIDTH)
    source = distort(rays, distortion, fisheye) * (K[0, 0], K[1, 1]) + K[:2, 2]
    inside = ((source > 0) & (source < (WIDTH, HEIGHT))).all(-1)
    assert np.mean(inside != valid) < 0.01


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 3000))
def test_resized_shape(height, width, long_side):
    new_height, new_width = resized_shape(height, width, long_side)
    assert (new_height, new_width) <= (height, width)
    assert max(new_height, new_width) == min(long_side, max(height, width))
    exact = min(1.0, long_side / max(height, width))
    assert abs(new_height - max(1, height * exact)) <= 0.5 + 1e-9
    assert abs(new_width - max(1, width * exact)) <= 0.5 + 1e-9


def _lenses(names, size=(HEIGHT, WIDTH), scale=1):
    picked = [LENSES[n] for n in names]
    scaled = np.diag((scale, scale, 1.0)) @ K
    return Lenses(
        K=torch.from_numpy(np.stack([scaled] * len(names))),
        distortion=torch.from_numpy(np.stack([d for d, _ in picked])),
        fisheye=torch.tensor([f for _, f in picked]),
        sizes=torch.tensor([size] * len(names)),
    )


def _save(folder, pictures):
    files = []
    for i, picture in enumerate(pictures):
        files.append(folder / f"{i}.png")
        Image.fromarray(picture).save(files[-1])
    return files


def test_views_agree_with_projected_points(tmp_path):
    """A dot drawn where the lens sees a 3D point is found where the view's camera projects it."""
    rng = np.random.default_rng(0)
    names = ["barrel", "pincushion", "fisheye", "none"]
    scale = 4
    size = (HEIGHT * scale, WIDTH * scale)
    lenses = _lenses(names, size, scale)
    w2c = torch.eye(4, dtype=torch.float64).repeat(4, 1, 1)
    points = np.stack([rng.uniform(-0.45, 0.45, 12), rng.uniform(-0.3, 0.3, 12), np.ones(12)], 1)
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    pictures = []
    for name in names:
        distortion, fisheye = LENSES[name]
        where = distort(points[:, :2], distortion, fisheye) * (scale * 130, scale * 128)
        where = where + scale * K[:2, 2]
        dots = sum(np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 6.0**2)) for u, v in where)
        pictures.append(np.repeat((np.clip(dots, 0, 1) * 255).astype(np.uint8)[..., None], 3, 2))
    files = _save(tmp_path, pictures)
    views = load_views(files, names, long_side=320, lenses=lenses, w2c=w2c)
    assert views.cameras is not None
    assert (views.cameras.height, views.cameras.width) == (240, 320)
    pixels, _ = project_points(torch.from_numpy(points), views.cameras)
    worst = 0.0
    for v in range(4):
        image = views.images[v, 0].double().numpy()
        for u, w in pixels[v].tolist():
            if not (12 < u < 308 and 12 < w < 228):
                continue
            near = [np.hypot(*(p - (u, w))) for p in pixels[v].numpy()]
            if sorted(near)[1] < 20:
                continue
            left, top = int(u) - 8, int(w) - 8
            patch = image[top : top + 17, left : left + 17]
            py, px = np.mgrid[top : top + 17, left : left + 17] + 0.5
            centre = (patch * px).sum() / patch.sum(), (patch * py).sum() / patch.sum()
            worst = max(worst, math.hypot(centre[0] - u, centre[1] - w))
    assert 0 < worst < 0.1


def test_from_original_and_pinholes_are_exact(tmp_path):
    names = ["barrel", "none"]
    lenses = _lenses(names)
    files = _save(tmp_path, [texture(HEIGHT, WIDTH)] * 2)
    w2c = torch.eye(4).repeat(2, 1, 1)
    views = load_views(files, names, long_side=50, lenses=lenses, w2c=w2c)
    assert views.images.shape == (2, 3, 38, 50)
    assert views.images.dtype == torch.uint8
    want = torch.diag(torch.tensor([50 / 160, 38 / 120, 1.0], dtype=torch.float64))
    torch.testing.assert_close(views.from_original, want.expand(2, 3, 3), rtol=0, atol=0)
    assert views.cameras is not None
    torch.testing.assert_close(
        views.cameras.K.double(), want @ pinhole_intrinsics(lenses), rtol=1e-6, atol=0
    )
    assert views.masks is None
    assert views.sizes.tolist() == [[38, 50]] * 2
    assert views.files == tuple(files)
    assert views.lenses is lenses


def test_undistorted_pictures_are_the_same_with_and_without_a_lens_record(tmp_path):
    files = _save(tmp_path, [texture(HEIGHT, WIDTH)])
    plain = load_views(files, ["a"], long_side=70)
    with_lens = load_views(files, ["a"], long_side=70, lenses=_lenses(["none"]))
    assert torch.equal(plain.images, with_lens.images)
    assert plain.cameras is None
    want = cv2.resize(texture(HEIGHT, WIDTH), (70, 53), interpolation=cv2.INTER_AREA)
    assert torch.equal(plain.images[0], torch.from_numpy(want).permute(2, 0, 1))


def test_pictures_are_never_enlarged(tmp_path):
    files = _save(tmp_path, [texture(30, 40)])
    views = load_views(files, ["a"], long_side=1000)
    assert torch.equal(views.images[0], torch.from_numpy(texture(30, 40)).permute(2, 0, 1))
    assert torch.equal(views.from_original[0], torch.eye(3, dtype=torch.float64))


def test_unlike_sizes_are_padded_and_masked(tmp_path):
    shapes = [(30, 40), (40, 30), (20, 20), (60, 80)]
    files = _save(tmp_path, [np.full((h, w, 3), 200, np.uint8) for h, w in shapes])
    views = load_views(files, list("abcd"), long_side=40, workers=1)
    sizes = [(30, 40), (40, 30), (20, 20), (30, 40)]
    assert views.sizes.tolist() == [list(s) for s in sizes]
    assert views.images.shape == (4, 3, 40, 40)
    assert views.masks is not None
    for i, (height, width) in enumerate(sizes):
        real = torch.zeros(40, 40, dtype=torch.bool)
        real[:height, :width] = True
        assert torch.equal(views.masks[i], real)
        assert (views.images[i][:, real] == 200).all()
        assert (views.images[i][:, ~real] == 0).all()
    assert views.from_original[3, 0, 0] == 0.5


def test_masks_follow_their_pictures(tmp_path):
    files = _save(tmp_path, [texture(HEIGHT, WIDTH)] * 3)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, :80] = True
    write_mask(tmp_path / "m.png", mask)
    names = ["none", "barrel", "none"]
    views = load_views(
        files,
        names,
        long_side=80,
        lenses=_lenses(names),
        mask_files=[tmp_path / "m.png", tmp_path / "m.png", None],
    )
    assert views.masks is not None
    assert views.masks[0, :, :40].all()
    assert not views.masks[0, :, 40:].any()
    edge = views.masks[1].float().sum(1)
    assert ((edge - 40).abs() <= 2).all()
    assert views.masks[2].all()


def test_order_and_progress_with_many_threads(tmp_path):
    files = _save(tmp_path, [np.full((4, 4, 3), 5 * i, np.uint8) for i in range(30)])
    seen = []
    views = load_views(
        files,
        [str(i) for i in range(30)],
        workers=4,
        progress=lambda stage, done, total: seen.append((stage, done, total)),
    )
    assert views.images[:, 0, 0, 0].tolist() == [5 * i for i in range(30)]
    assert seen[-1] == ("read pictures", 30.0, 30.0)
    assert len(seen) == 30


def test_bad_calls(tmp_path):
    files = _save(tmp_path, [texture(30, 40)])
    with pytest.raises(InputError, match="no pictures to load"):
        load_views([], [])
    with pytest.raises(ShapeError, match=r"names must have one entry a picture = 1, got 2"):
        load_views(files, ["a", "b"])
    with pytest.raises(
        ShapeError, match=r"0\.png is 40 x 30 pixels, but its camera says 160 x 120"
    ):
        load_views(files, ["a"], lenses=_lenses(["none"]))
    (tmp_path / "bad.png").write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match=r"bad\.png: expected a picture"):
        load_views([tmp_path / "bad.png"], ["a"])


def test_pinhole_cameras_of_a_lens_record():
    lenses = _lenses(["barrel", "barrel", "none"])
    pinholes = pinhole_intrinsics(lenses)
    assert pinholes.dtype == torch.float64
    assert torch.equal(pinholes[0], pinholes[1])
    assert torch.equal(pinholes[2], lenses.K[2])
    assert isinstance(Cameras(w2c=torch.eye(4)[None], K=lenses.K[:1], height=1, width=1), Cameras)
