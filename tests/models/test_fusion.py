"""A fused Splatt3R: official names, one file, the same start, and recognised by its shapes."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from sightline.backbones import create_backbone
from sightline.backbones.fusion import backbone_of, fuse_splatt3r, load_fused
from sightline.checkpoints import read_weights, save_weights
from sightline.errors import CheckpointError, InputError
from sightline.models import load
from sightline.models.check import check_file
from sightline.models.fusion import FusedSplatt3R, Mode, Site
from sightline.models.recognize import recognize
from sightline.models.splatt3r import Splatt3R
from tests.backbones import tiny

SIZES: dict[str, Any] = {
    "enc_embed_dim": 64,
    "enc_depth": 1,
    "enc_num_heads": 1,
    "dec_embed_dim": 32,
    "dec_depth": 4,
    "dec_num_heads": 1,
    "hidden_dim_factor": 0.25,
    "output_mode": "pts3d+gaussian+desc4",
    "dpt": {"feature_dim": 8, "last_dim": 4, "layer_dims": [4, 4, 8, 8]},
}


def splatt3r() -> Splatt3R:
    torch.manual_seed(0)
    return Splatt3R(**SIZES).eval()


def views() -> list[dict[str, Any]]:
    torch.manual_seed(1)
    return [{"img": torch.rand(1, 3, 32, 48) * 2 - 1} for _ in range(2)]


def lively(fused: FusedSplatt3R) -> FusedSplatt3R:
    """Let the adapters add something."""
    torch.manual_seed(2)
    for name, parameter in fused.fusion.adapters.named_parameters():
        if ".out." in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return fused


@pytest.mark.parametrize("site", get_args(Site))
@pytest.mark.parametrize("mode", get_args(Mode))
def test_one_file_holds_it_all(mode: Mode, site: Site, tmp_path: Path) -> None:
    backbone = backbone_of(tiny.dinov2())
    official = set(splatt3r().state_dict())
    fused = lively(fuse_splatt3r(splatt3r(), backbone, mode, site, layer=1, name="mine"))
    assert official < set(fused.state_dict())
    rest = set(fused.state_dict()) - official
    assert {name.split(".")[1] for name in rest} == {"adapters", "backbone"}
    file = tmp_path / "fused.safetensors"
    save_weights(fused, file, {"fusion": fused.note})
    check = check_file(file)
    assert check.strict, check.verdict
    assert check.recognition is not None
    assert check.recognition.family == "splatt3r_fused"
    assert check.recognition.options["fusion"]["mode"] == mode
    assert check.recognition.options["fusion"]["site"] == site
    back = load_fused(file)
    assert back.description == {"name": "mine", "layer": 1, "alignment": "image"}
    for found, want in zip(back(*views()), fused(*views()), strict=True):
        assert found.keys() == want.keys()
        for name in found:
            torch.testing.assert_close(found[name], want[name], msg=name)


@pytest.mark.parametrize("kind", ["dinov2", "dinov3", "convnext"])
def test_it_starts_as_splatt3r(kind: str) -> None:
    plain = splatt3r()
    want = plain(*views())
    fused = fuse_splatt3r(plain, backbone_of(getattr(tiny, kind)()), "concat", "head")
    for result, before in zip(fused(*views()), want, strict=True):
        for name in before:
            assert torch.equal(result[name], before[name]), name
    found = recognize(fused.state_dict())
    assert found is not None
    assert found.report.strict, found.report


def test_adapters_of_a_width_of_their_own_are_recognised() -> None:
    for site in get_args(Site):
        fused = fuse_splatt3r(
            splatt3r(), backbone_of(tiny.dinov3()), "weighted_sum", site, width=32
        )
        found = recognize(fused.state_dict())
        assert found is not None
        assert found.report.strict, (site, found.report)


def test_backbones_without_our_weights_go_by_name(tmp_path: Path) -> None:
    fused = lively(fuse_splatt3r(splatt3r(), create_backbone("iuvrgb"), name="iuvrgb"))
    assert not any(name.startswith("fusion.backbone") for name in fused.state_dict())
    file = tmp_path / "fused.safetensors"
    save_weights(fused, file, {"fusion": fused.note})
    assert check_file(file).strict
    found, want = load_fused(file)(*views())[0], fused(*views())[0]
    torch.testing.assert_close(found["means"], want["means"])
    bare: Any = load(file)
    with pytest.raises(InputError, match=r"has no backbone; load it with .*load_fused"):
        bare(*views())


def test_a_plain_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "plain.safetensors"
    save_weights(splatt3r(), file)
    with pytest.raises(CheckpointError, match="expected a fused Splatt3R"):
        load_fused(file)


def test_a_lying_note_does_not_break_the_file(tmp_path: Path) -> None:
    fused = fuse_splatt3r(splatt3r(), backbone_of(tiny.dinov2()), name="mine")
    file = tmp_path / "fused.safetensors"
    lies = {"fusion": {"mode": "cross_attention", "layer": "x", "extra_dim": 7, "backbone": "rm"}}
    save_weights(fused, file, lies)
    back: Any = load(file)
    assert back.fusion.mode == "add"
    assert "layer" not in back.description
    assert read_weights(file).keys() == fused.state_dict().keys()
