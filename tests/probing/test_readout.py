import pytest
import torch

from sightline.probing.protocols import HEADS
from sightline.probing.readout import WIDTHS, Readout, gaussians_from
from sightline.probing.tokens import TokenGrid, even_placement, make_grid


def tokens(views: int = 2, channels: int = 12) -> TokenGrid:
    maps = torch.randn(views, channels, 3, 4)
    return make_grid(maps, even_placement((24, 32), (3, 4)))


def readout(width: int, hidden: int = 16, names: tuple[str, ...] = HEADS) -> Readout:
    return Readout(names, width, hidden, torch.Generator().manual_seed(3))


def test_token_grid_equals_per_pixel() -> None:
    grid = tokens()
    net = readout(12)
    fast = net(grid)
    slow = net.per_pixel(grid.at_pixels())
    assert set(fast) == set(HEADS)
    for name in HEADS:
        assert fast[name].shape == (2, 24, 32, WIDTHS[name])
        assert (fast[name] - slow[name]).abs().max() < 1e-5, name


@pytest.mark.parametrize("is_pixels", [False, True])
def test_gradients_equal_those_of_the_reference(is_pixels: bool) -> None:
    grid = tokens()
    if is_pixels:
        grid = make_grid(
            torch.randn(2, 6, 24, 32), even_placement((24, 32), (24, 32)), is_pixels=True
        )
    net = readout(grid.width)
    weights = {name: torch.randn(2, 24, 32, WIDTHS[name]) for name in HEADS}

    def gradients(values: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        net.zero_grad()
        sum((values[name] * weights[name]).sum() for name in HEADS).backward()
        return [p.grad.clone() for p in net.parameters()]

    for fast, slow in zip(
        gradients(net(grid)), gradients(net.per_pixel(grid.at_pixels())), strict=True
    ):
        torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-3)


def test_published_names_and_sizes() -> None:
    def count(names: tuple[str, ...], width: int, hidden: int) -> int:
        return sum(p.numel() for p in readout(width, hidden, names).parameters())

    # Feat2GS: 265,995 (G), 143,920 (T), 409,915 (A), and 245 for IUVRGB with 6 hidden units.
    assert count(HEADS[:4], 256, 256) == 265_995
    assert count(HEADS[4:], 256, 256) == 143_920
    assert count(HEADS, 256, 256) == 409_915
    assert count(HEADS[:4], 6, 6) == 245
    state = readout(12).state_dict()
    assert "head_xyz.mlp_warp.0.weight" in state
    assert state["head_f_rest.mlp_warp.1.bias"].shape == (45,)


def test_initial_weights_follow_the_seed_and_torch_defaults() -> None:
    one, two = readout(12), readout(12)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    bound = 12**-0.5
    first = one.head("xyz").first().weight
    assert first.abs().max() <= bound
    assert first.abs().max() > 0.9 * bound


def test_f_rest_sends_no_gradient_to_features() -> None:
    features = torch.randn(5, 12, requires_grad=True)
    out = readout(12, names=("f_rest",)).per_pixel(features)["f_rest"]
    out.sum().backward()
    assert features.grad is None


def test_raw_values_are_activated_once() -> None:
    raw = {name: torch.zeros(2, WIDTHS[name]) for name in HEADS}
    raw["f_rest"] = torch.arange(90.0).view(2, 45)
    out = gaussians_from(raw)
    assert torch.equal(out["scales"], torch.ones(2, 3))
    assert torch.equal(out["opacities"], torch.full((2,), 0.5))
    # Colour is the fastest axis of f_rest.
    assert out["colors"].shape == (2, 16, 3)
    assert out["colors"][0, 1].tolist() == [0.0, 1.0, 2.0]
