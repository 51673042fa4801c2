"""Golden family sparse_ga: condensed data, kinematic tree, coarse and fine stage, dense result."""

from pathlib import Path

import torch
from torch import Tensor

from sightline.geometry.pose import invert_se3
from sightline.reconstruction.pairwise.anchors import SparseProblem, make_problem
from sightline.reconstruction.pairwise.clean import clean_confidence
from sightline.reconstruction.pairwise.graph import Pair
from sightline.reconstruction.pairwise.matching import Matches
from sightline.reconstruction.pairwise.pairs import Grid, PairMaps, Predictions
from sightline.reconstruction.pairwise.sparse import SparseAlignment, SparseScene, optimize_sparse
from sightline.reconstruction.pairwise.tree import kinematic_tree
from tests.parity.compare import Config, read_config, read_io

Io = dict[str, Tensor]


def cases(folder: Path) -> list[str]:
    names = {n.split(".")[0] for n in read_io(folder)}
    stages = ["stages"] if names & {"coarse", "fine", "dense"} else []
    return sorted(names & {"cond", "mst"}) + stages


def run_case(folder: Path, case: str) -> None:
    config, io = read_config(folder), read_io(folder)
    problem = build(config, io)
    {"cond": condensed, "mst": tree, "stages": stages}[case](config, io, problem)


def build(config: Config, io: Io) -> SparseProblem:
    predictions: Predictions = {}
    matches: dict[Pair, Matches] = {}
    for k in range(sum(n.endswith(".ij") for n in io)):
        i, j = io[f"pair{k}.ij"].tolist()
        maps = {n: (io[f"pair{k}.X{n}"], io[f"pair{k}.C{n}"]) for n in ("11", "21", "22", "12")}
        for key, names in (((i, j), ("11", "21")), ((j, i), ("22", "12"))):
            first, second = (maps[n] for n in names)
            predictions[key] = PairMaps(
                points=(first[0], second[0]), confidence=(first[1], second[1])
            )
        found = (io[f"pair{k}.{n}"] for n in ("xy1", "xy2", "conf"))
        matches[i, j] = Matches(*found)
    height, width = io["shape_hw"].tolist()
    count = 1 + max(max(pair) for pair in matches)
    return make_problem(
        predictions,
        matches,
        [Grid.whole(height, width)] * count,
        subsample=config["subsample"],
        min_match_confidence=config["settings"]["matching_conf_thr"],
    )


def near(got: Tensor, want: Tensor | None, limit: float, what: str) -> None:
    """Compare with a tensor that the file may not hold."""
    if want is None:
        return
    assert got.shape == want.shape, f"{what}: {tuple(got.shape)} != {tuple(want.shape)}"
    over = (got - want).abs() / want.abs().clamp(min=1e-6)
    assert float(over.max()) <= limit, f"{what} differs by {float(over.max()):.3g}"


def condensed(config: Config, io: Io, problem: SparseProblem) -> None:
    a = problem.anchors
    near(
        torch.tensor([c.focal for c in problem.canonical]),
        io.get("cond.base_focals"),
        1e-5,
        "focal",
    )
    centers = torch.tensor([g.center for g in problem.grids])
    near(centers, io.get("cond.pps"), 1e-6, "centres")
    sizes = torch.tensor([(g.width, g.height) for g in problem.grids])
    near(sizes.float(), io.get("cond.imsizes_wh"), 0, "sizes")
    for i, view in enumerate(problem.canonical):
        near(view.core, io.get(f"cond.core_depth{i}"), 1e-5, f"core depth {i}")
        mine = a.image == i
        if f"cond.anchor_pix{i}" in io:
            assert torch.equal(a.pixels[mine], io[f"cond.anchor_pix{i}"][:, :2].long())
        near(a.block[mine].float(), io.get(f"cond.anchor_idx{i}"), 0, f"blocks {i}")
        near(a.offset[mine], io.get(f"cond.anchor_off{i}"), 1e-5, f"offsets {i}")


def chain(config: Config, problem: SparseProblem) -> tuple[int, list[tuple[int, int]]]:
    side = config["subsample"]
    patches = torch.tensor([(g.height // side) * (g.width // side) for g in problem.grids])
    mode = config["settings"]["kinematic_mode"]
    return kinematic_tree(problem.counts.numpy(), patches.numpy(), mode)


def tree(config: Config, io: Io, problem: SparseProblem) -> None:
    root, edges = chain(config, problem)
    assert root == int(io["mst.root"])
    assert [list(e) for e in edges] == io["mst.edges"].tolist()


def stages(config: Config, io: Io, problem: SparseProblem) -> None:
    s = config["settings"]
    alignment = SparseAlignment(problem, *chain(config, problem))
    gammas = [float(s[name].split()[1]) for name in ("loss1", "loss2", "lossd")]
    coarse, fine = optimize_sparse(
        alignment,
        coarse=(s["niter1"], s["lr1"], gammas[0]),
        fine=(s["niter2"], s["lr2"], gammas[1]),
        guess_gamma=gammas[2],
        guess_weight=s["loss_dust3r_w"],
        optimize_center=s["opt_pp"],
        optimize_depth=s["opt_depth"],
    )
    check(io, "coarse", coarse, problem, focal=1e-4, depth=1e-3)
    check(io, "fine", fine, problem, focal=5e-3, depth=5e-3)
    points, depth = alignment.dense(fine)
    confidence = clean_confidence(
        [c.confidence for c in problem.canonical],
        depth, points, fine.poses, fine.intrinsics, problem.grids,
    )  # fmt: skip
    for i in range(len(depth)):
        if f"dense.depth{i}" in io:
            near(depth[i], io[f"dense.depth{i}"].view_as(depth[i]), 1e-2, f"dense depth {i}")
            want = io[f"dense.conf{i}"].view_as(confidence[i])
            # Points on the edge of the tolerance go either way.
            same = (confidence[i] - want).abs() < 1e-3 * want.abs().clamp(min=1.0)
            assert float(same.float().mean()) > 0.98, f"dense confidence {i}"


def check(
    io: Io, stage: str, scene: SparseScene, problem: SparseProblem, *, focal: float, depth: float
) -> None:
    if f"{stage}.cam2w" not in io:
        return
    want = io[f"{stage}.cam2w"]
    first, reference = (invert_se3(p[0]) for p in (scene.poses, want))
    gap = (first @ scene.poses - reference @ want).abs().max()
    assert float(gap) <= 1e-2, f"{stage} poses differ by {float(gap):.3g}"
    if f"{stage}.intrinsics" in io:
        lenses = io[f"{stage}.intrinsics"][:, 0, 0]
        near(scene.intrinsics[:, 0, 0], lenses, focal, f"{stage} focals")
    for i, value in enumerate(scene.depth):
        near(value, io.get(f"{stage}.depth{i}"), depth, f"{stage} depth {i}")
        if f"{stage}.pts3d{i}" not in io:
            continue
        mine = problem.anchors.image == i
        moved, wanted = (
            p @ m[:3, :3].T + m[:3, 3]
            for p, m in ((scene.points[mine], first), (io[f"{stage}.pts3d{i}"], reference))
        )
        limit = 1e-2 * float(wanted.norm(dim=-1).median())
        assert float((moved - wanted).norm(dim=-1).max()) <= 3 * limit, f"{stage} points {i}"
