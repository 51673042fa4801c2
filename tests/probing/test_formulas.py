"""Formulas of the published protocol against numbers worked out by hand."""

import dataclasses
import math
from itertools import islice

import numpy as np
import pytest
import torch

from sightline.errors import InputError
from sightline.geometry.align import Similarity
from sightline.geometry.pose import invert_se3
from sightline.geometry.rotation import so3_exp
from sightline.metrics.images import psnr, ssim
from sightline.probing.frames import (
    lift_intrinsics,
    make_frame,
    nearest_map,
    target_picture,
    working_picture,
)
from sightline.probing.poses import pose_matrices, pose_vectors
from sightline.probing.protocols import PROTOCOLS, Protocol, find_protocol
from sightline.probing.registration import find_similarity, register_poses, require_one_focal
from sightline.probing.schedule import camera_extent, photometric_rates, view_order, warm_rate
from sightline.probing.scoring import score_renders
from sightline.probing.start import squared_spacing, start_values
from sightline.probing.train import photo_loss, warm_loss
from sightline.probing.visibility import counted_pixels, lay_out_masks, visible_pixels
from sightline.types import Cameras

PUBLISHED = PROTOCOLS["feat2gs-v1"]
OURS = PROTOCOLS["sightline-1"]


def with_quirk(number: str, on: bool = True, base: str = "sightline-1") -> Protocol:
    return find_protocol(base, {"quirks": {number: on}})


# Section 3.1 and Q1, Q2


@pytest.mark.parametrize(
    ("size", "working"), [((3000, 4000), (384, 512)), ((1080, 1920), (288, 512))]
)
def test_working_sizes_of_the_paper(size: tuple[int, int], working: tuple[int, int]) -> None:
    assert make_frame(size, PUBLISHED).working == working


def test_wide_pictures_are_rendered_at_1600_truncated() -> None:
    assert make_frame((1067, 2000), PUBLISHED).target == (853, 1600)
    assert make_frame((1000, 1500), PUBLISHED).target == (1000, 1500)


def test_q2_stretches_or_crops() -> None:
    # 1000 x 730 -> 512 x 374 -> 512 x 368: six rows are squeezed away, or cropped.
    stretched = make_frame((730, 1000), PUBLISHED)
    assert stretched.squeezed == (374, 512)
    assert stretched.window == (0, 0, 730, 1000)
    cropped = make_frame((730, 1000), OURS)
    assert cropped.squeezed is None
    top, left, height, width = cropped.window
    assert (left, width) == (0, 1000)
    assert height == pytest.approx(368 / 374 * 730)
    assert top == pytest.approx((730 - height) / 2)
    picture = np.random.default_rng(0).integers(0, 255, (730, 1000, 3), np.uint8)
    assert working_picture(picture, stretched).shape == (368, 512, 3)
    assert working_picture(picture, cropped).shape == (368, 512, 3)
    assert target_picture(picture, cropped) is picture


def test_q1_scales_fy_by_the_horizontal_ratio() -> None:
    K = torch.tensor([[[400.0, 0, 256], [0, 410, 184], [0, 0, 1]]])
    frame = make_frame((730, 1000), PUBLISHED)
    lifted = lift_intrinsics(K, frame, PUBLISHED, shared=True)[0]
    # One focal length, the mean 405, and both axes by 1000 / 512.
    assert lifted[0, 0].item() == pytest.approx(405 * 1000 / 512)
    assert lifted[1, 1].item() == pytest.approx(405 * 1000 / 512)
    assert lifted[:2, 2].tolist() == [500, 365]
    without = dataclasses.replace(
        PUBLISHED, quirks=dataclasses.replace(PUBLISHED.quirks, one_focal_ratio=False)
    )
    plain = lift_intrinsics(K, frame, without, shared=True)[0]
    assert plain[1, 1].item() == pytest.approx(405 * 730 / 368)
    # Known lenses keep their own fx and fy; only the ratio and the centre are the reference's.
    known = lift_intrinsics(K, frame, PUBLISHED)[0]
    assert [known[0, 0].item(), known[1, 1].item()] == pytest.approx([781.25, 410 * 500 / 256])


def test_q1_keeps_the_fields_of_view_when_wide_pictures_are_reduced() -> None:
    # 2000 x 1067 -> working 512 x 272, rendered 1600 x 853 (853.6 truncated).
    frame = make_frame((1067, 2000), PUBLISHED)
    K = torch.tensor([[[400.0, 0, 256], [0, 400, 136], [0, 0, 1]]])
    lifted = lift_intrinsics(K, frame, PUBLISHED, shared=True)[0]
    original = 400 * 2000 / 512  # both axes
    assert lifted[0, 0].item() == pytest.approx(original * 1600 / 2000)
    assert lifted[1, 1].item() == pytest.approx(original * 853 / 1067)
    # The field of view down is that of the original: 2 atan(H / 2 f).
    assert 853 / lifted[1, 1].item() == pytest.approx(1067 / original)


def test_corrected_intrinsics_are_exact_for_crops() -> None:
    frame = make_frame((730, 1000), OURS)
    original = torch.tensor([[[900.0, 0, 480], [0, 910, 370], [0, 0, 1]]], dtype=torch.float64)
    working = frame.working_from_original() @ original
    torch.testing.assert_close(lift_intrinsics(working, frame, OURS), original)


def test_nearest_map_reads_pixels_without_mixing() -> None:
    values = np.arange(32 * 48, dtype=np.float32).reshape(32, 48)
    frame = make_frame((32, 48), find_protocol("sightline-1", {"long_side": 48}))
    assert np.array_equal(nearest_map(values, frame), values)


# Section 5.1


def test_start_values() -> None:
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
    colors = torch.tensor([[255, 0, 127]], dtype=torch.uint8).expand(4, 3)
    start = start_values(points, colors)
    d2 = (1 + 4 + 9) / 3
    assert squared_spacing(points)[0].item() == pytest.approx(d2)
    assert start["scaling"][0].tolist() == pytest.approx([math.log(math.sqrt(d2))] * 3)
    assert start["rotation"][0].tolist() == [1, 0, 0, 0]
    assert start["opacity"][0].item() == pytest.approx(-2.1972246)
    assert start["f_dc"][0, 0].item() == pytest.approx(0.5 / 0.28209479177387814)
    assert start["f_dc"][0, 1].item() == pytest.approx(-0.5 / 0.28209479177387814)
    assert not start["f_rest"].any()


def test_coinciding_points_have_the_least_spacing() -> None:
    assert squared_spacing(torch.zeros(5, 3)).tolist() == pytest.approx([1e-7] * 5)


# Section 6


def test_warm_start_rate_and_loss() -> None:
    assert warm_rate(PUBLISHED, 1000) == pytest.approx(1e-4)
    assert warm_rate(PUBLISHED, 500) == pytest.approx(1e-3)
    read = {"xyz": torch.tensor([[1.0, 2, 3]]), "opacity": torch.tensor([[4.0]])}
    start = {"xyz": torch.tensor([[0.0, 0, 0]]), "opacity": torch.tensor([[1.0]])}
    assert warm_loss(read, start).item() == pytest.approx(2 + 3)


def test_photometric_rates() -> None:
    first, last = (photometric_rates(PUBLISHED, i, 2.0) for i in (0, 7000))
    assert first["xyz"] == pytest.approx(3.2e-5)
    # Section 6.2: after 7000 of 30000 steps 0.341 of the start is left.
    assert last["xyz"] / first["xyz"] == pytest.approx(0.341, abs=1e-3)
    assert (last["f_dc"], last["f_rest"], last["opacity"]) == (2.5e-4, 1.25e-5, 5e-3)
    assert (last["scaling"], last["rotation"]) == (5e-4, 1e-4)
    assert photometric_rates(PUBLISHED, 500, 1.0)["pose"] == pytest.approx(1e-5)
    assert last["pose"] == pytest.approx(1e-6)
    baseline = photometric_rates(PUBLISHED, 0, 1.0, baseline=True)
    assert baseline["pose"] == pytest.approx(1e-5)


def test_camera_extent() -> None:
    centers = torch.tensor([[0.0, 0, 0], [2, 0, 0], [4, 0, 0]])
    assert camera_extent(centers) == pytest.approx(2.2)
    assert camera_extent(centers[:1]) == 1


@pytest.mark.parametrize("python", [False, True])
def test_q20_views_are_drawn_without_replacement(python: bool) -> None:
    order = list(islice(view_order(4, 7, python=python), 12))
    for start in (0, 4, 8):
        assert sorted(order[start : start + 4]) == [0, 1, 2, 3]
    assert order == list(islice(view_order(4, 7, python=python), 12))


@pytest.mark.parametrize("on", [False, True])
def test_q26_photo_loss(on: bool) -> None:
    image, photo = torch.rand(20, 24, 3), torch.randint(0, 255, (3, 20, 24), dtype=torch.uint8)
    target = photo / 255
    loss = photo_loss(image, photo, with_quirk("Q26", on))
    rendered = image.permute(2, 0, 1)
    l1 = (rendered - target).abs().mean()
    padded = 0.8 * l1 + 0.2 * (1 - ssim(rendered[None], target[None])[0])
    assert torch.isclose(loss, padded, atol=1e-5) == on


def test_poses_are_seven_numbers() -> None:
    w2c = torch.eye(4).repeat(3, 1, 1)
    w2c[:, :3, :3] = so3_exp(torch.randn(3, 3))
    w2c[:, :3, 3] = torch.randn(3, 3)
    vectors = pose_vectors(w2c)
    assert vectors.shape == (3, 7)
    torch.testing.assert_close(pose_matrices(vectors), w2c, rtol=1e-5, atol=1e-5)
    vectors[:, :4] *= 3  # any length of the quaternion
    torch.testing.assert_close(pose_matrices(vectors), w2c, rtol=1e-5, atol=1e-5)


# Section 7


def test_q10_registration() -> None:
    similarity = Similarity(
        scale=torch.tensor(2.0, dtype=torch.float64),
        rotation=so3_exp(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)),
        translation=torch.tensor([1.0, 2, 3], dtype=torch.float64),
    )
    c2w = torch.eye(4, dtype=torch.float64)[None].clone()
    c2w[0, :3, 3] = torch.tensor([5.0, 6, 7])
    turned = similarity.rotation @ c2w[0, :3, 3]
    right = invert_se3(register_poses(invert_se3(c2w), similarity, OURS))[0]
    torch.testing.assert_close(right[:3, 3], 2 * turned + similarity.translation)
    wrong = invert_se3(register_poses(invert_se3(c2w), similarity, PUBLISHED))[0]
    torch.testing.assert_close(wrong[:3, 3], turned + 2 * similarity.translation)
    for found in (right, wrong):
        torch.testing.assert_close(found[:3, :3], similarity.rotation)


def test_similarity_is_found_from_valid_pixels() -> None:
    again = torch.randn(2, 3, 4, 3)
    first = 3 * again + 1
    valid = torch.ones(2, 3, 4, dtype=torch.bool)
    first[0, 0, 0], valid[0, 0, 0] = 1000.0, False
    found = find_similarity(again, first, valid)
    assert float(found.scale) == pytest.approx(3, rel=1e-5)


def test_q23_needs_one_focal() -> None:
    K = torch.eye(3).repeat(2, 1, 1)
    K[1, 0, 0] = 2
    require_one_focal(K, OURS)
    with pytest.raises(InputError, match="one focal"):
        require_one_focal(K, with_quirk("Q23"))


def plane_cameras(shift: float) -> tuple[Cameras, torch.Tensor]:
    """Two cameras that look straight at a plane at depth 10, the second moved sideways."""
    K = torch.tensor([[[10.0, 0, 8], [0, 10, 8], [0, 0, 1]]]).expand(2, 3, 3)
    w2c = torch.eye(4).repeat(2, 1, 1)
    w2c[1, 0, 3] = -shift
    return Cameras(w2c=w2c, K=K, height=16, width=16), torch.full((2, 16, 16), 10.0)


@pytest.mark.parametrize("protocol", [OURS, PUBLISHED], ids=["ours", "published"])
def test_visibility_is_the_overlap(protocol: Protocol) -> None:
    # Moved by 4 units at depth 10 with focal 10: four columns leave the other picture.
    cameras, depth = plane_cameras(4.0)
    mask = visible_pixels(depth[:1], cameras.select([0]), depth[1:], cameras.select([1]), protocol)[
        0
    ]
    assert not mask[:, :4].any()
    assert mask[2:-2, 6:-2].all()


def test_q28_tolerance_is_absolute_or_relative() -> None:
    cameras, depth = plane_cameras(0.0)
    nearly = depth[1:] * 1.005  # 0.05 units, half a percent
    views = cameras.select([0])
    assert visible_pixels(depth[:1], views, nearly, views, OURS)[0, 4:-4, 4:-4].all()
    assert not visible_pixels(depth[:1], views, nearly, views, with_quirk("Q28")).any()


def test_q28_looks_where_the_reference_does() -> None:
    """Independent: pixel (i, j) is lifted at (i, j) and looked up half a pixel up and left."""
    torch.manual_seed(0)
    K = torch.tensor([[[12.0, 0, 8], [0, 12, 6], [0, 0, 1]]])
    views = Cameras(w2c=torch.eye(4)[None], K=K, height=12, width=16)
    depth = 1 + 0.05 * torch.rand(1, 12, 16)
    depth[0, 4, 4] = 0  # nothing there
    found = visible_pixels(depth, views, depth, views, with_quirk("Q28"))[0]
    padded = torch.zeros(13, 17)
    padded[1:, 1:] = depth[0]
    # The mean of the pixel and its three neighbours up and left; zeros outside the picture.
    there = (padded[1:, 1:] + padded[1:, :-1] + padded[:-1, 1:] + padded[:-1, :-1]) / 4
    want = (depth[0] - there).abs() <= 0.01 + 1e-5 * there
    want &= depth[0] > 0
    want[0], want[:, 0] = False, False  # not strictly inside
    assert 0 < want.sum() < want.numel()
    assert torch.equal(found, want)


def test_masks_count_where_eight_bits_say_255() -> None:
    masks = torch.tensor([[[1.0, 1 - 1e-7, 254.6 / 255, 254.4 / 255, 0.5, 0]]])
    assert counted_pixels(masks).flatten().tolist() == [True, True, True, False, False, False]
    # Resizing a mask that is all ones leaves it so.
    whole = lay_out_masks(
        torch.ones(1, 90, 120, dtype=torch.bool), ("a.png",), (900, 1200), (333, 444), PUBLISHED
    )
    assert counted_pixels(whole).all()


def test_q12_jpeg_masks_lose_their_border() -> None:
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[:, 5:21, 5:21] = True
    plain = lay_out_masks(mask, ("a.jpg",), (32, 32), (32, 32), OURS)
    assert torch.equal(plain == 1, mask)
    jpeg = lay_out_masks(mask, ("a.jpg",), (32, 32), (32, 32), with_quirk("Q12"))
    assert 0 < (jpeg == 1).sum() < mask.sum()
    png = lay_out_masks(mask, ("a.png",), (32, 32), (32, 32), with_quirk("Q12"))
    assert torch.equal(png == 1, mask)


# Section 8


def scored(protocol: Protocol) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    photo = torch.rand(1, 3, 24, 24) * 0.5 + 0.25
    render = (photo + 0.1).clamp(0, 1)
    render[..., 12:] = 0  # far off, under the mask
    mask = torch.zeros(1, 24, 24, dtype=torch.bool)
    mask[..., :12] = True
    return score_renders(render, photo, mask, protocol)


def test_q14_masked_pixels_are_left_out_or_perfect() -> None:
    ours = scored(OURS)
    assert ours["psnr"].item() == pytest.approx(20.0, abs=1e-3)  # error 0.1 everywhere
    theirs = scored(with_quirk("Q14"))
    # Half of the pixels are perfect: the squared error halves.
    assert theirs["psnr"].item() == pytest.approx(20 + 10 * math.log10(2), abs=1e-3)
    assert ours["mask"].item() == pytest.approx(0.5)
    assert theirs["ssim"] > ours["ssim"]


def test_q27_renders_are_rounded() -> None:
    photo = torch.full((1, 3, 16, 16), 0.5)
    render = photo + 0.001  # below half a level: 127.5 and 127.755 round to the same
    mask = torch.ones(1, 16, 16, dtype=torch.bool)
    exact = score_renders(render, photo, mask, OURS)["psnr"]
    assert exact.item() == pytest.approx(60, abs=0.1)
    assert score_renders(render, photo, mask, with_quirk("Q27"))["psnr"].item() == math.inf


def test_q26_ssim_of_scores() -> None:
    photo, render = torch.rand(2, 1, 3, 20, 20)
    mask = torch.ones(1, 20, 20, dtype=torch.bool)
    padded = score_renders(render, photo, mask, with_quirk("Q26"))["ssim"]
    torch.testing.assert_close(padded, ssim(render, photo, mask))
    inner = score_renders(render, photo, mask, OURS)["ssim"]
    assert not torch.isclose(inner, padded, atol=1e-4)


def test_q15_lpips_input_range() -> None:
    from sightline.metrics.lpips import Lpips

    network = Lpips("vgg")
    photo, render = torch.rand(2, 1, 3, 32, 32)
    mask = torch.ones(1, 32, 32, dtype=torch.bool)
    both = score_renders(render, photo, mask, OURS, network)
    unit = score_renders(render, photo, mask, with_quirk("Q15"), network)
    torch.testing.assert_close(both["lpips_unit"], unit["lpips"])
    assert not torch.isclose(both["lpips"], unit["lpips"])
    assert "lpips_unit" not in unit


def test_a_view_without_visible_pixels_scores_nothing() -> None:
    photo = torch.rand(1, 3, 16, 16)
    scores = score_renders(photo, photo, torch.zeros(1, 16, 16, dtype=torch.bool), OURS)
    assert scores["psnr"].isnan().all()
    assert scores["mask"].item() == 0


def test_psnr_of_the_spec() -> None:
    mse = psnr(torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, 3, 4, 4))
    assert mse.item() == pytest.approx(20 * math.log10(1 / 0.5), abs=1e-5)
