"""Randomness that depends on where training is, and on nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import InputError, UnknownNameError
from sightline.training.draws import Draw, generator, shuffled, torch_seed
from sightline.training.settings import TrainSettings


@given(st.integers(0, 50), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_shares_of_a_step_are_what_one_process_takes(
    step: int, world: int, micro: int, size: int
) -> None:
    parts = world * micro
    shares = [
        Draw(seed=0, step=step, part=part, parts=parts, size=size).items for part in range(parts)
    ]
    whole = Draw(seed=0, step=step, part=0, parts=1, size=size * parts).items
    assert [index for share in shares for index in share] == list(whole)


@given(st.integers(1, 40), st.integers(0, 3), st.integers(0, 1000))
def test_every_pass_has_every_item_once(count: int, epoch: int, seed: int) -> None:
    order = [shuffled(epoch * count + place, count, seed) for place in range(count)]
    assert sorted(order) == list(range(count))


def test_passes_differ_and_seeds_differ() -> None:
    def first(seed: int, epoch: int) -> list[int]:
        return [shuffled(epoch * 50 + place, 50, seed) for place in range(50)]

    assert first(0, 0) != first(0, 1)
    assert first(0, 0) != first(1, 0)
    assert first(0, 0) == first(0, 0)


def test_generators_belong_to_their_keys() -> None:
    draws = {
        float(generator(seed, *keys).random())
        for seed in (0, 1)
        for keys in [(), ("a",), ("b",), ("a", 0), ("a", 1), (0, "a")]
    }
    assert len(draws) == 12
    assert generator(3, "a", 4).random() == generator(3, "a", 4).random()
    assert torch_seed(0, "x") != torch_seed(0, "y")
    draw = Draw(seed=1, step=2, part=1, parts=2, size=3)
    assert np.array_equal(draw.of_item(9).random(3), draw.of_item(9).random(3))
    # An item's draws do not depend on who takes it.
    assert (
        draw.of_item(9).random()
        == Draw(seed=1, step=0, part=0, parts=1, size=9).of_item(9).random()
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"steps": None}, "expected --steps or --epochs, got none"),
        ({"steps": 3, "epochs": 2}, "expected --steps or --epochs, got both"),
        ({"batch_size": 0}, "--batch-size must be 1 or more, got 0"),
        ({"beta2": 1.0}, "--beta2 must be 0 or more and below 1"),
        ({"lr": float("nan")}, "--lr must be"),
        ({"warmup": float("nan")}, "--warmup must be 0 or more"),
    ],
)
def test_settings_refuse_nonsense(changes: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        TrainSettings(**{"steps": 1, **changes})


def test_unknown_loggers_are_named() -> None:
    with pytest.raises(UnknownNameError, match='no logger "tensorbord"; closest: tensorboard'):
        TrainSettings(steps=1, loggers="csv,tensorbord")
