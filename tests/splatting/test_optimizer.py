import pytest
import torch

from sightline.splatting.optimizer import AdamConfig, RowAdam

RATES = {"means": 1e-2, "sh": (3e-2, 1e-3)}


def _params(rows=50, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return {
        "means": torch.randn(rows, 3, generator=generator).to(dtype),
        "sh": torch.randn(rows, 4, 3, generator=generator).to(dtype),
    }


def _grads(params, step):
    generator = torch.Generator().manual_seed(100 + step)
    return {k: torch.randn(p.shape, generator=generator).to(p.dtype) for k, p in params.items()}


def test_all_rows_follow_torchs_adam():
    params = _params()
    ours = RowAdam(params, AdamConfig(visible_only=False))
    theirs = {k: p.clone().requires_grad_() for k, p in params.items()}
    base, bands = theirs["sh"][:, :1].detach(), theirs["sh"][:, 1:].detach()
    leaves = [theirs["means"], base.clone().requires_grad_(), bands.clone().requires_grad_()]
    optimizer = torch.optim.Adam(
        [
            {"params": [leaf], "lr": rate}
            for leaf, rate in zip(leaves, (1e-2, 3e-2, 1e-3), strict=True)
        ],
        eps=1e-15,
    )
    for step in range(5):
        grads = _grads(params, step)
        ours.step(grads, RATES)
        leaves[0].grad, leaves[1].grad, leaves[2].grad = (
            grads["means"],
            grads["sh"][:, :1].clone(),
            grads["sh"][:, 1:].clone(),
        )
        optimizer.step()
    torch.testing.assert_close(params["means"], leaves[0].detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        params["sh"], torch.cat(leaves[1:], 1).detach(), rtol=1e-5, atol=1e-6
    )


def test_unseen_rows_keep_values_and_moments():
    params = _params()
    adam = RowAdam(params)
    adam.step(_grads(params, 0), RATES, torch.ones(50, dtype=torch.bool))
    seen = torch.arange(50) % 3 == 0
    before = {k: (p.clone(), adam.m[k].clone(), adam.v[k].clone()) for k, p in params.items()}
    adam.step(_grads(params, 1), RATES, seen)
    for name, old in before.items():
        for new, was in zip((params[name], adam.m[name], adam.v[name]), old, strict=True):
            assert torch.equal(new[~seen], was[~seen])
            assert (new[seen] != was[seen]).any(-1).all()


@pytest.mark.parametrize("visible_only", [True, False])
def test_the_plain_version_agrees_with_the_kernel(visible_only):
    config = AdamConfig(visible_only=visible_only)
    fast, plain = _params(), _params(dtype=torch.float64)
    a, b = RowAdam(fast, config), RowAdam(plain, config)
    seen = torch.arange(50) % 2 == 0
    for step in range(4):
        grads = _grads(fast, step)
        a.step(grads, RATES, seen)
        b.step({k: g.double() for k, g in grads.items()}, RATES, seen)
    for name, value in fast.items():
        torch.testing.assert_close(value.double(), plain[name], rtol=1e-4, atol=1e-5)


def test_a_tensor_without_gradient_is_left_alone():
    params = _params()
    before = params["sh"].clone()
    adam = RowAdam(params)
    adam.step({"means": torch.ones(50, 3)}, RATES, torch.ones(50, dtype=torch.bool))
    assert torch.equal(params["sh"], before)


def test_rows_move_with_their_moments():
    params = _params()
    adam = RowAdam(params)
    adam.step(_grads(params, 0), RATES)
    m = {k: t.clone() for k, t in adam.m.items()}
    rows = torch.tensor([4, -1, 4, 0])
    new = {k: p[rows.clamp(min=0)] for k, p in params.items()}
    adam.select_rows(rows, new)
    for name, value in adam.m.items():
        assert torch.equal(value[0], m[name][4])
        assert torch.equal(value[2], m[name][4])
        assert torch.equal(value[3], m[name][0])
        assert (value[1] == 0).all()
    assert adam.params["means"] is new["means"]
    assert adam.steps == 1


def test_moments_can_be_forgotten():
    params = _params()
    adam = RowAdam(params)
    adam.step(_grads(params, 0), RATES)
    adam.reset_rows(torch.tensor([3]), ("means",))
    assert (adam.m["means"][3] == 0).all()
    assert (adam.v["means"][3] == 0).all()
    assert (adam.m["sh"][3] != 0).any()
    adam.reset_rows(torch.tensor([3]))
    assert (adam.m["sh"][3] == 0).all()
