import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sightline.errors import FileFormatError, InputError
from sightline.io.arrays import write_npz
from sightline.io.depth import (
    DepthView,
    choose_depth_scale,
    depth_preview,
    read_depth_npz,
    read_depth_png,
    read_depth_scale,
    read_normals_png,
    write_depth_npz,
    write_depth_png,
    write_depth_preview,
    write_depth_scale,
    write_normals_png,
)
from tests.io.hostile import damage, survives


def make_depth(height=30, width=40):
    depth = torch.rand(height, width) * 8 + 0.5
    depth[0, :4] = torch.tensor([0.0, -1.0, torch.nan, torch.inf])
    return depth


def test_png_round_trip(tmp_path):
    depth = make_depth()
    write_depth_png(tmp_path / "a.png", depth)
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture.dtype in (np.uint16, np.int32)
    assert (picture[0, :4] == 0).all()
    assert picture[5, 7] == round(depth[5, 7].item() * 1000)
    back = read_depth_png(tmp_path / "a.png")
    assert (back[0, :4] == 0).all()
    assert (back - depth)[1:].abs().max() <= 0.0005 + 1e-6


def test_far_pixels_saturate_with_a_warning_and_near_ones_stay_known(tmp_path, caplog):
    depth = torch.tensor([[70.0, 0.0001, 65.535]])
    write_depth_png(tmp_path / "a.png", depth)
    torch.testing.assert_close(
        read_depth_png(tmp_path / "a.png"), torch.tensor([[65.535, 0.001, 65.535]])
    )
    assert "a.png: 1 pixels are beyond 65.535" in caplog.text
    with pytest.raises(InputError, match="depth scale must be above 0, got 0"):
        write_depth_png(tmp_path / "b.png", depth, 0.0)


@pytest.mark.parametrize(
    ("largest", "metric", "expected"),
    [(10.0, True, 0.001), (10.0, False, 0.0002), (65.535, False, 0.001), (65.6, False, 0.002),
     (1e-3, False, 2e-8), (4e6, False, 100.0), (0.0, False, 0.001)],
)  # fmt: skip
def test_scale_covers_the_scene(largest, metric, expected):
    scale = choose_depth_scale(torch.tensor([largest, torch.nan, -5]), metric=metric)
    assert scale == expected
    assert metric or largest <= 65535 * scale * 1.00001


def test_scale_file(tmp_path):
    write_depth_scale(tmp_path, 0.0005, metric=False)
    assert read_depth_scale(tmp_path) == (0.0005, False)
    assert (tmp_path / "scale.json").read_text() == (
        '{"scale": 0.0005, "unit": "scene", "invalid": 0}\n'
    )
    for text in (
        "",
        "[]",
        '{"scale": "x", "unit": "m"}',
        '{"scale": NaN, "unit": "m"}',
        "[" * 9999,
    ):
        (tmp_path / "scale.json").write_text(text)
        with pytest.raises(FileFormatError, match=r"^scale\.json: expected"):
            read_depth_scale(tmp_path)
    with pytest.raises(InputError, match="there is no file"):
        read_depth_scale(tmp_path / "none")


def test_npz_round_trip(tmp_path):
    view = DepthView(
        depth=make_depth(),
        K=torch.rand(3, 3).double(),
        w2c=torch.rand(4, 4).double(),
        confidence=torch.rand(30, 40),
    )
    write_depth_npz(tmp_path / "a.npz", view)
    back = read_depth_npz(tmp_path / "a.npz")
    torch.testing.assert_close(back.depth, view.depth, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(back.confidence, view.confidence)
    assert torch.equal(back.K, view.K)
    assert torch.equal(back.w2c, view.w2c)
    for arrays in (
        {"depth": np.zeros((2, 3), np.float32)},
        {"depth": np.zeros(3, np.float32), "K": np.eye(3), "w2c": np.eye(4)},
        {"depth": np.zeros((2, 3), "U2"), "K": np.eye(3), "w2c": np.eye(4)},
        {"depth": np.zeros((2, 3)), "K": np.eye(3), "w2c": np.eye(4), "confidence": np.eye(2)},
    ):
        write_npz(tmp_path / "b.npz", arrays)
        with pytest.raises(FileFormatError, match=r"expected depth \[H W\], K \[3 3\] and w2c"):
            read_depth_npz(tmp_path / "b.npz")


def test_preview(tmp_path):
    depth = make_depth()
    colors = depth_preview(depth)
    assert (colors[0, :4] == 128).all()
    near, far = colors[depth < 0.6].mean(0), colors[depth > 8.3].mean(0)
    assert near[0] > near[2]  # red
    assert far[2] > far[0] - 20  # blue
    write_depth_preview(tmp_path / "a.png", depth)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), colors)
    assert (depth_preview(torch.zeros(2, 2)) == 128).all()
    assert depth_preview(torch.ones(2, 2)).shape == (2, 2, 3)


def test_normals_round_trip(tmp_path):
    normals = torch.nn.functional.normalize(torch.randn(20, 30, 3), dim=-1)
    normals[0, 0] = 0
    normals[0, 1] = torch.nan
    normals[1, 1] = torch.tensor([0.0, 0, -1])
    write_normals_png(tmp_path / "a.png", normals)
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture[1, 1].tolist() == [128, 128, 0]
    assert (picture[0, :2] == 0).all()
    back = read_normals_png(tmp_path / "a.png")
    assert (back[0, :2] == 0).all()
    assert (back - normals)[1:].abs().max() < 0.008


def test_wrong_pictures(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(FileFormatError, match="16-bit picture with one channel, got uint8 with 3"):
        read_depth_png(tmp_path / "a.png")
    write_depth_png(tmp_path / "b.png", make_depth())
    with pytest.raises(FileFormatError, match="8-bit RGB picture, got uint16 with 1"):
        read_normals_png(tmp_path / "b.png")


def test_a_small_file_gets_no_large_picture(tmp_path):
    path = tmp_path / "a.png"
    write_depth_png(path, make_depth(5, 6))
    raw = bytearray(path.read_bytes())
    raw[16:24] = struct.pack(">II", 9000, 9000)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    path.write_bytes(raw)
    with pytest.raises(FileFormatError, match="million pixels, got 9000 x 9000"):
        read_depth_png(path)
    survives(read_depth_png, path)


@given(data=st.data())
def test_damage(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("depth") / "a.png"
    write_depth_png(path, torch.linspace(0.5, 8, 30).reshape(5, 6))
    path.write_bytes(damage(data.draw, path.read_bytes()))
    survives(read_depth_png, path)


def test_real_depth(shared_data):
    depth = read_depth_png(shared_data / "rgbd_chair" / "depth" / "00000.png")
    assert depth.shape == (480, 640)
    assert 0.5 < depth[depth > 0].median() < 5
