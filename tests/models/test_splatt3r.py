from typing import Any

import pytest
import torch

from sightline.models.splatt3r import SH_C0, Splatt3R, activate_offset, covariances

TINY: dict[str, Any] = {
    "patch_size": 16,
    "enc_embed_dim": 16,
    "enc_depth": 1,
    "enc_num_heads": 2,
    "dec_embed_dim": 8,
    "dec_depth": 4,
    "dec_num_heads": 1,
    "hidden_dim_factor": 1.0,
    "dpt": {"feature_dim": 8, "last_dim": 4, "layer_dims": [4, 4, 8, 8]},
}


def splatt3r(**options: Any) -> Splatt3R:
    return Splatt3R(**{**TINY, **options}).eval()


def views() -> list[dict[str, Any]]:
    return [{"img": torch.rand(1, 3, 32, 48) * 2 - 1} for _ in range(2)]


def test_published_size() -> None:
    model = Splatt3R(device="meta")
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert count == pytest.approx(729.0, abs=0.06)


def test_gaussians() -> None:
    first, second = splatt3r(sh_degree=4)(*views())
    assert {n for n in first if n not in second} == {"pts3d", "means"}
    assert {n for n in second if n not in first} == {
        "pts3d_in_other_view",
        "means_in_other_view",
    }
    assert first["sh"].shape == (1, 32, 48, 3, 4)
    assert (first["scales"] > 0).all()
    assert torch.allclose(first["rotations"].norm(dim=-1), torch.ones(1, 32, 48), atol=1e-5)
    assert ((first["opacities"] > 0) & (first["opacities"] < 1)).all()
    values = torch.linalg.eigvalsh(first["covariances"].double())
    assert torch.allclose(
        values, first["scales"].double().square().sort(dim=-1).values, rtol=1e-3, atol=1e-8
    )


def test_an_untrained_head_starts_at_the_points() -> None:
    first, _ = splatt3r()(*views())
    assert torch.allclose(first["means"], first["pts3d"], atol=1e-2)
    assert first["scales"].mean().item() == pytest.approx(0.0009, abs=2e-4)
    still, _ = splatt3r(use_offsets=False)(*views())
    assert torch.equal(still["means"], still["pts3d"])


def test_the_pixel_colour_is_added() -> None:
    model: Any = splatt3r()
    pair = views()
    implied = model(*pair)[0]["sh"]
    pair[0]["original_img"] = pair[0]["img"] * 0.5 + 0.5
    assert torch.equal(model(*pair)[0]["sh"], implied)
    pair[0]["original_img"] = pair[0]["original_img"] + 0.1
    shift = model(*pair)[0]["sh"] - implied
    assert torch.allclose(shift, torch.full_like(shift, 0.1 / SH_C0), atol=1e-5)


def test_points_get_no_gradient_from_means() -> None:
    model: Any = splatt3r().train()
    first, second = model(*views())
    (first["means"].sum() + second["means_in_other_view"].sum()).backward()
    assert model.encoder.downstream_head1.dpt.head[4].weight.grad is None
    assert model.encoder.downstream_head1.gaussian_dpt.dpt.head[4].weight.grad is not None


def test_loss_weights_are_kept_apart() -> None:
    model: Any = splatt3r(lpips=True)
    held = {n for n in model.state_dict() if n.startswith("lpips_criterion.")}
    assert held == model.held_names
    assert not [n for n, _ in model.named_parameters() if n in held]


def test_activations() -> None:
    assert activate_offset(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]
    far = activate_offset(torch.tensor([0.0, 6.0, 0.0]))
    assert far.tolist() == pytest.approx([0.0, 1 - 0.00247875, 0.0], abs=1e-5)
    turned = covariances(
        torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 0.0, 0.7071068, 0.7071068])
    )
    assert torch.allclose(turned, torch.diag(torch.tensor([4.0, 1.0, 9.0])), atol=1e-5)
    with pytest.raises(ValueError, match="expected head_type gaussian_head, got dpt"):
        splatt3r(head_type="dpt")
