"""Pictures to frames and maps back again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.io.views import load_views
from sightline.reconstruction.learned.layout import Fit, plan_frames, plan_layout
from sightline.reconstruction.learned.maps import depth_on_view

SIZES = torch.tensor([[480, 640], [640, 480], [300, 1000]])


@pytest.mark.parametrize(
    ("fit", "size", "kept"),
    [
        # 640x480 -> 518x392 (388.5 to whole patches); a portrait keeps the middle 518 rows.
        ("crop", (518, 518), [(392, 518), (518, 518), (154, 518)]),
        ("pad", (518, 518), [(392, 518), (518, 392), (154, 518)]),
        ("max_size", (518, 518), [(392, 518), (518, 392), (154, 518)]),
    ],
)
def test_published_rules(fit: Fit, size: tuple[int, int], kept: list[tuple[int, int]]) -> None:
    layout = plan_layout(SIZES, fit=fit, side=518, patch=14)
    assert (layout.height, layout.width) == size
    content = layout.content
    assert [(int(b - t), int(r - x)) for x, t, r, b in content] == kept
    # Centred, the odd pixel at the end.
    assert torch.equal(content[:, 1], (size[0] - (content[:, 3] - content[:, 1])) // 2)


def test_one_shape_needs_no_margin() -> None:
    layout = plan_layout(SIZES[:1].repeat(3, 1), fit="crop", side=518, patch=14)
    assert (layout.height, layout.width) == (392, 518)
    assert layout.content.tolist() == [[0, 0, 518, 392]] * 3


def test_balanced_keeps_the_number_of_patches_and_cuts_what_is_too_wide() -> None:
    layout = plan_layout(SIZES, fit="balanced", side=512, patch=16)
    patches = (layout.resized // 16).prod(-1)
    assert (patches - 1024).abs().max() < 64
    assert layout.source[2].tolist() == [200, 0, 800, 300]
    assert layout.source[:2].tolist() == [[0, 0, 640, 480], [0, 0, 480, 640]]


def test_maps_between_pictures_and_frames_are_exact() -> None:
    layout = plan_layout(SIZES, fit="crop", side=518, patch=14)
    grid_from_source = layout.grid_from_source
    corners = torch.tensor([[0.0, 0, 1], [640, 480, 1]]).double() @ grid_from_source[0].T
    assert corners[:, :2].tolist() == [[0, 63], [518, 455]]
    # The portrait is 518 x 686 before 84 rows are cut off at each end.
    middle = torch.tensor([240.0, 320, 1]).double() @ grid_from_source[1].T
    assert middle[:2].tolist() == pytest.approx([259, 259])
    assert float(grid_from_source[1, 1, 1]) == pytest.approx(686 / 640)


def test_frames_are_read_from_full_size_files_as_the_original_does(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    views = load_views([tmp_path / "a.png"], ["a.png"], long_side=40)
    frames = plan_frames(views, fit="crop", side=56, patch=14)
    assert frames.from_files
    wanted = Image.fromarray(pixels).resize((56, 42), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.asarray(wanted).copy()).permute(2, 0, 1) / 255
    assert torch.equal(frames.read([0])[0], expected)
    place = frames.original_from_grid[0]
    assert torch.diagonal(place).tolist() == pytest.approx([80 / 56, 60 / 42, 1])


def test_margins_are_white(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 80, 3), np.uint8)).save(tmp_path / "a.png")
    views = load_views([tmp_path / "a.png"], ["a.png"])
    picture = plan_frames(views, fit="pad", side=56, patch=14).read([0])[0]
    assert picture[:, :14].min() == 1
    assert picture[:, 14:42].max() == 0
    assert picture[:, 42:].min() == 1


def plane(height: int, width: int, matrix: torch.Tensor) -> torch.Tensor:
    """Depth of a slanted plane at the centres of pixels that ``matrix`` maps to the frame's."""
    x = torch.arange(width).double() + 0.5
    y = torch.arange(height).double() + 0.5
    x, y = x * matrix[0, 0] + matrix[0, 2], y * matrix[1, 1] + matrix[1, 2]
    return (1 / (0.2 + 0.002 * x[None] + 0.001 * y[:, None])).float()


def test_planes_stay_planes_when_resampled() -> None:
    depth = plane(42, 56, torch.eye(3))
    matrix = torch.tensor([[0.7, 0.0, 3.0], [0.0, 0.6, 2.0], [0.0, 0.0, 1.0]]).double()
    content = torch.tensor([0, 0, 56, 42])
    ones = torch.ones(42, 56)
    found, confidence, valid = depth_on_view(depth, ones, matrix, content, (60, 70))
    assert bool(valid.all())
    torch.testing.assert_close(found, plane(60, 70, matrix), rtol=1e-5, atol=0)
    torch.testing.assert_close(confidence, torch.ones(60, 70))


def test_nothing_hangs_between_two_surfaces_and_margins_are_no_depth() -> None:
    depth = torch.full((20, 20), 1.0)
    depth[:, 10:] = 3.0
    depth[:, 16:] = 0.1  # a margin that the network made up
    matrix = torch.diag(torch.tensor([0.5, 0.5, 1.0])).double()
    content = torch.tensor([0, 0, 16, 20])
    found, _, valid = depth_on_view(depth, torch.ones(20, 20), matrix, content, (40, 40))
    assert set(found[valid].unique().tolist()) == {1.0, 3.0}
    assert bool(valid[:, :32].all())
    assert not bool(valid[:, 32:].any())


def test_holes_stay_holes() -> None:
    depth = torch.full((20, 20), 2.0)
    depth[5:10, 5:10] = 0
    content = torch.tensor([0, 0, 20, 20])
    found, _, valid = depth_on_view(
        depth, torch.ones(20, 20), torch.eye(3).double(), content, (20, 20)
    )
    assert torch.equal(valid, depth > 0)
    assert torch.equal(found, depth)
