import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import FileFormatError, InputError
from sightline.io.ply import (
    is_gaussian_ply,
    read_gaussian_ply,
    read_point_ply,
    write_gaussian_ply,
    write_point_ply,
)
from sightline.io.ply_table import read_ply_table
from sightline.types import Gaussians, PointCloud
from tests.io.hostile import damage, survives


def make_cloud(count=7, *, normals=False, confidence=False):
    g = torch.Generator().manual_seed(1)
    return PointCloud(
        points=torch.randn(count, 3, generator=g),
        colors=torch.randint(0, 256, (count, 3), generator=g) / 255,
        normals=torch.randn(count, 3, generator=g) if normals else None,
        confidence=1 + torch.rand(count, generator=g) if confidence else None,
    )


def make_gaussians(count=7, degree=3, *, antialiased=False):
    g = torch.Generator().manual_seed(2)
    return Gaussians(
        means=torch.randn(count, 3, generator=g),
        quats=torch.nn.functional.normalize(torch.randn(count, 4, generator=g), dim=1),
        scales=torch.rand(count, 3, generator=g) + 0.01,
        opacities=torch.rand(count, generator=g) * 0.98 + 0.01,
        sh=torch.randn(count, (degree + 1) ** 2, 3, generator=g) * 0.3,
        antialiased=antialiased,
    )


def write_raw(path, header, body=b""):
    path.write_bytes(("\n".join(["ply", *header, "end_header"]) + "\n").encode() + body)


XYZ = ["property float x", "property float y", "property float z"]
LITTLE = "format binary_little_endian 1.0"


def test_point_bytes_are_exact(tmp_path):
    cloud = PointCloud(
        points=torch.tensor([[1.0, 2.0, 3.0]]), colors=torch.tensor([[0.0, 0.5, 2.0]])
    )
    write_point_ply(tmp_path / "a.ply", cloud, comments=["made by a test"])
    expected = (
        b"ply\nformat binary_little_endian 1.0\ncomment made by a test\nelement vertex 1\n"
        b"property float x\nproperty float y\nproperty float z\n"
        b"property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n"
        + struct.pack("<3f3B", 1, 2, 3, 0, 128, 255)
    )
    assert (tmp_path / "a.ply").read_bytes() == expected


@pytest.mark.parametrize("ascii_text", [True, False])
@pytest.mark.parametrize("extras", [{}, {"normals": True, "confidence": True}])
@pytest.mark.parametrize("count", [0, 1, 20000])
def test_points_round_trip(tmp_path, ascii_text, extras, count):
    cloud = make_cloud(count, **extras)
    write_point_ply(tmp_path / "a.ply", cloud, ascii_text=ascii_text)
    back = read_point_ply(tmp_path / "a.ply")
    assert torch.equal(back.points, cloud.points)
    assert torch.equal(back.colors, cloud.colors)
    if extras and count:
        assert torch.equal(back.normals, cloud.normals)
        assert torch.equal(back.confidence, cloud.confidence)


@pytest.mark.parametrize("order", ["little", "big", "ascii"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("ragged", [True, False])
def test_reads_other_peoples_files(tmp_path, order, newline, ragged):
    """Faces before vertices, a list inside the vertex, doubles, extras, odd order of properties."""
    header = [
        f"format {'ascii' if order == 'ascii' else f'binary_{order}_endian'} 1.0",
        "comment hello",
        "obj_info world",
        "element face 2",
        "property list uchar int vertex_indices",
        "element nothing 5",
        "element vertex 2",
        "property uchar blue",
        "property double z",
        "property list ushort float weights",
        "property uchar green",
        "property double x",
        "property short quality",
        "property double y",
        "property uchar red",
        "element edge 1",
        "property int a",
    ]
    faces = [(0, 1, 0), (1, 0) if ragged else (1, 0, 1)]
    weights = [(0.5,), (0.25, 0.75) if ragged else (0.25,)]
    vertices = [(255, 3.5, 0, 1.5, -7, 2.5, 51), (0, -3.5, 255, -1.5, 9, -2.5, 102)]
    if order == "ascii":
        lines = [" ".join(map(str, (len(f), *f))) for f in faces]
        lines += [""] * 5
        for (b, z, *rest), w in zip(vertices, weights, strict=True):
            lines.append(" ".join(map(str, (b, z, len(w), *w, *rest))))
        body = newline.join([*lines, "7"]).encode()
    else:
        e = {"little": "<", "big": ">"}[order]
        body = b"".join(struct.pack(f"{e}B{len(f)}i", len(f), *f) for f in faces)
        for (b, z, *rest), w in zip(vertices, weights, strict=True):
            body += struct.pack(f"{e}BdH{len(w)}fBdhdB", b, z, len(w), *w, *rest)
        body += struct.pack(f"{e}i", 7)
    head = newline.join(["ply", *header, "end_header", ""]).encode()
    (tmp_path / "a.ply").write_bytes(head + body)
    cloud = read_point_ply(tmp_path / "a.ply")
    assert cloud.points.tolist() == [[1.5, 2.5, 3.5], [-1.5, -2.5, -3.5]]
    torch.testing.assert_close(cloud.colors, torch.tensor([[51, 0, 255], [102, 255, 0]]) / 255)
    assert read_ply_table(tmp_path / "a.ply").comments == ("hello", "world")


@pytest.mark.parametrize(
    ("kind", "code", "values"),
    [("uchar", "B", (0, 51, 255)), ("ushort", "H", (0, 13107, 65535)), ("float", "f", (0, 0.2, 1))],
)
def test_colors_of_all_kinds(tmp_path, kind, code, values):
    header = [LITTLE, "element vertex 1", *XYZ]
    header += [f"property {kind} {c}" for c in "rgb"]
    write_raw(tmp_path / "a.ply", header, struct.pack(f"<3f3{code}", 1, 2, 3, *values))
    colors = read_point_ply(tmp_path / "a.ply").colors
    torch.testing.assert_close(colors, torch.tensor([[0.0, 0.2, 1.0]]))


def test_no_colors_are_grey_and_splats_give_theirs(tmp_path):
    write_raw(tmp_path / "a.ply", [LITTLE, "element vertex 1", *XYZ], bytes(12))
    assert read_point_ply(tmp_path / "a.ply").colors.tolist() == [[0.5, 0.5, 0.5]]
    gaussians = make_gaussians()
    write_gaussian_ply(tmp_path / "b.ply", gaussians)
    cloud = read_point_ply(tmp_path / "b.ply")
    expected = (0.5 + 0.28209479177387814 * gaussians.sh[:, 0]).clamp(0, 1)
    torch.testing.assert_close(cloud.colors, expected)
    assert cloud.normals is None
    assert is_gaussian_ply(tmp_path / "b.ply")
    assert not is_gaussian_ply(tmp_path / "a.ply")


@pytest.mark.parametrize(("degree", "size"), [(0, 68), (1, 104), (2, 164), (3, 248)])
@pytest.mark.parametrize("antialiased", [True, False])
def test_gaussians_round_trip(tmp_path, degree, size, antialiased):
    gaussians = make_gaussians(9000, degree, antialiased=antialiased)
    write_gaussian_ply(tmp_path / "a.ply", gaussians)
    raw = (tmp_path / "a.ply").read_bytes()
    assert len(raw) - raw.index(b"end_header\n") - 11 == 9000 * size
    assert (b"comment SplatRenderMode: mip\n" in raw) == antialiased
    back = read_gaussian_ply(tmp_path / "a.ply")
    assert back.antialiased == antialiased
    assert torch.equal(back.means, gaussians.means)
    assert torch.equal(back.sh, gaussians.sh)
    torch.testing.assert_close(back.quats, gaussians.quats)
    torch.testing.assert_close(back.scales, gaussians.scales)
    torch.testing.assert_close(back.opacities, gaussians.opacities)


def test_gaussian_raw_values_and_order(tmp_path):
    gaussians = make_gaussians(1)
    write_gaussian_ply(tmp_path / "a.ply", gaussians)
    table = read_ply_table(tmp_path / "a.ply")
    names = [*"xyz", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3))]
    names += [*(f"f_rest_{i}" for i in range(45)), "opacity"]
    names += [*(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    assert list(table.names) == names
    row = dict(zip(names, table.columns(names)[0].tolist(), strict=True))
    for channel in range(3):
        for k in range(1, 16):
            assert row[f"f_rest_{channel * 15 + k - 1}"] == gaussians.sh[0, k, channel].item()
    assert row["opacity"] == pytest.approx(torch.logit(gaussians.opacities[0]).item(), rel=1e-5)
    assert row["scale_1"] == pytest.approx(gaussians.scales[0, 1].log().item(), rel=1e-5)
    assert row["rot_0"] == pytest.approx(gaussians.quats[0, 0].item())


def test_opacity_zero_and_one_stay_finite(tmp_path):
    gaussians = make_gaussians(2, 0)
    gaussians.opacities[:] = torch.tensor([0.0, 1.0])
    write_gaussian_ply(tmp_path / "a.ply", gaussians)
    opacities = read_gaussian_ply(tmp_path / "a.ply").opacities
    torch.testing.assert_close(opacities, torch.tensor([1e-6, 1 - 1e-6]))


def test_gaussians_by_name_in_any_order_without_normals(tmp_path):
    """As gsplat and Brush write them, shuffled, as doubles, with a property of their own."""
    gaussians = make_gaussians(5)
    write_gaussian_ply(tmp_path / "a.ply", gaussians)
    table = read_ply_table(tmp_path / "a.ply")
    names = [n for n in table.names if n not in ("nx", "ny", "nz")]
    order = np.random.default_rng(0).permutation(len(names))
    names = [names[i] for i in order]
    body = np.empty(5, [(n, ">f8") for n in [*names, "extra"]])
    for name in names:
        body[name] = table.columns([name])[:, 0]
    header = ["format binary_big_endian 1.0", "element vertex 5"]
    header += [f"property double {n}" for n in [*names, "extra"]]
    write_raw(tmp_path / "b.ply", header, body.tobytes())
    back = read_gaussian_ply(tmp_path / "b.ply")
    assert torch.equal(back.sh, gaussians.sh)
    torch.testing.assert_close(back.quats, gaussians.quats)


def test_degree_four_is_cut_with_a_notice(tmp_path, caplog):
    gaussians = make_gaussians(3, 4)
    write_gaussian_ply(tmp_path / "a.ply", gaussians)
    assert "colours cut from degree 4 to degree 3" in caplog.text
    assert torch.equal(read_gaussian_ply(tmp_path / "a.ply").sh, gaussians.sh[:, :16])
    caplog.clear()
    write_gaussian_ply(tmp_path / "a.ply", gaussians, sh_degree=4)
    assert not caplog.text
    assert torch.equal(read_gaussian_ply(tmp_path / "a.ply").sh, gaussians.sh[:, :16])
    assert "a.ply: colours cut from degree 4" in caplog.text
    write_gaussian_ply(tmp_path / "a.ply", gaussians, sh_degree=1)
    assert torch.equal(read_gaussian_ply(tmp_path / "a.ply").sh, gaussians.sh[:, :4])


def test_unnormalised_quaternions_are_normalised(tmp_path):
    gaussians = make_gaussians(3, 0)
    write_gaussian_ply(tmp_path / "a.ply", gaussians)
    raw = bytearray((tmp_path / "a.ply").read_bytes())
    raw[-16:] = struct.pack("<4f", 0, 3e30, 0, 4e30)
    (tmp_path / "a.ply").write_bytes(raw)
    last = read_gaussian_ply(tmp_path / "a.ply").quats[-1]
    torch.testing.assert_close(last, torch.tensor([0, 0.6, 0, 0.8]))


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        (["format binary_little_endian 1.0", "element vertex 1000000", *XYZ], bytes(10),
         r"expected 1000000 records of vertex, got a file too short"),
        (["format ascii 1.0", "element vertex 1000000", *XYZ], b"1 2 3",
         r"expected 1000000 records of vertex, got a file too short"),
        (["format ascii 1.0", "element vertex 2", *XYZ], b"1.0 2.0 3.0\n4 5",
         r"expected 2 lines of 3 numbers, got text that is not"),
        (["format ascii 1.0", "element vertex 1", *XYZ], b"1 2 three",
         r"expected 1 lines of 3 numbers, got text that is not"),
        ([LITTLE, "element vertex -5", *XYZ], b"", r"expected a line like: element vertex 100"),
        ([LITTLE, "element vertex 9e9", *XYZ], b"", r"expected a line like: element vertex 100"),
        ([LITTLE, "element vertex 99999999999999999999", *XYZ], b"", r"expected a line like"),
        ([LITTLE, "element face 1", "property int a"], b"", r"an element named vertex, got face"),
        ([LITTLE, "element vertex 0", "property float x"], b"", r"got no y, z"),
        ([LITTLE, "element vertex 0", "property quad x"], b"", r"property float x, got 'property q"),
        ([LITTLE, "element vertex 0", "property float x", "property int x"], b"", r"unlike names"),
        ([LITTLE, "element vertex 0", "element vertex 0"], b"", r"elements of unlike names"),
        (["element vertex 0", *XYZ], b"", r"expected a format line in the header, got none"),
        (["format binary_middle_endian 1.0"], b"", r"got the line 'format binary_middle_endian"),
        ([LITTLE, "element vertex 1", *XYZ], struct.pack("<3f", 1, float("nan"), 2),
         r"expected finite x y z, got NaN or infinity in vertex 0"),
        ([LITTLE, "element vertex 1", "property list int float w", *XYZ],
         struct.pack("<i", -1) + bytes(20), r"expected a list w that fits the file, got length -1"),
        ([LITTLE, "element vertex 1", "property list uint double w", *XYZ],
         struct.pack("<I", 2**32 - 1) + bytes(20), r"got length 4294967295"),
        ([LITTLE, "element vertex 1", "property list float float w"], b"", r"property float x"),
        (["format ascii 1.0", "element vertex 1", "property list uchar float w", *XYZ],
         b"9 1 2 3 4 5 6\n", r"expected 1 lines of 3 numbers"),
    ],
)  # fmt: skip
def test_hostile_headers(tmp_path, header, body, message):
    write_raw(tmp_path / "bad.ply", header, body)
    with pytest.raises(FileFormatError, match=r"^bad\.ply: .*" + message):
        read_point_ply(tmp_path / "bad.ply")
    survives(read_point_ply, tmp_path / "bad.ply")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", r'expected a PLY file that begins with "ply", got \'\''),
        (b"\x89PNG\r\n", r"expected a PLY file"),
        (b"ply\nformat ascii 1.0\nelement vertex 3", r"ends with end_header, got no such line"),
        (b"ply\n" + b"comment x\n" * 200000, r"ends with end_header, got no such line"),
    ],
)
def test_not_a_ply(tmp_path, raw, message):
    (tmp_path / "bad.ply").write_bytes(raw)
    with pytest.raises(FileFormatError, match=message):
        read_point_ply(tmp_path / "bad.ply")


def test_gaussian_reader_names_what_is_wrong(tmp_path):
    path = tmp_path / "a.ply"
    write_point_ply(path, make_cloud())
    with pytest.raises(FileFormatError, match=r"got no f_dc_0, f_dc_1, f_dc_2; export it again"):
        read_gaussian_ply(path)
    write_raw(path, [LITTLE, "element vertex 0", "property uint packed_position"])
    with pytest.raises(FileFormatError, match="SuperSplat's compressed PLY; convert it"):
        read_gaussian_ply(path)
    write_raw(path, [LITTLE, "element vertex 0", *XYZ, "property float f_rest_0"])
    with pytest.raises(FileFormatError, match="0, 9, 24, 45 or 72 f_rest properties, got 1"):
        read_gaussian_ply(path)
    with pytest.raises(InputError, match="there is no file"):
        read_gaussian_ply(tmp_path / "none.ply")
    for field, at, value, message in [
        ("x", -68, float("inf"), "finite positions, got NaN or infinity in splat 2"),
        ("scale_0", -28, 1000.0, "finite scales"),
        ("f_dc_0", -44, float("nan"), "finite colours"),
    ]:
        write_gaussian_ply(path, make_gaussians(3, 0))
        raw = bytearray(path.read_bytes())
        raw[len(raw) + at : len(raw) + at + 4] = struct.pack("<f", value)
        path.write_bytes(raw)
        with pytest.raises(FileFormatError, match=message):
            read_gaussian_ply(path)
        assert field in read_ply_table(path).names
    write_gaussian_ply(path, make_gaussians(3, 0))
    path.write_bytes(path.read_bytes()[:-16] + bytes(16))
    with pytest.raises(FileFormatError, match="rotations of length 1, got length 0 in splat 2"):
        read_gaussian_ply(path)


def test_writers_refuse_what_cannot_be_drawn(tmp_path):
    cloud = make_cloud()
    cloud.points[3, 1] = torch.nan
    with pytest.raises(InputError, match="points must have finite xyz"):
        write_point_ply(tmp_path / "a.ply", cloud)
    with pytest.raises(InputError, match="single ASCII lines"):
        write_point_ply(tmp_path / "a.ply", make_cloud(), comments=["a\nend_header"])
    gaussians = make_gaussians()
    gaussians.scales[0, 0] = 0
    with pytest.raises(InputError, match="splats must have scales above 0, got 0"):
        write_gaussian_ply(tmp_path / "a.ply", gaussians)
    assert list(tmp_path.iterdir()) == []


@given(data=st.data())
@pytest.mark.parametrize("kind", ["points", "text", "splats", "lists"])
def test_damage(tmp_path_factory, kind, data):
    path = tmp_path_factory.mktemp("ply") / "a.ply"
    if kind == "splats":
        write_gaussian_ply(path, make_gaussians(3, 1))
    elif kind == "lists":
        header = [LITTLE, "element face 2", "property list uchar int v", "element vertex 2"]
        body = struct.pack("<B3iB2i", 3, 0, 1, 0, 2, 1, 0) + struct.pack(
            "<H2f3fH1f3f", 2, *[1.0] * 5, 1, *[1.0] * 4
        )
        write_raw(path, [*header, "property list ushort float w", *XYZ], body)
    else:
        write_point_ply(path, make_cloud(3, confidence=True), ascii_text=kind == "text")
    path.write_bytes(damage(data.draw, path.read_bytes()))
    survives(read_gaussian_ply if kind == "splats" else read_point_ply, path)


def test_many_splats_survive(tmp_path):
    gaussians = make_gaussians(200_000)
    write_gaussian_ply(tmp_path / "a.ply", gaussians)
    again = read_gaussian_ply(tmp_path / "a.ply")
    torch.testing.assert_close(again.means, gaussians.means)
