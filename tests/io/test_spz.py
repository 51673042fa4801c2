import gzip
import importlib.util
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import FileFormatError, InputError
from sightline.geometry.rotation import quat_to_matrix
from sightline.geometry.sh import evaluate_sh
from sightline.io.spz import read_spz, write_spz
from sightline.types import Gaussians
from tests.io.hostile import damage, survives
from tests.io.test_ply import make_gaussians

has_zstd = importlib.util.find_spec("zstandard") is not None
VERSIONS = [3, pytest.param(4, marks=pytest.mark.skipif(not has_zstd, reason="no zstandard"))]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("antialiased", [True, False])
def test_round_trip_within_the_quantisation(tmp_path, version, degree, antialiased):
    gaussians = make_gaussians(5000, degree, antialiased=antialiased)
    write_spz(tmp_path / "a.spz", gaussians, version=version)
    back = read_spz(tmp_path / "a.spz")
    assert back.antialiased == antialiased
    assert (back.means - gaussians.means).abs().max() <= 1.3e-4
    assert (back.scales.log() - gaussians.scales.log()).abs().max() <= 1 / 32 + 1e-5
    assert (back.opacities - gaussians.opacities).abs().max() <= 1 / 510 + 1e-6
    assert (back.sh[:, 0] - gaussians.sh[:, 0]).abs().max() <= 0.0131
    if degree:
        assert (
            back.sh[:, 1:4] - gaussians.sh[:, 1:4].clamp(-1, 127 / 128)
        ).abs().max() <= 4.5 / 128
        assert (back.sh[:, 1:] - gaussians.sh[:, 1:].clamp(-1, 127 / 128)).abs().max() <= 8.5 / 128
    same = (back.quats * gaussians.quats).sum(1, keepdim=True).sign()
    # Three components within half a step; the fourth follows from them.
    assert (back.quats * same - gaussians.quats).abs().max() <= 3**0.5 / (2 * 511 * 2**0.5) * 1.5
    turn = quat_to_matrix(back.quats).mT @ quat_to_matrix(gaussians.quats)
    angle = torch.rad2deg(torch.acos(((turn.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1)))
    assert angle.max() < 0.35


def test_finer_precision_on_request(tmp_path):
    gaussians = make_gaussians(1000, 2)
    gaussians.sh.clamp_(-0.99, 0.99)
    write_spz(tmp_path / "a.spz", gaussians, sh_bits=(8, 8), fractional_bits=20)
    back = read_spz(tmp_path / "a.spz")
    assert (back.means - gaussians.means).abs().max() <= 2**-21 * 1.1
    assert (back.sh[:, 1:] - gaussians.sh[:, 1:]).abs().max() <= 1 / 256 + 1e-6


def test_wide_scenes_lose_precision_instead_of_being_clipped(tmp_path):
    gaussians = make_gaussians(10, 0)
    gaussians.means[0] = torch.tensor([100_000.0, -5.0, 4000.0])
    write_spz(tmp_path / "a.spz", gaussians)
    assert (read_spz(tmp_path / "a.spz").means - gaussians.means).abs().max() <= 2**-7
    gaussians.means[0, 0] = 1e9
    with pytest.raises(InputError, match="coordinates up to 8 million, got 1e\\+09; scale the"):
        write_spz(tmp_path / "a.spz", gaussians)


def test_bytes_are_as_specified_and_axes_are_rub(tmp_path):
    gaussians = make_gaussians(1, 1)
    gaussians.means[0] = torch.tensor([1.0, 2.0, -3.0])
    gaussians.opacities[:] = 0.2
    gaussians.scales[:] = torch.tensor([1.0, 2.718281828, 0.1])
    gaussians.quats[0] = torch.tensor([0.1, -0.7, 0.5, 0.5])
    gaussians.sh[0, 0] = torch.tensor([0.0, 1.0, -1.0])
    gaussians.sh[0, 1:] = torch.tensor([[0.5, 0.25, 0.125], [0.5, 0.25, 0.125], [0.5, -0.25, 1.0]])
    write_spz(tmp_path / "a.spz", gaussians, sh_bits=(8, 8))
    raw = gzip.decompress((tmp_path / "a.spz").read_bytes())
    assert raw[:16] == struct.pack("<4sIIBBBB", b"NGSP", 3, 1, 1, 12, 0, 0)
    positions = [
        int.from_bytes(raw[16 + 3 * i : 19 + 3 * i], "little", signed=True) for i in range(3)
    ]
    assert positions == [4096, -8192, 3 * 4096]  # y and z change sign
    assert raw[25] == 51
    assert list(raw[26:29]) == [128, 166, 89]
    assert list(raw[29:32]) == [160, 176, 123]
    # x y z w = -0.7 -0.5 -0.5 0.1 in RUB: x is largest and negative, so the others change sign.
    word = int.from_bytes(raw[32:36], "little")
    magnitudes = [round(511 * v * 2**0.5) for v in (0.5, 0.5, 0.1)]
    assert word >> 30 == 0
    assert [word >> 20 & 1023, word >> 10 & 1023, word & 1023] == [
        magnitudes[0], magnitudes[1], magnitudes[2] | 512
    ]  # fmt: skip
    signs = (-1, -1, 1)
    coefficients = gaussians.sh[0, 1:].tolist()
    expected = [s * v * 128 + 128 for s, row in zip(signs, coefficients, strict=True) for v in row]
    assert list(raw[36:]) == [min(255, round(v)) for v in expected]


def test_axes_keep_the_look(tmp_path):
    """Colours seen from a direction, and covariances, agree after undoing the turn by hand."""
    gaussians = make_gaussians(200, 3)
    write_spz(tmp_path / "a.spz", gaussians, sh_bits=(8, 8))
    raw = gzip.decompress((tmp_path / "a.spz").read_bytes())
    count = 200
    at = 16 + count * (9 + 1 + 3 + 3 + 4)
    higher = np.frombuffer(raw[at:], np.uint8).reshape(count, 15, 3).astype(np.float32)
    sh = torch.cat([gaussians.sh[:, :1], torch.from_numpy((higher - 128) / 128)], 1)
    directions = torch.nn.functional.normalize(torch.randn(count, 3), dim=1)
    turned = directions * torch.tensor([1.0, -1.0, -1.0])
    seen = evaluate_sh(gaussians.sh, directions)
    assert (evaluate_sh(sh, turned) - seen).abs().max() < 16 * 0.6 / 256
    back = read_spz(tmp_path / "a.spz")
    for a, b in zip(back.quats, gaussians.quats, strict=True):
        torch.testing.assert_close(quat_to_matrix(a), quat_to_matrix(b), atol=5e-3, rtol=0)


def test_version_two_is_read(tmp_path):
    """Positions, opacity, colour, scale as in version 3; rotations are x y z in bytes."""
    body = b"".join([
        (4096).to_bytes(3, "little"), (-4096 & 0xFFFFFF).to_bytes(3, "little"), bytes(3),
        bytes([255]), bytes([128, 128, 128]), bytes([160, 160, 160]),
        bytes([round(127.5 * (v + 1)) for v in (0.6, 0.0, 0.0)]),
    ])  # fmt: skip
    header = struct.pack("<4sIIBBBB", b"NGSP", 2, 1, 0, 12, 1, 0)
    (tmp_path / "a.spz").write_bytes(gzip.compress(header + body))
    back = read_spz(tmp_path / "a.spz")
    assert back.antialiased
    assert back.means.tolist() == [[1, 1, 0]]
    assert back.scales.tolist() == [[1, 1, 1]]
    torch.testing.assert_close(back.quats, torch.tensor([[0.8, 0.6, 0, 0]]), atol=0.01, rtol=0)


def test_same_splats_same_bytes(tmp_path):
    for name in ("a.spz", "b.spz"):
        write_spz(tmp_path / name, make_gaussians(50))
    assert (tmp_path / "a.spz").read_bytes() == (tmp_path / "b.spz").read_bytes()


def test_version_four_without_its_package(tmp_path, monkeypatch):
    if has_zstd:
        write_spz(tmp_path / "a.spz", make_gaussians(1), version=4)
    else:
        body = struct.pack("<4sIIBBBBI12x", b"NGSP", 4, 1, 0, 12, 0, 5, 32)
        body += struct.pack("<10Q", 0, 9, 0, 1, 0, 3, 0, 3, 0, 4)
        (tmp_path / "a.spz").write_bytes(body)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="writing .spz version 4 needs the zstandard package: pip"):
        write_spz(tmp_path / "b.spz", make_gaussians(1), version=4)
    with pytest.raises(InputError, match="reading .spz version 4 needs the zstandard package"):
        read_spz(tmp_path / "a.spz")
    with pytest.raises(InputError, match="version 3 or 4, got 1"):
        write_spz(tmp_path / "b.spz", make_gaussians(1), version=1)


def header(version=3, count=1, degree=0, bits=12):
    return struct.pack("<4sIIBBBB", b"NGSP", version, count, degree, bits, 0, 0)


BOMB = zlib.compressobj(9, zlib.DEFLATED, 31)
BOMB_BYTES = (
    BOMB.compress(header(count=2_000_000_000)) + BOMB.compress(bytes(50 << 20)) + BOMB.flush()
)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", r"expected an \.spz file \(gzip or NGSP\), got ''"),
        (b"PK\3\4", r"expected an \.spz file"),
        (gzip.compress(b"hello"), "expected the magic NGSP, got 'hell'"),
        (gzip.compress(header(version=1) + bytes(20)), "expected version 2, 3 or 4, got 1; save"),
        (gzip.compress(header(degree=5) + bytes(20)), "expected degree 0 to 4"),
        (gzip.compress(header(count=0)), "expected one or more splats, got none"),
        (gzip.compress(header() + bytes(19)), "expected 20 bytes of 1 splats, got 19"),
        (gzip.compress(header() + bytes(21)), "expected 20 bytes of 1 splats, got more"),
        (gzip.compress(header() + bytes(20))[:-4], "expected a gzip stream with a checksum"),
        (gzip.compress(header() + bytes(20))[:15] + b"\xff" * 9, "expected"),
        (BOMB_BYTES, r"expected at most \d+ unpacked bytes, got 40000000000"),
        (gzip.compress(header() + bytes(200 << 20)), "expected 20 bytes of 1 splats, got more"),
        (b"NGSP\4\0\0\0", "expected a header of 32 bytes, got 8 bytes"),
        (b"NGSP\3" + bytes(40), "expected version 4 after a plain header, got 3"),
        (struct.pack("<4sIIBBBBI12x", b"NGSP", 4, 1, 0, 12, 0, 5, 32), "expected a table of 5"),
        (
            struct.pack("<4sIIBBBBI12x", b"NGSP", 4, 1, 0, 12, 0, 5, 32) + struct.pack("<10Q", *range(10)),
            "expected streams of",
        ),
    ],
)  # fmt: skip
def test_hostile(tmp_path, raw, message):
    (tmp_path / "bad.spz").write_bytes(raw)
    with pytest.raises(FileFormatError, match=rf"^bad\.spz: {message}"):
        read_spz(tmp_path / "bad.spz")
    survives(read_spz, tmp_path / "bad.spz")


@pytest.mark.skipif(not has_zstd, reason="no zstandard")
def test_zstd_bomb(tmp_path):
    import zstandard

    frame = zstandard.ZstdCompressor().compress(bytes(100 << 20))
    raw = struct.pack("<4sIIBBBBI12x", b"NGSP", 4, 1, 0, 12, 0, 5, 32)
    raw += struct.pack("<10Q", len(frame), 9, 0, 1, 0, 3, 0, 3, 0, 4) + frame
    (tmp_path / "bad.spz").write_bytes(raw)
    with pytest.raises(FileFormatError, match="expected a stream of 9 bytes, got 10 or more"):
        read_spz(tmp_path / "bad.spz")
    survives(read_spz, tmp_path / "bad.spz")


@given(data=st.data())
@pytest.mark.parametrize("version", VERSIONS)
def test_damage(tmp_path_factory, version, data):
    path = tmp_path_factory.mktemp("spz") / "a.spz"
    write_spz(path, make_gaussians(5, 1), version=version)
    raw = path.read_bytes()
    if version == 3 and data.draw(st.booleans()):  # damage below the checksum too
        raw = gzip.compress(damage(data.draw, gzip.decompress(raw)))
    else:
        raw = damage(data.draw, raw)
    path.write_bytes(raw)
    survives(read_spz, path)


def test_types(tmp_path):
    write_spz(tmp_path / "a.spz", make_gaussians(3, 4))
    back = read_spz(tmp_path / "a.spz")
    assert isinstance(back, Gaussians)
    assert back.sh.dtype == torch.float32
    assert back.sh_degree == 3
