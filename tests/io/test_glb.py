import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import FileFormatError, InputError
from sightline.geometry.pose import look_at
from sightline.io.glb import linear_to_srgb, read_glb, srgb_to_linear, write_glb
from sightline.types import Cameras, PointCloud
from tests.io.hostile import damage, survives
from tests.io.test_ply import make_cloud


def make_cameras(count=3, width=64, height=48):
    g = torch.Generator().manual_seed(3)
    centers = torch.randn(count, 3, generator=g, dtype=torch.float64) * 4
    c2w = look_at(centers, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, -1, 0]).double())
    K = torch.tensor([[60.0, 0, 30], [0, 62, 25], [0, 0, 1]], dtype=torch.float64)
    return Cameras(w2c=torch.linalg.inv(c2w), K=K.expand(count, 3, 3), height=height, width=width)


def document(path):
    raw = path.read_bytes()
    length = struct.unpack_from("<I", raw, 12)[0]
    return json.loads(raw[20 : 20 + length]), raw[28 + length :]


def test_round_trip(tmp_path):
    cloud, cameras = make_cloud(1001), make_cameras()
    names = ("a.jpg", "sub/b.jpg", "ü.png")
    write_glb(tmp_path / "a.glb", cloud, cameras, names)
    back = read_glb(tmp_path / "a.glb")
    assert back.names == names
    assert torch.equal(back.points.points, cloud.points)
    # Linear bytes: half a level of 1/255 on the curve's derivative of at most 12.92.
    assert (back.points.colors - cloud.colors).abs().max() <= 12.92 / 510 + 1e-6
    bright = cloud.colors > 0.5
    assert (back.points.colors - cloud.colors)[bright].abs().max() <= 1 / 255
    torch.testing.assert_close(back.w2c, cameras.w2c)
    torch.testing.assert_close(back.yfov, torch.full((3,), 2 * np.arctan(24 / 62)).double())
    torch.testing.assert_close(back.aspect, torch.full((3,), 64 / 48 * 62 / 60).double())


def test_layout_follows_the_standard(tmp_path):
    cloud, cameras = make_cloud(5), make_cameras(2)
    write_glb(tmp_path / "a.glb", cloud, cameras, ("a", "b"))
    raw = (tmp_path / "a.glb").read_bytes()
    assert struct.unpack_from("<III", raw) == (0x46546C67, 2, len(raw))
    doc, binary = document(tmp_path / "a.glb")
    assert len(raw) % 4 == 0
    assert doc["buffers"] == [{"byteLength": len(binary)}]
    assert all(view["byteOffset"] % 4 == 0 for view in doc["bufferViews"])
    points = doc["meshes"][0]["primitives"][0]
    assert points["mode"] == 0
    position = doc["accessors"][points["attributes"]["POSITION"]]
    flipped = cloud.points * torch.tensor([1.0, -1, -1])
    assert position["min"] == flipped.amin(0).tolist()
    assert position["max"] == flipped.amax(0).tolist()
    color = doc["accessors"][points["attributes"]["COLOR_0"]]
    assert (color["type"], color["componentType"], color["normalized"]) == ("VEC4", 5121, True)
    start = doc["bufferViews"][color["bufferView"]]["byteOffset"]
    rgba = np.frombuffer(binary, np.uint8, 20, start).reshape(5, 4)
    linear = srgb_to_linear(cloud.colors.numpy())
    np.testing.assert_array_equal(rgba[:, :3], np.rint(255 * linear))
    assert (rgba[:, 3] == 255).all()
    material = doc["materials"][points["material"]]
    assert material["extensions"] == {"KHR_materials_unlit": {}}
    assert [node["name"] for node in doc["nodes"]] == ["points", "a", "b"]


def test_a_pixel_through_the_glb_camera(tmp_path):
    """glTF's own rule: node matrix, then yfov and aspect; the pyramid has the picture's corners."""
    cameras = make_cameras(1)
    cameras.K[:, :2, 2] = torch.tensor([32.0, 24.0])  # glTF's cameras are centred
    cloud = PointCloud(points=torch.randn(20, 3) * 0.3, colors=torch.rand(20, 3))
    write_glb(tmp_path / "a.glb", cloud, cameras, ("a",), camera_size=0.5)
    doc, binary = document(tmp_path / "a.glb")
    node = doc["nodes"][1]
    view = np.linalg.inv(np.array(node["matrix"]).reshape(4, 4).T)
    lens = doc["cameras"][node["camera"]]["perspective"]
    xyz = np.frombuffer(binary, "<f4", 60).reshape(20, 3)
    local = xyz @ view[:3, :3].T + view[:3, 3]
    half = np.tan(lens["yfov"] / 2)
    ndc = local[:, :2] / -local[:, 2:] / (half * lens["aspectRatio"], half)
    pixels = (ndc * (1, -1) + 1) / 2 * (64, 48)
    ours = cloud.points.double() @ cameras.w2c[0, :3, :3].T + cameras.w2c[0, :3, 3]
    ours = (ours @ cameras.K[0].T).numpy()
    np.testing.assert_allclose(pixels, ours[:, :2] / ours[:, 2:], atol=1e-4)
    accessor = doc["accessors"][doc["meshes"][1]["primitives"][0]["attributes"]["POSITION"]]
    start = doc["bufferViews"][accessor["bufferView"]]["byteOffset"]
    corner = np.frombuffer(binary, "<f4", 15, start).reshape(5, 3)[3]  # bottom right
    np.testing.assert_allclose(corner, [0.5 * 32 / 60, -0.5 * 24 / 62, -0.5], rtol=1e-6)


def test_parts(tmp_path):
    write_glb(tmp_path / "a.glb", make_cloud(3))
    assert read_glb(tmp_path / "a.glb").names == ()
    write_glb(tmp_path / "a.glb", None, make_cameras(2), ("a", "b"))
    assert read_glb(tmp_path / "a.glb").points is None
    with pytest.raises(InputError, match="needs points or cameras, got neither"):
        write_glb(tmp_path / "b.glb", None)
    with pytest.raises(InputError, match="one name a camera, got 1 for 2"):
        write_glb(tmp_path / "b.glb", None, make_cameras(2), ("a",))
    cameras = make_cameras(2)
    cameras.w2c[0] = torch.nan
    with pytest.raises(InputError, match="cameras must be finite, got NaN; leave unregistered"):
        write_glb(tmp_path / "b.glb", None, cameras, ("a", "b"))


def test_color_curves_are_inverse():
    values = np.linspace(0, 1, 1001)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(values)), values, atol=1e-6)


def pack(doc, binary=b"", **lies):
    text = json.dumps(doc).encode() if isinstance(doc, dict) else doc
    head = struct.pack("<II", lies.get("json", len(text)), lies.get("kind", 0x4E4F534A)) + text
    tail = struct.pack("<II", lies.get("bin", len(binary)), 0x004E4942) + binary
    total = 12 + len(head) + len(tail)
    start = struct.pack(
        "<III", lies.get("magic", 0x46546C67), lies.get("version", 2), lies.get("total", total)
    )
    return start + head + tail


def points_document(**changes):
    accessor = {"bufferView": 0, "componentType": 5126, "count": 1, "type": "VEC3"}
    accessor |= {
        k: v for k, v in changes.items() if k in ("count", "type", "bufferView", "byteOffset")
    }
    view = {"buffer": 0, "byteLength": 12} | {k: v for k, v in changes.items() if k == "byteStride"}
    node = {"mesh": changes.get("mesh", 0)} | {
        k: v for k, v in changes.items() if k in ("matrix", "scale")
    }
    return {
        "nodes": changes.get("nodes", [node]),
        "meshes": [{"primitives": [{"mode": 0, "attributes": {"POSITION": 0}}]}],
        "accessors": [accessor],
        "bufferViews": [view],
    }


def test_smallest_valid_document(tmp_path):
    (tmp_path / "a.glb").write_bytes(pack(points_document(), struct.pack("<3f", 1, 2, 3)))
    cloud = read_glb(tmp_path / "a.glb").points
    assert cloud.points.tolist() == [[1, -2, -3]]
    assert cloud.colors.tolist() == [[0.5, 0.5, 0.5]]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "expected a GLB file that begins with glTF, got ''"),
        (pack({}, magic=7), "expected a GLB file that begins with glTF"),
        (pack({}, version=1), r"expected glTF 2 in \d+ bytes, got version 1"),
        (pack({}, total=99999), r"expected glTF 2 in 30 bytes, got version 2 in 99999 bytes"),
        (pack({}, json=2**32 - 1), "expected a JSON chunk that fits the file, got 4294967295"),
        (pack({}, kind=1), "expected a JSON chunk that fits the file, got 2 bytes of 0x1"),
        (pack({}, bin=2**32 - 1), "expected a binary chunk that fits the file, got 4294967295"),
        (pack(b"{nope"), "expected JSON in the first chunk"),
        (pack(b"[" * 100000), "expected JSON in the first chunk"),
        (pack(b"[]"), "expected a JSON object in the first chunk, got list"),
        (pack(b'{"nodes": 7}'), "expected a list of objects in nodes, got int"),
        (pack(points_document(count=2), bytes(12)), "expected 2 vectors within 12 bytes"),
        (pack(points_document(count=-1), bytes(12)), "expected a count in count, got -1"),
        (pack(points_document(count=1e9), bytes(12)), "expected a count in count, got 1000000000.0"),
        (pack(points_document(count=10**12 - 1), bytes(12)), "expected 999999999999 vectors"),
        (pack(points_document(byteStride=0), bytes(12)), "expected 1 vectors within 12 bytes"),
        (pack(points_document(byteOffset=4), bytes(12)), "expected 1 vectors within 12 bytes"),
        (pack(points_document(type="MAT4"), bytes(12)), "expected vectors of floats or colours"),
        (pack(points_document(mesh=3), bytes(12)), "expected one of 1 meshes, got 3"),
        (pack(points_document(mesh="0"), bytes(12)), "expected one of 1 meshes, got 0"),
        (pack(points_document(scale=[1, 1, 1]), bytes(12)), "nodes with a matrix only, got a scale"),
        (pack(points_document(matrix=[0] * 16), bytes(12)), "nodes with rigid matrices"),
        (pack(points_document(matrix=[float("nan")] * 16), bytes(12)), "expected 16 finite numbers"),
        (pack(points_document(), struct.pack("<3f", 1, float("nan"), 3)), "expected finite points"),
        (pack(points_document(nodes=[{"mesh": 0}] * 9), bytes(12)), "expected 1 vectors within 12"),
    ],
)  # fmt: skip
def test_hostile(tmp_path, raw, message):
    (tmp_path / "bad.glb").write_bytes(raw)
    with pytest.raises(FileFormatError, match=rf"^bad\.glb: .*{message}"):
        read_glb(tmp_path / "bad.glb")
    survives(read_glb, tmp_path / "bad.glb")


@given(data=st.data())
def test_damage(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("glb") / "a.glb"
    write_glb(path, make_cloud(3), make_cameras(1), ("a",))
    path.write_bytes(damage(data.draw, path.read_bytes()))
    survives(read_glb, path)
