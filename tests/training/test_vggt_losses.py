"""VGGT's losses beyond their golden values."""

import torch

from sightline.models.pose_encoding import encode_cameras
from sightline.training.vggt_losses import (
    CameraTerm,
    DenseTerm,
    Truth,
    normalize_truth,
    vggt_loss,
)


def scene(height: int = 12, width: int = 16) -> tuple[Truth, torch.Tensor]:
    """Two cameras, a unit apart, before a wavy wall."""
    generator = torch.Generator().manual_seed(0)
    depths = 4 + torch.rand(1, 2, height, width, generator=generator)
    intrinsics = torch.tensor([[20.0, 0, width / 2], [0, 20, height / 2], [0, 0, 1]])
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    rays = torch.stack([(x - width / 2) / 20, (y - height / 2) / 20, torch.ones_like(x)], -1)
    points = rays * depths[..., None]
    extrinsics = torch.eye(4)[:3].repeat(1, 2, 1, 1)
    extrinsics[0, :, 0, 3] = torch.tensor([3.0, 2.0])
    shift = extrinsics[:, :, None, None, :, 3]
    truth = Truth(extrinsics, points - shift, points, depths, torch.ones_like(depths).bool())
    return truth, intrinsics.expand(1, 2, 3, 3)


def predictions(truth: Truth, intrinsics: torch.Tensor) -> dict:
    encoding = encode_cameras(truth.extrinsics, intrinsics, truth.masks.shape[-2:])
    ones = torch.ones_like(truth.depths)
    return {
        "pose_enc_list": [encoding, encoding],
        "depth": truth.depths[..., None],
        "depth_conf": ones,
        "world_points": truth.world_points,
        "world_points_conf": ones,
    }


def test_the_first_camera_is_the_world_and_the_mean_distance_is_one() -> None:
    truth = normalize_truth(scene()[0])
    torch.testing.assert_close(truth.extrinsics[0, 0], torch.eye(4)[:3])
    torch.testing.assert_close(truth.world_points[:, 0], truth.cam_points[:, 0])
    distance = truth.world_points.norm(dim=-1)
    torch.testing.assert_close(distance.mean(), torch.ones(()), atol=1e-4, rtol=0)


def test_perfect_predictions_cost_nothing_and_worse_ones_more() -> None:
    raw, intrinsics = scene()
    truth = normalize_truth(raw)
    terms = {
        "camera": CameraTerm(),
        "depth": DenseTerm(gradient="grad"),
        "point": DenseTerm(gradient="normal"),
    }
    perfect = predictions(truth, intrinsics)
    best = vggt_loss(perfect, truth, intrinsics, **terms)
    assert best["objective"].abs() < 1e-4
    worse = {**perfect, "depth": (perfect["depth"] * 1.1).requires_grad_()}
    loss = vggt_loss(worse, truth, intrinsics, **terms)
    assert loss["objective"] > best["objective"] + 0.05
    assert loss["loss_camera"] == best["loss_camera"]
    loss["objective"].backward()
    assert torch.isfinite(worse["depth"].grad).all()


def test_without_known_pixels_there_is_no_loss_but_a_gradient() -> None:
    raw, intrinsics = scene()
    truth = normalize_truth(raw)
    truth = truth._replace(masks=torch.zeros_like(truth.masks))
    guess = predictions(truth, intrinsics)
    guess["depth"] = guess["depth"].clone().requires_grad_()
    loss = vggt_loss(
        guess, truth, intrinsics, camera=CameraTerm(), depth=DenseTerm(gradient="grad"), point=None
    )
    loss["objective"].backward()
    assert loss["objective"] == 0
    assert (guess["depth"].grad == 0).all()
