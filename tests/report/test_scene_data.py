import base64
import math
import zlib

import numpy as np
import pytest
import torch

from sightline.geometry.rotation import quat_to_matrix
from sightline.report.scene_data import affordable_degree, encode_table, pack_gaussians, pack_points
from sightline.types import PointCloud
from tests.report.fake import ring_cloud, ring_gaussians


def unpack(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    return np.stack([(words >> (bits * i)) & (2**bits - 1) for i in range(count)], 1)


def quats_of(words: np.ndarray) -> torch.Tensor:
    others = (unpack(words, 10, 3) / 1023 - 0.5) * math.sqrt(2)
    largest = words >> 30
    quats = np.zeros((len(words), 4))
    for i in range(len(words)):
        slots = [k for k in range(4) if k != largest[i]]
        quats[i, slots] = others[i]
        quats[i, largest[i]] = math.sqrt(max(0.0, 1 - (others[i] ** 2).sum()))
    return torch.from_numpy(quats)


def by_position(positions: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Rows of ``reference`` in the order of ``positions``: packing reorders splats."""
    index = {row.tobytes(): i for i, row in enumerate(reference)}
    return np.array([index[row.tobytes()] for row in positions])


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_packing_keeps_splats_within_the_stated_steps(degree: int) -> None:
    gaussians = ring_gaussians(500, degree=3)
    packed = pack_gaussians(gaussians, max_splats=1000, max_degree=degree)
    header = packed.header
    assert (header["count"], header["total"], header["degree"]) == (500, 500, degree)

    geometry = packed.tables["geometry"].view(np.uint32)
    positions = geometry[:, :3].copy().view(np.float32)
    order = by_position(positions, gaussians.means.numpy())  # exact
    turned = quat_to_matrix(quats_of(geometry[:, 3]))
    wanted = quat_to_matrix(gaussians.quats[order].double())
    cosine = ((turned * wanted).sum((1, 2)) - 1) / 2
    assert torch.rad2deg(cosine.clamp(-1, 1).arccos()).max() < 0.2

    shape = packed.tables["shape"].view(np.uint32)
    low, high = header["scales"]
    logs = low + unpack(shape[:, 0], 10, 3) / 1023 * (high - low)
    step = (high - low) / 1023
    assert np.abs(logs - gaussians.scales.log().numpy()[order]).max() <= 0.51 * step
    rgba = unpack(shape[:, 1], 8, 4)
    low, high = header["colors"]
    colors = 0.5 + 0.28209479177387814 * gaussians.sh[order, 0].numpy()
    assert (
        np.abs(low + rgba[:, :3] / 255 * (high - low) - colors).max() <= 0.51 * (high - low) / 255
    )
    assert np.abs(rgba[:, 3] / 255 - gaussians.opacities.numpy()[order]).max() <= 0.51 / 255

    if degree == 0:
        assert "harmonics" not in packed.tables
        return
    table = packed.tables["harmonics"]
    assert table.shape == (500, 16 * degree)
    many = (degree + 1) ** 2 - 1
    coefficients = table.view(np.int8)[:, : 3 * many].reshape(500, many, 3).astype(np.float64)
    for band in range(1, degree + 1):
        rows = slice(band**2 - 1, (band + 1) ** 2 - 1)
        step = header["bands"][band - 1]
        wanted = (
            gaussians.sh[order, band**2 : (band + 1) ** 2].numpy().clip(-127 * step, 127 * step)
        )
        assert np.abs(coefficients[:, rows] * step - wanted).max() <= 0.51 * step


def test_many_splats_have_simpler_colours() -> None:
    assert [affordable_degree(n) for n in (0, 300_000, 400_000, 600_000, 10**6, 10**7)] == [
        3, 3, 2, 1, 0, 0
    ]  # fmt: skip


def test_the_smallest_splats_are_dropped_first() -> None:
    gaussians = ring_gaussians(300, degree=0)
    big = gaussians.scales.clone()
    big[:100] *= 10
    gaussians = type(gaussians)(
        means=gaussians.means, quats=gaussians.quats, scales=big,
        opacities=torch.full((300,), 0.5), sh=gaussians.sh,
    )  # fmt: skip
    packed = pack_gaussians(gaussians, max_splats=100, max_degree=3)
    positions = packed.tables["geometry"].view(np.uint32)[:, :3].copy().view(np.float32)
    assert sorted(by_position(positions, gaussians.means.numpy())) == list(range(100))
    assert (packed.header["count"], packed.header["total"]) == (100, 300)


def test_splats_that_cannot_be_drawn_are_left_out() -> None:
    gaussians = ring_gaussians(50)
    gaussians.means[3, 1] = torch.nan
    gaussians.scales[4, 0] = torch.inf
    gaussians.quats[5] = 0
    gaussians.opacities[6] = 0.001
    gaussians.sh[7, 1, 2] = torch.nan
    assert pack_gaussians(gaussians, max_splats=100, max_degree=3).header["count"] == 45


def test_nothing_but_bad_splats_packs_to_an_empty_table() -> None:
    gaussians = ring_gaussians(10)
    gaussians.means[:] = torch.nan
    assert pack_gaussians(gaussians, max_splats=100, max_degree=1).header["count"] == 0


def test_points_come_most_confident_first() -> None:
    cloud = ring_cloud(400)
    assert cloud.confidence is not None
    cloud.points[7] = torch.inf
    cloud.confidence[8] = torch.nan
    packed = pack_points(cloud, max_points=1000)
    assert (packed.header["count"], packed.header["total"]) == (399, 400)
    assert packed.header["shown"][:2] == [399, 396]
    assert packed.header["shown"][50] == 200
    assert len(packed.header["shown"]) == 100
    positions = packed.tables["positions"].view(np.float32)
    order = by_position(positions, cloud.points.numpy())
    confidence = cloud.confidence[torch.from_numpy(order)]
    assert order[-1] == 8
    assert bool((confidence[:-2] >= confidence[1:-1]).all())
    colors = (cloud.colors[order] * 255).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(packed.tables["point_colors"], colors)


def test_points_are_thinned_evenly() -> None:
    points = torch.arange(3000.0).reshape(1000, 3)
    cloud = PointCloud(points=points, colors=torch.zeros(1000, 3))
    packed = pack_points(cloud, max_points=100)
    positions = packed.tables["positions"].view(np.float32)
    assert packed.header["count"] == 100
    assert packed.header["shown"] is None
    gaps = np.diff(positions[:, 0])
    assert gaps.min() >= 27
    assert gaps.max() <= 33
    assert (positions[0, 0], positions[-1, 0]) == (0, 2997)


def test_equally_confident_points_are_hidden_together() -> None:
    cloud = PointCloud(
        points=torch.rand(10, 3), colors=torch.rand(10, 3),
        confidence=torch.tensor([2.0, 2, 2, 2, 2, 3, 3, 3, 4, 4]),
    )  # fmt: skip
    counts = pack_points(cloud, max_points=100).header["shown"]
    assert counts[49] == 10
    assert counts[50] == counts[79] == 5
    assert counts[80] == counts[99] == 2


def test_tables_travel_as_byte_planes() -> None:
    table = np.arange(12, dtype=np.uint8).reshape(3, 4)
    planes = zlib.decompress(base64.b64decode(encode_table(table)))
    assert planes == bytes([0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11])
