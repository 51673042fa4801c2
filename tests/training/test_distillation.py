"""Self-distillation losses beyond their golden values."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import InputError
from sightline.training.distillation import (
    ProjectionHead,
    dino_loss,
    gram_loss,
    koleo_loss,
    sinkhorn_targets,
)
from sightline.training.schedules import cosine_schedule, linear_cosine_constant


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_sinkhorn_uses_all_prototypes_equally() -> None:
    targets = sinkhorn_targets(random(2, 30, 5), 0.5, iterations=50).flatten(0, 1)
    torch.testing.assert_close(targets.sum(1), torch.ones(60))
    torch.testing.assert_close(targets.sum(0), torch.full((5,), 12.0), rtol=1e-3, atol=1e-3)


def test_sinkhorn_survives_logits_that_overflow_the_exponential() -> None:
    logits = random(8, 6) * 20
    targets = sinkhorn_targets(logits, 0.04)
    assert torch.isfinite(targets).all()
    torch.testing.assert_close(targets, sinkhorn_targets(logits + 100.0, 0.04), atol=2e-3, rtol=0)


def test_a_student_that_agrees_has_the_least_loss() -> None:
    logits = random(2, 4, 7)
    targets = (logits / 0.1).softmax(-1)[:1]
    agreeing, other = dino_loss(logits[:1], targets), dino_loss(logits[1:], targets)
    entropy = -(targets * targets.log()).sum(-1).mean()
    torch.testing.assert_close(agreeing, entropy)
    assert other > agreeing


def test_koleo_pushes_neighbours_apart() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]], requires_grad=True)
    koleo_loss(features).backward()
    assert features.grad is not None
    assert features.grad[0, 1] > 0 > features.grad[1, 1]  # downhill is away from each other


def test_gram_ignores_a_common_rotation() -> None:
    features = random(2, 5, 4)
    turn = torch.linalg.qr(random(4, 4, seed=1)).Q
    assert gram_loss(features @ turn, features) < 1e-10
    assert gram_loss(features.roll(1, 1), features) > 1e-3


def test_the_head_ends_on_the_sphere_before_its_last_layer() -> None:
    head = ProjectionHead(6, prototypes=9, hidden_dim=8, bottleneck_dim=4, weight_norm=True)
    unit = head(random(3, 6), last_layer=False)
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(3))
    rows = head.last_layer.weight_v
    torch.testing.assert_close(head(random(3, 6)), unit @ (rows / rows.norm(dim=1)[:, None]).T)
    assert {n.split(".")[0] for n in head.state_dict()} == {"mlp", "last_layer"}


@given(st.integers(0, 10), st.integers(0, 5), st.integers(1, 40), st.floats(0, 1))
def test_cosine_schedules_have_their_length_and_limits(
    warmup: int, freeze: int, rest: int, extra: float
) -> None:
    total = warmup + freeze + rest
    values = cosine_schedule(
        2.0, 0.5, total, warmup=warmup, freeze=freeze, trunc_extra=extra, warmup_start=0.1
    )
    assert values.shape == (total,)
    assert (values[:freeze] == 0).all()
    assert values[freeze:].max() <= 2 + 1e-12
    assert values[warmup + freeze :].min() >= 0.5 - 1e-12
    assert (np.diff(values[warmup + freeze :]) <= 1e-12).all()


def test_linear_cosine_constant_by_hand() -> None:
    values = linear_cosine_constant(0.0, 2.0, 1.0, 7, warmup=2, cosine=3)
    np.testing.assert_allclose(values, [0, 1, 2, 1.5, 1, 1, 1])


def test_a_schedule_without_room_is_refused() -> None:
    with pytest.raises(InputError, match="no room for 12 steps"):
        cosine_schedule(1.0, 0.0, 10, warmup=12)
