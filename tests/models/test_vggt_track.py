import torch
from torch.nn import functional

from sightline.models.vggt_track import Tracker, embed_flow, point_positions, sample_map


def tracker() -> Tracker:
    return Tracker(
        latent_dim=8,
        corr_levels=2,
        corr_radius=1,
        hidden_size=16,
        depth=1,
        num_heads=2,
        num_virtual_tracks=3,
    ).eval()


def test_reading_before_multiplying_equals_the_full_correlation() -> None:
    model = tracker()
    maps, features = torch.randn(1, 2, 8, 9, 11), torch.randn(1, 2, 4, 8)
    coords = torch.rand(1, 2, 4, 2) * torch.tensor([14.0, 12.0]) - 2.0
    pyramid = [maps.flatten(0, 1)]
    pyramid.append(functional.avg_pool2d(pyramid[0], 2, stride=2))
    found = model._correlate(pyramid, features, coords)
    shifts = torch.tensor([[y, x] for y in (-1, 0, 1) for x in (-1, 0, 1)], dtype=torch.float32)
    for level, level_maps in enumerate(pyramid):
        whole = torch.einsum("fnc,fchw->fnhw", features[0], level_maps) / 8**0.5
        for point in range(4):
            where = coords[0, :, point, None, None] / 2**level + shifts
            want = sample_map(whole[:, point : point + 1], where, "zeros")[:, 0, 0]
            mine = found[0, :, point, 9 * level : 9 * level + 9]
            assert torch.allclose(mine, want, atol=1e-5)


def test_position_table_is_read_like_a_map() -> None:
    height, width, dim = 5, 7, 12
    points = torch.rand(1, 20, 2) * torch.tensor([9.0, 7.0]) - 1.0
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    whole = point_positions(torch.stack((x, y), -1).view(1, -1, 2), dim, height, width)
    table = whole.view(1, 5, 7, 12).permute(0, 3, 1, 2)
    want = sample_map(table, points.unsqueeze(2), "border")[0, :, :, 0].T
    assert torch.allclose(point_positions(points, dim, height, width)[0], want, atol=1e-5)
    assert torch.allclose(table[0, 0], x.sin(), atol=1e-6)
    assert torch.allclose(table[0, 9], y.cos(), atol=1e-6)


def test_flow_embedding_alternates() -> None:
    out = embed_flow(torch.tensor([[0.01, 0.02]]), 4)
    angle = torch.tensor([0.0, 5.0, 0.0, 10.0])
    want = torch.stack((angle.sin(), angle.cos()), -1).flatten()
    assert torch.allclose(out[0], want, atol=1e-5)


def test_points_stay_in_the_first_frame() -> None:
    model = tracker()
    query = torch.tensor([[[3.0, 5.0], [10.0, 1.0]]])
    tracks, visible, confidence = model(query, torch.randn(1, 3, 8, 8, 8), iters=2)
    assert len(tracks) == 2
    for track in tracks:
        assert torch.allclose(track[:, 0], query)
        assert not torch.allclose(track[:, 1], query)
    assert ((visible >= 0) & (visible <= 1)).all()
    assert confidence.shape == (1, 3, 2)
