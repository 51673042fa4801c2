import torch

from sightline.nn.merge import match_tokens, merging_destinations


def test_equal_tokens_come_back() -> None:
    torch.manual_seed(0)
    base = torch.randn(2, 4, 8)
    x = torch.cat((base, base[:, [2, 0]], torch.randn(2, 3, 8)), 1)
    merging = match_tokens(x, torch.arange(9) < 4, 0.4)  # two of five sources
    assert merging.kept.shape == (2, 7)
    assert merging.joined.sort(1).values.tolist() == [[4, 5]] * 2
    assert torch.allclose(merging.unmerge(merging.merge(x)), x, atol=1e-6)


def test_joined_tokens_are_averaged() -> None:
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, -5.0]]])
    merging = match_tokens(x, torch.tensor([True, True, False, False]), 0.5)
    assert merging.merge(x).tolist() == [[[2.0, 0.0], [0.0, 1.0], [0.0, -5.0]]]
    back = merging.unmerge(merging.merge(x))
    assert back.tolist() == [[[2.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, -5.0]]]


def test_destinations() -> None:
    stays = merging_destinations(2, 3, 3, 2).view(3, 8)
    assert stays[0].all()
    assert stays[1].tolist() == stays[2].tolist() == [True] * 2 + [True, False, True] + [False] * 3
