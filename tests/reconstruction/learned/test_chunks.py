"""How long inputs are cut and joined."""

import itertools
import math

import pytest
import torch

from sightline.geometry.align import Similarity
from sightline.geometry.rotation import so3_exp
from sightline.reconstruction.learned.chunks import (
    Link,
    Samples,
    around,
    balance,
    central_view,
    join,
    owners,
    plan_chunks,
)


@pytest.mark.parametrize(
    ("count", "size", "overlap"), [(1, 5, 2), (5, 5, 2), (6, 5, 2), (23, 7, 3), (60, 8, 1)]
)
def test_chunks_cover_everything_and_overlap(count: int, size: int, overlap: int) -> None:
    plan = plan_chunks(count, size, overlap)
    assert {view for chunk in plan for view in chunk} == set(range(count))
    assert all(len(chunk) == min(size, count) for chunk in plan)
    for a, b in itertools.pairwise(plan):
        assert len(set(a) & set(b)) >= overlap
    owner = owners(plan, count)
    assert all(view in plan[owner[view]] for view in range(count))


def test_the_chunk_that_sees_both_sides_owns_a_view() -> None:
    plan = plan_chunks(12, 7, 2)
    assert plan == [[0, 1, 2, 3, 4, 5, 6], [5, 6, 7, 8, 9, 10, 11]]
    assert owners(plan, 12)[5:7] == [0, 1]


def test_surroundings_stay_inside_the_chunk() -> None:
    chunk = [3, 4, 5, 6, 7]
    assert around(3, chunk, 3) == [3, 4, 5]
    assert around(5, chunk, 3) == [4, 5, 6]
    assert around(7, chunk, 3) == [5, 6, 7]


def test_the_central_view_is_the_one_most_like_the_others() -> None:
    angles = torch.tensor([0.0, 0.3, 0.5, 0.9])
    assert central_view(torch.stack([angles.cos(), angles.sin()], -1)) == 2


def similarity(turn: float, scale: float, shift: float) -> Similarity:
    vector = torch.tensor([0.0, turn, 0.0], dtype=torch.float64)
    return Similarity(
        scale=torch.tensor(scale, dtype=torch.float64),
        rotation=so3_exp(vector),
        translation=torch.tensor([shift, 0.1, 0.0], dtype=torch.float64),
    )


def test_join_bears_wrong_points_and_refuses_nonsense() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(4, 100, 3, generator=generator, dtype=torch.float64)
    true = similarity(0.4, 1.7, 2.0)
    moved = true.scale * points @ true.rotation.mT + true.translation
    wrong = torch.rand(4, 100, generator=generator) < 0.2
    moved[wrong] += 5 * torch.randn(int(wrong.sum()), 3, generator=generator).double()
    points[0, :10] = torch.nan
    ones = torch.ones(4, 100, dtype=torch.float64)
    source, target = Samples(points=points, weights=ones), Samples(points=moved, weights=ones)
    rows = [(i, i) for i in range(4)]
    found = join(target, source, rows, 0)
    assert found is not None
    torch.testing.assert_close(found.matrix, true.matrix, atol=1e-6, rtol=0)
    other = Samples(points=torch.randn(4, 100, 3, generator=generator).double(), weights=ones)
    assert join(target, other, rows, 0) is None


def ring(count: int, drift: float) -> tuple[list[Similarity], list[Link]]:
    """Chunks around a circle; every link turns a little too far, and grows a little."""
    step = similarity(2 * math.pi / count, 1.0, 1.0)
    places = [similarity(0.0, 1.0, 0.0)]
    places[0] = places[0] @ places[0].inverse()
    for _ in range(count - 1):
        places.append(places[-1] @ step)
    bent = step @ similarity(drift, 1 + drift, 0.0)
    bent = Similarity(scale=bent.scale, rotation=bent.rotation, translation=step.translation)
    links = [Link(target=i, source=i + 1, similarity=bent) for i in range(count - 1)]
    return places, links


def miss(found: Similarity | None, true: Similarity) -> float:
    assert found is not None
    return float((found.translation - true.translation).norm())


def test_a_loop_takes_out_most_of_the_drift() -> None:
    places, links = ring(12, 0.01)
    loop = Link(target=0, source=11, similarity=places[0].inverse() @ places[11])
    opened, closed = balance(12, links), balance(12, [*links, loop])
    assert miss(opened[11], places[11]) > 0.3
    assert miss(closed[11], places[11]) < 0.25 * miss(opened[11], places[11])
    assert miss(closed[6], places[6]) < miss(opened[6], places[6])


def test_chunks_without_links_are_left_out_and_loops_bridge_gaps() -> None:
    places, links = ring(5, 0.0)
    assert [p is None for p in balance(5, links[:2])] == [False, False, False, True, True]
    bridge = Link(target=0, source=4, similarity=places[0].inverse() @ places[4])
    found = balance(5, [*links[:1], *links[2:], bridge])
    for place, true in zip(found, places, strict=True):
        assert miss(place, true) < 1e-9
