import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.nn.rope import (
    PositionGetter,
    RopePositionEmbedding,
    RotaryPositionEmbedding2D,
    grid_positions,
    grid_rotary,
    sincos_grid,
)


def turned(positions: list[tuple[int, int]], vector: torch.Tensor) -> torch.Tensor:
    where = torch.tensor(positions)
    return grid_rotary(where, vector.numel()).rotate(vector.expand(1, 1, len(where), -1))[0, 0]


@given(
    a=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    b=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    shift=st.tuples(st.integers(0, 20), st.integers(0, 20)),
)
def test_grid_rotation_sees_only_differences(a: tuple, b: tuple, shift: tuple) -> None:
    generator = torch.Generator().manual_seed(3)
    query, key = torch.randn(2, 16, generator=generator)
    moved = [(p[0] + shift[0], p[1] + shift[1]) for p in (a, b)]
    here = turned([a], query)[0] @ turned([b], key)[0]
    there = turned([moved[0]], query)[0] @ turned([moved[1]], key)[0]
    assert torch.allclose(here, there, atol=2e-4)
    assert torch.allclose(turned([a], query).norm(), query.norm(), atol=1e-5)


def test_position_zero_stays() -> None:
    vector = torch.randn(8)
    assert torch.equal(turned([(0, 0)], vector)[0], vector)


def test_batched_positions_equal_one_by_one() -> None:
    positions = torch.randint(0, 9, (3, 5, 2))
    tokens = torch.randn(3, 2, 5, 8)
    whole = grid_rotary(positions, 8).rotate(tokens)
    each = [grid_rotary(p, 8).rotate(t[None])[0] for p, t in zip(positions, tokens, strict=True)]
    assert torch.equal(whole, torch.stack(each))
    assert torch.equal(RotaryPositionEmbedding2D()(tokens, positions), whole)


def test_positions_are_row_by_row() -> None:
    assert grid_positions(2, 3).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert PositionGetter()(4, 2, 3, "cpu").shape == (4, 6, 2)


def test_half_precision_keeps_its_dtype() -> None:
    tokens = torch.randn(1, 2, 6, 8).bfloat16()
    table = grid_rotary(grid_positions(2, 3), 8)
    assert table.rotate(tokens).dtype == torch.bfloat16
    assert torch.equal(table.rotate(tokens), table.rotate(tokens.float()).bfloat16())


def test_head_width_is_checked() -> None:
    with pytest.raises(ValueError, match="multiple of 4 for 2-D rotation, got 6"):
        grid_rotary(grid_positions(1, 1), 6)
    with pytest.raises(ValueError, match="multiple of 4, got 12 / 2"):
        RopePositionEmbedding(12, num_heads=2)


def embedding(**options: object) -> RopePositionEmbedding:
    return RopePositionEmbedding(16, num_heads=2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"base": None},
        {"base": None, "min_period": 0.5},
        {"base": 100.0, "min_period": 0.5, "max_period": 9.0},
    ],
)
def test_periods_have_one_origin(options: dict) -> None:
    with pytest.raises(ValueError, match="either base or both min_period and max_period"):
        embedding(**options)


def test_periods() -> None:
    assert embedding().periods.tolist() == pytest.approx([1.0, 10.0])
    ranged = embedding(base=None, min_period=0.5, max_period=8.0)
    assert ranged.periods.tolist() == pytest.approx([0.5, 8.0])


@pytest.mark.parametrize(
    ("normalize", "last"), [("separate", (0.5, 0.75)), ("max", (-0.25, 0.75)), ("min", (0.5, 2.5))]
)
def test_coordinates(normalize: str, last: tuple[float, float]) -> None:
    coords = embedding(normalize_coords=normalize).coordinates(2, 4)
    assert coords[-1].tolist() == pytest.approx(last)


def test_prefix_does_not_turn() -> None:
    table = embedding()(H=2, W=3, prefix=5)
    tokens = torch.randn(1, 2, 11, 8)
    out = table.rotate(tokens)
    assert torch.equal(out[:, :, :5], tokens[:, :, :5])
    assert torch.equal(out[:, :, 5:], embedding()(H=2, W=3).rotate(tokens[:, :, 5:]))


def test_tables_are_kept_per_size_and_follow_the_periods() -> None:
    rope = embedding()
    first = rope(H=2, W=3)
    assert rope(H=2, W=3) is first
    assert rope(H=3, W=2) is not first
    rope.load_state_dict({"periods": torch.tensor([2.0, 3.0])})
    assert not torch.equal(rope(H=2, W=3).cos, first.cos)
    for twin in (copy.deepcopy(rope), pickle.loads(pickle.dumps(rope))):
        assert torch.equal(twin(H=2, W=3).cos, rope(H=2, W=3).cos)


def test_tables_made_in_inference_mode_serve_training() -> None:
    rope = embedding()
    with torch.inference_mode():
        rope(H=2, W=2)
    tokens = torch.randn(1, 2, 4, 8, requires_grad=True)
    rope(H=2, W=2).rotate(tokens).sum().backward()
    assert tokens.grad is not None


@pytest.mark.parametrize("name", ["shift_coords", "jitter_coords", "rescale_coords"])
def test_training_draws_new_coordinates(name: str) -> None:
    rope = embedding(**{name: 2.0})
    still = rope.eval()(H=2, W=2)
    rope.train()
    assert not torch.equal(rope(H=2, W=2).cos, rope(H=2, W=2).cos)
    assert torch.equal(rope.eval()(H=2, W=2).cos, still.cos)


def test_rescaling_is_common_and_jitter_is_not() -> None:
    rope = embedding(rescale_coords=2.0)
    coords = rope.coordinates(2, 2)
    ratio = rope._augment(coords) / coords
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio))
    assert 0.5 <= float(ratio[0, 0]) <= 2.0
    ratio = embedding(jitter_coords=2.0)._augment(coords) / coords
    assert not torch.allclose(ratio[0, 0], ratio[0, 1])


def test_sincos_grid_counts_columns_first() -> None:
    table = sincos_grid(2, 3, 8)
    assert table.shape == (6, 8)
    assert table[4, :2].tolist() == pytest.approx([math.sin(1.0), math.sin(0.01)], abs=1e-6)
    assert table[4, 4:6].tolist() == pytest.approx([math.sin(1.0), math.sin(0.01)], abs=1e-6)
    assert table[2, 2:4].tolist() == pytest.approx([math.cos(2.0), math.cos(0.02)], abs=1e-6)
