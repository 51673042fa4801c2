"""What a pass is expected to take."""

import torch

from sightline.models import load
from sightline.reconstruction.learned.memory import free_memory, memory_need


def test_the_published_network_takes_what_was_measured() -> None:
    cpu = torch.device("cpu")
    model = load("vggt_1b", False, device="meta")
    need = memory_need(model, 518, 518, cpu)
    assert round(need.weights / 1e9, 2) == 5.03
    # Four pictures of 518 x 518 and of 518 x 294 peaked at 6.47 and 6.22 GB, of which 0.37 GB were
    # there before.
    assert 6.1 < need.total(4) / 1e9 < 6.6
    assert 5.8 < memory_need(model, 294, 518, cpu).total(4) / 1e9 < 6.2
    assert need.most_frames(need.total(7)) == 7
    assert need.total(2, loaded=True) == need.total(2) - need.weights


def test_tokens_decide_and_unknown_networks_count_by_weights() -> None:
    cpu = torch.device("cpu")
    model = load("vggt_1b", False, device="meta")
    small, large = (memory_need(model, side, side, cpu).frame for side in (252, 504))
    assert 3.8 < large / small < 4.0
    plain = memory_need(torch.nn.Linear(1000, 1000), 100, 100, cpu)
    assert plain.weights == 4 * 1001 * 1000


def test_free_memory_is_told() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is None or free > 0
