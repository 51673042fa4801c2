import math

import pytest
import torch

from sightline.errors import FileFormatError, InputError
from sightline.probing import probe3d
from sightline.probing.dtu import read_mvs_camera
from sightline.probing.protocols import find_protocol
from sightline.probing.scenes import SceneSource, load_scene
from sightline.probing.tokens import TokenGrid, even_placement, make_grid


def test_depth_of_bins() -> None:
    raw = torch.full((1, 3, 1, 1), -1.0)
    raw[0, 2] = 0.9
    # Weights 0.1, 0.1, 1.0 over bins at 0.001, 1.0005, 2.
    want = (0.1 * 0.001 + 0.1 * 1.0005 + 2.0) / 1.2
    assert probe3d.depth_from_bins(raw, 2.0).item() == pytest.approx(want)


def test_losses_of_the_papers() -> None:
    depth = torch.rand(1, 8, 8) + 1
    assert probe3d.sig_loss(depth, depth).item() == pytest.approx(1e-6)
    # A pure scale e leaves no variance: sqrt((1 - 0.85) * 1).
    assert probe3d.sig_loss(depth * math.e, depth).item() == pytest.approx(
        math.sqrt(0.15), rel=1e-4
    )
    assert probe3d.gradient_loss(depth * 3, depth).item() == pytest.approx(0, abs=1e-5)
    ramp = torch.exp(torch.arange(8.0)).expand(1, 8, 8)
    # log ramps by 1 a column and 0 a row, at steps 1, 2, 4 and 8 (one column, no step left).
    assert probe3d.gradient_loss(ramp, torch.ones(1, 8, 8)).item() == pytest.approx((1 + 2 + 4) / 4)
    normals = torch.zeros(1, 2, 2, 3)
    normals[..., 2] = 1
    raw = torch.zeros(1, 4, 2, 2)
    raw[:, 2] = 5
    kappa = 1.01
    want = (
        -math.log(kappa**2 + 1)
        + kappa * math.acos(1 - 1e-6)
        + math.log1p(math.exp(-kappa * math.pi))
    )
    assert probe3d.angular_loss(raw, normals).item() == pytest.approx(want, abs=1e-3)


def test_depth_scores() -> None:
    depth = torch.rand(6, 6) + 1
    exact = probe3d.depth_scores(depth, depth)
    assert (exact["d1"], exact["rmse"]) == (1.0, pytest.approx(0, abs=1e-6))
    scaled = probe3d.depth_scores(0.5 * depth + 0.2, depth)
    assert scaled["d1"] < 0.5
    assert scaled["rmse_fitted"] == pytest.approx(0, abs=1e-5)
    assert scaled["d1_fitted"] == 1


def test_normal_scores() -> None:
    normals = torch.zeros(2, 2, 3)
    normals[..., 2] = 1
    turned = torch.zeros(2, 2, 3)
    turned[..., 2], turned[..., 0] = math.cos(math.radians(20)), math.sin(math.radians(20))
    scores = probe3d.normal_scores(turned, normals)
    assert (scores["below_11.25"], scores["below_22.5"], scores["below_30"]) == (0, 1, 1)
    assert scores["angular_rmse"] == pytest.approx(20, abs=0.01)


def test_rate_of_the_paper() -> None:
    assert probe3d.warm_cosine(0.075) == pytest.approx(0.5)
    assert probe3d.warm_cosine(0.15) == pytest.approx(1)
    assert probe3d.warm_cosine(1.0) == pytest.approx(0.01)


def grid_of(maps: torch.Tensor) -> TokenGrid:
    size = (maps.shape[-2], maps.shape[-1])
    return make_grid(maps, even_placement(size, size), is_pixels=True)


def test_probes_tell_features_that_know(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe3d, "STEPS", 40)
    monkeypatch.setattr(probe3d, "BINS", 32)
    protocol = find_protocol("fast", {"long_side": 32, "train_views": 3})
    source = SceneSource(
        id="s",
        synthetic={"kind": "simple", "num_views": 24, "height": 32, "width": 32},
        train=("view_000", "view_001", "view_002"),
        test=("view_003",),
    )
    scene = load_scene(source, protocol)
    assert scene.depth is not None
    assert scene.normals is not None
    assert scene.cameras is not None
    from sightline.geometry.camera import unproject_depth

    cameras = scene.cameras.select([0, 1, 2]).map(lambda t: t.float())
    points = unproject_depth(scene.depth[:3].float(), cameras).permute(0, 3, 1, 2)
    torch.manual_seed(0)
    noise = grid_of(torch.randn(3, 3, 32, 32))
    knowing = {
        "depth": scene.depth[:3, None].float(),
        "normals": scene.normals[:3].permute(0, 3, 1, 2).float(),
        "correspondence": torch.cat([points - points.mean(), torch.ones(3, 1, 32, 32)], 1),
    }
    for probe, measure in (
        ("depth", "d1"),
        ("normals", "below_30"),
        ("correspondence", "recall_5px"),
    ):
        good, bad = (
            probe3d.run_probe3d(probe, scene, tokens, seed=0, out=tmp_path)[measure]
            for tokens in (grid_of(knowing[probe]), noise)
        )
        assert good > bad + 0.2, (probe, good, bad)


def test_scenes_without_depth_are_refused(tmp_path) -> None:
    import dataclasses

    protocol = find_protocol("fast", {"long_side": 32, "train_views": 2})
    source = SceneSource(
        id="s", synthetic={"kind": "simple", "num_views": 4, "height": 32, "width": 32}
    )
    scene = dataclasses.replace(load_scene(source, protocol), depth=None)
    with pytest.raises(InputError, match="no measured depth"):
        probe3d.run_probe3d("depth", scene, grid_of(torch.rand(2, 3, 32, 32)), seed=0, out=tmp_path)


def test_mvsnet_cameras(tmp_path) -> None:
    path = tmp_path / "a_cam.txt"
    rows = "1 0 0 10\n0 1 0 20\n0 0 1 30\n0 0 0 1"
    path.write_text(f"extrinsic\n{rows}\n\nintrinsic\n500 0 160\n0 510 128\n0 0 1\n\n425 2.5\n")
    extrinsic, intrinsic = read_mvs_camera(path)
    assert extrinsic[:3, 3].tolist() == [10, 20, 30]
    assert (intrinsic[0, 0], intrinsic[1, 2]) == (500, 128)
    path.write_text("extrinsic 1 2 intrinsic 3")
    with pytest.raises(FileFormatError, match="no MVSNet camera"):
        read_mvs_camera(path)
