import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import FileFormatError
from sightline.io.splat import read_splat, write_splat
from tests.io.hostile import damage, survives
from tests.io.test_ply import make_gaussians


def test_round_trip_within_the_quantisation(tmp_path):
    gaussians = make_gaussians(5000, 0)
    write_splat(tmp_path / "a.splat", gaussians)
    assert (tmp_path / "a.splat").stat().st_size == 5000 * 32
    back = read_splat(tmp_path / "a.splat")
    order = (-(gaussians.scales.double().log().sum(1) + gaussians.opacities.log())).argsort()
    assert torch.equal(back.means, gaussians.means[order])
    assert torch.equal(back.scales, gaussians.scales[order])
    assert (back.opacities - gaussians.opacities[order]).abs().max() <= 1 / 510 + 1e-6
    rgb = (0.5 + 0.28209479177387814 * gaussians.sh[order, 0]).clamp(0, 1)
    rgb_back = 0.5 + 0.28209479177387814 * back.sh[:, 0]
    assert (rgb_back - rgb).abs().max() <= 1 / 510 + 1e-6
    assert (back.quats - gaussians.quats[order]).abs().max() <= 1 / 128
    torch.testing.assert_close(back.quats.norm(dim=1), torch.ones(5000))


def test_bytes_are_exact(tmp_path):
    gaussians = make_gaussians(1, 3)
    gaussians.means[:] = torch.tensor([1.0, 2.0, 3.0])
    gaussians.scales[:] = torch.tensor([0.5, 0.25, 0.125])
    gaussians.opacities[:] = 0.2
    gaussians.sh[0, 0] = torch.tensor([0.0, 10.0, -10.0])
    gaussians.quats[0] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    write_splat(tmp_path / "a.splat", gaussians)
    expected = struct.pack("<6f8B", 1, 2, 3, 0.5, 0.25, 0.125, 128, 255, 0, 51, 255, 128, 128, 128)
    assert (tmp_path / "a.splat").read_bytes() == expected
    assert read_splat(tmp_path / "a.splat").quats.tolist() == [[1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (bytes(33), "expected one or more records of 32 bytes, got 33 bytes"),
        (b"", "expected one or more records of 32 bytes, got 0 bytes"),
        (struct.pack("<6f8B", *[float("nan")] * 6, *range(8)), "expected finite positions"),
        (struct.pack("<6f8B", 0, 0, 0, 1, 1, -1, *range(8)), "expected scales above 0, got -1"),
        (struct.pack("<6f8B", *[1] * 6, 0, 0, 0, 0, *[128] * 4), "expected rotations of length 1"),
    ],
)
def test_hostile(tmp_path, raw, message):
    (tmp_path / "bad.splat").write_bytes(raw)
    with pytest.raises(FileFormatError, match=rf"^bad\.splat: {message}"):
        read_splat(tmp_path / "bad.splat")


@given(data=st.data())
def test_damage(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("splat") / "a.splat"
    write_splat(path, make_gaussians(4))
    path.write_bytes(damage(data.draw, path.read_bytes()))
    survives(read_splat, path)
