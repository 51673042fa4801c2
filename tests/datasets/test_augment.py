import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.datasets.augment import BatchShapes, ColorJitter, draw_keep, turn_hue
from sightline.datasets.framing import PosedPicture, frame_picture
from sightline.errors import InputError
from tests.datasets.replicas import room

SAMPLE = room(3)


def picture(rows: int, columns: int, cx: float, cy: float) -> PosedPicture:
    rng = np.random.default_rng(0)
    return PosedPicture(
        name="a.jpg",
        image=rng.integers(0, 255, (rows, columns, 3), dtype=np.uint8),
        depth=np.arange(rows * columns, dtype=np.float32).reshape(rows, columns) + 1,
        w2c=np.eye(4),
        K=np.array([[50.0, 0, cx], [0, 55.0, cy], [0, 0, 1]]),
        mask=np.ones((rows, columns), bool),
    )


@given(
    st.integers(30, 80),
    st.integers(30, 80),
    st.floats(-0.25, 0.25),
    st.floats(-0.25, 0.25),
    st.integers(4, 100),
    st.integers(4, 100),
    st.floats(0.5, 1.3),
)
def test_a_crop_keeps_every_ray(rows, columns, dx, dy, height, width, keep):
    given_ = picture(rows, columns, columns * (0.5 + dx), rows * (0.5 + dy))
    framed = frame_picture(given_, height, width, keep)
    assert framed.image.shape == (height, width, 3)
    assert framed.K[0, 2] == width / 2
    assert framed.K[1, 2] == height / 2
    assert framed.K[1, 1] / framed.K[0, 0] == pytest.approx(55 / 50)
    # The ray of each new pixel meets the old pixel whose depth it got.
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    x = (u - framed.K[0, 2]) / framed.K[0, 0] * 50 + given_.K[0, 2]
    y = (v - framed.K[1, 2]) / framed.K[1, 1] * 55 + given_.K[1, 2]
    assert x.min() > -1e-6
    assert x.max() < columns + 1e-6
    at = framed.depth.astype(int) - 1
    assert np.abs(at % columns + 0.5 - x).max() < 0.5 + 1e-6
    assert np.abs(at // columns + 0.5 - y).max() < 0.5 + 1e-6


def test_a_principal_point_at_the_border_is_refused():
    with pytest.raises(InputError, match=r"a\.jpg: expected a principal point near the middle"):
        frame_picture(picture(40, 60, 5, 20), 16, 16)


def test_hue_turns_as_colorsys_does():
    colors = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    turned = turn_hue(colors[None], 0.23)[0]
    for row in range(5):
        for column in range(7):
            h, s, v = colorsys.rgb_to_hsv(*colors[:, row, column].tolist())
            expected = torch.tensor(colorsys.hsv_to_rgb((h + 0.23) % 1, s, v))
            torch.testing.assert_close(turned[:, row, column], expected, atol=1e-5, rtol=0)


def test_jitter_changes_colours_only():
    rng = np.random.default_rng(0)
    jitter = ColorJitter(probability=1.0, joint=1.0, grey=0.0)
    changed = jitter(SAMPLE, rng)
    assert changed.images.shape == SAMPLE.images.shape
    assert 0 <= float(changed.images.min()) <= float(changed.images.max()) <= 1
    assert not torch.equal(changed.images, SAMPLE.images)
    assert changed.depth is SAMPLE.depth
    again = jitter(SAMPLE, np.random.default_rng(0))
    assert torch.equal(changed.images, again.images)


def test_joint_jitter_treats_views_alike():
    same = replace(SAMPLE, images=SAMPLE.images[:1].repeat(3, 1, 1, 1))
    alike = ColorJitter(probability=1.0, joint=1.0, grey=0.0)(same, np.random.default_rng(1)).images
    assert torch.equal(alike[0], alike[1])
    apart = ColorJitter(probability=1.0, joint=0.0, grey=0.0)(same, np.random.default_rng(1)).images
    assert not torch.equal(apart[0], apart[1])


def test_grey_has_no_colour():
    grey = ColorJitter(probability=0.0, grey=1.0)(SAMPLE, np.random.default_rng(0)).images
    assert float((grey[:, 0] - grey[:, 1]).abs().max()) == 0


def test_steps_are_as_large_as_published():
    shapes = BatchShapes()
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(600):
        samples, views, height, width = shapes.draw(rng)
        assert samples == 48 // views
        assert width == 518
        assert height % 14 == 0
        assert 168 <= height <= 518
        seen.add(views)
    assert seen == set(range(2, 25))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"frames": (3, 2)}, "expected frames from 1 to"),
        ({"width": 500}, "nearest width is 504"),
        ({"aspect": (0.01, 1.0)}, "at least one patch"),
    ],
)
def test_impossible_steps_are_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        BatchShapes(**options)


def test_half_of_the_samples_keep_all():
    rng = np.random.default_rng(0)
    kept = [draw_keep(rng) for _ in range(400)]
    assert 0.4 < np.mean([k == 1.0 for k in kept]) < 0.6
    assert min(kept) >= 0.8
