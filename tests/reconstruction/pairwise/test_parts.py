"""Pictures, graphs, matches, trees and consistency, each by itself."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import InputError, ReconstructionError
from sightline.reconstruction.pairwise.align import Alignment
from sightline.reconstruction.pairwise.consistency import consistent_pairs
from sightline.reconstruction.pairwise.focal import estimate_focal
from sightline.reconstruction.pairwise.graph import count_groups, make_pairs
from sightline.reconstruction.pairwise.images import crop_for_training, fit_dust3r, fit_splatt3r
from sightline.reconstruction.pairwise.initialize import initialize_known, initialize_tree
from sightline.reconstruction.pairwise.matching import Matches, drop_border, merge_matches
from sightline.reconstruction.pairwise.pairs import Grid, PairMaps, Predictions
from sightline.reconstruction.pairwise.poses import align_poses, solve_pnp
from sightline.reconstruction.pairwise.sparse import robust
from sightline.reconstruction.pairwise.tree import kinematic_tree
from tests.reconstruction.pairwise.stand_in import StandIn, make_truth, some_outliers


@given(st.integers(20, 300), st.integers(20, 300), st.sampled_from([64, 96, 224]))
def test_pictures_have_whole_patches_and_an_exact_way_back(h: int, w: int, size: int) -> None:
    if max(h, w) > 3.5 * min(h, w):
        return
    pixels = np.zeros((h, w, 3), np.uint8)
    made = fit_dust3r(pixels, size, square_ok=True)
    corners = np.array([[0, 0, 1], [made.size[1], made.size[0], 1]]).T
    back = np.linalg.inv(made.from_source) @ corners
    assert (back[:2] > -1e-6).all()
    assert (back[:2, 1] < (w + 1e-6, h + 1e-6)).all()
    if size == 224:
        assert made.size[0] == made.size[1]
    else:
        assert made.size[0] % 16 == made.size[1] % 16 == 0
    assert fit_splatt3r(pixels, 64).size == (64, 64)


def test_a_ramp_lands_where_the_map_says() -> None:
    across = np.linspace(0, 255, 200)
    pixels = np.repeat(np.repeat(across[None, :, None], 90, 0), 3, 2).astype(np.uint8)
    made = fit_dust3r(pixels, 96)
    x = np.arange(made.size[1]) + 0.5
    source = (x - made.from_source[0, 2]) / made.from_source[0, 0]
    want = np.interp(source - 0.5, np.arange(200), across)
    assert np.abs(made.pixels[20, 2:-2, 0] - want[2:-2]).max() < 1.6


def test_pictures_that_leave_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="too narrow for the network"):
        fit_dust3r(np.zeros((10, 400, 3), np.uint8), 64)
    K = np.array([[50.0, 0, 3], [0, 50, 20], [0, 0, 1]])
    with pytest.raises(InputError, match="principal point near the centre"):
        crop_for_training(np.zeros((40, 60, 3), np.uint8), np.ones((40, 60)), K, (32, 16))


@given(st.integers(2, 12), st.sampled_from(["complete", "swin-2", "logwin-3", "oneref-1"]))
def test_graphs_link_all_pictures_without_repeats(count: int, graph: str) -> None:
    pairs = make_pairs(graph, count)
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == {(j, i) for i, j in pairs}
    assert all(i != j for i, j in pairs)
    assert count_groups(pairs, count) == 1


def test_retrieval_links_keys_and_neighbours() -> None:
    rng = np.random.default_rng(0)
    at = rng.random((12, 2))
    similar = np.exp(-np.linalg.norm(at[:, None] - at[None], axis=-1))
    pairs = set(make_pairs("retrieval-4-3", 12, similarity=similar, symmetrize=False))
    for i, row in enumerate(np.argsort(-similar, axis=1)[:, 1:3]):
        assert all((min(i, j), max(i, j)) in pairs for j in row.tolist())
    assert len(pairs) < 12 * 11 // 2
    with pytest.raises(InputError, match="needs the similarity"):
        make_pairs("retrieval-4-3", 12)
    with pytest.raises(InputError, match="pair filter like seq5"):
        make_pairs("complete", 4, prefilter="near")


def test_merged_matches_keep_the_first_confidence() -> None:
    first, second = torch.tensor([5, 1, 5, 7]), torch.tensor([2, 3, 2, 0])
    merged = merge_matches(first, second, torch.tensor([1.0, 2.0, 3.0, 4.0]), (4, 4))
    assert merged.xy1.tolist() == [[1, 0], [1, 1], [3, 1]]
    assert merged.confidence.tolist() == [2.0, 1.0, 4.0]
    inner = drop_border(Matches(merged.xy1, merged.xy2, merged.confidence), (4, 4), (4, 4), 1)
    assert len(inner.xy1) == 0


def test_the_pose_of_a_camera_is_found_among_wrong_points() -> None:
    truth = make_truth(2)
    points = StandIn(truth).points[0].float().reshape(-1, 3)
    K, w2c = truth.cameras.K[1].float(), truth.cameras.w2c[1].float()
    local = points @ w2c[:3, :3].T + w2c[:3, 3]
    pixels = (local @ K.T)[:, :2] / local[:, 2:]
    pixels[::5] += 40
    found = solve_pnp(points, pixels, float(K[0, 0]), K[:2, 2], iterations=50)
    assert found is not None
    assert torch.allclose(found[1] @ w2c, torch.eye(4), atol=2e-3)
    unknown = solve_pnp(points, pixels, None, K[:2, 2], iterations=50, long_side=80)
    assert unknown is not None
    assert unknown[0] == pytest.approx(float(K[0, 0]), rel=0.25)
    assert solve_pnp(points[:3], pixels[:3], 50.0, K[:2, 2]) is None


def test_focals_leave_out_what_does_not_count() -> None:
    truth = make_truth(1, 64, 48)
    model = StandIn(truth)
    points = model.pair(0, 0)[0]["pts"][None]
    grid = Grid(48, 64, (0.0, 0.0), (1.0, 1.0), (32.0, 24.0))
    options: dict[str, Any] = {
        "center": torch.tensor([[32.0, 24.0]]),
        "pixels": grid.pixels()[None],
    }
    want = float(truth.cameras.K[0, 0, 0])
    assert float(estimate_focal(points, **options)) == pytest.approx(want, rel=1e-4)
    broken = points.clone()
    broken[:, :20] *= torch.tensor([3.0, 3.0, 1.0])
    weights = torch.ones(1, 48, 64)
    weights[:, :20] = 0
    found = estimate_focal(broken, **options, weights=weights)
    assert float(found) == pytest.approx(want, rel=1e-4)


def test_aligned_poses_are_the_same_cameras() -> None:
    poses = make_truth(4).cameras.c2w
    turn = make_truth(2).cameras.c2w[1]
    moved = turn @ poses
    moved[:, :3, 3] *= 2
    found = align_poses(poses, moved)
    assert float(found.scale) == pytest.approx(2, rel=1e-6)
    assert torch.allclose(found.rotation, turn[:3, :3], atol=1e-6)


@given(st.floats(0.2, 3.0).filter(lambda g: abs(g - 1) > 1e-3))
def test_robust_lengths_start_with_slope_one(gamma: float) -> None:
    gap = torch.tensor([[1e-4, 0.0], [0.0, 0.0]], dtype=torch.float64)
    values = robust(gap, gamma)
    assert float(values[0]) == pytest.approx(1e-4, rel=0.01)
    assert float(values[1]) == 0


@pytest.mark.parametrize("mode", ["hclust-ward", "mst"])
def test_trees_hang_from_the_middle(mode: str) -> None:
    chain = np.zeros((5, 5), np.float32)
    for i in range(4):
        chain[i, i + 1] = chain[i + 1, i] = 20
    root, edges = kinematic_tree(chain, np.full(5, 48), mode)  # type: ignore[arg-type]
    assert len(edges) == 4
    if mode == "mst":
        assert {tuple(sorted(e)) for e in edges} == {(i, i + 1) for i in range(4)}
        assert root in (1, 2, 3)
    seen = {root}
    for parent, child in edges:
        assert parent in seen
        seen.add(child)
    chain[2, 3] = chain[3, 2] = 0
    with pytest.raises(ReconstructionError, match="link only part of the 5 pictures"):
        kinematic_tree(chain, np.full(5, 48), "mst")


def predictions_of(model: StandIn, count: int) -> Predictions:
    found: Predictions = {}
    for i, j in make_pairs("complete", count):
        first, second = model.pair(i, j)
        found[i, j] = PairMaps(
            points=(first["pts"], second["pts"]), confidence=(first["conf"], second["conf"])
        )
    return found


def test_contradicting_pairs_are_dropped_and_no_others() -> None:
    wrong = some_outliers(8, 0.2, seed=1)
    model = StandIn(make_truth(8, 40, 30), 32, noise=0.01, outliers=wrong)
    kept, _ = consistent_pairs(predictions_of(model, 8), 8)
    bad = {*wrong, *((j, i) for i, j in wrong)}
    assert set(kept) == set(make_pairs("complete", 8)) - bad


def test_what_nobody_can_check_is_kept() -> None:
    model = StandIn(make_truth(4, 40, 30), 32)
    chain = {p: m for p, m in predictions_of(model, 4).items() if abs(p[0] - p[1]) == 1}
    assert set(consistent_pairs(chain, 4)[0]) == set(chain)


def test_alignments_refuse_what_cannot_be_linked() -> None:
    model = StandIn(make_truth(4, 40, 30), 32)
    all_pairs = predictions_of(model, 4)
    grids = [Grid.whole(*p.size) for p in model.pictures]
    with pytest.raises(InputError, match="every one of 4 pictures"):
        Alignment({p: m for p, m in all_pairs.items() if 3 not in p}, grids)
    parted = {p: m for p, m in all_pairs.items() if set(p) in ({0, 1}, {2, 3})}
    with pytest.raises(ReconstructionError, match="do not link all 4 pictures"):
        initialize_tree(Alignment(parted, grids))


def test_known_cameras_start_an_alignment_at_the_truth() -> None:
    truth = make_truth(3, 64, 48, portraits=False)
    model = StandIn(truth)
    grid = Grid(48, 64, (0.0, 0.0), (1.0, 1.0), (32.0, 24.0))
    alignment = Alignment(predictions_of(model, 3), [grid] * 3)
    alignment.preset_poses(truth.cameras.c2w.float(), torch.ones(3, dtype=torch.bool))
    alignment.preset_focals(truth.cameras.K[:, 0, 0].float(), torch.ones(3, dtype=torch.bool))
    assert float(alignment().detach()) > 1
    initialize_known(alignment)
    assert float(alignment().detach()) < 0.01
    alignment().backward()
    assert alignment.im_poses.grad is None or not bool(alignment.im_poses.grad.any())
