"""What is trained is what was chosen: gradients reach all of it, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.checkpoints import save_weights
from sightline.errors import CheckpointError, InputError
from sightline.models.dust3r import AsymmetricCroCo3DStereo
from sightline.models.fusion import FusedSplatt3R
from sightline.models.mast3r import AsymmetricMASt3R
from sightline.models.splatt3r import Splatt3R
from sightline.training.splatt3r import Splatt3rTask
from sightline.training.splatt3r.batch import correspondences
from sightline.training.splatt3r.network import build_network, frozen_parts
from tests.backbones import tiny
from tests.training.splatt3r import small


def reached(task: Splatt3rTask) -> dict[str, bool]:
    """Return for every parameter whether a backward pass changes it, None-safe."""
    if isinstance(task.network, FusedSplatt3R):
        small.lively(task.network)
    torch.manual_seed(3)
    with torch.no_grad():  # the heads start so small that single gradients underflow
        for name, parameter in task.network.named_parameters():
            if "gaussian_dpt" in name and ".head.4." in name:
                parameter.add_(0.02 * torch.randn_like(parameter))
            if ".dpt.head.4.bias" in name and "gaussian" not in name:
                parameter[:3] = torch.tensor([0.0, 0.0, 1.0])  # in front of the cameras
    batch: dict[str, Any] = {"pairs": small.pairs(), "matches": correspondences(small.views(), 32)}
    task(batch, 0)["loss"].backward()
    return {
        name: parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        for name, parameter in task.network.named_parameters()
    }


def parts(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    ("fusion", "site"), [("concat", "encoder"), ("add", "decoder"), ("weighted_sum", "head")]
)
def test_the_fusion_alone(fusion: str, site: str) -> None:
    task = Splatt3rTask(small.settings(fusion=fusion, site=site, train="fusion"))
    found = reached(task)
    trained = {name for name, has in found.items() if has}
    assert trained == set(task.trained)
    assert trained
    assert all(name.startswith("fusion.adapters.") for name in trained)


@pytest.mark.parametrize(
    "changes",
    [
        {"train": "fusion+gaussian_head"},
        {"train": "gaussian_head"},
        {"train": "gaussian_head", "backbone": None, "points": 0.0},
        {"train": "all"},
        {"train": "all", "matching": 0.075},
        {"train": "all", "backbone": None, "points": 0.0, "point_gradients": True},
        {"train": "all", "fusion": "cross_attention", "site": "head"},
    ],
)
def test_gradients_reach_all_that_is_trained_and_nothing_else(changes: dict[str, Any]) -> None:
    task = Splatt3rTask(small.settings(**changes))
    found = reached(task)
    trained = {name for name, has in found.items() if has}
    assert trained == set(task.trained), trained ^ set(task.trained)
    heads = {name for name in trained if ".gaussian_dpt." in name}
    assert heads
    described = {name for name in trained if "head_local_features" in name}
    assert bool(described) == bool(changes.get("matching"))
    if changes["train"] == "gaussian_head":
        assert trained == heads
    elif changes["train"] == "all":
        assert any(name.startswith("encoder.enc_blocks.0.") for name in trained)
    grads = {n for n, p in task.network.named_parameters() if p.grad is not None}
    assert grads == trained


def test_the_backbone_is_never_trained(tmp_path: Path) -> None:
    file = tmp_path / "dino.safetensors"
    save_weights(tiny.dinov3(), file)
    chosen = small.settings(train="all", backbone=None, backbone_checkpoint=str(file))
    task = Splatt3rTask(chosen)
    assert any("fusion.backbone." in name for name, _ in task.network.named_parameters())
    assert not any("fusion.backbone." in name for name in task.trained)
    assert not any(has for name, has in reached(task).items() if "fusion.backbone." in name)


def test_frozen_parts_stay_in_evaluation_mode() -> None:
    task = Splatt3rTask(small.settings(train="fusion"))
    assert isinstance(task.network, FusedSplatt3R)
    for _ in range(2):
        assert task.network.fusion.adapters.training
        assert not task.network.encoder.training
        assert all(not module.training for module in frozen_parts(task.network))
        task.eval()
        assert not task.network.fusion.adapters.training
        task.train()


@pytest.mark.parametrize(
    ("fusion", "site"), [("concat", "head"), ("add", "encoder"), ("weighted_sum", "decoder")]
)
def test_the_start_is_splatt3r(fusion: str, site: str) -> None:
    plain = build_network(small.settings(backbone=None, train="all")).eval()
    fused = build_network(small.settings(fusion=fusion, site=site)).eval()
    views = small.pairs().views()
    with torch.no_grad():
        for found, want in zip(fused(*views), plain(*views), strict=True):
            for name in want:
                assert torch.equal(found[name], want[name]), name


def test_mast3r_weights_make_a_splatt3r(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {**small.NETWORK, "output_mode": "pts3d+desc4"}
    mast3r = AsymmetricMASt3R(**options).eval()
    file = tmp_path / "mast3r.safetensors"
    save_weights(mast3r, file)
    network = build_network(
        small.settings(checkpoint=str(file), backbone=None, train="gaussian_head", network=None)
    ).eval()
    view = {"img": small.pairs().images[:, 0] * 2 - 1}
    with torch.no_grad():
        want, found = mast3r(view, view)[0], network(view, view)[0]
    torch.testing.assert_close(found["pts3d"], want["pts3d"])
    assert float(found["opacities"].mean()) < 0.2


def test_other_networks_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "dust3r.safetensors"
    torch.manual_seed(0)
    sizes = {
        k: v for k, v in small.NETWORK.items() if k not in {"output_mode", "hidden_dim_factor"}
    }
    save_weights(AsymmetricCroCo3DStereo(head_type="dpt", **sizes), file)
    with pytest.raises(
        CheckpointError, match="expected weights of Splatt3R or MASt3R in .* dust3r"
    ):
        build_network(small.settings(checkpoint=str(file)))
    plain = tmp_path / "plain.safetensors"
    save_weights(Splatt3R(**small.NETWORK), plain)
    with pytest.raises(InputError, match="needs a backbone, and .* has none"):
        build_network(small.settings(checkpoint=str(plain), backbone=None))


@pytest.mark.parametrize(
    "network",
    [
        {"enc_depth": "x"},
        {"enc_depth": 0},
        {"foo": 1},
        {"enc_embed_dim": 7},
        {"dpt": {"layer_dims": [1]}},
    ],
)
def test_options_of_which_no_network_can_be_built(network: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"--network: no network .*; correct it"):
        build_network(small.settings(network=network))
