import pytest
import torch

from sightline.checkpoints import read_weights
from sightline.errors import CheckpointError, InputError, UnknownNameError
from sightline.models import load
from sightline.models.check import check_file
from sightline.reconstruction.learned.vggt import VggtEstimator, VggtOmegaEstimator
from sightline.training.vggt.network import build_network, check_recognized
from sightline.types import Views
from tests.datasets.replicas import room
from tests.training.vggt.small import settings

KINDS = {
    "dinov3": {},
    "dinov3 of patch 8": {"patch_size": 8},
    "dinov3 of another width": {"encoder_dim": 48, "encoder_heads": 3},
    "dinov2": {"encoder": "dinov2_vits14_reg", "encoder_heads": 0, "width": 28},
    "dinov2 without registers": {"encoder": "dinov2_vits14", "encoder_heads": 0, "width": 28},
    "conv": {"encoder": "conv", "patch_size": 8},
    "all heads": {"point_weight": 1.0, "track_weight": 0.05},
    "omega": {"model": "omega", "encoder": "dinov3_vits16"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_network_is_found_to_be_what_it_is(kind, tmp_path):
    torch.manual_seed(0)
    network = build_network(settings(**KINDS[kind])).eval()
    check_recognized(network)
    file = tmp_path / "vggt_custom.pt"
    torch.save({"model": network.state_dict(), "training": {"data": "rooms"}}, file)
    assert check_file(file).strict
    again = load(file).eval()
    assert type(again) is type(network)
    side = 28 if "dinov2" in kind else 32
    images = torch.rand(1, 2, 3, side, side)
    with torch.no_grad():
        ours, theirs = network(images), again(images)
    assert ours.keys() == theirs.keys()
    for key in ("pose_enc", "depth", "depth_conf"):
        assert torch.equal(ours[key], theirs[key]), key


def test_a_convnext_is_an_encoder_too():
    network = build_network(
        settings(
            encoder="dinov3_convnext_tiny",
            encoder_dim=0,
            encoder_depth=0,
            encoder_heads=0,
            width=64,
        )
    )
    check_recognized(network)
    assert network(torch.rand(1, 2, 3, 64, 64))["depth"].shape == (1, 2, 64, 64, 1)
    with pytest.raises(InputError, match="published size only"):
        build_network(settings(encoder="dinov3_convnext_tiny"))


def test_heads_that_weights_cannot_tell_are_refused():
    network = build_network(
        settings(encoder="dinov2_vits14", encoder_dim=64, encoder_heads=2, width=28)
    )
    with pytest.raises(InputError, match=r"num_heads 2 of aggregator\.patch_embed.*say 1"):
        check_recognized(network)


def test_frozen_parts_by_pattern():
    network = build_network(settings(freeze="*aggregator*, *.norm.*"))
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad != ("aggregator" in name or ".norm." in name), name
    with pytest.raises(InputError, match=r'"\*agregator\*" matches no parameter; the parts are'):
        build_network(settings(freeze="*agregator*"))
    with pytest.raises(InputError, match="leaves nothing to train"):
        build_network(settings(freeze="*"))


def test_starting_points(tmp_path):
    torch.manual_seed(0)
    first = build_network(settings())
    torch.save(first.state_dict(), tmp_path / "whole.pt")
    torch.save(first.aggregator.patch_embed.state_dict(), tmp_path / "encoder.pt")
    second = build_network(settings(checkpoint=str(tmp_path / "whole.pt"), embed_dim=999))
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    third = build_network(settings(encoder_checkpoint=str(tmp_path / "encoder.pt")))
    for name, value in read_weights(tmp_path / "encoder.pt").items():
        assert torch.equal(third.aggregator.patch_embed.state_dict()[name], value)
    assert not torch.equal(third.aggregator.camera_token, first.aggregator.camera_token)
    with pytest.raises(CheckpointError, match="expected weights of VGGTOmega"):
        build_network(settings(model="omega", checkpoint=str(tmp_path / "whole.pt")))
    with pytest.raises(InputError, match="has no point head; set --point-weight 0"):
        build_network(settings(checkpoint=str(tmp_path / "whole.pt"), point_weight=1.0))
    with pytest.raises(UnknownNameError, match='no encoder "dinov4"'):
        build_network(settings(encoder="dinov4"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_frames": 1}, "2 <= --min-frames <= --max-frames"),
        ({"min_aspect": 2.0}, "--min-aspect <= --max-aspect"),
        ({"min_scale": 0.0}, "--min-scale <= --max-scale"),
        ({"camera_weight": 0.0, "depth_weight": 0.0}, "one of them above"),
        ({"model": "omega", "point_weight": 1.0}, "no point and no track head"),
        ({"model": "omega", "encoder": "dinov2_vits14"}, "stands on a DINOv3"),
        ({"val_scenes": 0}, "--val-scenes must be 1 or more"),
    ],
)
def test_impossible_settings_are_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        settings(**options)


def test_omega_is_as_wide_as_its_encoder():
    with pytest.raises(InputError, match="use --embed-dim 48"):
        build_network(settings(model="omega", encoder_dim=48, encoder_heads=3))


@pytest.mark.parametrize("model", ["vggt", "omega"])
def test_reconstruct_takes_what_was_trained(model, tmp_path):
    network = build_network(settings(model=model))
    file = tmp_path / "vggt_custom.pt"
    torch.save({"model": network.state_dict()}, file)
    sample = room(3)
    views = Views(
        images=sample.images,
        names=sample.names[0],
        from_original=torch.eye(3).expand(3, 3, 3).clone(),
        sizes=torch.tensor([sample.size] * 3),
    )
    kind = VggtEstimator if model == "vggt" else VggtOmegaEstimator
    found = kind(checkpoint=file, side=32).estimate(views)
    assert found.depth is not None
    assert found.depth.shape == (3, *sample.size)
