"""Golden family global_alignment: objective, start, optimiser, known cameras, pair viewer."""

import re
from pathlib import Path

import torch
from torch import Tensor

from sightline.geometry.align import Similarity, align_umeyama
from sightline.reconstruction.pairwise.align import Alignment, optimize
from sightline.reconstruction.pairwise.clean import clean_confidence
from sightline.reconstruction.pairwise.initialize import initialize_known, initialize_tree
from sightline.reconstruction.pairwise.pairs import Grid, PairMaps, Predictions
from sightline.reconstruction.pairwise.poses import transform_pose
from sightline.reconstruction.pairwise.viewer import view_pair
from tests.parity.compare import Config, read_config, read_io

Io = dict[str, Tensor]


def cases(folder: Path) -> list[str]:
    names = read_io(folder)
    found = {"objective": "pco.gradpoint.loss", "viewer": "pair.im_poses", "start": "pco.init.loss"}
    found |= {"optimizer": "pco.losses", "known": "known.final.im_poses"}
    found |= {"modular": "modular.final.im_poses", "clean": "pco.clean_conf0"}
    runs = [c for c, name in found.items() if name in names]
    return runs + sorted({m[1] for n in names if (m := re.match(r"(pco_\w+_linear)\.", n))})


def run_case(folder: Path, case: str) -> None:
    config, io = read_config(folder), read_io(folder)
    steps = {
        "objective": objective, "start": start, "optimizer": optimizer, "clean": clean,
        "known": known, "modular": modular, "viewer": viewer,
    }  # fmt: skip
    steps.get(case, squared)(config, io)


def scene(io: Io) -> tuple[Predictions, list[Grid]]:
    predictions = {
        (i, j): PairMaps(
            points=(io[f"edge{n}.pts3d_i"], io[f"edge{n}.pts3d_j"]),
            confidence=(io[f"edge{n}.conf_i"], io[f"edge{n}.conf_j"]),
        )
        for n, (i, j) in enumerate(io["edges"].tolist())
    }
    return predictions, [Grid.whole(h, w) for h, w in io["shapes_hw"].tolist()]


def prepared(config: Config, io: Io, prefix: str = "pco.init.param.") -> Alignment:
    """Return an alignment with the parameters that the file holds."""
    settings = config["settings"]
    alignment = Alignment(
        *scene(io),
        base_scale=settings["base_scale"],
        min_confidence=float(settings["min_conf_thr"]),
    )
    with torch.no_grad():
        for name, value in alignment.named_parameters():
            if prefix + name in io:
                value.copy_(io[prefix + name])
    return alignment


def near(got: Tensor, want: Tensor | None, limit: float, what: str) -> None:
    """Compare with a tensor that the file may not hold."""
    if want is None:
        return
    assert got.shape == want.shape, f"{what}: {tuple(got.shape)} != {tuple(want.shape)}"
    worst = float((got - want).abs().max() / want.abs().max().clamp(min=1e-12))
    assert worst <= limit, f"{what} differs by {worst:.3g} of its largest value, {limit} allowed"


def objective(config: Config, io: Io) -> None:
    alignment = prepared(config, io, "pco.gradpoint.param.")
    loss = alignment()
    near(loss.detach(), io.get("pco.gradpoint.loss"), 1e-5, "loss")
    loss.backward()
    for name, value in alignment.named_parameters():
        if f"pco.gradpoint.grad.{name}" in io:
            assert value.grad is not None
            near(value.grad, io.get(f"pco.gradpoint.grad.{name}"), 1e-4, f"gradient of {name}")


def same_frame(alignment: Alignment, want: Tensor) -> tuple[Tensor, Similarity]:
    """Carry poses to the reference's frame by centres and points ahead of them."""
    poses = alignment.poses().detach()
    tips = [
        torch.cat([p[:, :3, 3], p[:, :3, 3] + 0.3 * p[:, :3, 2], p[:, :3, 3] + 0.3 * p[:, :3, 0]])
        for p in (poses, want)
    ]
    world = align_umeyama(*tips)
    return transform_pose(world, poses), world


def compare_state(
    alignment: Alignment, io: Io, prefix: str, pose: float, focal: float, depth: float
) -> None:
    if f"{prefix}.im_poses" not in io:
        return
    poses, world = same_frame(alignment, io[f"{prefix}.im_poses"])
    assert float((poses - io[f"{prefix}.im_poses"]).abs().max()) <= pose
    near(alignment.focals().detach(), io.get(f"{prefix}.focals"), focal, "focals")
    for i, got in enumerate(alignment.depth_maps()):
        near(got * world.scale, io.get(f"{prefix}.depth{i}"), depth, f"depth {i}")


def start(config: Config, io: Io) -> None:
    alignment = Alignment(*scene(io))
    initialize_tree(alignment, iterations=config["settings"]["niter_PnP"], original=True)
    compare_state(alignment, io, "pco.init", 1e-3, 1e-3, 1e-3)
    near(alignment().detach(), io.get("pco.init.loss"), 1e-3, "loss at the start")


def optimizer(config: Config, io: Io) -> None:
    alignment = prepared(config, io)
    near(alignment().detach(), io["pco.losses"][0], 1e-5, "first loss")
    settings = config["settings"]
    losses = optimize(alignment, iterations=len(io["pco.losses"]), rate=settings["lr"])
    near(torch.tensor(losses[-20:]).mean(), io["pco.losses"][-20:].mean(), 0.01, "last losses")
    if "pco.final.im_poses" in io:
        want = io["pco.final.im_poses"]
        assert float((alignment.poses().detach() - want).abs().max()) <= 1e-2
    near(alignment.focals().detach(), io.get("pco.final.focals"), 0.005, "focals")


def squared(config: Config, io: Io) -> None:
    """Squared distances, confidence minus one, a linear schedule."""
    alignment = Alignment(*scene(io), distance="l2", weighting="m1", min_confidence=2.5)
    initialize_tree(alignment, iterations=config["settings"]["niter_PnP"], original=True)
    near(alignment().detach(), io.get("pco_l2_m1.init_loss"), 1e-3, "loss at the start")
    name = "pco_l2_m1_linear"
    losses = optimize(alignment, iterations=len(io[f"{name}.losses"]), schedule="linear")
    near(alignment().detach(), io.get(f"{name}.final_loss"), 0.02, "last loss")
    near(torch.tensor(losses[-10:]), io[f"{name}.losses"][-10:], 0.05, "losses")


def known(config: Config, io: Io) -> None:
    alignment = Alignment(*scene(io))
    everything = torch.ones(len(alignment.grids), dtype=torch.bool)
    alignment.preset_poses(io["true.cam2world"], everything)
    alignment.preset_focals(io["true.focal"], everything)
    initialize_known(alignment, iterations=config["settings"]["niter_PnP"], original=True)
    near(alignment().detach(), io.get("known.init_loss"), 1e-3, "loss at the start")
    near(alignment.pair_transforms().detach(), io.get("known.init.pw_poses_4x4"), 1e-3, "pairs")
    optimize(alignment, iterations=len(io.get("known.losses", range(60))))
    near(alignment().detach(), io.get("known.final_loss"), 0.02, "last loss")
    assert float((alignment.poses().detach() - io["known.final.im_poses"]).abs().max()) <= 1e-4
    if "known.final.pw_poses_4x4" in io:
        transforms = alignment.pair_transforms().detach()
        assert float((transforms - io["known.final.pw_poses_4x4"]).abs().max()) <= 1e-2


def modular(config: Config, io: Io) -> None:
    alignment = Alignment(*scene(io), per_edge=True)
    everything = torch.ones(len(alignment.grids), dtype=torch.bool)
    alignment.preset_focals(io["true.focal"], everything)
    initialize_tree(alignment, iterations=config["settings"]["niter_PnP"], original=True)
    near(alignment().detach(), io.get("modular.init_loss"), 1e-3, "loss at the start")
    optimize(alignment, iterations=len(io.get("modular.losses", range(60))))
    near(alignment().detach(), io.get("modular.final_loss"), 0.02, "last loss")
    compare_state(alignment, io, "modular.final", 1e-2, 1e-5, 0.02)


def viewer(config: Config, io: Io) -> None:
    predictions, grids = scene(io)
    pairs = list(predictions)
    used = [pairs[n] for n in io["pair.edge_index_used"].tolist()]
    images = sorted(set(used[0]))
    chosen = {(images.index(i), images.index(j)): predictions[i, j] for i, j in used}
    result = view_pair(chosen, [grids[i] for i in images])
    assert float((result.poses - io["pair.im_poses"]).abs().max()) <= 1e-2
    near(result.focals, io.get("pair.focals"), 0.005, "focals")
    for i, depth in enumerate(result.depth):
        near(depth, io.get(f"pair.depth{i}"), 0.01, f"depth {i}")


def clean(config: Config, io: Io) -> None:
    alignment = prepared(config, io)
    grids = alignment.grids
    depth = [io[f"pco.final.depth{i}"] for i in range(len(grids))]
    poses, focals = io["pco.final.im_poses"], io["pco.final.focals"]
    K = torch.eye(3).repeat(len(grids), 1, 1)
    K[:, 0, 0] = K[:, 1, 1] = focals[:, 0]
    K[:, :2, 2] = torch.tensor([g.center for g in grids])
    points = []
    for i, grid in enumerate(grids):
        rays = (grid.pixels() - torch.tensor(grid.center)) / focals[i]
        local = torch.cat([rays, torch.ones_like(rays[..., :1])], -1) * depth[i][..., None]
        points.append(local @ poses[i, :3, :3].T + poses[i, :3, 3])
    got = clean_confidence(alignment.confidence_maps(), depth, points, poses, K, grids)
    for i, value in enumerate(got):
        want = io[f"pco.clean_conf{i}"]
        # Points within rounding of the tolerance may go either way.
        assert float((value == want).float().mean()) > 0.995, f"view {i}"
